import collections

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from kdpipe.foundation.onnx_file import to_bytes, to_onnx
from kdpipe.foundation.quantization.compressed import computing_in_float16, folded_at_load, stored_in_float16
from kdpipe.foundation.quantization.engine import freeze, plan_of, prepare, twin_of
from kdpipe.foundation.quantization.qdq import exportable
from kdpipe.foundation.quantization.scheme import Scheme

KINDS = ["residual", "functional", "twice", "smooth", "perceptron"]
WEIGHTS = Scheme(kind="weights-only", weight_bits=8)
HALF = Scheme(kind="float16")
HALF_ARITHMETIC = Scheme(kind="float16", arithmetic="float16")


def made(module, scheme, float_layers=()):
    """The frozen twin and its file, as `stages.twin_file` makes it for a CPU."""
    twin = freeze(prepare(module, scheme, batch_norm="folded", float_layers=float_layers))
    exported = computing_in_float16(twin) if scheme.half_arithmetic else exportable(twin)
    model = to_onnx(exported, (1, 8, 8), opset=19, static_batch=None)
    return twin, {"weights-only": folded_at_load, "float16": stored_in_float16}[scheme.kind](model) if not scheme.half_arithmetic else model


def stored(model):
    return {tensor.name: numpy_helper.to_array(tensor).dtype for tensor in model.graph.initializer}


def run(model, x):
    session = onnxruntime.InferenceSession(to_bytes(model), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x.numpy()})[0]


def optimised(model, folder):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3  # that the written graph is for this machine is known
    onnxruntime.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    return collections.Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


@pytest.mark.parametrize("kind", ["residual", "twice"])
@pytest.mark.parametrize("scheme", [WEIGHTS, HALF, HALF_ARITHMETIC], ids=["weights", "half", "half arithmetic"])
def test_the_file_computes_what_the_twin_computes(network, samples, kind, scheme):
    twin, model = made(network(kind), scheme)
    onnx.checker.check_model(model, full_check=True)
    x = samples(16, 4)
    expected = twin(x).numpy()
    tolerance = 2e-2 if scheme.half_arithmetic else 1e-5  # the twin does not round activations to float16: 11 bits each
    np.testing.assert_allclose(run(model, x), expected, atol=tolerance * np.abs(expected).max())
    np.testing.assert_allclose(ReferenceEvaluator(model).run(None, {"input": x.numpy()})[0], expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", [WEIGHTS, HALF, HALF_ARITHMETIC], ids=["weights", "half", "half arithmetic"])
def test_the_plan_rebuilds_the_twin(network, samples, kind, scheme):
    twin = freeze(prepare(network(kind), scheme, batch_norm="live"))
    again = twin_of(network(kind), plan_of(twin))
    again.load_state_dict(twin.state_dict())
    assert plan_of(twin).quantizers == ()
    assert torch.equal(again(samples(4, 4)), twin(samples(4, 4)))


def test_weights_stand_as_integers_and_are_widened_once_at_load(network, tmp_path):
    twin, model = made(network("residual"), WEIGHTS)
    assert sum(kind == np.int8 for kind in stored(model).values()) == 4
    assert "DequantizeLinear" not in {node.op_type for node in model.graph.node}
    graph = optimised(model, tmp_path)
    assert not {"Cast", "DequantizeLinear", "QuantizeLinear"} & graph.keys()
    integers = numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == "body.stem.0.weight"))
    layer = twin.get_submodule("body.stem.0")
    assert np.array_equal(integers, (layer.weight / layer.weight_scale).round().detach().numpy())


def test_read_by_cast_and_mul_the_weights_are_those_of_dequantize_linear_to_the_bit(network, samples):
    twin = freeze(prepare(network("residual"), WEIGHTS, batch_norm="folded"))
    model = to_onnx(exportable(twin), (1, 8, 8), opset=19, static_batch=None)
    x = samples(8, 4).numpy()
    before, after = (ReferenceEvaluator(it).run(None, {"input": x})[0] for it in (model, folded_at_load(model)))
    assert np.array_equal(before, after)


def test_static_int8_files_are_not_touched_where_nothing_is_wide(network):
    twin = freeze(prepare(network("perceptron"), HALF, batch_norm="folded"))
    model = to_onnx(exportable(twin), (1, 8, 8), opset=19, static_batch=None)
    before = to_bytes(model)
    stored_in_float16(model)
    folded_at_load(model)
    assert to_bytes(model) == before


def test_float16_weights_take_half_the_room_and_are_widened_once_at_load(network, tmp_path):
    _, model = made(network("perceptron"), HALF)
    kinds = [kind for name, kind in stored(model).items() if name.endswith("weight")]
    assert np.dtype(np.float16) in kinds
    assert "Cast" not in optimised(model, tmp_path)
    halves = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16]
    assert all(np.isfinite(values).all() for values in halves)


def test_layers_kept_in_float_keep_their_bits(network):
    twin, model = made(network("perceptron"), HALF, float_layers=["*"])
    assert np.dtype(np.float16) not in stored(model).values()
    assert plan_of(twin).float_layers is not None


def test_float16_arithmetic_takes_and_gives_float32_and_spares_the_layers_kept_in_float(network):
    _, model = made(network("residual"), HALF_ARITHMETIC, float_layers=["linear"])
    float32 = onnx.TensorProto.FLOAT
    assert [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)] == [float32, float32]
    kinds = stored(model)
    assert kinds["body.stem.0.weight"] == np.float16
    assert kinds["body.linear.layer.weight"] == np.float32
