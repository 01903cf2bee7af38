"""The rules on OpenVINO IR (.xml with its .bin), read by OpenVINO itself; quantization there is FakeQuantize, and integers behind Convert and Multiply.

The rules of formats that IR does not have (opset, Q/DQ pairs, biases) do not apply. A target without OpenVINO does not read the file at all.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kdpipe.foundation.errors import UnavailableError, VerificationError
from kdpipe.targets.devices.agent import import_openvino
from kdpipe.targets.lint.finding import Findings, LintFinding, found
from kdpipe.targets.lint.float16 import LARGEST
from kdpipe.targets.profile import Profile

_WEIGHTED = {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul"}
_MOVING = {"Reshape", "Squeeze", "Unsqueeze", "Transpose", "MaxPool", "Convert"}
_BODIES = {"If", "Loop", "TensorIterator"}
_INTEGERS = {"i8", "u8", "i4", "u4"}
# ONNX's names of a profile's `forbidden`, where OpenVINO has another one
_OPENVINO_NAMES = {"NonMaxSuppression": ("NonMaxSuppression", "NonMaxSuppressionIEInternal")}


def lint_ir(path: Path, profile: Profile) -> Iterator[LintFinding]:
    """All findings of the IR. VerificationError when OpenVINO cannot read it, UnavailableError when OpenVINO is not installed."""
    if "openvino" not in {need.name for need in profile.runtimes}:
        runtimes = " and ".join(need.name for need in profile.runtimes)
        yield found("format", profile, "file", f"OpenVINO IR is not read by {runtimes}", "give the target the .onnx file")
        return
    model = _read(path)
    layers = [layer for layer in model.get_ordered_ops() if layer.get_type_name() not in {"Parameter", "Result", "Constant"}]
    quantized = _is_quantized(model)
    if not layers:
        yield found("no-nodes", profile, "file", "the graph has no node: its outputs are its inputs", "export the network itself")
    elif not quantized and profile.chosen_scheme.kind != "float16":
        count = sum(layer.get_type_name() in _WEIGHTED for layer in layers)
        reason = f"the file is float: nothing in it is quantized (convolutions and linear layers: {count})"
        yield found("float-file", profile, "file", reason, "it runs as it is; kdpipe build makes an int8 file")
    yield from _shapes(model, layers, profile)
    yield from _operators(layers, profile)
    if quantized:
        yield from _quantization(layers, profile)
    if profile.device_class == "intel-npu":
        yield from _float16(model, profile)


def _read(path: Path) -> Any:
    try:
        openvino = import_openvino()
    except ImportError as error:
        raise UnavailableError("IR is read by OpenVINO, which is not installed", at=path, do="python -m pip install openvino") from error
    try:
        return openvino.Core().read_model(str(path))
    except Exception as error:  # openvino raises RuntimeError and types of its native module
        words = " ".join(str(error).split())[:300]
        raise VerificationError(f"not valid OpenVINO IR: {words}", at=path, do="the .bin must lie beside it under the same name; convert it again") from error


def _is_quantized(model: Any) -> bool:
    """FakeQuantize, or constants of 8 or 4 bits."""
    return any(op.get_type_name() == "FakeQuantize" or (op.get_type_name() == "Constant" and _type(op) in _INTEGERS) for op in model.get_ordered_ops())


def _shapes(model: Any, layers: list[Any], profile: Profile) -> Findings:
    for value in model.inputs:
        shape = value.get_partial_shape()
        name = next(iter(sorted(value.get_names())), "input")
        if profile.batch == "dynamic":
            if len(shape) and shape[0].is_static:
                reason = f"the batch of input {name!r} is fixed to {shape[0].get_length()}"
                yield found("dynamic-batch", profile, "file", reason, "convert with a dynamic batch")
        elif shape.is_dynamic or not len(shape) or shape[0].get_length() != profile.static_batch:
            reason = f"input {name!r} has shape {shape}, every side must be fixed and the batch {profile.static_batch}"
            yield found("static-shape", profile, "file", reason, f"reshape it before it is saved: model.reshape([{profile.static_batch}, …])")
            return
    if profile.batch == "static":
        for layer in layers:
            if any(layer.get_output_partial_shape(index).is_dynamic for index in range(layer.get_output_size())):
                yield found("static-shape", profile, layer.get_friendly_name(), "the shape of its output is not fixed", "compute shapes from constants")


def _operators(layers: list[Any], profile: Profile) -> Findings:
    forbidden = {theirs for name in profile.forbidden for theirs in _OPENVINO_NAMES.get(name, (name,))}
    for layer in layers:
        operator, name = layer.get_type_name(), layer.get_friendly_name()
        if operator in forbidden:
            yield found("forbidden-operator", profile, name, f"the target does not run {operator}", "rewrite this part of the network without it")
        elif operator in _BODIES and profile.device_class == "intel-npu":
            reason = f"{operator} decides at run time what is computed; whether the chip runs it only the device can tell"
            yield found("control-flow", profile, name, reason, "convert the branch that is used, and unrolled loops")
        if any(_type(layer, index) == "f64" for index in range(layer.get_output_size())):
            yield found("float64", profile, name, "float64", "convert from a float32 model")


def _quantization(layers: list[Any], profile: Profile) -> Findings:
    for layer in layers:
        operator, name = layer.get_type_name(), layer.get_friendly_name()
        if operator in _WEIGHTED and operator not in profile.keep_float:
            in_float = [source.get_friendly_name() for source in _inputs(layer)[:2] if not _from_int8(source)]
            if in_float and profile.chosen_scheme.quantizes_activations:
                reason = f"{operator} runs in float: {', '.join(map(repr, in_float))} is not quantized"
                yield found("not-quantized", profile, name, reason, "quantize its input and its weights")
            yield from _weight_range(layer, profile)
        if operator == "FakeQuantize":
            yield from _fake_quantize(layer, profile)
        if operator == "Concat" and profile.device_class == "intel-npu":
            ranges = [found_range for source in _inputs(layer) if (found_range := _range(source)) is not None]
            if len(ranges) == layer.get_input_size() > 1 and len(set(ranges)) > 1:
                shown = ", ".join(f"[{low:.4g}, {high:.4g}]" for low, high in ranges)
                reason = f"the operands of {operator} have ranges of their own ({shown})"
                yield found("unified-scales", profile, name, reason, "give all operands the range of the widest one, or quantize behind it alone")


def _weight_range(layer: Any, profile: Profile) -> Findings:
    bits = profile.chosen_scheme.weight_bits
    constant = _moved_from(_inputs(layer)[1])
    while constant.get_type_name() in {"Multiply", "Subtract", "Convert", "Reshape"}:
        constant = constant.input_value(0).get_node()
    if constant.get_type_name() == "Constant" and _type(constant) == "i8" and profile.chosen_scheme.quantizes_activations:
        reached = int(np.abs(np.asarray(constant.data).astype(np.int32)).max(initial=0))
        if reached > 2 ** (bits - 1):
            reason = f"weights reach ±{reached}, {bits} bits end at ±{2 ** (bits - 1)}: sums of two products may saturate"
            yield found("weight-range", profile, layer.get_friendly_name(), reason, f"quantize weights to {bits} bits (reduced range)")


def _fake_quantize(layer: Any, profile: Profile) -> Findings:
    name = layer.get_friendly_name()
    bounds = [_values(source) for source in _inputs(layer)[1:]]
    if any(bound is None for bound in bounds):
        yield found("dynamic-scale", profile, name, "its range is computed at run time", "use static quantization")
        return
    low, high = (np.asarray(bound) for bound in bounds[:2])
    levels = layer.get_attributes().get("levels")
    if levels not in (255, 256) and low.size and _of_activation(layer):
        yield found("activation-type", profile, name, f"it has {levels} levels, 8 bits have 256", "quantize activations to 8 bits")
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (high > low).all()):
        yield found("scale", profile, name, f"its range is [{low.ravel()[0]:.4g}, {high.ravel()[0]:.4g}]", "calibrate again: it must be finite and not empty")
    depthwise = profile.device_class == "intel-npu" and all(user.get_type_name() == "GroupConvolution" for user in _takers(layer))
    if low.size > 1 and _of_activation(layer) and not depthwise:
        yield found("activation-granularity", profile, name, f"activations have {low.size} scales", "use one scale per tensor")


def _float16(model: Any, profile: Profile) -> Findings:
    for op in model.get_ordered_ops():
        if op.get_type_name() != "Constant" or _type(op) not in {"f32", "f64"}:
            continue
        values = np.asarray(op.data)
        finite = values[np.isfinite(values)]
        largest = float(np.abs(finite).max(initial=0.0))
        users = [user for user in _users(op) if user.get_type_name() != "Clamp"]
        if largest > LARGEST and users:
            reason = f"its values reach {largest:.4g}, float16 ends at {LARGEST:.0f}"
            yield found("float16-overflow", profile, users[0].get_friendly_name(), reason, "rescale the weights, or quantize this part")


def _type(op: Any, index: int = 0) -> str:
    return str(op.get_output_element_type(index).get_type_name())


def _inputs(layer: Any) -> list[Any]:
    return [layer.input_value(index).get_node() for index in range(layer.get_input_size())]


def _users(layer: Any) -> list[Any]:
    return [value.get_node() for index in range(layer.get_output_size()) for value in layer.output(index).get_target_inputs()]


def _takers(layer: Any) -> list[Any]:
    """Who computes with the values, behind what reads integers as float (Convert, Subtract, Multiply) and what moves them."""
    found: list[Any] = []
    for user in _users(layer):
        reads = user.get_type_name() in _MOVING or (user.get_type_name() in {"Subtract", "Multiply"} and _values(user.input_value(1).get_node()) is not None)
        found += _takers(user) if reads else [user]
    return found


def _values(source: Any) -> Any:
    """A constant's values, also behind what only converts or reshapes it; None where they are computed."""
    source = _moved_from(source)
    return source.data if source.get_type_name() == "Constant" else None


