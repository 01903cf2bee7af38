"""Small ONNX files for the runtimes: a float residual network, and int8 files that an independent tool makes of it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from kdpipe.targets.profile import Profile, load_profile

SHAPE = (1, 8, 8)
CHANNELS = 16


class Samples(CalibrationDataReader):
    def __init__(self, samples: np.ndarray) -> None:
        self.feeds = iter([{"input": sample[None]} for sample in samples])

    def get_next(self):
        return next(self.feeds, None)


def residual_network(batch: int | str, channels: int = CHANNELS) -> onnx.ModelProto:
    """conv-relu, conv + residual-relu, conv-relu, pool, linear; weights from a fixed stream."""
    generator = np.random.default_rng(1)
    nodes, constants = [], []

    def conv(name: str, source: str, result: str, channels_in: int) -> None:
        weight = generator.standard_normal((channels, channels_in, 3, 3)) * np.sqrt(2 / (9 * channels_in))
        constants.append(numpy_helper.from_array(weight.astype(np.float32), f"{name}.weight"))
        constants.append(numpy_helper.from_array(generator.standard_normal(channels).astype(np.float32) * 0.1, f"{name}.bias"))
        nodes.append(helper.make_node("Conv", [source, f"{name}.weight", f"{name}.bias"], [result], name=name, pads=[1] * 4, kernel_shape=[3, 3]))

    conv("conv1", "input", "a", SHAPE[0])
    nodes.append(helper.make_node("Relu", ["a"], ["b"], name="relu1"))
    conv("conv2", "b", "c", channels)
    nodes.append(helper.make_node("Add", ["c", "b"], ["d"], name="add"))
    nodes.append(helper.make_node("Relu", ["d"], ["e"], name="relu2"))
    conv("conv3", "e", "f", channels)
    nodes.append(helper.make_node("Relu", ["f"], ["g"], name="relu3"))
    nodes.append(helper.make_node("GlobalAveragePool", ["g"], ["p"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["p"], ["q"], name="flatten"))
    constants.append(numpy_helper.from_array(generator.standard_normal((10, channels)).astype(np.float32), "linear.weight"))
    constants.append(numpy_helper.from_array(np.zeros(10, np.float32), "linear.bias"))
    nodes.append(helper.make_node("Gemm", ["q", "linear.weight", "linear.bias"], ["logits"], name="linear", transB=1))
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 10])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)


@pytest.fixture(scope="session")
def samples() -> np.ndarray:
    """(40, 1, 8, 8) float32 in [0, 1]."""
    return np.random.default_rng(0).random((40, *SHAPE), dtype=np.float32)


@pytest.fixture(scope="session")
def files(tmp_path_factory, samples) -> Path:
    """float, u8 (7-bit weights), s8 (signed symmetric), each with a dynamic batch and, as `-static`, with batch 4 and 1."""
    folder = tmp_path_factory.mktemp("files")
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True}
    for suffix, batch in (("", "batch"), ("-static", 4), ("-one", 1)):
        onnx.save(residual_network(batch), folder / f"float{suffix}.onnx")
        if batch == 4:
            continue
        source = folder / f"float{suffix}.onnx"
        for name, kind, reduced, extra in (("u8", QuantType.QUInt8, True, {}), ("s8", QuantType.QInt8, False, symmetric)):
            quantize_static(
                source,
                folder / f"{name}{suffix}.onnx",
                Samples(samples[:16]),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=reduced,
                activation_type=kind,
                weight_type=QuantType.QInt8,
                extra_options=extra,
            )
    onnx.save(residual_network("batch", channels=64), folder / "wide.onnx")
    return folder


@pytest.fixture(scope="session")
def edited(files, tmp_path_factory) -> Callable[[str, Callable[[onnx.ModelProto], None]], Path]:
    """`edited("u8.onnx", change)`: the path of a copy of the file with one thing changed."""

    def make(name: str, change: Callable[[onnx.ModelProto], None]) -> Path:
        model = onnx.load(files / name)
        change(model)
        path = tmp_path_factory.mktemp("edited") / name
        onnx.save(model, path)
        return path

    return make


@pytest.fixture(params=["cpu", "arm", "gpu", "npu"])
def shipped(request) -> Profile:
    return load_profile(request.param, at="test")
