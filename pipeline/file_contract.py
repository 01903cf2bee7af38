"""What an ONNX file does not say of itself: the range of its input's values, and which class each output stands for.

kdpipe writes it beside its own files as contract.json. For a file from elsewhere somebody has to; here it is read, held against the graph and the data,
and made into what turns the data's samples into the file's input.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, TensorProto
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor, nn

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.predictor import Float32Array, Predictor

CONTRACT_FILE = "contract.json"

_SMALLEST = float(np.finfo(np.float32).tiny)
_SUM_TOLERANCE = 1e-3


class InputEntry(BaseModel, extra="ignore", frozen=True):
    """The file's input. `low`, `high`: what the data's 0 and 1 are in it; `mean`, `std`: by channel, in that range, where the file wants it normalised."""

    shape: tuple[int | str, ...] = Field(min_length=2)
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class FileContract(BaseModel, extra="ignore", frozen=True):
    """contract.json, as far as an evaluation needs it."""

    inputs: tuple[InputEntry] = Field(description="exactly one")
    labels: tuple[str, ...] = Field(min_length=2)


def read_file_contract(model: Path, graph: ModelProto, given: Path | None, classes: Sequence[str]) -> FileContract:
    """The contract at `given`, else beside the file. Raises ConfigError with one that can be filled in where there is none, or it is not one."""
    path = given or model.with_name(CONTRACT_FILE)
    draft = json.dumps(_draft(graph, classes))
    if not path.is_file():
        raise ConfigError(
            "the file has no contract: an ONNX file does not say what range its input has, nor which class each of its outputs stands for",
            at=path,
            do=f"write one there, or name one with --contract; for this file, with the values that are true: {draft}",
        )
    try:
        return FileContract.model_validate_json(path.read_bytes())
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'the file'}: {fault['msg']}" for fault in error.errors())
        raise ConfigError(f"the contract cannot be used: {faults}", at=path, do=f"for instance {draft}") from error


def require_same_classes(labels: Sequence[str], classes: Sequence[str], at: Path) -> None:
    """ConfigError where the outputs do not stand for the data's classes, in their order."""
    if tuple(labels) == tuple(classes):
        return
    if sorted(labels) == sorted(classes):
        raise ConfigError(
            f"the model has the data's classes in another order: {_few(labels)}; the data: {_few(classes)}",
            at=at,
            do="name the data's classes in the model's order ([task] classes), or mend the contract",
        )
    raise ConfigError(
        f"the model's {len(labels)} classes are not the data's {len(classes)}: {_few(labels)}; the data: {_few(classes)}",
        at=at,
        do="evaluate it on data of the same classes, or mend the labels of the contract where only the names differ",
    )


@dataclass(frozen=True)
class Adapter:
    """From the data's samples, (n, channels, height, width) in [0, 1], to the file's input: `x * factor + shift`, channels last where it wants them so."""

    factor: tuple[float, ...]
    shift: tuple[float, ...]
    channels_last: bool

    @property
    def changes_nothing(self) -> bool:
        """Whether the file takes the samples as they are: as the files of kdpipe do."""
        return set(self.factor) == {1.0} and set(self.shift) == {0.0} and not self.channels_last

    def array(self, x: Float32Array) -> Float32Array:
        """The file's input as an array."""
        if self.changes_nothing:
            return x
        sides = (1, -1, *(1,) * (x.ndim - 2))
        moved: Float32Array = x * np.array(self.factor, np.float32).reshape(sides) + np.array(self.shift, np.float32).reshape(sides)
        return np.ascontiguousarray(np.moveaxis(moved, 1, -1)) if self.channels_last else moved

    def tensor(self, x: Tensor) -> Tensor:
        """The same as a tensor, with gradients."""
        if self.changes_nothing:
            return x
        sides = (1, -1, *(1,) * (x.dim() - 2))
        moved = x * torch.tensor(self.factor, dtype=x.dtype).reshape(sides) + torch.tensor(self.shift, dtype=x.dtype).reshape(sides)
        return moved.movedim(1, -1) if self.channels_last else moved


