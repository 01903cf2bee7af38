"""An ONNX file as a torch module with gradients: of a float file the same function, of an int8 file a twin with straight-through gradients.

It is there to attack files that kdpipe did not make. It is believed only after its answers have been held against the runtime's (`agreement`): an
interpreter may differ from a runtime in what the operator specification leaves open. A last Softmax is left out: its input is the logits, its output
would hide the gradient where the model is sure. Why not a converter: docs/decisions/foreign-onnx-files.md.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, numpy_helper
from torch import Tensor, nn

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.onnx_twin.operators import OPERATORS, Operator
from kdpipe.foundation.onnx_twin.quantized import QUANTIZED
from kdpipe.foundation.predictor import Float32Array

AGREED_SHARE = 0.98
"""Samples near the border are decided by the last bits: int8 files and their twins differ there."""

_DOMAINS = {"", "ai.onnx", "com.microsoft"}
_SEVERAL = {"Split", "DynamicQuantizeLinear"}
"""Operators of more than one output that are used as such; of all others only the first output may be used."""


class OnnxTwin(nn.Module):
    """The file's graph, node by node. `forward`: the file's first input, (batch, *shape), to its first output.

    Raises ConfigError when it has operators that are not known here, or control flow; integer constants keep their type, floats are float32.
    """

    def __init__(self, model: ModelProto, *, at: str) -> None:
        super().__init__()
        graph = model.graph
        _require_known(graph.node, at)
        given = {value.name for value in graph.initializer}
        inputs = [value.name for value in graph.input if value.name not in given]
        if len(inputs) != 1:
            raise ConfigError(f"the file takes {len(inputs)} inputs: {', '.join(inputs)}", at=at, do="export the network alone, from one batch to the logits")
        last = next((node for node in graph.node if graph.output[0].name in node.output), None)
        self.input, self.output = inputs[0], graph.output[0].name
        if last is not None and last.op_type in ("Softmax", "LogSoftmax"):
            self.output = last.input[0]
        constants = {value.name: _tensor(value) for value in graph.initializer}
        self._nodes: list[_Node] = []
        for node in graph.node:
            if node.op_type == "Constant":
                constants[node.output[0]] = _constant(node)
            else:
                self._nodes.append(_Node(node))
        self._names = list(constants)
        for number, name in enumerate(self._names):
            self.register_buffer(f"constant_{number}", constants[name])
        self._fold_()

    def forward(self, x: Tensor) -> Tensor:
        """The logits. Raises ConfigError where an operator is used in a way that has no differentiable form here."""
        values = {"": None, self.input: x, **self._constants()}
        for node in self._nodes:
            node.run_(values)
        result = values[self.output]
        assert result is not None
        return result

    def _constants(self) -> dict[str, Tensor]:
        return {name: getattr(self, f"constant_{number}") for number, name in enumerate(self._names)}

    def _fold_(self) -> None:
        """Nodes that only constants reach are computed once: an int8 file dequantizes its weights in every call otherwise."""
        values: dict[str, Tensor | None] = {"": None, **self._constants()}
        left = []
        with torch.no_grad():
            for node in self._nodes:
                if all(name in values for name in node.inputs):
                    node.run_(values)
                    for name in node.outputs:
                        value = values[name]
                        assert value is not None
                        self.register_buffer(f"constant_{len(self._names)}", value)
                        self._names.append(name)
                else:
                    left.append(node)
        self._nodes = left


@dataclass(frozen=True)
class Agreement:
    """How alike a twin and its file answered `n` samples.

    `same_share` in [0, 1]: equal classes; `largest`: the largest difference over the spread of the file's answers.
    """

    n: int
    same_share: float
    largest: float

    @property
    def holds(self) -> bool:
        """Whether attacks on the twin say something of the file."""
        return self.same_share >= AGREED_SHARE


def agreement(twin: nn.Module, x: Float32Array, answers: Float32Array) -> Agreement:
    """The twin held against the file's `answers` to `x`; NaN agrees with nothing."""
    with torch.no_grad():
        ours = twin(torch.from_numpy(np.ascontiguousarray(x))).numpy()
    if ours.shape != answers.shape or not np.isfinite(ours).all():
        return Agreement(len(x), 0.0, float("inf"))
    spread = float(answers.std()) or 1.0
    return Agreement(len(x), float((ours.argmax(axis=1) == answers.argmax(axis=1)).mean()), float(np.abs(ours - answers).max()) / spread)


