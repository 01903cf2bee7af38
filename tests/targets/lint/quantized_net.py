"""Small quantized graphs written node by node, so that a test can break one rule of a target and keep all others. Loaded by path: tests are no packages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Net:
    """A graph under construction. Values are named by the node that gives them; activations are s8 with zero point 0, weights s8 per output channel."""

    def __init__(self, *, signed: bool = True, sides: tuple[int | str, ...] = (1, 4, 6, 6)) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.signed, self.sides = signed, sides
        self.type = np.int8 if signed else np.uint8
        self.input_type = TensorProto.FLOAT

    def constant(self, name: str, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, operator: str, inputs: list[str], name: str, outputs: list[str] | None = None, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, outputs or [name], name=f"{name}_node", **attributes))
        return (outputs or [name])[0]

    def quantized(self, value: str, *, scale: Any = 0.05, zero_point: Any = 0, name: str | None = None, kind: Any = None, **attributes: Any) -> str:
        """`value` through QuantizeLinear and DequantizeLinear."""
        name = name or f"{value}_q"
        parameters = [
            self.constant(f"{name}_scale", np.asarray(scale, np.float32)),
            self.constant(f"{name}_zero_point", np.asarray(zero_point, kind or self.type)),
        ]
        self.op("QuantizeLinear", [value, *parameters], f"{name}_int", **attributes)
        return self.op("DequantizeLinear", [f"{name}_int", *parameters], name, **attributes)

    def weight(self, name: str, values: Any, *, scale: Any = None, zero_point: Any = None, axis: int = 0) -> str:
        """Integers behind DequantizeLinear; scales along `axis` unless one is given."""
        values = np.asarray(values)
        scale = np.full(values.shape[axis], 0.01, np.float32) if scale is None else np.asarray(scale, np.float32)
        zero_point = np.zeros(scale.shape, values.dtype) if zero_point is None else np.asarray(zero_point, values.dtype)
        parameters = [self.constant(f"{name}_scale", scale), self.constant(f"{name}_zero_point", zero_point)]
        return self.op("DequantizeLinear", [self.constant(f"{name}_int", values), *parameters], name, axis=axis)

    def conv(self, value: str, name: str, *, weight: str | None = None, bias: str | None = None, group: int = 1) -> str:
        weight = weight or self.weight(f"{name}_weight", np.full((4, 4 // group, 1, 1), 60, np.int8))
        return self.op("Conv", [value, weight, *([bias] if bias else [])], name, kernel_shape=[1, 1], group=group)

    def integer_bias(self, name: str) -> str:
        parameters = [self.constant(f"{name}_scale", np.full(4, 0.0005, np.float32))]
        return self.op("DequantizeLinear", [self.constant(f"{name}_int", np.ones(4, np.int32)), *parameters], name, axis=0)

    def model(self, *outputs: str, opset: int = 19, domains: tuple[str, ...] = (), output_types: tuple[int, ...] = ()) -> onnx.ModelProto:
        types = output_types or (TensorProto.FLOAT,) * len(outputs)
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("input", self.input_type, self.sides)],
            [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(outputs, types, strict=True)],
            self.constants,
        )
        imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        model = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=imports, ir_version=10))
        del model.graph.value_info[:]
        for output in model.graph.output:
            if not output.type.tensor_type.HasField("shape"):  # ONNX knows none behind another domain's operators, but wants one
                output.type.tensor_type.shape.dim.add()
        return model


def saved(model: onnx.ModelProto, folder: Path, name: str = "net.onnx") -> Path:
    onnx.save(model, folder / name)
    return folder / name


def plain(*, signed: bool = True, sides: tuple[int | str, ...] = (1, 4, 6, 6), **options: Any) -> onnx.ModelProto:
    """One quantized convolution with a float bias: breaks no rule of any target of its sign and batch."""
    net = Net(signed=signed, sides=sides)
    bias = net.constant("bias", np.ones(4, np.float32))
    return net.model(net.conv(net.quantized("input"), "conv", bias=bias), **options)


def one_conv(signed: bool = True, **input_options: Any) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        net = Net(signed=signed)
        return net.model(net.conv(net.quantized("input", **input_options), "conv"))

    return make


def conv_with_weight(values: Any, signed: bool = True, **options: Any) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        net = Net(signed=signed, sides=("batch", 4, 6, 6) if not signed else (1, 4, 6, 6))
        return net.model(net.conv(net.quantized("input"), "conv", weight=net.weight("weight", values, **options)))

    return make


def with_bias(integer: bool) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        net = Net()
        bias = net.integer_bias("bias") if integer else net.constant("bias", np.ones(4, np.float32))
        return net.model(net.conv(net.quantized("input"), "conv", bias=bias))

    return make


def float_weight(rounded_axis: int | None, ceiling: float = 0.6) -> Callable[[], onnx.ModelProto]:
    """A weight that the file holds in float, behind Q and DQ, as training toolkits leave it."""

    def make() -> onnx.ModelProto:
        net = Net(signed=False, sides=("batch", 4, 6, 6))
        weight = net.constant("weight", np.full((4, 4, 1, 1), ceiling, np.float32))
        quantized = net.quantized(weight, scale=np.full(4, 0.01), zero_point=np.zeros(4), kind=np.int8, axis=rounded_axis or 0)
        return net.model(net.conv(net.quantized("input"), "conv", weight=quantized))

    return make


def behind_conv(*operators: tuple[str, dict[str, Any]], quantized: bool = True, end: bool = True) -> Callable[[], onnx.ModelProto]:
    """input → Q/DQ → conv → the operators in a row; Q/DQ behind the last one where `end`, directly behind the convolution where `quantized`."""

    def make() -> onnx.ModelProto:
        net = Net()
        value = net.conv(net.quantized("input"), "conv")
        if quantized:
            value = net.quantized(value)
        for operator, attributes in operators:
            value = net.op(operator, [value], operator.lower(), **attributes)
        return net.model(net.quantized(value, name="end") if end else value)

    return make


def residual(*, layer: bool, shortcut: bool, same: bool = True, signed: bool = True, twice: bool = False) -> Callable[[], onnx.ModelProto]:
    """relu(conv2(x) + x): Q/DQ behind the convolution (`layer`), on the shortcut, with the same scale or not; `twice`: two pairs in a row."""

    def make() -> onnx.ModelProto:
        net = Net(signed=signed)
        start = net.op("Relu", [net.conv(net.quantized("input"), "conv1")], "relu1")
        taken = net.quantized(start)
        value = net.conv(taken, "conv2")
        if layer:
            value = net.quantized(value, scale=0.05 if same else 0.1)
            value = net.quantized(value, scale=0.05) if twice else value
        total = net.op("Add", [value, taken if shortcut else start], "add")
        return net.model(net.conv(net.quantized(net.op("Relu", [total], "relu2")), "conv3"))

    return make


def joined(same: bool) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        net = Net()
        one, two = (
            net.quantized(net.conv(net.quantized("input", name=f"in{index}"), f"conv{index}"), scale=scale)
            for index, scale in ((1, 0.05), (2, 0.05 if same else 0.2))
        )
        return net.model(net.quantized(net.op("Concat", [one, two], "concat", axis=1)))

    return make


def pooled(**attributes: Any) -> Callable[[], onnx.ModelProto]:
    return behind_conv(("MaxPool", {"kernel_shape": [2, 2], **attributes}))


def flat_pool() -> onnx.ModelProto:
    net = Net(sides=(1, 4, 6))
    value = net.op("Conv", [net.quantized("input"), net.weight("weight", np.ones((4, 4, 1), np.int8))], "conv", kernel_shape=[1])
    return net.model(net.op("AveragePool", [value], "pool", kernel_shape=[2]))


def with_indices(asked: bool) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        net = Net()
        value = net.conv(net.quantized("input"), "conv")
        outputs = ["pool", "places"] if asked else ["pool"]
        net.op("MaxPool", [value], "pool", outputs, kernel_shape=[2, 2])
        return net.model(*outputs, output_types=(TensorProto.FLOAT, TensorProto.INT64)[: len(outputs)])

    return make


def end_with(
    operator: str, *constants: tuple[str, Any], outputs: tuple[str, ...] = (), types: tuple[int, ...] = (), domain: str = "", **attributes: Any
) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        net = Net()
        value = net.conv(net.quantized("input"), "conv")
        names = [net.constant(name, array) for name, array in constants]
        made = list(outputs) or ["end"]
        net.op(operator, [value, *names], "end", made, **({"domain": domain} if domain else {}), **attributes)
        return net.model(*made, output_types=types, domains=(domain,) if domain else ())

    return make


def integer_conv(reach: int) -> Callable[[], onnx.ModelProto]:
    """QLinearConv, as ONNX Runtime's operator format has it."""

    def make() -> onnx.ModelProto:
        net = Net(signed=False, sides=("batch", 4, 6, 6))
        scale, zero = net.constant("scale", np.float32(0.05)), net.constant("zero", np.uint8(3))
        weight = [net.constant("weight", np.full((4, 4, 1, 1), reach, np.int8)), net.constant("weight_scale", np.full(4, 0.01, np.float32))]
        net.op("QuantizeLinear", ["input", scale, zero], "integers")
        net.op("QLinearConv", ["integers", scale, zero, *weight, net.constant("weight_zero", np.zeros(4, np.int8)), scale, zero], "conv")
        return net.model(net.op("DequantizeLinear", ["conv", scale, zero], "logits"))

    return make


