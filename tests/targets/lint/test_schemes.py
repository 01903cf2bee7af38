import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kdpipe.targets.lint import lint
from kdpipe.targets.lint.schemes import SMALLEST
from kdpipe.targets.profile import load_profile

WEIGHTS = load_profile("cpu", at="test", scheme="weights-only")
HALF = load_profile("cpu", at="test", scheme="float16")
CPU = load_profile("cpu", at="test")


def written(folder, kind, *, elements=(32, 16), quantized_input=False):
    """One linear layer of 16 inputs whose weight is stored as `kind`."""
    values = np.random.default_rng(0).normal(size=elements).astype(np.float32)
    scale = numpy_helper.from_array(np.full((elements[0], 1), 0.02, np.float32), "scale")
    flat = numpy_helper.from_array(np.full(elements[0], 0.02, np.float32), "flat")
    zero = numpy_helper.from_array(np.zeros(elements[0], np.int8), "zero")
    one = [numpy_helper.from_array(np.float32(0.1), "one"), numpy_helper.from_array(np.uint8(0), "none")]
    integers = np.clip(np.round(values / 0.02), -127, 127).astype(np.int8)
    nodes, constants, weight = [], [], "w"
    if kind == "float32":
        constants = [numpy_helper.from_array(values, "w")]
    elif kind == "float16":
        constants, weight = [numpy_helper.from_array(values.astype(np.float16), "w")], "wide"
        nodes = [helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT)]
    elif kind == "int8":
        constants, weight = [numpy_helper.from_array(integers, "w"), scale], "wide"
        nodes = [helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT), helper.make_node("Mul", ["f", "scale"], ["wide"])]
    else:
        constants, weight = [numpy_helper.from_array(integers, "w"), flat, zero], "wide"
        nodes = [helper.make_node("DequantizeLinear", ["w", "flat", "zero"], ["wide"], axis=0)]
    given = "input"
    if quantized_input:
        constants += one
        nodes += [helper.make_node("QuantizeLinear", ["input", "one", "none"], ["q"]), helper.make_node("DequantizeLinear", ["q", "one", "none"], ["d"])]
        given = "d"
    nodes.append(helper.make_node("Gemm", [given, weight], ["logits"], name="layer", transB=1))
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name, width in (("input", elements[1]), ("logits", elements[0]))]
    graph = helper.make_graph(nodes, "network", shapes[:1], shapes[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def found(path, profile):
    return {finding.rule: finding for finding in lint(path, profile)}


@pytest.mark.parametrize(("profile", "kind"), [(WEIGHTS, "int8"), (HALF, "float16")])
def test_the_schemes_own_files_are_clean(tmp_path, profile, kind):
    assert lint(written(tmp_path, kind), profile) == ()


@pytest.mark.parametrize(
    ("profile", "kind", "stored"), [(WEIGHTS, "float32", "float"), (WEIGHTS, "float16", "float16"), (HALF, "float32", "float"), (HALF, "int8", "int8")]
)
def test_a_weight_of_another_kind_is_named(tmp_path, profile, kind, stored):
    finding = found(written(tmp_path, kind), profile)["weight-kind"]
    wanted = "int8" if profile is WEIGHTS else "float16"
    assert (finding.node, finding.severity) == ("layer", "warning")
    assert finding.reason == f"its weight is stored as {stored}, the scheme has {wanted}"
    assert finding.remedy == f"store it as {wanted}"


def test_a_weight_too_small_to_gain_from_it_may_be_float(tmp_path):
    assert SMALLEST > 8 * 15
    assert lint(written(tmp_path, "float32", elements=(8, 15)), HALF) == ()


def test_quantized_activations_are_not_of_these_schemes(tmp_path):
    finding = found(written(tmp_path, "dequantized", quantized_input=True), WEIGHTS)["activation-kind"]
    assert finding.remedy == "remove Q/DQ, or choose scheme = 'static-int8'"


def test_int8_weights_of_a_float_layer_that_are_read_in_each_inference_are_told_on_cpus(tmp_path):
    path = written(tmp_path, "dequantized")
    for profile in (CPU, WEIGHTS):
        finding = found(path, profile)["weight-each-time"]
        assert finding.node == "layer"
        assert "in each inference" in finding.reason
        assert "Cast and Mul" in finding.remedy
    assert "weight-each-time" not in found(path, load_profile("gpu", at="test", scheme="weights-only"))
    assert "weight-each-time" not in found(written(tmp_path, "dequantized", quantized_input=True), CPU)
