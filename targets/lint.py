"""Offline checks of an ONNX file, ours or foreign, against a profile: what the target would refuse, saturate or not fuse.

Every finding names node, rule, reason and remedy. No hardware is needed, and none is replaced: a clean file may still
meet a limit of a driver or plug-in that only the device knows.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no stubs
from onnx import numpy_helper
from pydantic import BaseModel, Field

from kdpipe.foundation.errors import ConfigError, VerificationError
from kdpipe.foundation.quantization.scheme import Scheme
from kdpipe.targets.profile import Profile

_COMPUTE = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_ACTIVATIONS = {"Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Elu", "Tanh", "Gelu"}
_CARRIERS = {"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "MaxPool", "Identity"}  # what is quantized before them is so behind them
_OWN_DOMAINS = {"", "ai.onnx"}


class LintFinding(BaseModel, extra="forbid", frozen=True):
    """One thing about the file that its target does not take, or takes slowly."""

    node: str = Field(description="the node's name, or 'file'")
    rule: str = Field(description="short name of the rule, e.g. 'zero-point'")
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.node}: {self.reason}; {self.remedy}"


class _Graph:
    """The file with what the rules ask of it: constants by name, who makes and who takes each value."""

    def __init__(self, model: Any) -> None:
        self.model, self.nodes = model, list(model.graph.node)
        self.constants: dict[str, Any] = {constant.name: constant for constant in model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
        self.producer = {output: node for node in self.nodes for output in node.output}
        self.users: dict[str, list[Any]] = {}
        for node in self.nodes:
            for value in node.input:
                self.users.setdefault(value, []).append(node)
        self.inputs = {value.name for value in model.graph.input} - self.constants.keys()
        self.outputs = {value.name for value in model.graph.output}

    def array(self, name: str) -> npt.NDArray[Any] | None:
        """The constant's values; None when `name` is computed or empty."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def made_by(self, value: str) -> str:
        """The operator that makes the value; empty for inputs and constants."""
        return self.producer[value].op_type if value in self.producer else ""

    def is_dequantized(self, value: str) -> bool:
        """Whether the value comes from int8, perhaps through operators that only move it."""
        while self.made_by(value) in _CARRIERS:
            value = self.producer[value].input[0]
        return self.made_by(value) == "DequantizeLinear"

    def quantizers(self) -> Iterator[Any]:
        """The QuantizeLinear nodes of activations; their partners are judged by `_pairs`."""
        for node in self.nodes:
            if node.op_type == "QuantizeLinear" and node.input[0] not in self.constants:
                yield node

    def parameters(self, node: Any) -> tuple[npt.NDArray[Any] | None, npt.NDArray[Any] | None]:
        """Scale and zero point of a Q or DQ node, None where computed; a missing zero point is 0 of the node's type."""
        given = len(node.input) > 2 and node.input[2]
        return self.array(node.input[1]), self.array(node.input[2]) if given else np.zeros((), _declared(node))


def lint(model: Path, profile: Profile) -> tuple[LintFinding, ...]:
    """All findings of the file against the profile and the scheme of its variant, in the order of the rules.

    Raises ConfigError when there is no such file, VerificationError when it is not a valid ONNX file.
    """
    graph, scheme = _Graph(_read(model)), profile.chosen_scheme
    return (
        *_opset(graph, profile),
        *_operators(graph, profile),
        *_shapes(graph, profile),
        *_activations(graph, scheme),
        *_weights(graph, scheme),
        *_placement(graph, profile),
        *_pairs(graph),
    )


