"""A single layer as an ONNX file, as the target's int8 file has it, so that its latency can be measured alone.

One run of a runtime costs more than a small layer: a file holds the layer several times, and two files that differ in how often are measured in
turn; the difference is the layer's. Copies stand side by side on one input, each with weights of its own (equal ones would be merged). Their outputs
are read by 1x1 convolutions that look at one pixel, as many in both files: without a reader a copy would be left out, or its output would be turned
from the kernels' channels-last order to ONNX's, which costs as much as a small layer. Additions stand in a chain.
"""

import math
from typing import Literal, Self

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper
from pydantic import BaseModel, Field

from kdpipe.foundation.onnx_file import INPUT_NAME, OUTPUT_NAME, to_bytes
from kdpipe.foundation.quantization.fake_quant import activation_range, weight_limit
from kdpipe.foundation.quantization.scheme import Scheme
from kdpipe.foundation.randomness import numpy_stream

_SCALE = 0.05  # of every activation: the value changes no kernel and no run time
_IR_VERSION = 9  # of opset 19 and before; newer ones are not read by runtimes that boards have


class LayerShape(BaseModel, extra="forbid", frozen=True):
    """All of a layer that its run time depends on. `size`: the input's height and width (linear: empty); convolutions: one number for each side of it."""

    op: Literal["conv", "linear", "add"]
    inputs: int = Field(ge=1, description="channels or features that go in; of an addition, of each side")
    outputs: int = Field(ge=1)
    size: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = Field(1, ge=1)

    def resized(self, inputs: int, outputs: int) -> Self:
        """The same layer with other widths; a depthwise convolution stays one, an addition has one width."""
        depthwise = self.groups > 1 and self.groups == self.inputs == self.outputs
        if depthwise or self.op == "add":
            inputs = outputs
        return self.model_copy(update={"inputs": inputs, "outputs": outputs, **({"groups": outputs} if depthwise else {})})

    @property
    def name(self) -> str:
        """In words and numbers, the same for equal shapes: `conv 3x3 stride 2, 32 → 64, on 14x14`."""
        if self.op == "add":
            return f"add {self.outputs} on {_times(self.size)}"
        if self.op == "linear":
            return f"linear {self.inputs} → {self.outputs}"
        further = "" if set(self.stride) == {1} else f" stride {_times(self.stride)}"
        further += "" if set(self.dilation) == {1} else f" dilation {_times(self.dilation)}"
        further += "" if self.groups == 1 else f" groups {self.groups}"
        return f"conv {_times(self.kernel)}{further} padding {_times(self.padding)}, {self.inputs} → {self.outputs}, on {_times(self.size)}"

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of what goes in, without the batch."""
        return (self.inputs, *self.size)

    @property
    def output_size(self) -> tuple[int, ...]:
        """Height and width of what comes out."""
        if self.op != "conv":
            return self.size
        sides = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for side, kernel, stride, padding, dilation in sides)


def layer_file(shape: LayerShape, copies: int, readers: int, scheme: Scheme, *, opset: int, static_batch: int | None) -> bytes:
    """An ONNX file with the layer `copies` times on one input, quantized by `scheme`; float32 (batch, *shape.sample_shape) to (batch, anything).

    `readers` >= copies: how many convolutions read the copies' outputs, in turn.
    """
    builder = _Builder(scheme)
    source = builder.quantized(INPUT_NAME, "source")
    if shape.op == "add":
        last = source
        for copy in range(copies):
            last = builder.quantized(builder.node("Add", [last, source], f"add.{copy}"), f"added.{copy}")
        read = [builder.reader(last, shape.outputs, shape.size, "reader")]
    elif shape.op == "linear":
        read = [builder.layer(shape, source, copy) for copy in range(copies)]
    else:
        made = [builder.layer(shape, source, copy) for copy in range(copies)]
        read = [builder.reader(made[number % copies], shape.outputs, shape.output_size, f"reader.{number}") for number in range(readers)]
    joined = read[0] if len(read) == 1 else builder.node("Concat", read, "joined", axis=1)
    builder.node("Identity", [joined], OUTPUT_NAME)
    return to_bytes(builder.model(shape.sample_shape, opset, static_batch))


def empty_file(sample_shape: tuple[int, ...], scheme: Scheme, *, opset: int, static_batch: int | None) -> bytes:
    """What a run costs without any layer: the network's input quantized, and one pixel of it read."""
    builder = _Builder(scheme)
    channels, *size = sample_shape
    builder.node("Identity", [builder.reader(builder.quantized(INPUT_NAME, "source"), channels, tuple(size), "reader")], OUTPUT_NAME)
    return to_bytes(builder.model(sample_shape, opset, static_batch))


