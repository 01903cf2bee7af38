"""Rules on the schemes that leave activations in float: weights alone in int8, and float16.

A weight is int8 or float16 where a constant of that type reaches the layer through `Cast`, `Mul` with a constant and `DequantizeLinear` alone.
"""

from typing import Any

import onnx

from kdpipe.targets.lint.finding import Findings, found
from kdpipe.targets.lint.graph import Graph
from kdpipe.targets.profile import Profile

SMALLEST = 128
"""Elements: a smaller weight saves less than what it takes to read it."""

_READS = {"Cast", "Mul", "DequantizeLinear"}
_TYPES = {"weights-only": (onnx.TensorProto.INT8, "int8"), "float16": (onnx.TensorProto.FLOAT16, "float16")}


def schemes(graph: Graph, profile: Profile) -> Findings:
    """Weights of another type than the scheme's, quantized activations, and weights that are read in each inference anew."""
    scheme = profile.chosen_scheme
    if scheme.kind in _TYPES:
        wanted, name = _TYPES[scheme.kind]
        for node in graph.weighted():
            weight = _stored(graph, node.input[1])
            if weight is not None and weight.data_type != wanted and _elements(weight) >= SMALLEST:
                kind = onnx.TensorProto.DataType.Name(weight.data_type).lower()
                yield found("weight-kind", profile, graph.name(node), f"its weight is stored as {kind}, the scheme has {name}", f"store it as {name}")
        for node in graph.quantizers():
            reason = "the values are rounded to integers, the scheme leaves them in float"
            yield found("activation-kind", profile, graph.name(node), reason, "remove Q/DQ, or choose scheme = 'static-int8'")
    if profile.accelerator == "CPU":
        yield from _read_each_time(graph, profile)


def _read_each_time(graph: Graph, profile: Profile) -> Findings:
    """int8 weights of layers that compute in float, as DequantizeLinear: ONNX Runtime computes it anew for each inference."""
    for node in graph.weighted():
        if graph.made_by(node.input[1]) == "DequantizeLinear" and not graph.is_dequantized(node.input[0]):
            source = graph.node_before(node.input[1])
            if graph.constant(source.input[0]) is not None:
                reason = "the layer computes in float and its int8 weight is dequantized in each inference (up to twice float's time in ONNX Runtime)"
                yield found("weight-each-time", profile, graph.name(node), reason, "read the weight by Cast and Mul, which runtimes compute once, at load")


def _stored(graph: Graph, value: str) -> Any:
    """The constant that the value is read from; None where it is computed from the input."""
    for _ in range(len(graph.nodes) + 1):
        constant = graph.constant(value)
        if constant is not None:
            return constant
        node = graph.node_before(value)
        if node is None or node.op_type not in _READS:
            return None
        value = next((name for name in node.input if graph.constant(name) is None), node.input[0])
    return None


def _elements(tensor: Any) -> int:
    count = 1
    for side in tensor.dims:
        count *= side
    return count
