"""The network format: a model that can be rebuilt exactly, without pickle.

A folder holds `network.json` (factory and arguments, input contract, pruning plan, quantization plan) and
`weights.safetensors`. Normalisation is the first layer, so that the input is the raw value range.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, Field, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kdpipe.foundation.errors import ConfigError, VerificationError
from kdpipe.foundation.files import write_bytes, write_text
from kdpipe.foundation.normalize import Normalized as Normalized
from kdpipe.foundation.plugins import imported
from kdpipe.foundation.pruning import PruningPlan, replay_
from kdpipe.foundation.quantization.engine import twin_of
from kdpipe.foundation.quantization.scheme import QuantizationPlan
from kdpipe.foundation.randomness import lent_to_torch

SPEC_FILE = "network.json"
WEIGHTS_FILE = "weights.safetensors"


class InputContract(BaseModel, extra="forbid", frozen=True):
    """What the network takes: one float32 sample's shape (images: channels, height, width), its value range, its labels."""

    shape: tuple[int, ...]
    low: float = 0.0
    high: float = 1.0
    labels: tuple[str, ...] = Field(min_length=2)


class NetworkSpec(BaseModel, extra="forbid", frozen=True):
    """All that rebuilds a network but its weights.

    `factory`: `package.module:name`, called with `arguments`; it returns an `nn.Module` from (batch, *shape) to
    (batch, classes). `mean`, `std`: per channel, in the raw value range.
    """

    factory: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    contract: InputContract
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pruning: PruningPlan | None = None
    quantization: QuantizationPlan | None = None


@dataclass(frozen=True)
class Network:
    """A network and what rebuilds it. `module` takes the raw value range, (batch, *shape) to logits (batch, classes)."""

    spec: NetworkSpec
    module: nn.Module


def build_network(spec: NetworkSpec, generator: torch.Generator, *, at: str = "the network's factory") -> Network:
    """A fresh network, its initial weights drawn from `generator`; float32, training mode.

    Raises ConfigError when the factory cannot be imported or called, or returns another shape than (batch, classes).
    """
    module = _built(spec, generator, at=at)
    if spec.pruning is not None:
        replay_(module, spec.pruning)
    if spec.quantization is not None:
        module = twin_of(module, spec.quantization)
    return Network(spec, module)


def save_network(network: Network, folder: Path) -> Path:
    """Write the network into `folder` (made if missing), each file whole or not at all; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous().clone() for name, value in network.module.state_dict().items()}
    write_bytes(folder / WEIGHTS_FILE, save(state))
    write_text(folder / SPEC_FILE, network.spec.model_dump_json(indent=2) + "\n")
    return folder


def load_network(folder: Path) -> Network:
    """The network that `save_network` wrote: same outputs bit for bit; evaluation mode.

    Raises ConfigError when a file is missing or the weights do not fit, VerificationError when one is damaged.
    """
    spec = load_spec(folder)
    network = build_network(spec, torch.Generator().manual_seed(0), at=str(folder / SPEC_FILE))
    load_weights_(network.module, folder / WEIGHTS_FILE)
    network.module.eval()
    return network


def load_spec(folder: Path) -> NetworkSpec:
    """The description alone, without building anything."""
    path = folder / SPEC_FILE
    if not path.is_file():
        raise ConfigError("no network here", at=path, do="name a folder with network.json and weights.safetensors")
    try:
        return NetworkSpec.model_validate(json.loads(path.read_text()))
    except (ValueError, ValidationError) as error:
        raise VerificationError(f"network description cannot be read: {error}", at=path, do="delete the folder and build again") from error


def load_weights_(module: nn.Module, path: Path) -> None:
    """Put the safetensors file's tensors into `module`; every name and shape must fit, else ConfigError names the first that does not.

    Weights that were trained outside fit as well: names without the leading `body.`, BatchNorm without its count of batches.
    """
    if not path.is_file():
        raise ConfigError("no weights here", at=path, do="give the path of a .safetensors file")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise VerificationError(f"weights cannot be read: {error}", at=path, do="copy or build the file again") from error
    own = module.state_dict()
    state = _adopted(state, own)
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    misshapen = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    if missing or unexpected or misshapen:
        facts = [f"{len(missing)} missing (first: {missing[0]})"] if missing else []
        facts += [f"{len(unexpected)} not in the network (first: {unexpected[0]})"] if unexpected else []
        facts += [f"{name} is {tuple(state[name].shape)}, the network has {tuple(own[name].shape)}" for name in sorted(misshapen)[:1]]
        raise ConfigError(f"weights do not fit the network: {'; '.join(facts)}", at=path, do="name the network that these weights were trained with")
    module.load_state_dict(state)


def _adopted(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` under the names of `own`: a bare network's tensors get the prefix of `Normalized`, and counts of batches start at 0."""
    if all(name.startswith("body.") for name in own) and not any(name.startswith("body.") for name in state):
        state = {f"body.{name}": value for name, value in state.items()}
    counts = {name: torch.zeros_like(value) for name, value in own.items() if name.endswith(".num_batches_tracked")}
    return {**counts, **state}


def _built(spec: NetworkSpec, generator: torch.Generator, *, at: str) -> nn.Module:
    factory = imported(spec.factory, at=at)
    try:
        with lent_to_torch(generator):
            body = factory(**spec.arguments)
    except Exception as error:  # a user's factory may raise anything
        raise ConfigError(
            f"the factory {spec.factory!r} failed: {type(error).__name__}: {error}", at=at, do=f"call it with {spec.arguments} yourself and mend it"
        ) from error
    if not isinstance(body, nn.Module):
        raise ConfigError(f"the factory {spec.factory!r} returned {type(body).__name__}, not an nn.Module", at=at, do="return the network")
    module = Normalized(body, spec.mean, spec.std, len(spec.contract.shape), spec.contract.low, spec.contract.high)
    _require_logits(module, spec, at=at)
    return module


def _require_logits(module: nn.Module, spec: NetworkSpec, *, at: str) -> None:
    expected = (2, len(spec.contract.labels))
    module.eval()
    try:
        with torch.no_grad():
            result = module(torch.zeros(2, *spec.contract.shape))
    except Exception as error:  # a user's network may raise anything
        raise ConfigError(
            f"the network {spec.factory!r} cannot take an input of shape {(2, *spec.contract.shape)}: {type(error).__name__}: {error}",
            at=at,
            do="make it accept the data's shape",
        ) from error
    finally:
        module.train()
    if not isinstance(result, Tensor) or tuple(result.shape) != expected:
        got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ConfigError(f"the network {spec.factory!r} returns {got}, {expected} is needed: (batch, classes)", at=at, do="return one tensor of logits")
