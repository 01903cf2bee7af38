"""Whole files: the networks of kdpipe, their int8 files, and files of ONNX Runtime's own quantizer, each beside its source and its runtime."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from torch import nn

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.networks import InputContract, NetworkSpec, build_network
from kdpipe.foundation.onnx_file import to_bytes, to_onnx
from kdpipe.foundation.onnx_twin.twin import OnnxTwin, agreement
from kdpipe.foundation.quantization.engine import calibrate_, freeze, prepare
from kdpipe.foundation.quantization.qdq import exportable
from kdpipe.foundation.quantization.scheme import Scheme
from kdpipe.foundation.randomness import stream

FACTORIES = {
    "cnn": ("kdpipe.tasks.networks.cnn:cnn", {"channels": [8, 16]}),
    "resnet": ("kdpipe.tasks.networks.resnet:resnet", {"depth": 8, "width": 0.5}),
    "mobilenetv2": ("kdpipe.tasks.networks.mobilenetv2:mobilenetv2", {"width": 0.1}),
}


@pytest.fixture(scope="module")
def x():
    return torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network(x):
    """`network("resnet")`: initial weights, settled BatchNorm statistics, (n, 1, 8, 8) to (n, 4); evaluation mode."""
    torch.set_num_threads(1)

    def make(name):
        factory, arguments = FACTORIES[name]
        spec = NetworkSpec(
            factory=factory,
            arguments={**arguments, "in_channels": 1, "classes": 4, "image_size": 8},
            contract=InputContract(shape=(1, 8, 8), labels=("a", "b", "c", "d")),
            mean=(0.5,),
            std=(0.3,),
        )
        module = build_network(spec, stream(0, name)).module
        for _ in range(30):
            module(x)
        return module.eval().requires_grad_(False)

    return make


@pytest.fixture(scope="module")
def exported(network):
    """`exported("resnet")`: the network's float file; made once."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = to_bytes(to_onnx(network(name), (1, 8, 8), opset=17, static_batch=None))
        return onnx.load_from_string(made[name])

    return make


def gradients(module, x):
    point = x.clone().requires_grad_()
    logits = module(point)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, torch.arange(len(x)) % 4, reduction="sum"), point)
    return logits.detach(), gradient


def ran(model, x):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"]).run(None, {"input": x.numpy()})[0]


@pytest.mark.parametrize("name", ["cnn", "resnet", pytest.param("mobilenetv2", marks=pytest.mark.slow)])
def test_a_float_file_is_the_same_function_with_the_same_gradient(network, exported, x, name):
    module = network(name)
    logits, gradient = gradients(OnnxTwin(exported(name), at="here"), x)
    expected, slope = gradients(module, x)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)  # other orders of float32 sums
    torch.testing.assert_close(gradient, slope, rtol=1e-3, atol=1e-4)


UNSIGNED, SIGNED = Scheme(), Scheme(activation_signed=True, activation_symmetric=True)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("cnn", SIGNED), ("resnet", UNSIGNED), pytest.param("mobilenetv2", UNSIGNED, marks=pytest.mark.slow)],
    ids=["cnn-signed", "resnet-unsigned", "mobilenetv2-unsigned"],
)
def test_of_an_int8_file_of_ours_it_is_the_twin_that_the_file_was_made_from(network, x, name, scheme):
    prepared = prepare(network(name), scheme, batch_norm="folded")
    calibrate_(prepared, [x])
    twin = freeze(prepared).requires_grad_(False)
    model = to_onnx(exportable(twin), (1, 8, 8), opset=19, static_batch=None)
    logits, gradient = gradients(OnnxTwin(model, at="here"), x)
    expected, slope = gradients(twin, x)
    # a sum that lies on the edge of a step may fall to either side, and a sample's answer then moves by steps
    same = torch.isclose(logits, expected, rtol=1e-4, atol=1e-4).all(1)
    assert same.float().mean() > 0.9
    near = F.cosine_similarity(gradient.flatten(1), slope.flatten(1))
    assert near[same].min() > 0.95
    assert agreement(OnnxTwin(model, at="here"), x.numpy(), ran(model, x)).holds


class Reader(CalibrationDataReader):
    def __init__(self, x):
        self.batches = iter([{"input": x.numpy()}])

    def get_next(self):
        return next(self.batches, None)


@pytest.mark.parametrize("format_", [QuantFormat.QDQ, QuantFormat.QOperator, None], ids=["qdq", "qoperator", "dynamic"])
def test_files_of_onnx_runtimes_own_quantizer_have_gradients(network, exported, x, tmp_path, format_):
    onnx.save(exported("resnet"), tmp_path / "float.onnx")
    source, target = str(tmp_path / "float.onnx"), str(tmp_path / "int8.onnx")
    if format_ is None:
        quantize_dynamic(source, target)
    else:
        quantize_static(source, target, Reader(x), quant_format=format_, per_channel=True)
    model = onnx.load(target)
    twin = OnnxTwin(model, at="here")
    one = x[:1] if format_ is None else x  # a dynamic range is that of the whole batch
    held = agreement(twin, one.numpy(), ran(model, one))
    assert held.holds, held
    assert held.largest < 0.2
    _, gradient = gradients(twin, x)
    _, slope = gradients(network("resnet"), x)
    assert F.cosine_similarity(gradient.flatten(1), slope.flatten(1)).mean() > 0.7  # straight through rounding, it points where the float network's points


