import numpy as np
import onnx
import onnxruntime as ort
import pytest

from kdpipe.foundation.quantization.scheme import Scheme
from kdpipe.stages.layer_files import LayerShape, empty_file, layer_file
from kdpipe.targets.profile import load_profile


def conv(inputs=8, outputs=16, size=(6, 6), kernel=3, stride=1, groups=1, dimensions=2):
    sides = (1,) * dimensions
    return LayerShape(
        op="conv",
        inputs=inputs,
        outputs=outputs,
        size=size,
        kernel=tuple(kernel * side for side in sides),
        stride=tuple(stride * side for side in sides),
        padding=tuple(kernel // 2 * side for side in sides),
        dilation=sides,
        groups=groups,
    )


SHAPES = {
    "convolution": conv(),
    "strided": conv(stride=2),
    "pointwise": conv(kernel=1),
    "depthwise": conv(inputs=16, outputs=16, groups=16),
    "one-dimensional": conv(size=(20,), dimensions=1),
    "linear": LayerShape(op="linear", inputs=32, outputs=10),
    "addition": LayerShape(op="add", inputs=8, outputs=8, size=(6, 6)),
}
SCHEMES = {
    "u8": Scheme(),
    "s8 symmetric, per tensor": Scheme(activation_signed=True, activation_symmetric=True, weight_granularity="per-tensor"),
    "weights only": Scheme(kind="weights-only"),
    "float16": Scheme(kind="float16"),
}


def session(content, optimized=None):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_layer_runs_once_and_often_in_every_scheme(shape, scheme):
    x = np.random.default_rng(0).random((2, *shape.sample_shape), np.float32)
    for copies in (1, 3):
        [out] = session(layer_file(shape, copies, 3, scheme, opset=19, static_batch=None)).run(None, {"input": x})
        assert out.shape[0] == 2
        assert np.isfinite(out).all()


@pytest.mark.parametrize("name", ["convolution", "strided", "pointwise", "depthwise", "addition"])
def test_the_runtime_computes_the_copies_on_integers_and_merges_none(name, tmp_path):
    profile = load_profile("cpu", at="test")
    session(layer_file(SHAPES[name], 4, 4, profile.chosen_scheme, opset=profile.opset, static_batch=None), tmp_path / "optimized.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    if name == "addition":
        assert operators.count("QLinearAdd") == 4
    else:
        assert operators.count("QLinearConv") == 8  # each copy and its reader
    assert operators.count("Transpose") <= 1 + 4  # of the input, and of each reader's one pixel: none stands between a copy and its reader
    assert "Conv" not in operators


def test_as_many_readers_stand_in_both_files(tmp_path):
    for copies in (1, 4):
        session(layer_file(SHAPES["convolution"], copies, 4, Scheme(), opset=19, static_batch=None), tmp_path / "optimized.onnx")
        operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
        assert operators.count("QLinearConv") == copies + 4


def test_a_static_file_has_its_batch_in_the_graph():
    content = layer_file(conv(), 1, 1, Scheme(), opset=19, static_batch=4)
    assert session(content).get_inputs()[0].shape == [4, 8, 6, 6]


def test_the_same_shape_gives_the_same_bytes():
    assert layer_file(conv(), 2, 2, Scheme(), opset=19, static_batch=None) == layer_file(conv(), 2, 2, Scheme(), opset=19, static_batch=None)


def test_the_empty_file_reads_one_pixel_of_the_input(tmp_path):
    content = empty_file((3, 8, 8), Scheme(), opset=19, static_batch=None)
    assert session(content).run(None, {"input": np.zeros((1, 3, 8, 8), np.float32)})[0].size == 1
    session(empty_file((12,), Scheme(), opset=19, static_batch=None))  # a vector, as tabular data have it


def test_a_depthwise_layer_and_an_addition_keep_one_width():
    assert conv(inputs=16, outputs=16, groups=16).resized(16, 12) == conv(inputs=12, outputs=12, groups=12)
    assert SHAPES["addition"].resized(8, 4) == LayerShape(op="add", inputs=4, outputs=4, size=(6, 6))
    assert conv().resized(4, 12) == conv(inputs=4, outputs=12)


def test_a_shape_is_named_by_all_that_its_time_depends_on():
    assert conv(stride=2).name == "conv 3x3 stride 2x2 padding 1x1, 8 → 16, on 6x6"
    assert conv(inputs=16, outputs=16, groups=16).name == "conv 3x3 groups 16 padding 1x1, 16 → 16, on 6x6"
    assert SHAPES["linear"].name == "linear 32 → 10"
    assert SHAPES["addition"].name == "add 8 on 6x6"
