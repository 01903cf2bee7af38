"""Every operator beside ONNX Runtime's, on a graph of one node; and its gradient beside finite differences."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from kdpipe.foundation.onnx_twin.operators import OPERATORS
from kdpipe.foundation.onnx_twin.quantized import QUANTIZED
from kdpipe.foundation.onnx_twin.twin import OnnxTwin

RNG = np.random.default_rng(0)
IMAGE = (2, 3, 7, 6)


def f(*shape, low=-2.0, high=2.0):
    return RNG.uniform(low, high, shape).astype(np.float32)


def i(*values):
    return np.array(values, np.int64)


def one(value, dtype=np.float32):
    return np.array(value, dtype)


def model_of(kind, x, inputs, attributes, opset=21, domain=""):
    """A graph of one node; `inputs`: constants, with None where `x` goes."""
    names = ["x" if value is None else f"c{number}" if value is not ... else "" for number, value in enumerate(inputs)]
    constants = [numpy_helper.from_array(value, f"c{number}") for number, value in enumerate(inputs) if value is not None and value is not ...]
    node = helper.make_node(kind, names, ["y"], domain=domain, **attributes)
    kind_of_x = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph([node], "one", [helper.make_tensor_value_info("x", kind_of_x, x.shape)], [onnx.ValueInfoProto(name="y")], constants)
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10)


def ran(model, x):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


X, ROW = None, f(2, 5)
U8, S8 = np.uint8, np.int8
CASES = {
    "Abs": (f(*IMAGE), [X], {}),
    "Add": (f(*IMAGE), [X, f(1, 3, 1, 1)], {}),
    "AveragePool": (f(*IMAGE), [X], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    "AveragePool padding counted": (f(*IMAGE), [X], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    "BatchNormalization": (f(*IMAGE), [X, f(3), f(3), f(3), f(3, low=0.5)], {"epsilon": 1e-3}),
    "Clip": (f(*IMAGE), [X, one(-0.5), one(0.7)], {}),
    "Clip above": (f(*IMAGE), [X, ..., one(0.7)], {}),
    "Concat": (f(*IMAGE), [X, f(2, 2, 7, 6)], {"axis": 1}),
    "Conv": (f(*IMAGE), [X, f(4, 3, 3, 3), f(4)], {"strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2]}),
    "Conv by group": (f(*IMAGE), [X, f(6, 1, 3, 3)], {"group": 3, "pads": [1, 1, 1, 1]}),
    "Conv SAME_UPPER": (f(*IMAGE), [X, f(4, 3, 4, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "Conv SAME_LOWER": (f(*IMAGE), [X, f(4, 3, 4, 3)], {"auto_pad": "SAME_LOWER", "strides": [3, 2]}),
    "Conv 1d": (f(2, 3, 9), [X, f(4, 3, 3)], {"pads": [1, 1]}),
    "Div": (f(*IMAGE), [X, one(1.7)], {}),
    "Dropout": (f(*IMAGE), [X], {}),
    "Elu": (f(*IMAGE), [X], {"alpha": 0.7}),
    "Erf": (f(*IMAGE), [X], {}),
    "Exp": (f(*IMAGE), [X], {}),
    "Expand": (f(2, 1, 5), [X, i(1, 4, 1)], {}),
    "Flatten": (f(*IMAGE), [X], {"axis": 2}),
    "Floor": (f(*IMAGE), [X], {}),
    "Gather": (f(*IMAGE), [X, i(0, -1)], {"axis": 1}),
    "Gather one": (f(*IMAGE), [X, one(1, np.int64)], {"axis": 2}),
    "Gelu": (f(*IMAGE), [X], {}),
    "Gelu tanh": (f(*IMAGE), [X], {"approximate": "tanh"}),
    "Gemm": (f(2, 5), [X, f(4, 5), f(4)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    "GlobalAveragePool": (f(*IMAGE), [X], {}),
    "GlobalMaxPool": (f(*IMAGE), [X], {}),
    "HardSigmoid": (f(*IMAGE, low=-5, high=5), [X], {"alpha": 0.3, "beta": 0.4}),
    "HardSwish": (f(*IMAGE, low=-5, high=5), [X], {}),
    "Identity": (f(*IMAGE), [X], {}),
    "InstanceNormalization": (f(*IMAGE), [X, f(3), f(3)], {}),
    "LayerNormalization": (f(*IMAGE), [X, f(6), f(6)], {"axis": -1}),
    "LeakyRelu": (f(*IMAGE), [X], {"alpha": 0.2}),
    "Log": (f(*IMAGE, low=0.1), [X], {}),
    "LogSoftmax": (ROW, [X], {"axis": 1}),
    "MatMul": (f(2, 3, 4, 5), [X, f(5, 6)], {}),
    "Max": (f(*IMAGE), [X, one(0.3), f(1, 3, 1, 1)], {}),
    "MaxPool": (f(*IMAGE), [X], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 0, 1]}),
    "MaxPool SAME_UPPER": (f(*IMAGE), [X], {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "Min": (f(*IMAGE), [X, one(0.3)], {}),
    "Mish": (f(*IMAGE), [X], {}),
    "Mul": (f(*IMAGE), [X, f(1, 3, 1, 1)], {}),
    "Neg": (f(*IMAGE), [X], {}),
    "PRelu": (f(*IMAGE), [X, f(3, 1, 1)], {}),
    "Pad": (f(*IMAGE), [X, i(0, 0, 1, 2, 0, 0, 3, 0), one(0.5)], {}),
    "Pad reflect": (f(*IMAGE), [X, i(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "reflect"}),
    "Pad two axes": (f(*IMAGE), [X, i(1, 2, 3, 0), ..., i(-1, 2)], {}),
    "Pow": (f(*IMAGE, low=0.1), [X, one(1.5)], {}),
    "ReduceL2": (f(*IMAGE), [X, i(1)], {"keepdims": 0}),
    "ReduceMax": (f(*IMAGE), [X, i(2, 3)], {}),
    "ReduceMean": (f(*IMAGE), [X, i(2, 3)], {"keepdims": 0}),
    "ReduceMean of all": (f(*IMAGE), [X], {}),
    "ReduceMin": (f(*IMAGE), [X, i(-1)], {}),
    "ReduceSum": (f(*IMAGE), [X, i(1, 2)], {}),
    "Relu": (f(*IMAGE), [X], {}),
    "Reshape": (f(*IMAGE), [X, i(0, -1, 6)], {}),
    "Round": (f(*IMAGE), [X], {}),
    "Selu": (f(*IMAGE), [X], {}),
    "Sigmoid": (f(*IMAGE), [X], {}),
    "Sign": (f(*IMAGE), [X], {}),
    "Slice": (f(*IMAGE), [X, i(1, -4), i(3, 100), i(1, 2), i(1, 2)], {}),
    "Softmax": (ROW, [X], {}),
    "Softplus": (f(*IMAGE), [X], {}),
    "Sqrt": (f(*IMAGE, low=0.1), [X], {}),
    "Squeeze": (f(2, 1, 3, 1), [X, i(1, -1)], {}),
    "Sub": (f(*IMAGE), [X, one(0.3)], {}),
    "Sum": (f(*IMAGE), [X, one(0.3), f(3, 1, 1)], {}),
    "Tanh": (f(*IMAGE), [X], {}),
    "Transpose": (f(*IMAGE), [X], {"perm": [0, 2, 3, 1]}),
    "Unsqueeze": (f(2, 5), [X, i(1, -1)], {}),
    "Where": (f(*IMAGE), [f(*IMAGE) > 0, X, one(0.0)], {}),
    "QuantizeLinear": (f(*IMAGE), [X, one(0.01), one(128, U8)], {}),
    "QuantizeLinear by channel": (f(*IMAGE), [X, f(3, low=0.005, high=0.02), np.array([0, 3, -5], S8)], {"axis": 1}),
    "QuantizeLinear without zero point": (f(*IMAGE), [X, one(0.005)], {}),
    "DequantizeLinear": (RNG.integers(0, 256, IMAGE).astype(U8), [X, one(0.02), one(100, U8)], {}),
    "ConvInteger": (RNG.integers(0, 256, IMAGE).astype(U8), [X, RNG.integers(-127, 128, (4, 3, 3, 3)).astype(S8), one(12, U8)], {"pads": [1, 1, 1, 1]}),
    "MatMulInteger": (RNG.integers(0, 256, (2, 5)).astype(U8), [X, RNG.integers(-127, 128, (5, 4)).astype(S8), one(12, U8)], {}),
    "QLinearConv": (
        RNG.integers(0, 256, IMAGE).astype(U8),
        [
            *(X, one(0.02), one(100, U8), RNG.integers(-127, 128, (4, 3, 3, 3)).astype(S8), f(4, low=0.01, high=0.02), np.zeros(4, S8)),
            *(one(0.3), one(90, U8), RNG.integers(-900, 900, 4).astype(np.int32)),
        ],
        {"strides": [2, 2], "pads": [1, 1, 1, 1]},
    ),
    "QLinearMatMul": (
        RNG.integers(0, 256, (2, 5)).astype(U8),
        [X, one(0.02), one(100, U8), RNG.integers(-127, 128, (5, 4)).astype(S8), one(0.01), one(0, S8), one(0.1), one(90, U8)],
        {},
    ),
}
MICROSOFT = {
    "QLinearAdd": (
        RNG.integers(0, 256, IMAGE).astype(U8),
        [X, one(0.02), one(100, U8), RNG.integers(0, 256, IMAGE).astype(U8), one(0.03), one(90, U8), one(0.05), one(95, U8)],
        {},
    ),
    "QLinearMul": (
        RNG.integers(0, 256, IMAGE).astype(U8),
        [X, one(0.02), one(100, U8), RNG.integers(0, 256, IMAGE).astype(U8), one(0.03), one(90, U8), one(0.05), one(95, U8)],
        {},
    ),
    "QLinearGlobalAveragePool": (RNG.integers(0, 256, IMAGE).astype(U8), [X, one(0.02), one(100, U8), one(0.01), one(95, U8)], {}),
    "QGemm": (
        RNG.integers(0, 256, (2, 5)).astype(U8),
        [X, one(0.02), one(100, U8), RNG.integers(-127, 128, (4, 5)).astype(S8), one(0.01), one(0, S8), np.arange(4, dtype=np.int32), one(0.1), one(90, U8)],
        {"transB": 1},
    ),
}
WITHOUT_A_CASE = {"And", "Cast", "ConstantOfShape", "Equal", "Greater", "Less", "Not", "Shape"}
"""Of conditions, types and shapes: `test_twin.py` runs them where they occur, between other operators."""


def is_flat(case):
    return case.split()[0] in {"Floor", "Round", "Sign"}


def test_each_operator_has_a_case():
    assert {case.split()[0] for case in (*CASES, *MICROSOFT)} | WITHOUT_A_CASE == {*OPERATORS, *QUANTIZED}


@pytest.mark.parametrize("case", [*CASES, *MICROSOFT])
def test_it_answers_as_the_runtime(case):
    x, inputs, attributes = (CASES | MICROSOFT)[case]
    model = model_of(case.split()[0], x, inputs, attributes, domain="com.microsoft" if case in MICROSOFT else "")
    theirs = ran(model, x)
    with torch.no_grad():
        ours = without_dropping(model)(torch.from_numpy(x)).numpy()
    assert ours.shape == theirs.shape
    if theirs.dtype == np.float32:
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)  # other orders of float32 sums
    else:  # integers: a product that lies half-way between two may be rounded either way
        assert np.abs(ours - theirs.astype(np.float32)).max() <= 1
        assert (ours == theirs).mean() > 0.98


@pytest.mark.parametrize("case", [case for case, (x, _, _) in CASES.items() if x.dtype == np.float32 and not case.startswith("Quantize")])
def test_its_gradient_is_that_of_finite_differences(case):
    x, inputs, attributes = CASES[case]
    twin = without_dropping(model_of(case.split()[0], x, inputs, attributes)).double()
    point = torch.from_numpy(x).double().requires_grad_()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value = twin(point)
    weight = torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((value * weight).sum(), point)
    step = 1e-6
    with torch.no_grad():
        rise = ((twin(point + step * direction) - twin(point - step * direction)) * weight).sum() / (2 * step)
    expected = 0.0 if is_flat(case) else float(rise)
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_quantization_passes_the_gradient_where_it_does_not_clip():
    x = np.array([[-3.0, -0.5, 0.004, 0.5, 3.0]], np.float32)
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])]
    constants = [numpy_helper.from_array(one(0.01), "s"), numpy_helper.from_array(one(128, U8), "z")]
    graph = helper.make_graph(nodes, "two", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)], [onnx.ValueInfoProto(name="y")], constants)
    twin = OnnxTwin(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), at="here")
    point = torch.from_numpy(x).requires_grad_()
    value = twin(point)
    value.sum().backward()
    torch.testing.assert_close(value, torch.tensor([[-1.28, -0.5, 0.0, 0.5, 1.27]]))
    torch.testing.assert_close(point.grad, torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0]]))


def without_dropping(model):
    """The twin with its last Softmax: a graph that is nothing else would have no node."""
    twin = OnnxTwin(model, at="here")
    twin.output = "y"
    return twin