class _Node:
    """One node: its operator with its attributes, ready to run."""

    def __init__(self, node: NodeProto) -> None:
        self.name = node.name or f"{node.op_type} -> {node.output[0]}"
        self.kind = node.op_type
        self.inputs, self.outputs = list(node.input), [name for name in node.output if name]
        self.attributes = {attribute.name: _attribute(attribute) for attribute in node.attribute}
        self.operator: Operator | None = _operators().get(node.op_type)

    def run_(self, values: dict[str, Tensor | None]) -> None:
        """Put the node's outputs into `values`."""
        inputs = [values[name] for name in self.inputs]
        if self.kind == "Split":
            values.update(zip(self.outputs, _split(self.attributes, len(self.outputs), *inputs), strict=True))
        elif self.kind == "DynamicQuantizeLinear":
            assert inputs[0] is not None
            values.update(zip(self.outputs, _dynamically_quantized(inputs[0]), strict=True))
        else:
            assert self.operator is not None
            try:
                values[self.outputs[0]] = self.operator(self.attributes, *inputs)
            except (NotImplementedError, RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
                raise ConfigError(
                    f"no differentiable form here of {self.kind}: {' '.join(str(error).split())[:200]}",
                    at=self.name,
                    do="attack a surrogate, or the file without gradients",
                ) from error


def _operators() -> Mapping[str, Operator]:
    return {**OPERATORS, **QUANTIZED}


def _require_known(nodes: Any, at: str) -> None:
    known = {*_operators(), *_SEVERAL, "Constant"}
    strange = Counter(node.op_type for node in nodes if node.op_type not in known or node.domain not in _DOMAINS)
    used = {name for node in nodes for name in node.input}
    strange += Counter(
        f"{node.op_type} with {len(node.output)} outputs" for node in nodes if node.op_type not in _SEVERAL and any(name in used for name in node.output[1:])
    )
    if strange:
        told = ", ".join(f"{name} ({number})" for name, number in sorted(strange.items()))
        raise ConfigError(f"operators without a differentiable form here: {told}", at=at, do="attack a surrogate, or the file without gradients")


def _split(attributes: Mapping[str, Any], number: int, x: Tensor | None, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    assert x is not None
    axis = attributes.get("axis", 0)
    lengths = sizes.tolist() if sizes is not None else attributes.get("split") or -(-x.shape[axis] // number)
    return torch.split(x, lengths, dim=axis)


def _dynamically_quantized(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """DynamicQuantizeLinear: uint8 over the batch's own range; straight through, as if the range did not depend on `x`."""
    low, high = x.detach().amin().clamp(max=0.0), x.detach().amax().clamp(min=0.0)
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    zero_point = torch.round(-low / scale).clamp(0, 255).to(torch.uint8)
    return QUANTIZED["QuantizeLinear"]({}, x, scale, zero_point), scale, zero_point


def _constant(node: NodeProto) -> Tensor:
    (attribute,) = node.attribute
    value = _attribute(attribute)
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float32 if attribute.name.startswith("value_float") else torch.int64)


def _attribute(attribute: Any) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return _tensor(value)
    if isinstance(value, bytes):
        return value.decode()
    return value


def _tensor(value: onnx.TensorProto) -> Tensor:
    array = numpy_helper.to_array(value)
    if array.dtype in (np.float16, np.float64):
        array = array.astype(np.float32)
    return torch.from_numpy(np.array(array))  # a copy: the file's own memory cannot be written
