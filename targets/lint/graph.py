"""A graph of the file with what the rules ask of it: constants by name, who makes and who takes each value, what is quantized.

The bodies of If, Loop and Scan are graphs of their own that see the names around them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import external_data_helper, numpy_helper

from kdpipe.targets.lint.reading import not_valid, read_onnx_file

OWN_DOMAINS = {"", "ai.onnx"}
WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
ACTIVATIONS = {"Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Elu", "Tanh", "Gelu"}
OPERATOR_FORMAT = {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"}
# what is quantized before them is so behind them
CARRIERS = {"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "MaxPool", "Identity"}

Array = npt.NDArray[Any]


class Graph:
    """One graph of a file. `outer`: the graph whose node has this one as its body; `within`: that node's name, a prefix for this graph's own."""

    def __init__(self, path: Path, model: Any, body: Any, outer: "Graph | None" = None, within: str = "") -> None:
        self.path, self.model, self.body, self.outer, self.within = path, model, body, outer, within
        self.nodes = list(body.node)
        self.constants: dict[str, Any] = {constant.name: constant for constant in body.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
        self.producer = {output: node for node in self.nodes for output in node.output if output}
        self.users: dict[str, list[Any]] = {}
        for node in self.nodes:
            for value in node.input:
                self.users.setdefault(value, []).append(node)
        self.inputs = {value.name for value in body.input} - self.constants.keys()
        self.outputs = {value.name for value in body.output}

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators; 0 where the file does not import them."""
        return max((entry.version for entry in self.model.opset_import if entry.domain in OWN_DOMAINS), default=0)

    def name(self, node: Any) -> str:
        """The node's name, or its operator and first output; within a body behind the name of the node that has it."""
        return self.within + (node.name or f"{node.op_type} -> {node.output[0] if node.output else ''}")

    def constant(self, name: str) -> Any:
        """The TensorProto of a constant here or around; None when `name` is computed or empty."""
        return self.constants.get(name) if name in self.constants or self.outer is None else self.outer.constant(name)

    def array(self, name: str) -> Array | None:
        """The constant's values; None when `name` is computed or empty. Values in another file are read now and not kept."""
        tensor = self.constant(name)
        if tensor is None:
            return None
        try:
            if external_data_helper.uses_external_data(tensor):
                copied = onnx.TensorProto()
                copied.CopyFrom(tensor)
                external_data_helper.load_external_data_for_tensor(copied, str(self.path.parent))
                tensor = copied
            values: Array = numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError, onnx.checker.ValidationError) as error:
            raise not_valid(self.path, f"the values of {name!r} cannot be read: {error}") from error
        return values

    def node_before(self, value: str) -> Any:
        """The node that makes the value, here or around; None for inputs and constants."""
        return self.producer[value] if value in self.producer else self.outer.node_before(value) if self.outer is not None else None

    def made_by(self, value: str) -> str:
        """The operator that makes the value; empty for inputs and constants."""
        node = self.node_before(value)
        return "" if node is None else str(node.op_type)

    def source(self, value: str) -> str:
        """The value that this one is but for its place: seen through operators that only move values."""
        seen: set[str] = set()
        while self.made_by(value) in CARRIERS and value not in seen:
            seen.add(value)
            value = self.node_before(value).input[0]
        return value

    def dequantizer(self, value: str) -> Any:
        """The DequantizeLinear that the value comes from, perhaps moved; None where it does not come from int8."""
        node = self.node_before(self.source(value))
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def is_dequantized(self, value: str) -> bool:
        """Whether the value comes from int8, perhaps through operators that only move it."""
        return self.dequantizer(value) is not None

    def quantizers(self) -> Iterator[Any]:
        """The QuantizeLinear nodes of activations; their partners are judged by the rule `unpaired`."""
        for node in self.nodes:
            if node.op_type == "QuantizeLinear" and self.constant(node.input[0]) is None:
                yield node

    def weighted(self) -> Iterator[Any]:
        """Convolutions and linear layers."""
        for node in self.nodes:
            if node.op_type in WEIGHTED and node.domain in OWN_DOMAINS:
                yield node

    def parameters(self, node: Any) -> tuple[Array | None, Array | None]:
        """Scale and zero point of a Q or DQ node, None where computed; a missing zero point is 0 of the node's type."""
        given = len(node.input) > 2 and node.input[2]
        return self.array(node.input[1]), self.array(node.input[2]) if given else np.zeros((), declared_type(node))


def graphs_of(path: Path) -> list[Graph]:
    """The file's graph and the bodies in it, outermost first. Errors as `read_onnx_file`."""
    model = read_onnx_file(path)
    found, waiting = [], [Graph(path, model, model.graph)]
    while waiting:
        graph = waiting.pop()
        found.append(graph)
        for node in graph.nodes:
            for attribute in node.attribute:
                for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                    waiting.append(Graph(path, model, body, graph, f"{graph.name(node)}/"))
    return found


def attribute(node: Any, name: str) -> Any:
    """The attribute as a Python value; None where the node does not have it."""
    found = next((entry for entry in node.attribute if entry.name == name), None)
    return None if found is None else onnx.helper.get_attribute_value(found)


def declared_type(node: Any) -> npt.DTypeLike:
    """The type of a quantizer without zero point: its `output_dtype` (opset 21), else uint8."""
    return np.int8 if attribute(node, "output_dtype") == onnx.TensorProto.INT8 else np.uint8


def sides_of(value: Any) -> list[int | None] | None:
    """The shape of a ValueInfoProto, None for each side that is free; None where no shape is told."""
    if not value.type.tensor_type.HasField("shape"):
        return None
    return [side.dim_value if side.HasField("dim_value") else None for side in value.type.tensor_type.shape.dim]