def computed_scale(computed: bool) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        net = Net()
        if not computed:
            return net.model(net.conv(net.quantized("input"), "conv"))
        scale = net.op("ReduceMax", ["input"], "largest", keepdims=0)
        zero = net.constant("zero", np.int8(0))
        net.op("QuantizeLinear", ["input", scale, zero], "integers")
        return net.model(net.conv(net.op("DequantizeLinear", ["integers", scale, zero], "read"), "conv"))

    return make


def wide(double: bool) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        net = Net()
        value = net.conv(net.quantized("input"), "conv")
        if double:
            value = net.op("Mul", [net.op("Cast", [value], "cast", to=TensorProto.DOUBLE), net.constant("factor", np.float64(2))], "mul")
            return net.model(value, output_types=(TensorProto.DOUBLE,))
        return net.model(value)

    return make


def branches(asked: bool) -> Callable[[], onnx.ModelProto]:
    """A convolution in one branch of If, which is a layer left in float."""

    def make() -> onnx.ModelProto:
        net = Net()
        value = net.conv(net.quantized("input"), "conv")
        if not asked:
            return net.model(value)
        shape = [1, 4, 6, 6]
        bodies = {}
        for branch, operator in (("then_branch", "Relu"), ("else_branch", "Neg")):
            node = helper.make_node(operator, [value], [f"{branch}_out"], name=operator.lower())
            bodies[branch] = helper.make_graph([node], branch, [], [helper.make_tensor_value_info(f"{branch}_out", TensorProto.FLOAT, shape)])
        return net.model(net.op("If", [net.constant("which", np.bool_(True))], "if", **bodies))

    return make


