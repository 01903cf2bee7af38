import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdpipe.foundation.errors import ConfigError, VerificationError
from kdpipe.targets.lint import lint
from kdpipe.targets.profile import load_profile

CPU, ARM, GPU, NPU = (load_profile(name, at="test") for name in ("cpu", "arm", "gpu", "npu"))


def constant(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def node_of(model: onnx.ModelProto, operator: str, name: str = "") -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == operator and node.name.startswith(name))


def replace(model: onnx.ModelProto, name: str, change) -> None:
    tensor = constant(model, name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))


def weight_source(model: onnx.ModelProto, layer: str) -> onnx.NodeProto:
    layer_node = next(node for node in model.graph.node if node.op_type in ("Conv", "Gemm") and node.name.startswith(layer))
    return next(node for node in model.graph.node if node.output[0] == layer_node.input[1])


def rules(path, profile) -> set[str]:
    return {finding.rule for finding in lint(path, profile)}


def only(path, profile, rule: str):
    found = [finding for finding in lint(path, profile) if finding.rule == rule]
    assert found, f"no finding of {rule}"
    return found[0]


def test_a_right_file_has_no_finding(files):
    assert lint(files / "u8.onnx", CPU) == ()


def test_a_foreign_unsigned_file_fits_the_npu(files):
    assert lint(files / "u8-one.onnx", NPU) == ()


def test_a_foreign_signed_file_fits_arm_but_for_quantizers_that_split_layer_and_activation(files):
    assert rules(files / "s8-one.onnx", ARM) == {"split-activation"}


def test_a_foreign_signed_file_does_not_fit_tensorrt_for_its_biases_of_int32(files):
    found = lint(files / "s8-one.onnx", GPU)
    assert {finding.rule for finding in found if finding.severity == "error"} == {"int32-bias"}
    assert {finding.rule for finding in found if finding.severity == "warning"} == {"split-activation", "quantized-residual"}


def test_unsigned_activations_do_not_fit_tensorrt(files):
    finding = only(files / "u8-one.onnx", GPU, "activation-type")
    assert finding.node == "input_QuantizeLinear"
    assert finding.reason == "activations are uint8, the target's scheme has int8"
    assert finding.remedy == "quantize activations to int8"


def test_full_weights_do_not_fit_an_x86_cpu_of_any_kind(files):
    assert "weight-range" in rules(files / "s8.onnx", CPU)
    vnni = load_profile("cpu", at="test", variant="vnni")
    assert "weight-range" not in rules(files / "s8.onnx", vnni)


def test_a_zero_point_other_than_zero_does_not_fit_tensorrt(edited):
    path = edited("s8-one.onnx", lambda model: replace(model, "input_zero_point", lambda value: value + np.int8(3)))
    finding = only(path, GPU, "zero-point")
    assert (finding.node, finding.reason) == ("input_QuantizeLinear", "the zero point is 3, the target takes symmetric activations only")
    assert "zero point 0" in finding.remedy


def test_a_dynamic_batch_does_not_fit_the_npu(files):
    finding = only(files / "u8.onnx", NPU, "static-shape")
    assert (finding.node, finding.reason) == ("file", "input 'input' has shape ['any', 1, 8, 8], every side must be fixed and the batch 1")
    assert finding.remedy == "export with a static batch of 1"


def test_a_fixed_batch_does_not_fit_a_dynamic_target(files):
    finding = only(files / "u8-one.onnx", CPU, "dynamic-batch")
    assert (finding.reason, finding.remedy) == ("the batch of input 'input' is fixed to 1", "export with a dynamic batch")


def test_a_shape_that_is_only_known_at_run_time_is_named_with_its_node(edited):
    def add_nonzero(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("NonZero", ["logits"], ["where"], name="find"))

    path = edited("u8-one.onnx", add_nonzero)
    assert only(path, NPU, "static-shape").node == "find"
    finding = only(path, NPU, "forbidden-operator")
    assert (finding.node, finding.reason) == ("find", "the target does not run NonZero")
    assert rules(path, ARM) >= {"static-shape"}


