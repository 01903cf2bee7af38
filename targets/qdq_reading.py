"""Why a node of an ONNX file with Q/DQ cannot run in int8: read from the file alone, before any runtime saw it.

A runtime takes an operator and the Q/DQ around it for one integer kernel where all its activations come from a
DequantizeLinear, its result goes into a QuantizeLinear only (through a ReLU that the quantizer's zero point already does), and
each activation has one scale. What breaks this at one place keeps the neighbours in float as well: they get the reason of that place.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import numpy_helper

from kdpipe.targets.measurements import Cause

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
CARRIERS = frozenset(
    {"Transpose", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "MaxPool", "Slice", "Gather", "Identity", "Pad", "Split", "Resize", "Dropout", "DepthToSpace"}
)
_CLAMPS = frozenset({"Relu", "Clip"})
_JOINS = frozenset({"Add", "Sub", "Sum", "Mul", "Concat"})
_LOWEST = {"uint8": 0, "int8": -128}


@dataclass(frozen=True)
class Reason:
    """Why a node stays in float; `because`: the node where it begins, which may be itself."""

    cause: Cause
    because: str


@dataclass
class Reading:
    """An ONNX graph by its values: who makes them, who takes them, what is constant."""

    nodes: list[Any]
    outputs: frozenset[str]
    constants: Mapping[str, Any]
    producer: dict[str, Any] = field(default_factory=dict)
    users: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def quantized(self) -> bool:
        """Whether there is any QuantizeLinear on an activation."""
        return any(node.op_type == "QuantizeLinear" for node in self.nodes)


def reading(model: Any) -> Reading:
    """The graph of an `onnx.ModelProto`."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {node.output[0]: attribute.t for node in graph.node if node.op_type == "Constant" for attribute in node.attribute if attribute.name == "value"}
    read = Reading([node for node in graph.node if node.op_type != "Constant"], frozenset(value.name for value in graph.output), constants)
    for node in read.nodes:
        read.producer.update(dict.fromkeys(node.output, node))
        for value in node.input:
            read.users.setdefault(value, []).append(node)
    return read


def reasons(read: Reading) -> dict[str, Reason]:
    """By node name: why it stays in float, for every operator that does; Q/DQ nodes beside it get its reason. Nodes without a name are left out."""
    found: dict[str, Reason] = {}
    for node in read.nodes:  # in topological order, so that what is upstream is known
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") or _constant(read, node) or node.op_type in CARRIERS:
            continue
        reason = _reason(read, node, found)
        if reason is not None and node.name:
            found[node.name] = reason
    for node in read.nodes:
        beside = _neighbours(read, node) if node.op_type in ("QuantizeLinear", "DequantizeLinear") else []
        known = [found[name] for name in beside if name in found]
        if known and node.name:
            found.setdefault(node.name, known[0])
    return found


def _reason(read: Reading, node: Any, found: Mapping[str, Reason]) -> Reason | None:
    own = node.name or node.op_type
    activations = [value for value in node.input if value and not _is_constant(read, value)]
    sources = [source_of(read, value) for value in activations]
    dequantized = [source is not None and source.op_type == "DequantizeLinear" for source in sources]
    quantizers, others = _takers(read, node)
    if not read.quantized:
        weights = [read.producer.get(value) for value in node.input]
        only = node.op_type in LAYERS and any(it is not None and it.op_type == "DequantizeLinear" for it in weights)
        return Reason("weights-only" if only else "not-quantized", own)
    if any(_per_channel(read, it) for it in [*quantizers, *(source for source, is_dq in zip(sources, dequantized, strict=True) if is_dq)]):
        return Reason("per-channel-activation", own)
    if node.op_type in _JOINS and len(activations) > 1:
        if not all(dequantized) or not (quantizers or others):
            return Reason("residual-add", own)
        return _from_downstream(read, node, others) if others else None
    if node.op_type in _CLAMPS:
        return _of_clamp(read, node, sources[0] if sources else None, quantizers, found)
    if not all(dequantized):
        return _from_upstream([source for source, is_dq in zip(sources, dequantized, strict=True) if not is_dq], found) or Reason("not-quantized", own)
    if others:
        return _from_downstream(read, node, others)
    if not quantizers:
        return Reason("float-output", own)
    if node.op_type not in LAYERS:
        return Reason("float-operator", own)
    return None


