import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from kdpipe.foundation.quantization.fake_quant import (
    ActivationQuantizer,
    InputQuantizer,
    activation_parameters,
    activation_range,
    dequantize,
    fake_quantize,
    quantize,
    weight_limit,
    weight_scale,
)
from kdpipe.foundation.quantization.scheme import Scheme

UNSIGNED = Scheme()
SIGNED = Scheme(activation_signed=True, weight_bits=8)
SYMMETRIC = Scheme(activation_signed=True, activation_symmetric=True, weight_bits=8)
SCHEMES = pytest.mark.parametrize("scheme", [UNSIGNED, SIGNED, SYMMETRIC], ids=["u8", "s8", "s8-symmetric"])

values = arrays(np.float32, (4, 8), elements=st.floats(-3, 3, width=32))
bounds = st.floats(-100, 100, width=32)


def qdq_model(dtype):
    kind = {np.uint8: TensorProto.UINT8, np.int8: TensorProto.INT8}[dtype]
    nodes = [helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["q"]), helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"])]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [None]),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
        helper.make_tensor_value_info("zero_point", kind, []),
    ]
    outputs = [helper.make_tensor_value_info("q", kind, [None]), helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])]
    graph = helper.make_graph(nodes, "qdq", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def evaluators(dtype):
    model = qdq_model(dtype)
    return ReferenceEvaluator(model), onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


EVALUATORS = {dtype: evaluators(dtype) for dtype in (np.uint8, np.int8)}


@settings(max_examples=60, deadline=None)
@given(
    x=arrays(np.float32, 16, elements=st.floats(-1e4, 1e4, width=32)),
    scale=st.floats(2**-12, 16, width=32),
    zero_point=st.integers(0, 255),
    signed=st.booleans(),
    halves=arrays(np.int64, 8, elements=st.integers(-300, 300)),
)
def test_integers_and_values_are_those_of_onnx_bit_for_bit(x, scale, zero_point, signed, halves):
    """In ONNX's reference and in ONNX Runtime, with values exactly half-way between two integers among them."""
    dtype, shift = (np.int8, 128) if signed else (np.uint8, 0)
    qmin, qmax = (-128, 127) if signed else (0, 255)
    scale = np.array(scale, np.float32)
    x = np.concatenate([x, (halves.astype(np.float32) + np.float32(0.5)) * scale])
    feed = {"x": x, "scale": scale, "zero_point": np.array(zero_point - shift, dtype)}
    ours_q = quantize(torch.from_numpy(x), torch.from_numpy(scale), zero_point - shift, qmin, qmax)
    ours_y = fake_quantize(torch.from_numpy(x), torch.from_numpy(scale), zero_point - shift, qmin, qmax)
    for evaluator in EVALUATORS[dtype]:
        q, y = evaluator.run(None, feed)
        np.testing.assert_array_equal(ours_q.numpy(), q.astype(np.float32))
        np.testing.assert_array_equal(ours_y.numpy(), y)


def test_halves_go_to_the_even_integer_and_beyond_the_ends_it_saturates():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, 300.0, -1.0])
    assert quantize(x, torch.tensor(1.0), 0, 0, 255).tolist() == [0, 2, 2, 0, 255, 0]
    assert dequantize(torch.tensor([3.0, 7.0]), torch.tensor(0.5), 3).tolist() == [0.0, 2.0]


@settings(max_examples=30, deadline=None)
@given(weight=values, bits=st.sampled_from([2, 4, 7, 8]), granularity=st.sampled_from(["per-channel", "per-tensor"]))
def test_quantizing_moves_no_weight_by_more_than_half_a_step_and_a_second_time_not_at_all(weight, bits, granularity):
    scheme = Scheme(weight_bits=bits, weight_granularity=granularity)
    limit = weight_limit(scheme)
    tensor = torch.from_numpy(weight)
    scale = weight_scale(tensor, scheme)
    rounded = fake_quantize(tensor, scale, 0, -limit, limit)
    assert scale.shape == (4, 1)
    assert bool(((rounded - tensor).abs() <= scale / 2 + 1e-6).all())  # float32 rounding at |w| <= 3
    assert torch.equal(fake_quantize(rounded, scale, 0, -limit, limit), rounded)
    assert len(rounded[0].unique()) <= 2**bits - 1


