"""Rules on float16: the NPU computes in it what is not quantized, so values beyond 65504 become infinite and tiny scales 0.

Source: docs.openvino.ai, NPU Device: "Computation precision for the HW is FP16".
"""

import numpy as np
import onnx

from kdpipe.targets.lint.finding import Findings, found
from kdpipe.targets.lint.graph import Graph
from kdpipe.targets.profile import Profile

LARGEST = float(np.finfo(np.float16).max)  # 65504
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)  # 2^-24; half of it rounds to 0
_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
_QUANTIZES = {"QuantizeLinear", "DequantizeLinear"}
# settings that are not computed with: sizes, shares, thresholds
_NOT_COMPUTED = {"Resize", "Upsample", "Dropout", "NonMaxSuppression", "Clip"}


def float16(graph: Graph, profile: Profile) -> Findings:
    """Constants of float operators, and ranges and scales of quantized ones, that float16 does not hold."""
    if profile.device_class != "intel-npu":
        return
    remedy = "rescale the weights, or quantize this part"
    for node in graph.nodes:
        if node.op_type in _QUANTIZES:
            yield from _scales(graph, profile, node)
        elif node.op_type != "Constant" and node.op_type not in _NOT_COMPUTED:
            for value in dict.fromkeys(node.input):
                tensor = graph.constant(value)
                if tensor is None or tensor.data_type not in _FLOATS:
                    continue
                largest = _largest(graph, value)
                if largest > LARGEST:
                    reason = f"{value!r} reaches {largest:.4g}, float16 ends at {LARGEST:.0f}"
                    yield found("float16-overflow", profile, graph.name(node), reason, remedy)


def _scales(graph: Graph, profile: Profile, node: object) -> Findings:
    scale, zero_point = graph.parameters(node)
    if scale is None or zero_point is None or not np.issubdtype(zero_point.dtype, np.integer) or zero_point.dtype == np.int32:
        return  # a bias of int32 is not made float before it is added
    name = graph.name(node)
    if np.isfinite(scale).all() and (scale > 0).all() and float(scale.min()) <= SMALLEST / 2:
        reason = f"the scale {float(scale.min()):.3g} is 0 in float16, whose smallest value is {SMALLEST:.3g}"
        yield found("float16-underflow", profile, name, reason, "calibrate again with data of the real range; leave a channel that is always 0 out")
    info = np.iinfo(zero_point.dtype)
    reach = float(np.max(np.maximum(info.max - zero_point.astype(np.int64), zero_point.astype(np.int64) - info.min) * scale.astype(np.float64)))
    if np.isfinite(reach) and reach > LARGEST:
        reason = f"its values reach {reach:.4g}, float16 ends at {LARGEST:.0f}"
        yield found("float16-overflow", profile, name, reason, "normalise the values before they are quantized")


def _largest(graph: Graph, value: str) -> float:
    """The largest finite magnitude; infinity itself is what the network means (the mask of an attention)."""
    values = graph.array(value)
    if values is None or values.size == 0:
        return 0.0
    largest = max(abs(float(values.min())), abs(float(values.max())))
    if np.isfinite(largest):
        return largest
    finite = values[np.isfinite(values)]
    return float(np.abs(finite).max(initial=0.0))