def _of_clamp(read: Reading, node: Any, source: Any, quantizers: list[Any], found: Mapping[str, Reason]) -> Reason | None:
    """A ReLU belongs to the layer before it and the quantizer behind it, where neither stands between."""
    own = node.name or node.op_type
    if source is not None and source.op_type == "DequantizeLinear":
        return Reason("split-activation", own)
    if source is not None and source.name in found:
        return found[source.name]
    if quantizers and all(_does_relu(read, it) for it in quantizers):
        return None
    return Reason("split-activation" if quantizers else "not-quantized", own)


def _from_upstream(sources: list[Any], found: Mapping[str, Reason]) -> Reason | None:
    for source in sources:
        if source is not None and source.name in found:
            return found[source.name]
        if source is not None and source.op_type in _JOINS:
            return Reason("residual-add", source.name or source.op_type)
        if source is not None and source.op_type not in (*LAYERS, *_CLAMPS):
            return Reason("float-operator", source.name or source.op_type)
    return None


def _from_downstream(read: Reading, node: Any, others: list[Any]) -> Reason | None:
    """Of a node whose result is taken by something else than a quantizer."""
    for taker in others:
        if taker.op_type in _CLAMPS:
            quantizers, _ = _takers(read, taker)
            if not quantizers:
                return Reason("residual-add" if node.op_type in _JOINS else "float-output", node.name or node.op_type)
            if not all(_does_relu(read, it) for it in quantizers):
                return Reason("split-activation", taker.name or taker.op_type)
            continue
        if taker.op_type in _JOINS or node.op_type in _JOINS:
            return Reason("residual-add", (taker if taker.op_type in _JOINS else node).name or node.op_type)
        return Reason("float-operator", taker.name or taker.op_type)
    return None if all(taker.op_type in _CLAMPS for taker in others) else Reason("run-in-float", node.name or node.op_type)


def _takers(read: Reading, node: Any) -> tuple[list[Any], list[Any]]:
    """Who takes a node's result, carriers looked through: quantizers, and others."""
    quantizers: list[Any] = []
    others: list[Any] = []
    for taker in takers_of(read, node):
        (quantizers if taker.op_type == "QuantizeLinear" else others).append(taker)
    return quantizers, others


def takers_of(read: Reading, node: Any, passed: Collection[str] = CARRIERS) -> Iterator[Any]:
    """Who takes a node's results, operators of the types `passed` looked through."""
    for value in node.output:
        for taker in read.users.get(value, []):
            if taker.op_type in passed:
                yield from takers_of(read, taker, passed)
            else:
                yield taker


def source_of(read: Reading, value: str, passed: Collection[str] = CARRIERS) -> Any:
    """Who made a value, operators of the types `passed` looked through; None: the file's input."""
    node = read.producer.get(value)
    while node is not None and node.op_type in passed:
        node = read.producer.get(node.input[0])
    return node


def _neighbours(read: Reading, node: Any) -> list[str]:
    """The operators that a Q or DQ stands beside: what its input came from and what takes its output, the pair's other half looked through."""
    names = []
    source = source_of(read, node.input[0])
    if source is not None and source.op_type == "QuantizeLinear":
        source = None  # a DQ stands for its users
    names += [source.name] if source is not None else []
    for taker in takers_of(read, node):
        pair = node.op_type == "QuantizeLinear" and taker.op_type == "DequantizeLinear"
        names += [user.name for user in (takers_of(read, taker) if pair else [taker])]
    return names


def _per_channel(read: Reading, quantizer: Any) -> bool:
    scale = read.constants.get(quantizer.input[1])
    return scale is not None and int(np.prod(scale.dims)) > 1


def _does_relu(read: Reading, quantizer: Any) -> bool:
    """Whether the quantizer cuts off what is negative by itself: its zero point is the lowest value of its type."""
    zero = read.constants.get(quantizer.input[2]) if len(quantizer.input) > 2 and quantizer.input[2] else None
    if zero is None:
        return len(quantizer.input) < 3  # without one it is uint8 with 0
    values = numpy_helper.to_array(zero)
    return bool((values == _LOWEST.get(values.dtype.name, 1)).all())


def _constant(read: Reading, node: Any) -> bool:
    return all(not value or _is_constant(read, value) for value in node.input)


def _is_constant(read: Reading, value: str) -> bool:
    if value in read.constants:
        return True
    node = read.producer.get(value)
    return node is not None and bool(node.input) and all(not it or _is_constant(read, it) for it in node.input)
