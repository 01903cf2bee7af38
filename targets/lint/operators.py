"""Rules on operators: those of one runtime alone, those that the target does not run, and forms of others that it does not."""

from collections.abc import Iterator
from typing import Any

from kdpipe.targets.lint.finding import Findings, LintFinding, found
from kdpipe.targets.lint.graph import OPERATOR_FORMAT, OWN_DOMAINS, Graph, attribute
from kdpipe.targets.profile import Profile

_BODIES = {"If", "Loop", "Scan"}
_POOLS = {"MaxPool", "AveragePool", "LpPool"}
_NAMED = 4
# ONNX Runtime's own quantized operators, beside those of ONNX
_RUNTIME_FORMAT = ("QLinear", "QGemm", "DynamicQuantize", "MatMulIntegerToFloat")


def operators(graph: Graph, profile: Profile) -> Findings:
    """What the target does not run, or runs otherwise than the profile wants."""
    in_operator_format = [node for node in graph.nodes if is_operator_format(node)]
    if in_operator_format:
        yield _operator_format(graph, profile, in_operator_format)
    for node in graph.nodes:
        if is_operator_format(node):
            continue
        if node.domain not in OWN_DOMAINS:
            yield _foreign(graph, profile, node)
        elif node.op_type in profile.forbidden:
            reason = f"the target does not run {node.op_type}"
            yield found("forbidden-operator", profile, graph.name(node), reason, "rewrite this part of the network without it")
        elif node.op_type in profile.keep_float and _is_quantized(graph, node):
            reason = f"{node.op_type} is quantized, the profile keeps it in float"
            yield found("keep-float", profile, graph.name(node), reason, "remove the QuantizeLinear behind it")
        elif node.op_type in _BODIES and profile.device_class == "intel-npu":
            reason = f"{node.op_type} decides at run time what is computed; its body was checked, whether the chip runs it only the device can tell"
            yield found("control-flow", profile, graph.name(node), reason, "export the branch that is used, and unrolled loops")
        elif profile.device_class == "nvidia-gpu":
            yield from _restricted(graph, profile, node)


def is_operator_format(node: Any) -> bool:
    """Whether it computes on integers by itself (QLinearConv, ConvInteger, …), without Q/DQ around a standard operator."""
    return node.op_type in OPERATOR_FORMAT or (node.domain == "com.microsoft" and node.op_type.startswith(_RUNTIME_FORMAT))


def _operator_format(graph: Graph, profile: Profile, nodes: list[Any]) -> LintFinding:
    names = ", ".join(f"{graph.name(node)} ({node.op_type})" for node in nodes[:_NAMED])
    more = f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
    reason = f"{len(nodes)} nodes are in ONNX Runtime's operator format: {names}{more}"
    remedy = "quantize in QDQ format: quant_format=QuantFormat.QDQ of onnxruntime.quantization.quantize_static, or kdpipe build"
    return found("operator-format", profile, graph.name(nodes[0]), reason, remedy)


def _foreign(graph: Graph, profile: Profile, node: Any) -> LintFinding:
    reason = f"{node.domain}.{node.op_type} is an operator of one runtime only"
    finding = found("foreign-operator", profile, graph.name(node), reason, "export standard operators with Q/DQ, not a runtime's optimised file")
    alone = {need.name for need in profile.runtimes} == {"onnxruntime"} and profile.accelerator == "CPU"
    return finding.model_copy(update={"severity": "warning" if alone and node.domain == "com.microsoft" else "error"})


def _restricted(graph: Graph, profile: Profile, node: Any) -> Iterator[LintFinding]:
    """The restrictions of TensorRT's operator table that networks for classification meet."""
    reasons = []
    if node.op_type in _POOLS:
        kernel = attribute(node, "kernel_shape") or []
        if len(kernel) not in (2, 3):
            reasons.append((f"it pools over {len(kernel)} sides, TensorRT over 2 or 3", "add a side of length 1 before it"))
        if any(step != 1 for step in attribute(node, "dilations") or []):
            reasons.append(("it has dilations", "pool without dilations"))
    if node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1]:
        reasons.append(("it gives the indices as well", "compute without the indices"))
    if node.op_type == "LayerNormalization" and any(node.output[1:]):
        reasons.append(("it gives more than the normalised values", "leave out its further outputs"))
    if node.op_type == "Resize" and attribute(node, "antialias"):
        reasons.append(("it resizes with antialiasing", "resize without antialiasing"))
    if node.op_type == "Dropout" and len(node.output) > 1 and node.output[1]:
        reasons.append(("it gives the mask as well: the file is one for training", "export in evaluation mode"))
    for reason, remedy in reasons:
        yield found("operator-restriction", profile, graph.name(node), f"{node.op_type}: {reason}", remedy)


def _is_quantized(graph: Graph, node: Any) -> bool:
    before = any(graph.made_by(value) == "DequantizeLinear" for value in node.input)
    return before and any(user.op_type == "QuantizeLinear" for user in graph.users.get(node.output[0], []))