def _moved_from(source: Any) -> Any:
    while source.get_type_name() in _MOVING and source.get_input_size():
        source = source.input_value(0).get_node()
    return source


def _from_int8(source: Any) -> bool:
    """FakeQuantize, or a constant of integers behind Convert, Subtract and Multiply."""
    source = _moved_from(source)
    if source.get_type_name() == "FakeQuantize":
        return True
    if source.get_type_name() in {"Multiply", "Subtract"}:
        return _from_int8(source.input_value(0).get_node())
    return source.get_type_name() == "Constant" and _type(source) in _INTEGERS


def _of_activation(layer: Any) -> bool:
    return bool(_moved_from(layer.input_value(0).get_node()).get_type_name() != "Constant")


def _range(source: Any) -> tuple[float, float] | None:
    """Lowest and highest value of a FakeQuantize with one range, also where its integers are read by Subtract and Multiply; None for anything else."""
    source = _moved_from(source)
    if source.get_type_name() in {"Subtract", "Multiply"}:
        by, inner = _values(source.input_value(1).get_node()), _range(source.input_value(0).get_node())
        if by is None or inner is None or np.size(by) != 1:
            return None
        value = float(np.ravel(by)[0])
        return (inner[0] * value, inner[1] * value) if source.get_type_name() == "Multiply" else (inner[0] - value, inner[1] - value)
    if source.get_type_name() != "FakeQuantize":
        return None
    low, high = (_values(node) for node in _inputs(source)[3:5])
    if low is None or high is None or np.size(low) != 1 or np.size(high) != 1:
        return None
    return float(np.ravel(low)[0]), float(np.ravel(high)[0])