def test_a_last_softmax_is_left_out(network, exported, x):
    model = exported("cnn")
    model.graph.node.append(helper.make_node("Softmax", ["logits"], ["probabilities"]))
    model.graph.output[0].name = "probabilities"
    torch.testing.assert_close(OnnxTwin(model, at="here")(x), network("cnn")(x), rtol=1e-4, atol=1e-5)


def test_shapes_that_are_computed_in_the_graph(x):
    class Reshaping(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(32, 4)

        def forward(self, x):
            left, right = x.flatten(1).split(32, dim=1)
            both = torch.where(left > right, left, right).reshape(x.shape[0], 4, -1)
            return self.linear(both.transpose(1, 2).reshape(x.shape[0], -1)) + both.mean(2)

    module = Reshaping().eval()
    logits, gradient = gradients(OnnxTwin(to_onnx(module, (1, 8, 8), opset=19, static_batch=None), at="here"), x)
    expected, slope = gradients(module, x)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(gradient, slope)


def graph_of(nodes, inputs=("x",), constants=()):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in inputs]
    graph = helper.make_graph(nodes, "test", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_conditions_types_and_shapes():
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], start=1),
        helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=numpy_helper.from_array(np.array([1.0], np.float32))),
        helper.make_node("Greater", ["x", "ones"], ["above"]),
        helper.make_node("Less", ["x", "half"], ["below"]),
        helper.make_node("Equal", ["x", "half"], ["half?"]),
        helper.make_node("Not", ["half?"], ["other"]),
        helper.make_node("And", ["below", "other"], ["under"]),
        helper.make_node("Cast", ["under"], ["one"], to=TensorProto.FLOAT),
        helper.make_node("Where", ["above", "ones", "one"], ["y"]),
    ]
    model = graph_of(nodes, constants=[numpy_helper.from_array(np.array(0.5, np.float32), "half")])
    x = np.array([[2.0, 0.5, 0.25, 0.75]], np.float32)
    theirs = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    assert OnnxTwin(model, at="here")(torch.from_numpy(x)).tolist() == theirs.tolist() == [[1, 0, 1, 0]]


def test_unknown_operators_are_named_and_counted():
    nodes = [helper.make_node("Hardmax", ["x"], ["a"]), helper.make_node("Hardmax", ["a"], ["b"]), helper.make_node("Mine", ["b"], ["y"], domain="my.own")]
    with pytest.raises(ConfigError) as caught:
        OnnxTwin(graph_of(nodes), at="model.onnx")
    problem = caught.value.problems[0]
    assert problem.message == "operators without a differentiable form here: Hardmax (2), Mine (1)"
    assert problem.at == "model.onnx"
    assert problem.do == "attack a surrogate, or the file without gradients"


def test_a_second_output_that_is_used_is_refused():
    nodes = [helper.make_node("Dropout", ["x"], ["a", "mask"]), helper.make_node("Where", ["mask", "a", "x"], ["y"])]
    with pytest.raises(ConfigError, match=r"Dropout with 2 outputs \(1\)"):
        OnnxTwin(graph_of(nodes), at="model.onnx")


def test_two_inputs_are_refused():
    with pytest.raises(ConfigError) as caught:
        OnnxTwin(graph_of([helper.make_node("Add", ["x", "z"], ["y"])], inputs=("x", "z")), at="model.onnx")
    assert caught.value.problems[0].message == "the file takes 2 inputs: x, z"
    assert "from one batch to the logits" in caught.value.problems[0].do


def test_an_operator_used_in_a_way_that_is_not_known_names_its_node():
    steps = [numpy_helper.from_array(np.array([value]), name) for name, value in (("from", 3), ("to", -5), ("axis", 1), ("step", -1))]
    twin = OnnxTwin(graph_of([helper.make_node("Slice", ["x", "from", "to", "axis", "step"], ["y"], name="backwards")], constants=steps), at="here")
    with pytest.raises(ConfigError) as caught:
        twin(torch.zeros(1, 4))
    assert caught.value.problems[0].message == "no differentiable form here of Slice: Slice with a negative step"
    assert caught.value.problems[0].at == "backwards"


@pytest.mark.parametrize(
    ("answers", "holds"),
    [(lambda y: y + 1e-4, True), (lambda y: -y, False), (lambda y: y[:, :3], False), (lambda y: y * float("nan"), False)],
    ids=["close", "another", "other classes", "nan"],
)
def test_what_disagrees_with_its_file_is_not_believed(network, x, answers, holds):
    module = network("cnn")
    found = agreement(lambda z: answers(module(z)), x.numpy(), module(x).numpy())
    assert (found.n, found.holds) == (40, holds)