def test_seven_bit_weights_stay_within_63():
    assert [weight_limit(Scheme(weight_bits=bits)) for bits in (2, 4, 7, 8)] == [1, 7, 63, 127]
    assert weight_scale(torch.tensor([[-6.3, 1.0], [0.0, 0.63]]), Scheme(weight_bits=7)).flatten().tolist() == pytest.approx([0.1, 0.01])


@SCHEMES
@settings(max_examples=30, deadline=None)
@given(ends=st.tuples(bounds, bounds))
def test_zero_is_on_the_grid_and_the_range_is_covered(scheme, ends):
    low, high = torch.tensor(min(ends)), torch.tensor(max(ends))
    scale, zero_point = activation_parameters(low, high, scheme)
    qmin, qmax = activation_range(scheme)
    assert scale > 0
    assert qmin <= int(zero_point) <= qmax
    assert float(fake_quantize(torch.tensor([0.0]), scale, zero_point, qmin, qmax)) == 0.0
    for end in (low.clamp(max=0), high.clamp(min=0)):
        assert (
            abs(float(fake_quantize(end.reshape(1), scale, zero_point, qmin, qmax)) - float(end)) <= float(scale) * 1.01
        )  # asymmetric: the zero point is rounded


@settings(max_examples=50, deadline=None)
@given(high=st.floats(2**-10, 1e4, width=32), scheme=st.sampled_from([UNSIGNED, SIGNED, SYMMETRIC]))
def test_the_largest_integer_never_exceeds_the_range_of_a_clipped_activation(high, scheme):
    """Else ONNX Runtime keeps the Clip of a ReLU6 and does not merge it."""
    scale, zero_point = activation_parameters(torch.tensor(0.0), torch.tensor(high), scheme)
    qmax = activation_range(scheme)[1]
    assert float(scale * (qmax - zero_point)) <= high


def test_symmetric_schemes_have_a_fixed_zero_point():
    unsigned = Scheme(activation_symmetric=True)
    for scheme, low, expected in ((SYMMETRIC, -1.0, 0), (SYMMETRIC, 0.0, 0), (unsigned, 0.0, 0), (unsigned, -1.0, 128)):
        scale, zero_point = activation_parameters(torch.tensor(low), torch.tensor(1.0), scheme)
        assert int(zero_point) == expected
    assert float(scale) == pytest.approx(1 / 127)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_activations_take_no_more_values_than_their_bits_allow(bits, samples):
    quantizer = ActivationQuantizer(Scheme(activation_bits=bits))
    quantizer.set_range_(0.0, 1.0, 0.0, 1.0)
    assert len(quantizer.eval()(samples(64)).unique()) == 2**bits


@pytest.mark.parametrize("gain", [None, 2.5], ids=["same-grid", "another-grid"])
def test_gradients_pass_inside_the_clip_range_and_vanish_outside(gain):
    scale = torch.tensor(0.1)
    x = torch.tensor([-1.0, -0.04, 0.0, 0.3, 25.52, 25.6, 30.0], requires_grad=True)
    upstream = torch.arange(1.0, 8.0)
    outer = None if gain is None else scale * gain
    fake_quantize(x, scale, 0, 0, 255, out_scale=outer, out_zero_point=None if gain is None else 7).backward(upstream)
    inside = torch.tensor([0.0, 1, 1, 1, 1, 0, 0])  # -0.04 rounds to 0 and 25.52 to 255: both were rounded, not clipped
    assert torch.equal(x.grad, upstream * inside * (1 if gain is None else gain))