def test_an_opset_out_of_range_is_a_finding_about_the_file(edited):
    def lower(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 21

    finding = only(edited("u8.onnx", lower), CPU, "opset")
    assert (finding.node, finding.reason) == ("file", "opset 21 is not in [13, 20]")
    assert "opset 19" in finding.remedy


def test_a_runtime_s_own_operators_are_foreign(edited):
    def fuse(model: onnx.ModelProto) -> None:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        model.graph.node.append(helper.make_node("Gelu", ["logits"], ["more"], name="own", domain="com.microsoft"))

    finding = only(edited("u8-one.onnx", fuse), NPU, "foreign-operator")
    assert (finding.node, finding.reason) == ("own", "com.microsoft.Gelu is an operator of one runtime only")


def test_a_weight_s_zero_point_is_refused(edited):
    path = edited("u8.onnx", lambda model: replace(model, weight_source(model, "conv2").input[2], lambda value: value + np.int8(1)))
    finding = only(path, CPU, "weight-zero-point")
    assert (finding.node, finding.remedy) == (node_name(path, "conv2"), "quantize weights symmetrically")


def node_name(path, layer: str) -> str:
    return next(node.name for node in onnx.load(path).graph.node if node.op_type in ("Conv", "Gemm") and node.name.startswith(layer))


def test_weights_scaled_along_their_inputs_are_refused(edited):
    def turn(model: onnx.ModelProto) -> None:
        axis = next(attribute for attribute in weight_source(model, "conv2").attribute if attribute.name == "axis")
        axis.i = 1

    path = edited("u8.onnx", turn)
    finding = only(path, CPU, "weight-axis")
    assert (finding.node, finding.reason) == (node_name(path, "conv2"), "weights are scaled along axis 1, Conv has its output channels on axis 0")


def test_one_scale_for_all_channels_is_refused(edited):
    def flatten(model: onnx.ModelProto) -> None:
        source = weight_source(model, "conv2")
        replace(model, source.input[1], lambda scale: scale.max())
        replace(model, source.input[2], lambda zero_point: zero_point[0])

    finding = only(edited("u8.onnx", flatten), CPU, "weight-granularity")
    assert (finding.reason, finding.remedy) == ("weights have one scale for all output channels", "quantize weights per output channel")


def test_a_scale_that_is_not_above_zero_is_refused(edited):
    finding = only(edited("u8.onnx", lambda model: replace(model, "input_scale", lambda scale: scale * 0)), CPU, "scale")
    assert (finding.node, finding.reason) == ("input_QuantizeLinear", "the scale is 0.0")
    assert "calibrate again" in finding.remedy


def test_scales_per_channel_of_an_activation_are_refused(edited):
    def spread(model: onnx.ModelProto) -> None:
        replace(model, "b_scale", lambda scale: np.repeat(scale, 16).astype(np.float32))
        replace(model, "b_zero_point", lambda zero_point: np.repeat(zero_point, 16))

    finding = only(edited("u8.onnx", spread), CPU, "activation-granularity")
    assert (finding.node, finding.reason) == ("b_QuantizeLinear", "activations have 16 scales")


def test_a_float_file_is_told_so_once(files):
    (finding,) = lint(files / "float.onnx", CPU)
    assert (finding.node, finding.rule, finding.severity) == ("file", "float-file", "warning")
    assert finding.reason == "the file is float: nothing in it is quantized (convolutions and linear layers: 4)"
    assert "kdpipe build makes an int8 file" in finding.remedy


def test_a_layer_that_stayed_in_float_among_quantized_ones_is_named(edited):
    def undo(model: onnx.ModelProto) -> None:
        """conv2 takes the values before the quantizer."""
        node = node_of(model, "Conv", "conv2")
        pair = next(each for each in model.graph.node if each.output[0] == node.input[0])
        node.input[0] = next(each for each in model.graph.node if each.output[0] == pair.input[0]).input[0]

    finding = only(edited("u8.onnx", undo), CPU, "not-quantized")
    assert (finding.node, finding.severity) == ("conv2", "warning")
    assert finding.reason == "Conv runs in float: 'b' is not dequantized from int8"
    assert finding.remedy == "put Q/DQ before its input and its weights"


def test_a_layer_behind_a_flatten_counts_as_quantized(edited):
    def skip(model: onnx.ModelProto) -> None:
        """The linear layer takes flatten's output without the second pair of quantizers."""
        flatten, linear = node_of(model, "Flatten"), node_of(model, "Gemm")
        for node in [node for node in model.graph.node if node.output[0] in (linear.input[0], "q_QuantizeLinear_Output")]:
            model.graph.node.remove(node)
        linear.input[0] = flatten.output[0]

    assert lint(edited("u8.onnx", skip), CPU) == ()


def test_quantizers_without_their_partner_are_named(edited):
    def cut(model: onnx.ModelProto) -> None:
        last = node_of(model, "DequantizeLinear", "logits")
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info(last.input[0], TensorProto.UINT8, ["batch", 10]))
        model.graph.node.remove(last)

    finding = only(edited("u8.onnx", cut), CPU, "unpaired")
    assert (finding.node, finding.reason) == ("logits_QuantizeLinear", "QuantizeLinear without DequantizeLinear behind it")