def float_part(largest: float) -> Callable[[], onnx.ModelProto]:
    return end_with("Mul", ("factor", np.float32(largest)))


def unpaired(paired: bool) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        net = Net()
        value = net.quantized(net.conv(net.quantized("input"), "conv"), name="end")
        return net.model(value) if paired else net.model("end_int", output_types=(TensorProto.INT8,))

    return make


def split(between: bool) -> Callable[[], onnx.ModelProto]:
    return behind_conv(("Relu", {}), quantized=between)


def shape_of(sides: tuple[int | str, ...], signed: bool) -> Callable[[], onnx.ModelProto]:
    return lambda: plain(sides=sides, signed=signed)


def opset(version: int) -> Callable[[], onnx.ModelProto]:
    return lambda: plain(opset=version)


def nothing() -> onnx.ModelProto:
    graph = helper.make_graph(
        [], "nothing", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])], [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)


def in_float() -> onnx.ModelProto:
    net = Net()
    return net.model(net.op("Conv", ["input", net.constant("weight", np.ones((4, 4, 1, 1), np.float32))], "conv"))


def softmax(quantized: bool) -> Callable[[], onnx.ModelProto]:
    return behind_conv(("Softmax", {"axis": 1}), end=quantized)


def half_quantized(all_of_it: bool) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        net = Net()
        value = net.op("Relu", [net.conv(net.quantized("input"), "conv1")], "relu")
        return net.model(net.conv(net.quantized(value) if all_of_it else value, "conv2"))

    return make


def depthwise(group: int) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        net = Net()
        value = net.quantized("input", scale=np.full(4, 0.05), zero_point=np.zeros(4), axis=1)
        return net.model(net.conv(value, "conv", group=group))

    return make


def sixteen_bits() -> onnx.ModelProto:
    net = Net()
    return net.model(net.conv(net.quantized("input", kind=np.int16), "conv"), opset=21)


def weights_alone(read_by: str) -> Callable[[], onnx.ModelProto]:
    """A float convolution whose int8 weight is read by `Cast` and Mul or by `DequantizeLinear`; or stored in `float`."""

    def make() -> onnx.ModelProto:
        net = Net(sides=("batch", 4, 6, 6))
        values = np.full((64, 4, 1, 1), 127, np.int8)
        if read_by == "DequantizeLinear":
            weight = net.weight("weight", values)
        elif read_by == "Cast":
            cast = net.op("Cast", [net.constant("weight_int", values)], "weight_float", to=TensorProto.FLOAT)
            weight = net.op("Mul", [cast, net.constant("weight_scale", np.full((64, 1, 1, 1), 0.01, np.float32))], "weight")
        else:
            weight = net.constant("weight", values.astype(np.float32))
        return net.model(net.op("Conv", ["input", weight], "conv", kernel_shape=[1, 1]))

    return make
