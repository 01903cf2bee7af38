"""Rules on weights and biases: type, range, zero point, scales and their axis."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kdpipe.targets.lint.finding import Findings, found
from kdpipe.targets.lint.graph import Array, Graph, attribute
from kdpipe.targets.profile import Profile

_WEIGHT_INPUT = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3, "ConvInteger": 1, "MatMulInteger": 1}


@dataclass(frozen=True)
class Weight:
    """A layer's quantized weight. `zero_point` None: computed at run time; `axis`: along which its scales lie."""

    values: Array
    scale: Array
    zero_point: Array | None
    axis: int


def weights(graph: Graph, profile: Profile) -> Findings:
    """What each layer's weight has against the scheme."""
    scheme = profile.chosen_scheme
    limit = 2 ** (scheme.weight_bits - 1)  # 7 bits: two products 255 · 64 still fit into 16 bits
    for node in graph.weighted():
        weight = weight_of(graph, node)
        if weight is None:
            continue  # float, or both operands are activations; judged as such
        name = graph.name(node)
        reached = int(np.abs(weight.values.astype(np.int32)).max(initial=0))
        if weight.values.dtype != np.int8:
            yield found("weight-type", profile, name, f"weights are {weight.values.dtype}", "quantize weights to int8")
        elif reached > limit and scheme.quantizes_activations:
            reason = f"weights reach ±{reached}, {scheme.weight_bits} bits end at ±{limit}: sums of two products may saturate"
            yield found("weight-range", profile, name, reason, f"quantize weights to {scheme.weight_bits} bits (reduced range)")
        if weight.zero_point is not None and np.any(weight.zero_point):
            yield found("weight-zero-point", profile, name, "weights have a zero point other than 0", "quantize weights symmetrically")
        if not (np.isfinite(weight.scale).all() and (weight.scale > 0).all()):
            yield found("scale", profile, name, "a weight's scale is not finite and above 0", "quantize the weights again")
        yield from _granularity(name, node, weight, profile)


def integer_operators(graph: Graph, profile: Profile) -> Findings:
    """The same range for weights of ONNX Runtime's operator format, where both factors are integers as well."""
    limit = 2 ** (profile.chosen_scheme.weight_bits - 1)
    for node in graph.nodes:
        values = graph.array(node.input[_WEIGHT_INPUT[node.op_type]]) if node.op_type in _WEIGHT_INPUT else None
        if values is not None and values.dtype == np.int8 and (reached := int(np.abs(values.astype(np.int32)).max(initial=0))) > limit:
            bits = profile.chosen_scheme.weight_bits
            reason = f"weights reach ±{reached}, {bits} bits end at ±{limit}: sums of two products may saturate"
            yield found("weight-range", profile, graph.name(node), reason, f"quantize weights to {bits} bits (reduced range)")


def biases(graph: Graph, profile: Profile) -> Findings:
    """TensorRT dequantizes int8, int4 and float8 only: a bias of int32 behind DequantizeLinear stops its parser."""
    if profile.device_class != "nvidia-gpu":
        return
    for node in graph.weighted():
        if len(node.input) < 3 or graph.made_by(node.input[2]) != "DequantizeLinear":
            continue
        bias = graph.constant(graph.node_before(node.input[2]).input[0])
        if bias is not None and np.dtype(graph.array(bias.name).dtype) == np.int32:  # type: ignore[union-attr]  # it is a constant
            remedy = "leave the bias in float32 (QuantizeBias=False in onnxruntime.quantization); TensorRT adds it in the int8 layer all the same"
            yield found("int32-bias", profile, graph.name(node), "its bias is int32 behind DequantizeLinear, which TensorRT's parser refuses", remedy)


def weight_of(graph: Graph, node: Any) -> Weight | None:
    """The quantized weight of a layer; None where it is float or computed. A float weight behind Q and DQ is rounded as they say."""
    if len(node.input) < 2 or graph.made_by(node.input[1]) != "DequantizeLinear":
        return None
    source = graph.node_before(node.input[1])
    values, (scale, zero_point) = graph.array(source.input[0]), graph.parameters(source)
    if scale is None:
        return None
    axis = attribute(source, "axis")
    if values is None:
        values = _rounded(graph, graph.node_before(source.input[0]), scale, zero_point)
    return None if values is None else Weight(values, scale, zero_point, (1 if axis is None else axis) % max(1, values.ndim))


def _rounded(graph: Graph, quantizer: Any, scale: Array, zero_point: Array | None) -> Array | None:
    if quantizer is None or quantizer.op_type != "QuantizeLinear" or zero_point is None:
        return None
    values = graph.array(quantizer.input[0])
    if values is None or not np.issubdtype(zero_point.dtype, np.integer):
        return None
    axis = attribute(quantizer, "axis")
    along = [-1 if side == (1 if axis is None else axis) % max(1, values.ndim) else 1 for side in range(values.ndim)] if scale.size > 1 else ()
    info = np.iinfo(zero_point.dtype)
    steps = np.rint(values / scale.reshape(along)) + zero_point.reshape(along if zero_point.size > 1 else ())
    rounded: Array = np.clip(np.nan_to_num(steps), info.min, info.max).astype(zero_point.dtype)
    return rounded


def _granularity(name: str, node: Any, weight: Weight, profile: Profile) -> Findings:
    scheme, expected = profile.chosen_scheme, _channel_axis(node, weight.values.ndim)
    if weight.scale.size == 1:
        if scheme.weight_granularity == "per-channel" and weight.values.ndim > expected and weight.values.shape[expected] > 1:
            reason = "weights have one scale for all output channels"
            yield found("weight-granularity", profile, name, reason, "quantize weights per output channel")
        return
    if scheme.weight_granularity == "per-tensor":
        yield found("weight-granularity", profile, name, "weights have a scale per channel", "quantize weights per tensor")
    if weight.axis != expected:
        reason = f"weights are scaled along axis {weight.axis}, {node.op_type} has its output channels on axis {expected}"
        yield found("weight-axis", profile, name, reason, "quantize weights per output channel")


def _channel_axis(node: Any, dimensions: int) -> int:
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB") else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": dimensions - 1}[str(node.op_type)]