def test_ranges_follow_training_batches_only_while_observing(samples):
    quantizer = ActivationQuantizer(UNSIGNED)
    quantizer.set_range_(0.0, 1.0, 0.0, 0.5)  # calibration kept half of what it saw
    quantizer.eval()(samples(4) * 9)
    assert float(quantizer.seen_high) == 1.0
    quantizer.train()(torch.full((4,), 3.0))
    assert float(quantizer.seen_high) == pytest.approx(1.02)  # momentum 0.01
    assert float(quantizer.high) == pytest.approx(0.51)
    assert float(quantizer.scale) == pytest.approx(0.51 / 255)
    quantizer.observing.fill_(False)
    quantizer.train()(torch.full((4,), 3.0))
    assert float(quantizer.seen_high) == pytest.approx(1.02)


def test_all_that_a_quantizer_knows_is_in_its_state(samples):
    quantizer = ActivationQuantizer(SIGNED).train()
    quantizer.set_range_(-1.0, 2.0, -0.7, 1.1)
    quantizer(samples(4))
    other = ActivationQuantizer(SIGNED).train()
    other.load_state_dict(quantizer.state_dict())
    for _ in range(3):
        assert torch.equal(quantizer(samples(4, 5) * 3), other(samples(4, 5) * 3))
    assert float(quantizer.high) == float(other.high) > 1.1


@pytest.mark.parametrize("scheme", [UNSIGNED, SIGNED], ids=["u8", "s8"])
def test_grey_levels_are_read_as_normalised_values_without_any_rounding(scheme):
    mean_level, std = 73, 0.35
    factor, shift = torch.full((1, 1, 1, 1), 1 / std), torch.full((1, 1, 1, 1), -mean_level / 255 / std)
    quantizer = InputQuantizer(scheme, factor, shift, 0.0, 1.0)
    grey = torch.arange(256).reshape(1, 1, 16, 16)
    expected = (grey - mean_level).double() / 255 / std
    assert quantizer.kind == "regrid"
    assert torch.allclose(quantizer(grey / 255).double(), expected, atol=1e-5, rtol=1e-5)
    assert float(quantizer(torch.full((1, 1, 1, 1), mean_level / 255))) == 0.0  # what zero padding stands for


def test_the_mean_moves_to_the_nearest_level_by_half_a_level_at_most(samples):
    factor, shift = torch.full((1, 1, 1, 1), 1 / 0.35), torch.full((1, 1, 1, 1), -0.3 / 0.35)
    x = samples(8)
    difference = InputQuantizer(UNSIGNED, factor, shift, 0.0, 1.0)(x) - (x * factor + shift)
    assert float(difference.abs().max()) <= 1.0001 / 255 / 0.35  # half a step of rounding and half a level of the mean


def test_values_half_way_between_levels_are_decided_away_from_the_edge():
    """0.5 is 127.5 levels: a runtime's float error must not decide."""
    quantizer = InputQuantizer(UNSIGNED, torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), 0.0, 1.0)
    for error in (1 - 2e-7, 1.0, 1 + 2e-7):
        assert float(quantize(torch.tensor([0.5]), quantizer.raw_scale * error, 0, 0, 255)) == 128


@pytest.mark.parametrize(
    ("scheme", "mean", "why"),
    [(SYMMETRIC, (0.3, 0.3), "symmetric"), (UNSIGNED, (0.3, 0.4), "channels differ"), (UNSIGNED, (-0.5, -0.5), "mean outside the range")],
    ids=["symmetric", "channels-differ", "mean-outside"],
)
def test_other_inputs_are_normalised_in_float_and_then_quantized(scheme, mean, why, samples):
    factor, shift = torch.full((1, 2, 1, 1), 2.0), -2 * torch.tensor(mean).reshape(1, 2, 1, 1)
    quantizer = InputQuantizer(scheme, factor, shift, 0.0, 1.0)
    x = samples(8).expand(8, 2, 8, 8)
    assert quantizer.kind == "affine", why
    assert float((quantizer(x) - (x * factor + shift)).abs().max()) <= float(quantizer.scale) * 0.51


def test_the_reference_model_is_valid():
    onnx.checker.check_model(qdq_model(np.uint8))
