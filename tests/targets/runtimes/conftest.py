"""Networks written down node by node, in float or, with the same weights, with Q/DQ where it is wanted: each cause of slowness has its graph."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


class Net:
    """`q` puts a Q/DQ pair behind a value in the int8 file and nothing in the float file. Values are named after the node that makes them."""

    def __init__(self, shape: tuple[int, ...], *, quantized: bool, signed: bool = False, zero: int = 0, batch: int | str = "batch") -> None:
        self.shape, self.quantized, self.batch = shape, quantized, batch
        self.kind, self.zero = np.int8 if signed else np.uint8, zero
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.channels = {"input": shape[0]}
        self.generator = np.random.default_rng(3)

    def constant(self, name: str, value) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, operator: str, *inputs: str, name: str | None = None, channels: int | None = None, **attributes) -> str:
        name = name or f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [f"{name}.out"], name=name, **attributes))
        self.channels[f"{name}.out"] = channels or self.channels.get(inputs[0], 0)
        return f"{name}.out"

    def q(self, value: str, *, scale: float = 1 / 16, per_channel: bool = False) -> str:
        if not self.quantized:
            return value
        size = self.channels[value]
        scales = np.linspace(scale / 2, scale, size, dtype=np.float32) if per_channel else np.float32(scale)
        zeros = np.full(size, self.zero, self.kind) if per_channel else self.kind(self.zero)
        pair = [self.constant(f"{value}.scale", scales), self.constant(f"{value}.zero", zeros)]
        axis = {"axis": 1} if per_channel else {}
        self.nodes.append(helper.make_node("QuantizeLinear", [value, *pair], [f"{value}.q"], name=f"{value}.quantize", **axis))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"{value}.q", *pair], [f"{value}.dq"], name=f"{value}.dequantize", **axis))
        self.channels[f"{value}.dq"] = size
        return f"{value}.dq"

    def weight(self, name: str, shape: tuple[int, ...]) -> str:
        steps = self.generator.integers(-63, 64, shape).astype(np.int8)
        scale = np.float32(1 / 64 / np.sqrt(np.prod(shape[1:])))
        if not self.quantized:
            return self.constant(name, steps.astype(np.float32) * scale)
        pair = [self.constant(f"{name}.scale", np.full(shape[0], scale, np.float32)), self.constant(f"{name}.zero", np.zeros(shape[0], np.int8))]
        inputs = [self.constant(f"{name}.int8", steps), *pair]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}.dequantize", axis=0))
        return name

    def conv(self, value: str, channels: int, *, name: str, kernel: int = 3, groups: int = 1, bias: bool = False) -> str:
        inputs = [value, self.weight(f"{name}.weight", (channels, self.channels[value] // groups, kernel, kernel))]
        inputs += [self.constant(f"{name}.bias", np.zeros(channels, np.float32))] if bias else []
        return self.op("Conv", *inputs, name=name, channels=channels, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4, group=groups)

    def block(self, value: str, channels: int, *, name: str, **more) -> str:
        """conv, ReLU, quantizer."""
        return self.q(self.op("Relu", self.conv(value, channels, name=name, **more), name=f"{name}.relu"))

    def head(self, value: str) -> str:
        """Pool and a linear layer to ten classes."""
        pooled = self.op("Flatten", self.q(self.op("GlobalAveragePool", value, name="pool")), name="flatten")
        return self.op("Gemm", pooled, self.weight("linear.weight", (10, self.channels[value])), name="linear", transB=1)

    def save(self, path: Path, result: str) -> Path:
        assert self.nodes[-1].output[0] == result
        self.nodes[-1].output[0] = "logits"
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, [self.batch, *self.shape])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [self.batch, 10])],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
        onnx.checker.check_model(model)
        onnx.save(model, path)
        return path


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Less time for each condition: what the tests ask for are ratios of several."""
    monkeypatch.setattr("kdpipe.targets.timing.TIMED_SECONDS", 0.024)
    monkeypatch.setattr("kdpipe.targets.timing.STEADY", 1e9)  # what a busy machine does to claims is test_timing.py's
    monkeypatch.setattr("kdpipe.targets.devices.agent.interruptions", lambda: 0)
    monkeypatch.setattr("kdpipe.targets.timing.interruptions", lambda: 0)
    monkeypatch.setattr("kdpipe.targets.runtimes.onnxruntime_view.SECONDS", 0.02)
    monkeypatch.setattr("kdpipe.targets.runtimes.openvino_view.SECONDS", 0.02)


@pytest.fixture
def pair(tmp_path) -> Callable[..., tuple[Path, Path]]:
    """`pair(write)`: the int8 and the float file of the network that `write(net)` writes down, for inputs of `shape`."""

    def make(write: Callable[[Net], str], shape: tuple[int, ...] = (3, 16, 16), **more) -> tuple[Path, Path]:
        files = []
        for name, quantized in (("int8", True), ("float", False)):
            net = Net(shape, quantized=quantized, **more)
            files.append(net.save(tmp_path / f"{write.__name__}-{name}.onnx", write(net)))
        return files[0], files[1]

    return make
