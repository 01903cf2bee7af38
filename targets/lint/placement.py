"""Rules on where quantizers stand: what runs in int8, what the target merges into one kernel, what it cannot.

TensorRT's recommendations (Explicit Quantization, "Q/DQ Layer-Placement Recommendations"): quantize all inputs of weighted operations; no
quantizer between a layer and its ReLU; quantize the residual input of skip connections, and not the other one, so that the layer takes the
addition in and gives int8; operators without weights that get int8 must give int8.
"""

from typing import Any

import numpy as np

from kdpipe.targets.lint.finding import Findings, found
from kdpipe.targets.lint.graph import ACTIVATIONS, CARRIERS, WEIGHTED, Graph
from kdpipe.targets.lint.operators import is_operator_format
from kdpipe.targets.profile import Profile

_WITHOUT_WEIGHTS = {"Add", "Sub", "Mul", "AveragePool", "GlobalAveragePool", "Concat", "ReduceMean"}


def placement(graph: Graph, profile: Profile) -> Findings:
    """Layers left in float among quantized ones, and quantizers between a layer and its activation."""
    for node in graph.weighted():
        if node.op_type in profile.keep_float or not profile.chosen_scheme.quantizes_activations:
            continue
        in_float = [value for value in node.input[:2] if not graph.is_dequantized(value)]
        if in_float:
            reason = f"{node.op_type} runs in float: {', '.join(map(repr, in_float))} is not dequantized from int8"
            yield found("not-quantized", profile, graph.name(node), reason, "put Q/DQ before its input and its weights")
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear" and graph.made_by(node.input[0]) in WEIGHTED and _feeds_activation_alone(graph, node):
            reason = "a quantizer stands between the layer and its activation, so that they do not fuse"
            yield found("split-activation", profile, graph.name(node), reason, "quantize behind the activation")


def tensorrt(graph: Graph, profile: Profile) -> Findings:
    """What TensorRT would not fuse beside that: sums on a skip connection, and operators without weights that leave int8."""
    if profile.device_class != "nvidia-gpu":
        return
    for node in graph.nodes:
        if node.op_type == "Add" and (layers := [value for value in node.input if _layer_behind(graph, value) is not None]):
            yield from _residual(graph, profile, node, layers)
        if node.op_type in _WITHOUT_WEIGHTS and _all_dequantized(graph, node) and not _is_quantized_behind(graph, node):
            reason = f"{node.op_type} gets int8 and gives float, so it computes in float"
            yield found("float-output", profile, graph.name(node), reason, "quantize its output as well, or leave its inputs in float")


def _residual(graph: Graph, profile: Profile, node: Any, layers: list[str]) -> Findings:
    quantized = [value for value in layers if graph.is_dequantized(value)]
    shortcut = [value for value in node.input if value not in layers] or layers[1:]
    if len(quantized) == len(node.input) or (quantized and all(graph.is_dequantized(value) for value in node.input)):
        reason = f"{quantized[0]!r}, the output of a layer, is quantized before the sum, so that the layer cannot take the sum in"
        yield found("quantized-residual", profile, graph.name(node), reason, "quantize the shortcut alone, and the sum behind its activation")
    elif not any(graph.is_dequantized(value) for value in node.input) and graph.constant(shortcut[0] if shortcut else "") is None:
        reason = "no side of the sum is quantized, so that the layer before it gives float"
        yield found("float-residual", profile, graph.name(node), reason, "put Q/DQ on the shortcut")


def _layer_behind(graph: Graph, value: str) -> Any:
    """The convolution or linear layer whose output this is, directly or through Q and DQ, and that nothing else takes; None where there is none."""
    while graph.made_by(value) == "DequantizeLinear":
        quantizer = graph.node_before(graph.node_before(value).input[0])
        if quantizer is None or quantizer.op_type != "QuantizeLinear":
            return None
        value = quantizer.input[0]
    layer = graph.node_before(value)
    return layer if layer is not None and layer.op_type in WEIGHTED and len(graph.users.get(value, [])) == 1 else None