class _Builder:
    """The nodes and initializers of one file; every method returns the name of the value that it makes."""

    def __init__(self, scheme: Scheme) -> None:
        self._scheme = scheme
        self._random = numpy_stream(0, "latency-table/weights")
        self._nodes: list[NodeProto] = []
        self._initializers: list[TensorProto] = []
        low, high = activation_range(scheme)
        self._type = np.int8 if scheme.activation_signed else np.uint8
        self._zero = 0 if scheme.activation_signed and scheme.activation_symmetric else (low + high + 1) // 2
        self.constant("scale", np.float32(_SCALE))
        self.constant("zero", self._type(self._zero))

    def constant(self, name: str, value: np.generic | np.ndarray) -> str:
        self._initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: int | list[int]) -> str:
        self._nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def quantized(self, value: str, name: str) -> str:
        """`value` on the grid of the activations; itself where the scheme leaves them float."""
        if not self._scheme.quantizes_activations:
            return value
        integer = self.node("QuantizeLinear", [value, "scale", "zero"], f"{name}/q")
        return self.node("DequantizeLinear", [integer, "scale", "zero"], f"{name}/dq")

    def layer(self, shape: LayerShape, source: str, copy: int) -> str:
        """One copy, its output quantized but for a linear layer's: those are mostly logits."""
        name = f"layer.{copy}"
        if shape.op == "linear":
            return self.node("Gemm", [source, *self._weights(name, (shape.outputs, shape.inputs))], name, transB=1)
        weights = self._weights(name, (shape.outputs, shape.inputs // shape.groups, *shape.kernel))
        made = self.node("Conv", [source, *weights], name, **_settings(shape.stride, shape.padding, shape.dilation, shape.groups))
        return self.quantized(made, f"{name}.made")

    def reader(self, value: str, channels: int, size: tuple[int, ...], name: str) -> str:
        """(batch, 1, …) of one pixel, or of a vector."""
        if not size:
            return self.quantized(self.node("Gemm", [value, *self._weights(name, (1, channels))], name, transB=1), f"{name}.made")
        ones, zeros = (1,) * len(size), (0,) * len(size)
        weights = self._weights(name, (1, channels, *ones))
        return self.quantized(self.node("Conv", [value, *weights], name, **_settings(size, zeros, ones, 1)), f"{name}.made")

    def _weights(self, name: str, shape: tuple[int, ...]) -> list[str]:
        """Weight and bias as float values: dequantized integers, or float16 widened; drawn at random."""
        if not self._scheme.integer_weights:
            drawn = self._random.standard_normal((math.prod(shape) + shape[0],)).astype(np.float16) / np.float16(math.sqrt(math.prod(shape[1:])))
            halves = self.constant(f"{name}.weight/half", drawn[: math.prod(shape)].reshape(shape)), self.constant(f"{name}.bias/half", drawn[-shape[0] :])
            return [self.node("Cast", [half], half.removesuffix("/half"), to=TensorProto.FLOAT) for half in halves]
        limit = weight_limit(self._scheme)
        integers = self.constant(f"{name}.weight/q", self._random.integers(-limit, limit, shape, np.int8, endpoint=True))
        scale = np.float32(1 / (limit * math.sqrt(math.prod(shape[1:]))))
        per_channel = self._scheme.weight_granularity == "per-channel"
        scales = self.constant(f"{name}.weight/scale", np.full(shape[0], scale) if per_channel else scale)
        zeros = self.constant(f"{name}.weight/zero", np.zeros(shape[0], np.int8) if per_channel else np.int8(0))
        weight = self.node("DequantizeLinear", [integers, scales, zeros], f"{name}.weight", **({"axis": 0} if per_channel else {}))
        if not self._scheme.quantizes_activations:
            return [weight, self.constant(f"{name}.bias", self._random.standard_normal(shape[0]).astype(np.float32))]
        bias = self.constant(f"{name}.bias/q", self._random.integers(-1000, 1000, shape[0], np.int32))
        bias_scales = self.constant(f"{name}.bias/scale", np.full(shape[0], scale * np.float32(_SCALE)))
        return [weight, self.node("DequantizeLinear", [bias, bias_scales], f"{name}.bias", axis=0)]

    def model(self, sample_shape: tuple[int, ...], opset: int, static_batch: int | None) -> ModelProto:
        batch: int | str = "batch" if static_batch is None else static_batch
        taken = helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, [batch, *sample_shape])
        given = helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, [batch, None, *(1 for _ in sample_shape[1:])])
        graph = helper.make_graph(self._nodes, "layer", [taken], [given], self._initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=_IR_VERSION, producer_name="kdpipe")
        checker.check_model(model)
        return model


def _settings(stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...], groups: int) -> dict[str, int | list[int]]:
    return {"strides": list(stride), "pads": [*padding, *padding], "dilations": list(dilation), "group": groups}


def _times(sides: tuple[int, ...]) -> str:
    return "x".join(map(str, sides))