def test_a_pair_of_two_scales_is_named(edited):
    def part(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "other_scale"))
        node_of(model, "DequantizeLinear", "logits").input[1] = "other_scale"

    finding = only(edited("u8.onnx", part), CPU, "unpaired")
    assert (finding.node, finding.reason) == ("logits_DequantizeLinear", "its scale or zero point is not that of its QuantizeLinear")


def test_the_input_may_be_read_on_the_grid_of_its_normalisation(edited):
    def normalise(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "normalised_scale"))
        node_of(model, "DequantizeLinear", "input").input[1] = "normalised_scale"

    assert [finding.rule for finding in lint(edited("u8.onnx", normalise), CPU)] == []


def test_an_operator_kept_in_float_must_not_be_quantized(edited, tmp_path):
    def soften(model: onnx.ModelProto) -> None:
        """Softmax with Q/DQ on both sides behind the logits."""
        for node in (
            helper.make_node("Softmax", ["logits"], ["soft"], name="softmax"),
            helper.make_node("QuantizeLinear", ["soft", "logits_scale", "logits_zero_point"], ["soft_q"], name="soft_QuantizeLinear"),
            helper.make_node("DequantizeLinear", ["soft_q", "logits_scale", "logits_zero_point"], ["soft_dq"], name="soft_DequantizeLinear"),
        ):
            model.graph.node.append(node)

    finding = only(edited("u8.onnx", soften), CPU, "keep-float")
    assert (finding.node, finding.reason) == ("softmax", "Softmax is quantized, the profile keeps it in float")


def test_a_finding_reads_as_one_line(files):
    line = str(lint(files / "u8.onnx", NPU)[0])
    assert line.startswith("static-shape: file: input 'input' has shape")
    assert line.endswith("; export with a static batch of 1")


@pytest.mark.parametrize("content", [b"", b"not a model"], ids=["empty", "text"])
def test_what_is_no_onnx_file_fails_verification(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(VerificationError) as caught:
        lint(path, CPU)
    (problem,) = caught.value.problems
    assert problem.message.startswith("not a valid ONNX file: ")
    assert (problem.at, problem.do) == (str(path), "export or download it again")


def test_a_missing_file_is_the_user_s_mistake(tmp_path):
    with pytest.raises(ConfigError) as caught:
        lint(tmp_path / "model.onnx", CPU)
    (problem,) = caught.value.problems
    assert (problem.message, problem.at, problem.do) == ("no such model file", str(tmp_path / "model.onnx"), "give the path of an .onnx file")