def unified_scales(graph: Graph, profile: Profile) -> Findings:
    """What is joined has one scale: Intel's tool puts one quantizer behind a concatenation for the NPU (docs/decisions/rules-of-accelerators.md)."""
    if profile.device_class != "intel-npu":
        return
    for node in graph.nodes:
        if node.op_type != "Concat" or not _all_dequantized(graph, node):
            continue
        grids = [
            (scale, zero_point)
            for scale, zero_point in map(graph.parameters, map(graph.dequantizer, node.input))
            if scale is not None and zero_point is not None
        ]
        if len(grids) < len(node.input):
            continue  # the rule `dynamic-scale` has it
        if not all(np.array_equal(one, two) for grid in grids[1:] for one, two in zip(grid, grids[0], strict=True)):
            scales = ", ".join(f"{float(np.ravel(scale)[0]):.4g}" for scale, _ in grids)
            reason = f"the operands of {node.op_type} have scales of their own ({scales})"
            yield found(
                "unified-scales", profile, graph.name(node), reason, "give all operands the scale and zero point of the widest one, or quantize behind it alone"
            )


def pairs(graph: Graph, profile: Profile) -> Findings:
    """QuantizeLinear and DequantizeLinear without each other, or with other parameters."""
    remedy = "put Q and DQ in pairs with one scale and zero point"
    if any(is_operator_format(node) for node in graph.nodes):
        return  # there they are the ends of what computes on integers
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            users = graph.users.get(node.output[0], [])
            if node.output[0] in graph.outputs or not users or any(user.op_type != "DequantizeLinear" for user in users):
                yield found("unpaired", profile, graph.name(node), "QuantizeLinear without DequantizeLinear behind it", remedy)
        if node.op_type == "DequantizeLinear" and graph.constant(node.input[0]) is None:
            before = graph.node_before(node.input[0])
            if before is None or before.op_type != "QuantizeLinear":
                yield found("unpaired", profile, graph.name(node), "DequantizeLinear without QuantizeLinear before it", remedy)
            elif before.input[0] not in graph.inputs and not _same_parameters(graph, node, before):
                # The raw input may be read in the scale of its normalisation: docs/decisions/input-normalisation.md.
                yield found("unpaired", profile, graph.name(node), "its scale or zero point is not that of its QuantizeLinear", remedy)


def _same_parameters(graph: Graph, node: Any, other: Any) -> bool:
    both = zip(graph.parameters(node), graph.parameters(other), strict=True)
    return all(one is None or two is None or np.array_equal(one, two) for one, two in both)


def _feeds_activation_alone(graph: Graph, quantizer: Any) -> bool:
    dequantized = [node.output[0] for node in graph.users.get(quantizer.output[0], [])]
    users = [user for value in dequantized for user in graph.users.get(value, [])]
    return bool(users) and all(user.op_type in ACTIVATIONS for user in users)


def _all_dequantized(graph: Graph, node: Any) -> bool:
    """Whether every computed operand comes from int8 and there are two of them, or one where the operator takes one."""
    operands = [value for value in node.input if value and graph.constant(value) is None]
    needed = 1 if node.op_type in {"AveragePool", "GlobalAveragePool", "ReduceMean"} else 2
    return len(operands) >= needed and all(graph.is_dequantized(value) for value in operands)


def _is_quantized_behind(graph: Graph, node: Any) -> bool:
    """Whether the result is quantized, perhaps behind an activation or what only moves it."""
    value, steps = node.output[0], 0
    while steps < len(graph.nodes):
        users = graph.users.get(value, [])
        if value in graph.outputs or not users:
            return False
        if all(user.op_type == "QuantizeLinear" for user in users):
            return True
        if len(users) != 1 or users[0].op_type not in ACTIVATIONS | CARRIERS:
            return False
        value, steps = users[0].output[0], steps + 1
    return False