def adapter_for(contract: FileContract, graph: ModelProto, shape: tuple[int, ...], at: Path) -> Adapter:
    """How the data's samples of `shape` become the file's input; ConfigError where its shape or its type is another."""
    entry = contract.inputs[0]
    kind, wanted = _input_of(graph)
    if kind != TensorProto.FLOAT:
        raise ConfigError(
            f"the file takes {TensorProto.DataType.Name(kind).lower()}, an evaluation gives float32", at=at, do="export the network with a float32 input"
        )
    channels_last = not _fits(wanted, shape) and _fits(wanted, (*shape[1:], shape[0]))
    if not _fits(wanted, shape) and not channels_last:
        raise ConfigError(f"the file takes samples of shape {_told(wanted)}, the data's are {shape}", at=at, do="evaluate it on data of its own shape")
    mean, std = entry.mean or (0.0,), entry.std or (1.0,)
    if any(len(values) not in (1, shape[0]) for values in (mean, std)) or any(value <= 0 for value in std):
        raise ConfigError(f"mean and std need one value > 0 each for {shape[0]} channels: {mean}, {std}", at=at, do="mend the contract")
    channels = max(len(mean), len(std))
    means, stds = (values * channels if len(values) == 1 else values for values in (mean, std))
    factor = tuple((entry.high - entry.low) / one for one in stds)
    return Adapter(factor, tuple((entry.low - middle) / one for middle, one in zip(means, stds, strict=True)), channels_last)


class AdaptedPredictor:
    """A file in a runtime, asked with the data's samples. Where it answers probabilities, their logarithms are its logits: softmax gives them back."""

    def __init__(self, session: Predictor, adapter: Adapter) -> None:
        self.session, self.adapter = session, adapter
        self.probabilities: bool | None = None

    def __call__(self, batch: Float32Array) -> Float32Array:
        """The logits."""
        answers = self.session(self.adapter.array(batch))
        if self.probabilities is None:
            self.probabilities = _are_probabilities(answers)
        logits: Float32Array = np.log(np.maximum(answers, _SMALLEST)).astype(np.float32) if self.probabilities else answers
        return logits


class AdaptedTwin(nn.Module):
    """The differentiable twin of a file, asked with the data's samples."""

    def __init__(self, twin: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.twin, self.adapter = twin, adapter

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.twin(self.adapter.tensor(x))
        return logits


def _are_probabilities(answers: Float32Array) -> bool:
    rows = answers.astype(np.float64)
    return bool(rows.ndim == 2 and (rows >= 0).all() and (np.abs(rows.sum(axis=1) - 1) < _SUM_TOLERANCE).all())


def _draft(graph: ModelProto, classes: Sequence[str]) -> dict[str, Any]:
    _, wanted = _input_of(graph)
    shape = ["batch", *("?" if side is None else side for side in wanted)]
    return {"inputs": [{"shape": shape, "low": 0.0, "high": 1.0}], "labels": list(classes)}


def _input_of(graph: ModelProto) -> tuple[int, tuple[int | None, ...]]:
    """The element type of the file's first real input, and its shape without the batch; None where a side is free."""
    given = {value.name for value in graph.graph.initializer}
    first = next((value for value in graph.graph.input if value.name not in given), None)
    if first is None:
        raise ConfigError("the file takes no input", at=graph.graph.name or "the graph", do="export the network with its input")
    tensor = first.type.tensor_type
    return tensor.elem_type, tuple(side.dim_value if side.HasField("dim_value") else None for side in list(tensor.shape.dim)[1:])


def _fits(wanted: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    return len(wanted) == len(shape) and all(side in (None, own) for side, own in zip(wanted, shape, strict=True))


def _told(sides: tuple[int | None, ...]) -> str:
    return f"({', '.join('any' if side is None else str(side) for side in sides)})"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
