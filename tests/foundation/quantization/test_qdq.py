import collections
import functools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from kdpipe.foundation.onnx_file import to_bytes, to_onnx
from kdpipe.foundation.quantization.engine import calibrate_, freeze, prepare
from kdpipe.foundation.quantization.fake_quant import InputQuantizer
from kdpipe.foundation.quantization.qdq import exportable
from kdpipe.foundation.quantization.scheme import Scheme

LAYERS = {
    "residual": {"QLinearConv": 3, "QGemm": 1},
    "functional": {"QLinearConv": 3, "QGemm": 1},
    "twice": {"QLinearConv": 3, "QGemm": 1},
    "smooth": {"QLinearConv": 4, "QGemm": 1},
    "perceptron": {"QGemm": 2},
}
"""kind of network to its layers in ONNX Runtime's optimised graph"""

DEFAULT = Scheme()


@pytest.fixture(scope="module")
def exported(network, samples):
    """`exported("residual", scheme)`: the frozen twin and its file; made once, not to be changed."""

    @functools.cache
    def made(kind, scheme):
        twin = prepare(network(kind), scheme, batch_norm="live")
        calibrate_(twin, [samples(64)])
        frozen = freeze(twin)
        return frozen, to_onnx(exportable(frozen), (1, 8, 8), opset=19, static_batch=None)

    return lambda kind="residual", scheme=DEFAULT: made(kind, scheme)


def constants(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def operators(model):
    return collections.Counter(node.op_type for node in model.graph.node)


SIGNED = Scheme(activation_signed=True, activation_symmetric=True, weight_bits=8)
IN_LAYER = SIGNED.model_copy(update={"sums": "in-layer"})


@pytest.mark.parametrize(("kind", "scheme"), [*((kind, Scheme()) for kind in sorted(LAYERS)), ("residual", SIGNED), ("residual", IN_LAYER)])
def test_the_file_computes_what_the_twin_computes(exported, kind, scheme, samples):
    twin, model = exported(kind, scheme)
    x = samples(16, 4)
    expected = twin(x).numpy()
    found = ReferenceEvaluator(model).run(None, {"input": x.numpy()})[0]
    # equal but for float sums in another order, which may move an integer at the edge by one step
    assert np.abs(found - expected).mean() <= 0.0005 * np.ptp(expected)


def test_four_bit_activations_are_clipped_before_they_are_quantized(exported, samples):
    twin, model = exported("residual", Scheme(activation_bits=4, weight_bits=4))
    x = samples(16, 4) * 1.5  # beyond the calibrated range
    found = ReferenceEvaluator(model).run(None, {"input": x.numpy()})[0]
    assert np.abs(found - twin(x).numpy()).mean() <= 0.005 * np.ptp(twin(x).numpy())
    assert operators(model)["Clip"] >= 5


def test_weights_are_int8_within_their_bits_and_biases_int32(exported):
    values = constants(exported("functional")[1])
    weights = {name: value for name, value in values.items() if name.endswith(".weight")}
    assert set(weights) == {"body.first.weight", "body.left.weight", "body.right.weight", "body.linear.weight"}
    assert all(value.dtype == np.int8 and np.abs(value.astype(int)).max() == 63 for value in weights.values())
    assert {value.dtype for name, value in values.items() if name.endswith(".bias")} == {np.dtype(np.int32)}
    assert values["body.first.weight_scale"].shape == (4,)


def test_a_scheme_per_tensor_writes_one_scale_for_a_weight(exported):
    values = constants(exported("residual", Scheme(weight_granularity="per-tensor"))[1])
    assert values["body.linear.weight_scale"].shape == ()


def test_no_batch_norm_and_no_float_weight_is_left(exported, kind):
    model = exported(kind)[1]
    assert operators(model)["BatchNormalization"] == 0
    for node in model.graph.node:
        if node.op_type in {"Conv", "Gemm"}:
            makers = {output: maker.op_type for maker in model.graph.node for output in maker.output}
            assert [makers.get(value) for value in node.input[1:]] == ["DequantizeLinear", "DequantizeLinear"], node.name


def test_the_raw_input_is_quantized_at_once_and_read_as_the_normalised_one(exported):
    twin, model = exported()
    first, second = model.graph.node[:2]
    values, normalize = constants(model), twin.get_submodule("normalize")
    assert isinstance(normalize, InputQuantizer)
    assert (first.op_type, first.input[0], second.op_type) == ("QuantizeLinear", "input", "DequantizeLinear")
    assert values[first.input[1]] == pytest.approx(1 / 255, rel=2e-6)
    assert values[second.input[1]] == pytest.approx(1 / 255 / 0.35, rel=2e-6)
    assert (int(values[first.input[2]]), int(values[second.input[2]])) == (0, 77)  # 0.3 is level 76.5
    assert operators(model)["Mul"] == 0


def test_the_average_over_all_pixels_is_an_operator_that_runtimes_quantize(exported):
    assert operators(exported("residual")[1])["GlobalAveragePool"] == 1


def test_nodes_are_called_after_the_modules(exported):
    names = [node.name for node in exported("residual")[1].graph.node]
    assert {"normalize", "body.stem.0", "body.block.0", "quantizers.body_relu", "body.linear"} <= set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("kind", "layers"), LAYERS.items(), ids=LAYERS)
def test_onnx_runtime_fuses_every_layer_of_networks_as_users_write_them(exported, kind, layers, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # it warns that an optimised model is bound to this machine
    onnxruntime.InferenceSession(to_bytes(exported(kind)[1]), options, providers=["CPUExecutionProvider"])
    found = operators(onnx.load(tmp_path / "optimized.onnx"))
    assert {name: found[name] for name in ("QLinearConv", "QGemm") if found[name]} == layers
    assert found["Conv"] == found["FusedConv"] == found["Gemm"] == 0


def test_the_exportable_copy_leaves_the_twin_alone(exported, samples):
    twin, _ = exported()
    before = twin(samples(4))
    exportable(twin)
    assert torch.equal(twin(samples(4)), before)


def test_float_biases_hold_the_values_of_the_integer_ones(exported, samples):
    """TensorRT dequantizes no int32; the same file with float biases answers alike to the bit."""
    twin, model = exported()
    in_float = to_onnx(exportable(twin, float_bias=True), (1, 8, 8), opset=19, static_batch=None)
    integers = [name for name, value in constants(in_float).items() if value.dtype == np.int32]
    assert integers == []
    assert any(value.dtype == np.int32 for value in constants(model).values())
    x = samples(8, 3).numpy()
    one, two = (ReferenceEvaluator(each).run(None, {"input": x})[0] for each in (model, in_float))
    np.testing.assert_array_equal(one, two)