def _read(model: Path) -> Any:
    if not model.is_file():
        raise ConfigError("no such model file", at=model, do="give the path of an .onnx file")
    try:
        onnx.checker.check_model(str(model))
        return onnx.load(model)
    except (DecodeError, onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise VerificationError(f"not a valid ONNX file: {' '.join(str(error).split())[:300]}", at=model, do="export or download it again") from error


def _opset(graph: _Graph, profile: Profile) -> Iterator[LintFinding]:
    low, high = profile.opset_range
    found = max((entry.version for entry in graph.model.opset_import if entry.domain in _OWN_DOMAINS), default=0)
    if not low <= found <= high:
        reason = f"opset {found} is not in [{low}, {high}]"
        yield LintFinding(node="file", rule="opset", reason=reason, remedy=f"export at opset {profile.opset}, or use onnx.version_converter")


def _operators(graph: _Graph, profile: Profile) -> Iterator[LintFinding]:
    for node in graph.nodes:
        if node.domain not in _OWN_DOMAINS:
            reason = f"{node.domain}.{node.op_type} is an operator of one runtime only"
            yield LintFinding(
                node=_name(node), rule="foreign-operator", reason=reason, remedy="export standard operators with Q/DQ, not a runtime's optimised file"
            )
        elif node.op_type in profile.forbidden:
            reason = f"the target does not run {node.op_type}"
            yield LintFinding(node=_name(node), rule="forbidden-operator", reason=reason, remedy="rewrite this part of the network without it")
        elif node.op_type in profile.keep_float and _is_quantized(graph, node):
            reason = f"{node.op_type} is quantized, the profile keeps it in float"
            yield LintFinding(node=_name(node), rule="keep-float", reason=reason, remedy="remove the QuantizeLinear behind it")


def _shapes(graph: _Graph, profile: Profile) -> Iterator[LintFinding]:
    constants = set(graph.constants)
    inputs = [value for value in graph.model.graph.input if value.name not in constants]
    for value in inputs:
        sides = _sides(value)
        first = sides[0] if sides else None
        if profile.batch == "dynamic" and first is not None:
            reason = f"the batch of input {value.name!r} is fixed to {first}"
            yield LintFinding(node="file", rule="dynamic-batch", reason=reason, remedy="export with a dynamic batch")
        if profile.batch == "static" and (sides is None or None in sides or first != profile.static_batch):
            shown = "unknown" if sides is None else [side if side is not None else "any" for side in sides]
            reason = f"input {value.name!r} has shape {shown}, every side must be fixed and the batch {profile.static_batch}"
            yield LintFinding(node="file", rule="static-shape", reason=reason, remedy=f"export with a static batch of {profile.static_batch}")
            return  # what follows from a free input is not repeated for every node
    if profile.batch == "static":
        yield from _free_inside(graph)


def _free_inside(graph: _Graph) -> Iterator[LintFinding]:
    inferred = onnx.shape_inference.infer_shapes(graph.model, data_prop=True).graph
    shapes = {value.name: _sides(value) for value in (*inferred.value_info, *inferred.output)}
    for node in graph.nodes:
        if node.domain not in _OWN_DOMAINS:
            continue  # named already; ONNX knows no shapes for it
        for value in filter(None, node.output):
            sides = shapes.get(value) if value not in graph.constants else ()
            if sides is None or None in sides:
                reason = f"the shape of its output {value!r} is not fixed"
                yield LintFinding(node=_name(node), rule="static-shape", reason=reason, remedy="compute shapes in the exporter, from constants")


def _activations(graph: _Graph, scheme: Scheme) -> Iterator[LintFinding]:
    wanted = np.dtype(np.int8 if scheme.activation_signed else np.uint8)
    for node in graph.quantizers():
        scale, zero_point = graph.parameters(node)
        if scale is None or zero_point is None:
            yield LintFinding(node=_name(node), rule="scale", reason="scale or zero point is computed at run time", remedy="use static quantization")
            continue
        if zero_point.dtype != wanted:
            reason = f"activations are {zero_point.dtype}, the target's scheme has {wanted}"
            yield LintFinding(node=_name(node), rule="activation-type", reason=reason, remedy=f"quantize activations to {wanted}")
        elif scheme.activation_symmetric and not np.isin(zero_point, [0] if scheme.activation_signed else [0, 128]).all():
            reason = f"the zero point is {zero_point.ravel()[0]}, the target takes symmetric activations only"
            yield LintFinding(node=_name(node), rule="zero-point", reason=reason, remedy="quantize activations symmetrically, zero point 0")
        if scale.size > 1:
            reason = f"activations have {scale.size} scales"
            yield LintFinding(
                node=_name(node), rule="activation-granularity", reason=reason, remedy="use one scale per tensor: per-channel activations do not fuse"
            )
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            yield LintFinding(
                node=_name(node), rule="scale", reason=f"the scale is {scale.ravel()[0]}", remedy="calibrate again: it must be finite and above 0"
            )


def _weights(graph: _Graph, scheme: Scheme) -> Iterator[LintFinding]:
    limit = 2 ** (scheme.weight_bits - 1)  # 7 bits: two products 255 · 64 still fit into 16 bits
    for node in graph.nodes:
        if node.op_type not in _COMPUTE or graph.made_by(node.input[1]) != "DequantizeLinear":
            continue
        source = graph.producer[node.input[1]]
        weight, (scale, zero_point) = graph.array(source.input[0]), graph.parameters(source)
        if weight is None or scale is None:
            continue  # both operands are activations, judged as such
        where = _name(node)
        if weight.dtype != np.int8:
            yield LintFinding(node=where, rule="weight-type", reason=f"weights are {weight.dtype}", remedy="quantize weights to int8")
        elif np.abs(weight.astype(np.int32)).max(initial=0) > limit:
            reason = f"weights reach ±{np.abs(weight.astype(np.int32)).max()}, {scheme.weight_bits} bits end at ±{limit}: sums of two products may saturate"
            yield LintFinding(node=where, rule="weight-range", reason=reason, remedy=f"quantize weights to {scheme.weight_bits} bits (reduced range)")
        if zero_point is not None and np.any(zero_point):
            yield LintFinding(node=where, rule="weight-zero-point", reason="weights have a zero point other than 0", remedy="quantize weights symmetrically")
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            yield LintFinding(node=where, rule="scale", reason="a weight's scale is not finite and above 0", remedy="quantize the weights again")
        yield from _weight_axis(node, source, weight, scale, scheme)


def _weight_axis(node: Any, source: Any, weight: npt.NDArray[Any], scale: npt.NDArray[Any], scheme: Scheme) -> Iterator[LintFinding]:
    expected = _channel_axis(node, weight.ndim)
    if scale.size == 1:
        if scheme.weight_granularity == "per-channel" and weight.shape[expected] > 1:
            reason = "weights have one scale for all output channels"
            yield LintFinding(node=_name(node), rule="weight-granularity", reason=reason, remedy="quantize weights per output channel")
        return
    if scheme.weight_granularity == "per-tensor":
        yield LintFinding(node=_name(node), rule="weight-granularity", reason="weights have a scale per channel", remedy="quantize weights per tensor")
    axis = next((attribute.i for attribute in source.attribute if attribute.name == "axis"), 1) % weight.ndim
    if axis != expected:
        reason = f"weights are scaled along axis {axis}, {node.op_type} has its output channels on axis {expected}"
        yield LintFinding(node=_name(node), rule="weight-axis", reason=reason, remedy="quantize weights per output channel")


def _placement(graph: _Graph, profile: Profile) -> Iterator[LintFinding]:
    for node in graph.nodes:
        if node.op_type in _COMPUTE and node.op_type not in profile.keep_float:
            float_inputs = [value for value in node.input[:2] if not graph.is_dequantized(value)]
            if float_inputs:
                reason = f"{node.op_type} runs in float: {', '.join(map(repr, float_inputs))} is not dequantized from int8"
                yield LintFinding(
                    node=_name(node),
                    rule="not-quantized",
                    reason=reason,
                    remedy="put Q/DQ before its input and its weights",
                )
        if node.op_type == "QuantizeLinear" and graph.made_by(node.input[0]) in _COMPUTE and _feeds_activation_alone(graph, node):
            reason = "a quantizer stands between the layer and its activation, so that they do not fuse"
            yield LintFinding(node=_name(node), rule="split-activation", reason=reason, remedy="quantize behind the activation")


def _pairs(graph: _Graph) -> Iterator[LintFinding]:
    remedy = "put Q and DQ in pairs with one scale and zero point"
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            users = graph.users.get(node.output[0], [])
            if node.output[0] in graph.outputs or not users or any(user.op_type != "DequantizeLinear" for user in users):
                yield LintFinding(node=_name(node), rule="unpaired", reason="QuantizeLinear without DequantizeLinear behind it", remedy=remedy)
        if node.op_type == "DequantizeLinear" and node.input[0] not in graph.constants:
            if graph.made_by(node.input[0]) != "QuantizeLinear":
                yield LintFinding(node=_name(node), rule="unpaired", reason="DequantizeLinear without QuantizeLinear before it", remedy=remedy)
            elif not _quantizes_input(graph, node) and not _same_parameters(graph, node, graph.producer[node.input[0]]):
                yield LintFinding(node=_name(node), rule="unpaired", reason="its scale or zero point is not that of its QuantizeLinear", remedy=remedy)


def _quantizes_input(graph: _Graph, dequantizer: Any) -> bool:
    """Whether it reads the quantized raw input, whose normalisation may be in the other scale (docs/decisions/input-normalisation.md)."""
    return graph.producer[dequantizer.input[0]].input[0] in graph.inputs


def _same_parameters(graph: _Graph, node: Any, other: Any) -> bool:
    pairs = zip(graph.parameters(node), graph.parameters(other), strict=True)
    return all(one is None or two is None or np.array_equal(one, two) for one, two in pairs)


def _feeds_activation_alone(graph: _Graph, quantizer: Any) -> bool:
    dequantized = [node.output[0] for node in graph.users.get(quantizer.output[0], [])]
    users = [user for value in dequantized for user in graph.users.get(value, [])]
    return bool(users) and all(user.op_type in _ACTIVATIONS for user in users)


def _is_quantized(graph: _Graph, node: Any) -> bool:
    before = any(graph.made_by(value) == "DequantizeLinear" for value in node.input)
    return before and any(user.op_type == "QuantizeLinear" for user in graph.users.get(node.output[0], []))


def _channel_axis(node: Any, dimensions: int) -> int:
    if node.op_type == "Gemm":
        return 0 if any(attribute.name == "transB" and attribute.i for attribute in node.attribute) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": dimensions - 1}[str(node.op_type)]


def _declared(node: Any) -> npt.DTypeLike:
    """The type of a quantizer without zero point: its `output_dtype` (opset 21), else uint8."""
    declared = next((attribute.i for attribute in node.attribute if attribute.name == "output_dtype"), 0)
    return np.int8 if declared == onnx.TensorProto.INT8 else np.uint8


def _sides(value: Any) -> list[int | None] | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    return [side.dim_value if side.HasField("dim_value") else None for side in value.type.tensor_type.shape.dim]


def _name(node: Any) -> str:
    return node.name or f"{node.op_type} -> {node.output[0]}"
