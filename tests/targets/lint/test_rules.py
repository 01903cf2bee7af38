"""Every rule, proven on two files: one that breaks it and is told so, and one beside it that keeps it."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from kdpipe.targets.lint import lint
from kdpipe.targets.lint.rules import RULES
from kdpipe.targets.profile import Profile, load_profile

_SPEC = importlib.util.spec_from_file_location("quantized_net", Path(__file__).with_name("quantized_net.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
nets: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(nets)

CPU, ARM, GPU, NPU = (load_profile(name, at="test") for name in ("cpu", "arm", "gpu", "npu"))
WEIGHTS = load_profile("cpu", at="test", scheme="weights-only")


@dataclass(frozen=True)
class Case:
    """`broken` and `kept` make the two files; what is said of the first: which node, why, what to do."""

    rule: str
    profile: Profile
    broken: Callable[[], onnx.ModelProto]
    kept: Callable[[], onnx.ModelProto]
    node: str
    reason: str
    remedy: str
    severity: str = "error"
    name: str = ""


FULL, REDUCED = np.full((4, 4, 1, 1), 127, np.int8), np.full((4, 4, 1, 1), 63, np.int8)
RANGE = ("weights reach ±127, 7 bits end at ±64: sums of two products may saturate", "quantize weights to 7 bits (reduced range)")
ROUNDS = "put Q/DQ before its input and its weights"

CASES = [
    Case("no-nodes", GPU, nets.nothing, nets.opset(19), "file", "the graph has no node: its outputs are its inputs", "export the network"),
    Case(
        "opset",
        GPU,
        nets.opset(25),
        nets.opset(24),
        "file",
        "opset 25 is not in [13, 24]",
        "export at opset 19",
        name="above",
    ),
    Case(
        "opset",
        ARM,
        nets.opset(21),
        nets.opset(20),
        "file",
        "opset 21 is not in [13, 20]",
        "export at opset 19",
        "warning",
        "above, a CPU",
    ),
    Case(
        "float-file",
        GPU,
        nets.in_float,
        nets.opset(19),
        "file",
        "the file is float: nothing in it is quantized (convolutions and linear layers: 1)",
        "kdpipe build",
        "warning",
    ),
    Case("float64", GPU, nets.wide(True), nets.wide(False), "file", "float64: 'mul', 'factor'", "export in float32", "warning"),
    Case(
        "static-shape",
        NPU,
        nets.shape_of(("batch", 4, 6, 6), False),
        nets.shape_of((1, 4, 6, 6), False),
        "file",
        "input 'input' has shape ['any', 4, 6, 6], every side must be fixed and the batch 1",
        "export with a static batch of 1",
    ),
    Case(
        "static-shape",
        GPU,
        nets.end_with("NonZero", outputs=("places",), types=(TensorProto.INT64,)),
        nets.end_with("Relu"),
        "end_node",
        "the shape of its output 'places' is not fixed",
        "compute shapes in the exporter, from constants",
        "warning",
        "inside",
    ),
    Case(
        "dynamic-batch",
        CPU,
        nets.shape_of((1, 4, 6, 6), False),
        nets.shape_of(("batch", 4, 6, 6), False),
        "file",
        "the batch of input 'input' is fixed to 1",
        "export with a dynamic batch",
        "warning",
    ),
    Case(
        "foreign-operator",
        NPU,
        nets.end_with("Gelu", domain="com.microsoft"),
        nets.end_with("Relu"),
        "end_node",
        "com.microsoft.Gelu is an operator of one runtime only",
        "export standard operators with Q/DQ, not a runtime's optimised file",
    ),
    Case(
        "foreign-operator",
        ARM,
        nets.end_with("Gelu", domain="com.microsoft"),
        nets.end_with("Relu"),
        "end_node",
        "com.microsoft.Gelu is an operator of one runtime only",
        "export standard operators with Q/DQ, not a runtime's optimised file",
        "warning",
        "where only that runtime runs it",
    ),
    Case(
        "forbidden-operator",
        GPU,
        nets.end_with("Det"),
        nets.end_with("Relu"),
        "end_node",
        "the target does not run Det",
        "rewrite this part of the network without it",
    ),
    Case(
        "forbidden-operator",
        NPU,
        nets.end_with("NonZero", outputs=("places",), types=(TensorProto.INT64,)),
        nets.end_with("Relu"),
        "end_node",
        "the target does not run NonZero",
        "rewrite this part of the network without it",
        name="npu",
    ),
    Case(
        "operator-restriction",
        GPU,
        nets.flat_pool,
        nets.behind_conv(("AveragePool", {"kernel_shape": [2, 2]})),
        "pool_node",
        "AveragePool: it pools over 1 sides, TensorRT over 2 or 3",
        "add a side of length 1 before it",
        name="rank",
    ),
    Case(
        "operator-restriction",
        GPU,
        nets.pooled(dilations=[2, 2]),
        nets.pooled(dilations=[1, 1]),
        "maxpool_node",
        "MaxPool: it has dilations",
        "pool without dilations",
        name="dilations",
    ),
    Case(
        "operator-restriction",
        GPU,
        nets.with_indices(True),
        nets.with_indices(False),
        "pool_node",
        "MaxPool: it gives the indices as well",
        "compute without the indices",
        name="indices",
    ),
    Case(
        "operator-restriction",
        GPU,
        nets.end_with("LayerNormalization", ("gain", np.ones(6, np.float32)), outputs=("normal", "mean"), types=(TensorProto.FLOAT, TensorProto.FLOAT)),
        nets.end_with("LayerNormalization", ("gain", np.ones(6, np.float32))),
        "end_node",
        "LayerNormalization: it gives more than the normalised values",
        "leave out its further outputs",
        name="layer normalization",
    ),
    Case(
        "operator-restriction",
        GPU,
        nets.end_with("Resize", ("roi", np.zeros(0, np.float32)), ("scales", np.array([1, 1, 2, 2], np.float32)), antialias=1, mode="linear"),
        nets.end_with("Resize", ("roi", np.zeros(0, np.float32)), ("scales", np.array([1, 1, 2, 2], np.float32)), mode="linear"),
        "end_node",
        "Resize: it resizes with antialiasing",
        "resize without antialiasing",
        name="resize",
    ),
    Case(
        "operator-restriction",
        GPU,
        nets.end_with("Dropout", outputs=("left", "mask"), types=(TensorProto.FLOAT, TensorProto.BOOL)),
        nets.end_with("Dropout"),
        "end_node",
        "Dropout: it gives the mask as well: the file is one for training",
        "export in evaluation mode",
        name="dropout",
    ),
    Case(
        "operator-format",
        GPU,
        nets.integer_conv(63),
        nets.opset(19),
        "conv_node",
        "1 nodes are in ONNX Runtime's operator format: conv_node (QLinearConv)",
        "quantize in QDQ format: quant_format=QuantFormat.QDQ of onnxruntime.quantization.quantize_static, or kdpipe build",
    ),
    Case(
        "control-flow",
        NPU,
        nets.branches(True),
        nets.branches(False),
        "if_node",
        "If decides at run time what is computed; its body was checked, whether the chip runs it only the device can tell",
        "export the branch that is used, and unrolled loops",
        "warning",
    ),
    Case(
        "keep-float",
        GPU,
        nets.softmax(True),
        nets.softmax(False),
        "softmax_node",
        "Softmax is quantized, the profile keeps it in float",
        "remove the QuantizeLinear behind it",
        "warning",
    ),
    Case(
        "scale",
        GPU,
        nets.one_conv(scale=0.0),
        nets.one_conv(),
        "input_q_int_node",
        "the scale is 0.0",
        "calibrate again: it must be finite and above 0",
        name="zero",
    ),
    Case(
        "scale",
        NPU,
        nets.one_conv(scale=np.inf),
        nets.one_conv(),
        "input_q_int_node",
        "the scale is inf",
        "calibrate again: it must be finite and above 0",
        name="infinite",
    ),
    Case(
        "scale",
        ARM,
        nets.one_conv(scale=np.nan),
        nets.one_conv(),
        "input_q_int_node",
        "the scale is nan",
        "calibrate again: it must be finite and above 0",
        name="not a number",
    ),
    Case(
        "scale",
        GPU,
        nets.conv_with_weight(REDUCED, scale=np.array([0.1, 0, 0.1, 0.1])),
        nets.conv_with_weight(REDUCED),
        "conv_node",
        "a weight's scale is not finite and above 0",
        "quantize the weights again",
        name="of a weight",
    ),
    Case(
        "dynamic-scale",
        GPU,
        nets.computed_scale(True),
        nets.computed_scale(False),
        "integers_node",
        "scale or zero point is computed at run time",
        "use static quantization",
    ),
    Case(
        "activation-type",
        GPU,
        nets.one_conv(signed=False),
        nets.one_conv(),
        "input_q_int_node",
        "activations are uint8, the target's scheme has int8",
        "quantize activations to int8",
    ),
    Case(
        "activation-type",
        ARM,
        nets.one_conv(signed=False),
        nets.one_conv(),
        "input_q_int_node",
        "activations are uint8, the target's scheme has int8",
        "quantize activations to int8",
        "warning",
        "arm",
    ),
    Case(
        "activation-type",
        NPU,
        nets.sixteen_bits,
        nets.one_conv(signed=True),
        "input_q_int_node",
        "activations are int16, the target's scheme has uint8",
        "quantize activations to uint8",
        "warning",
        "npu takes u8 and i8",
    ),
    Case(
        "activation-granularity",
        GPU,
        nets.depthwise(4),
        nets.one_conv(),
        "input_q_int_node",
        "activations have 4 scales",
        "use one scale per tensor: per-channel activations do not fuse",
        "warning",
    ),
    Case(
        "activation-granularity",
        NPU,
        nets.depthwise(1),
        nets.depthwise(4),
        "input_q_int_node",
        "activations have 4 scales",
        "use one scale per tensor: per-channel activations do not fuse",
        "warning",
        "npu: but before depthwise",
    ),
    Case(
        "zero-point",
        GPU,
        nets.one_conv(zero_point=3),
        nets.one_conv(),
        "input_q_int_node",
        "the zero point is 3, the target takes symmetric activations only",
        "quantize activations symmetrically, zero point 0",
    ),
    Case(
        "weight-type",
        GPU,
        nets.conv_with_weight(FULL.astype(np.uint8)),
        nets.conv_with_weight(FULL),
        "conv_node",
        "weights are uint8",
        "quantize weights to int8",
    ),
    Case("weight-range", CPU, nets.conv_with_weight(FULL, signed=False), nets.conv_with_weight(REDUCED, signed=False), "conv_node", *RANGE, name="integers"),
    Case("weight-range", CPU, nets.float_weight(0, 1.27), nets.float_weight(0, 0.63), "conv_node", *RANGE, name="float behind Q/DQ"),
    Case("weight-range", CPU, nets.integer_conv(127), nets.integer_conv(63), "conv_node", *RANGE, name="QLinearConv"),
    Case(
        "weight-zero-point",
        GPU,
        nets.conv_with_weight(REDUCED, zero_point=np.array([0, 1, 0, 0])),
        nets.conv_with_weight(REDUCED),
        "conv_node",
        "weights have a zero point other than 0",
        "quantize weights symmetrically",
    ),
    Case(
        "weight-granularity",
        GPU,
        nets.conv_with_weight(REDUCED, scale=0.01),
        nets.conv_with_weight(REDUCED),
        "conv_node",
        "weights have one scale for all output channels",
        "quantize weights per output channel",
        "warning",
    ),
    Case(
        "weight-axis",
        GPU,
        nets.conv_with_weight(REDUCED, axis=1),
        nets.conv_with_weight(REDUCED),
        "conv_node",
        "weights are scaled along axis 1, Conv has its output channels on axis 0",
        "quantize weights per output channel",
    ),
    Case(
        "int32-bias",
        GPU,
        nets.with_bias(True),
        nets.with_bias(False),
        "conv_node",
        "its bias is int32 behind DequantizeLinear, which TensorRT's parser refuses",
        "leave the bias in float32 (QuantizeBias=False in onnxruntime.quantization); TensorRT adds it in the int8 layer all the same",
    ),
    Case(
        "not-quantized",
        GPU,
        nets.half_quantized(False),
        nets.half_quantized(True),
        "conv2_node",
        "Conv runs in float: 'relu' is not dequantized from int8",
        ROUNDS,
        "warning",
    ),
    Case(
        "split-activation",
        GPU,
        nets.split(True),
        nets.split(False),
        "conv_q_int_node",
        "a quantizer stands between the layer and its activation, so that they do not fuse",
        "quantize behind the activation",
        "warning",
    ),
    Case(
        "float-output",
        GPU,
        nets.behind_conv(("GlobalAveragePool", {}), end=False),
        nets.behind_conv(("GlobalAveragePool", {})),
        "globalaveragepool_node",
        "GlobalAveragePool gets int8 and gives float, so it computes in float",
        "quantize its output as well, or leave its inputs in float",
        "warning",
    ),
    Case(
        "float-residual",
        GPU,
        nets.residual(layer=False, shortcut=False),
        nets.residual(layer=False, shortcut=True),
        "add_node",
        "no side of the sum is quantized, so that the layer before it gives float",
        "put Q/DQ on the shortcut",
        "warning",
    ),
    Case(
        "quantized-residual",
        GPU,
        nets.residual(layer=True, shortcut=True),
        nets.residual(layer=False, shortcut=True),
        "add_node",
        "'conv2_q', the output of a layer, is quantized before the sum, so that the layer cannot take the sum in",
        "quantize the shortcut alone, and the sum behind its activation",
        "warning",
    ),
    Case(
        "unified-scales",
        NPU,
        nets.joined(False),
        nets.joined(True),
        "concat_node",
        "the operands of Concat have scales of their own (0.05, 0.2)",
        "give all operands the scale and zero point of the widest one",
        "warning",
    ),
    Case(
        "unpaired",
        GPU,
        nets.unpaired(False),
        nets.unpaired(True),
        "end_int_node",
        "QuantizeLinear without DequantizeLinear behind it",
        "put Q and DQ in pairs with one scale and zero point",
        "warning",
    ),
    Case(
        "weight-kind",
        WEIGHTS,
        nets.weights_alone("float"),
        nets.weights_alone("Cast"),
        "conv_node",
        "its weight is stored as float, the scheme has int8",
        "store it as int8",
        "warning",
    ),
    Case(
        "activation-kind",
        WEIGHTS,
        nets.plain,
        nets.weights_alone("Cast"),
        "input_q_int_node",
        "the values are rounded to integers, the scheme leaves them in float",
        "remove Q/DQ, or choose scheme = 'static-int8'",
        "warning",
    ),
    Case(
        "weight-each-time",
        WEIGHTS,
        nets.weights_alone("DequantizeLinear"),
        nets.weights_alone("Cast"),
        "conv_node",
        "the layer computes in float and its int8 weight is dequantized in each inference (up to twice float's time in ONNX Runtime)",
        "read the weight by Cast and Mul, which runtimes compute once, at load",
        "warning",
    ),
    Case(
        "float16-overflow",
        NPU,
        nets.float_part(1e5),
        nets.float_part(6e4),
        "end_node",
        "'factor' reaches 1e+05, float16 ends at 65504",
        "rescale the weights, or quantize this part",
        name="a constant",
    ),
    Case(
        "float16-overflow",
        NPU,
        nets.one_conv(scale=600.0),
        nets.one_conv(scale=500.0),
        "input_q_int_node",
        "its values reach 7.68e+04, float16 ends at 65504",
        "normalise the values before they are quantized",
        name="a range",
    ),
    Case(
        "float16-underflow",
        NPU,
        nets.one_conv(scale=2e-8),
        nets.one_conv(scale=1e-7),
        "input_q_int_node",
        "the scale 2e-08 is 0 in float16, whose smallest value is 5.96e-08",
        "calibrate again with data of the real range; leave a channel that is always 0 out",
    ),
]


def named(case: Case) -> str:
    return f"{case.rule}, {case.name}" if case.name else f"{case.rule} on {case.profile.name}"


@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_file_that_breaks_the_rule_is_told_where_why_and_what_to_do(case: Case, tmp_path: Path) -> None:
    found = [finding for finding in lint(nets.saved(case.broken(), tmp_path), case.profile) if finding.rule == case.rule]
    assert found, f"no finding of {case.rule}"
    first = found[0]
    assert (first.node, first.severity) == (case.node, case.severity)
    assert first.reason == case.reason
    assert case.remedy in first.remedy


@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_file_that_keeps_the_rule_hears_nothing_of_it(case: Case, tmp_path: Path) -> None:
    assert [finding for finding in lint(nets.saved(case.kept(), tmp_path), case.profile) if finding.rule == case.rule] == []


def test_every_rule_has_such_a_pair_of_files() -> None:
    apart = {"format"}  # of IR: tests/targets/lint/test_ir.py
    assert {case.rule for case in CASES} | apart == set(RULES)


@pytest.mark.parametrize(
    ("profile", "signed", "sides"),
    [(CPU, False, ("batch", 4, 6, 6)), (ARM, True, (1, 4, 6, 6)), (GPU, True, (1, 4, 6, 6)), (NPU, False, (1, 4, 6, 6))],
    ids=["cpu", "arm", "gpu", "npu"],
)
def test_a_plain_file_breaks_no_rule_of_its_target(profile: Profile, signed: bool, sides: Any, tmp_path: Path) -> None:
    assert lint(nets.saved(nets.plain(signed=signed, sides=sides), tmp_path), profile) == ()


def test_a_quantizer_that_is_written_twice_counts_as_one(tmp_path: Path) -> None:
    """Before a sum, so that OpenVINO rounds there: the layer behind both is still found, and both are pairs."""
    path = nets.saved(nets.residual(layer=True, shortcut=True, twice=True)(), tmp_path)
    assert [finding.rule for finding in lint(path, GPU)] == ["quantized-residual"]
    assert lint(path, ARM) == ()


def test_a_layer_within_a_branch_is_found_with_its_way_there(tmp_path: Path) -> None:
    net = nets.Net()
    value = net.conv(net.quantized("input"), "conv")
    net.constant("weight2", np.ones((4, 4, 1, 1), np.float32))
    bodies = {}
    for branch in ("then_branch", "else_branch"):
        node = helper.make_node("Conv", [value, "weight2"], [f"{branch}_out"], name=f"{branch}_conv")
        bodies[branch] = helper.make_graph([node], branch, [], [helper.make_tensor_value_info(f"{branch}_out", TensorProto.FLOAT, [1, 4, 6, 6])])
    path = nets.saved(net.model(net.op("If", [net.constant("which", np.bool_(True))], "if", **bodies)), tmp_path)
    assert sorted(finding.node for finding in lint(path, GPU) if finding.rule == "not-quantized") == ["if_node/else_branch_conv", "if_node/then_branch_conv"]


def test_a_model_local_function_is_judged_by_what_is_in_it(tmp_path: Path) -> None:
    net = nets.Net()
    value = net.conv(net.quantized("input"), "conv")
    net.nodes.append(helper.make_node("Odd", [value], ["end"], name="odd", domain="own"))
    model = net.model("end", domains=("own",))
    model.functions.append(helper.make_function("own", "Odd", ["x"], ["y"], [helper.make_node("Det", ["x"], ["y"])], [helper.make_opsetid("", 19)]))
    assert "forbidden-operator" in [finding.rule for finding in lint(nets.saved(model, tmp_path), GPU)]


def test_the_scheme_of_a_variant_counts(tmp_path: Path) -> None:
    path = nets.saved(nets.conv_with_weight(FULL, signed=False)(), tmp_path)
    assert lint(path, load_profile("cpu", at="test", variant="vnni")) == ()


def test_a_float16_target_has_nothing_against_float_files(tmp_path: Path) -> None:
    profile = load_profile("gpu", at="test", scheme="float16")
    assert lint(nets.saved(nets.in_float(), tmp_path), profile) == ()


def test_a_target_of_weights_alone_leaves_activations_in_float(tmp_path: Path) -> None:
    assert [finding.rule for finding in lint(nets.saved(nets.weights_alone("Cast")(), tmp_path), WEIGHTS)] == []


def test_the_operators_that_a_user_forbids_are_found(tmp_path: Path) -> None:
    strict = GPU.model_copy(update={"forbidden": ("Conv",)})
    assert [finding.node for finding in lint(nets.saved(nets.plain(), tmp_path), strict)] == ["conv_node"]
