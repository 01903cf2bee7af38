"""Why a node cannot be int8, by the file alone. Nodes are named after their results; `qa` and `da` are the Q/DQ pair of `a`."""

import onnx.parser
import pytest

from kdpipe.targets.qdq_reading import reading, reasons

HEAD = '<ir_version: 10, opset_import: ["" : 19]> g (float[n, 2, 4, 4] x) => (float[n, 2, 4, 4] y)\n'
CONSTANTS = (
    "<float s = {0.1}, uint8 z = {0}, int8 sz = {0}, int8 low = {-128}, float[2] ss = {0.1, 0.2}, uint8[2] zz = {0, 0}, int8[2, 2, 1, 1] wi = {1, 2, 3, 4}>\n"
)


def why(body: str) -> dict[str, tuple[str, str]]:
    model = onnx.parser.parse_model(HEAD + CONSTANTS + "{" + body + "}")
    for node in model.graph.node:
        node.name = node.output[0]
    return {name: (reason.cause, reason.because) for name, reason in reasons(reading(model)).items()}


INPUT = "qx = QuantizeLinear(x, s, z) dx = DequantizeLinear(qx, s, z) w = DequantizeLinear(wi, s, sz)"
OUTPUT = "qb = QuantizeLinear(b, s, z) y = DequantizeLinear(qb, s, z)"


def test_a_layer_between_its_quantizers_has_no_reason():
    assert why(f"{INPUT} b = Conv(dx, w) {OUTPUT}") == {}


def test_a_relu_that_the_quantizer_does_belongs_to_the_layer():
    assert why(f"{INPUT} a = Conv(dx, w) b = Relu(a) {OUTPUT}") == {}


@pytest.mark.parametrize(("zero", "fuses"), [("z", True), ("low", True), ("sz", False)], ids=["uint8 0", "int8 -128", "int8 0"])
def test_a_relu_fuses_where_the_zero_point_is_the_lowest_value(zero, fuses):
    found = why(f"{INPUT} a = Conv(dx, w) b = Relu(a) qb = QuantizeLinear(b, s, {zero}) y = DequantizeLinear(qb, s, {zero})")
    assert (found == {}) == fuses
    assert fuses or (found["a"], found["b"], found["qb"]) == (("split-activation", "b"),) * 3


def test_a_quantizer_between_layer_and_relu_splits_them():
    found = why(f"{INPUT} a = Conv(dx, w) qa = QuantizeLinear(a, s, z) da = DequantizeLinear(qa, s, z) b = Relu(da) {OUTPUT}")
    assert found["b"] == ("split-activation", "b")
    assert "a" not in found


@pytest.mark.parametrize(
    ("body", "fuses"),
    [
        (f"{INPUT} b = Add(dx, dx) {OUTPUT}", True),
        (f"{INPUT} a = Add(dx, dx) b = Relu(a) {OUTPUT}", True),
        (f"{INPUT} b = Add(dx, x) {OUTPUT}", False),
        (f"{INPUT} b = Add(dx, dx) y = Identity(b)", False),
    ],
    ids=["all sides", "with its ReLU", "a float operand", "no quantizer"],
)
def test_a_sum_is_quantized_on_all_sides_or_named(body, fuses):
    found = why(body)
    assert ("residual-add" in {cause for cause, _ in found.values()}) == (not fuses)


def test_what_stands_behind_a_float_sum_has_its_reason():
    found = why(f"{INPUT} sum = Add(dx, dx) b = Conv(sum, w) {OUTPUT}")
    assert found["b"] == ("residual-add", "sum")


def test_a_scale_per_channel_is_named_at_both_sides():
    found = why(f"{INPUT} a = Conv(dx, w) qa = QuantizeLinear <axis = 1> (a, ss, zz) da = DequantizeLinear <axis = 1> (qa, ss, zz) b = Conv(da, w) {OUTPUT}")
    assert (found["a"][0], found["b"][0], found["qa"][0]) == ("per-channel-activation",) * 3


def test_an_operator_between_the_layers_is_named_for_itself_and_for_the_layer_before_it():
    found = why(f"{INPUT} a = Conv(dx, w) b = Erf(a) {OUTPUT}")
    assert (found["a"], found["b"]) == (("float-operator", "b"), ("float-operator", "b"))


def test_a_result_that_is_not_quantized_a_layer_without_quantizers_and_weights_alone():
    assert why(f"{INPUT} y = Conv(dx, w)")["y"] == ("float-output", "y")
    assert why("f = Cast <to = 1> (wi) y = Conv(x, f)")["y"] == ("not-quantized", "y")
    assert why("w = DequantizeLinear(wi, s, sz) y = Conv(x, w)")["y"] == ("weights-only", "y")


def test_carriers_are_looked_through():
    assert why(f"{INPUT} t = Transpose(dx) a = Conv(t, w) b = Transpose(a) {OUTPUT}") == {}
