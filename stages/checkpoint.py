"""Checkpoints of a training: whole or not there, checked by digest when read, without pickle.

One checkpoint is two files: `epoch-0007.safetensors` with all tensors and `epoch-0007.json` with everything else and the
tensors' sha256. The JSON is written last, so a checkpoint counts only once both are on the disk; the two newest are kept.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from kdpipe.foundation.files import canonical_json, sha256_of, told_disk_errors, write_bytes, write_json

_KEPT = 2
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """`done`: finished epochs. `tensors`: by slash-separated name. `facts`: a JSON object."""

    done: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of one training in `folder`; `identity` is a digest of all that determines the training."""

    folder: Path
    identity: str

    def write(self, checkpoint: Checkpoint) -> None:
        """Add a checkpoint and drop the ones before the previous; raises UnavailableError when the disk refuses."""
        with told_disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        path = self._json(checkpoint.done)
        tensors = save({name: value.detach().cpu().contiguous().clone() for name, value in sorted(checkpoint.tensors.items())})
        write_bytes(path.with_suffix(".safetensors"), tensors)
        body = {"identity": self.identity, "done": checkpoint.done, "tensors": hashlib.sha256(tensors).hexdigest(), "facts": dict(checkpoint.facts)}
        write_json(path, {**body, "digest": _digest(body)})
        for old in self._paths()[:-_KEPT]:
            old.unlink()
            old.with_suffix(".safetensors").unlink(missing_ok=True)

    def newest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that is whole and of this training, or None; each one that is passed over is told through `say`."""
        for path in reversed(self._paths()):
            problem, checkpoint = self._read(path)
            if checkpoint is not None:
                return checkpoint
            say(f"checkpoint {path.name} is not used: {problem}; going back to the one before it, or to the start")
        return None

    def _read(self, path: Path) -> tuple[str, Checkpoint | None]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            body = {name: content[name] for name in ("identity", "done", "tensors", "facts")}
            if content["digest"] != _digest(body):
                return "its description is damaged", None
            if body["identity"] != self.identity:
                return "it is of another training", None
            tensors = path.with_suffix(".safetensors")
            if sha256_of(tensors) != body["tensors"]:
                return "its tensors are damaged", None
            return "", Checkpoint(body["done"], load(tensors.read_bytes()), body["facts"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            _log.info("unreadable checkpoint %s: %s", path, error)
            return f"it cannot be read ({type(error).__name__})", None

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("epoch-*.json"))

    def _json(self, done: int) -> Path:
        return self.folder / f"epoch-{done:06}.json"


def remove_checkpoints(folder: Path) -> None:
    """Drop a finished stage's checkpoints, of all its trainings."""
    with told_disk_errors(folder):
        if folder.is_dir():
            shutil.rmtree(folder)


def state_of(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """The module's whole state, copied, under `prefix/`."""
    return {f"{prefix}/{name}": value.detach().clone() for name, value in module.state_dict().items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under `prefix/`, without it."""
    return {name.removeprefix(f"{prefix}/"): value for name, value in tensors.items() if name.startswith(f"{prefix}/")}


def optimizer_state(prefix: str, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors under `prefix/<number of the parameter>/<name>`; its settings are not state, they come from the configuration."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"{prefix}/{number}/{name}": value.detach().clone()
        for number, parameter in enumerate(parameters)
        for name, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_state_(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_state` gave, without its prefix; in each parameter's own memory format, so that arithmetic goes on bit by bit."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for path, value in tensors.items():
        number, _, name = path.partition("/")
        parameter = parameters[int(number)]
        home = (
            torch.empty_like(parameter, requires_grad=False) if value.shape == parameter.shape and value.dtype == parameter.dtype else torch.empty_like(value)
        )
        optimizer.state[parameter][name] = home.copy_(value)


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body)).hexdigest()
