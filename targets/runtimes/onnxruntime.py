"""ONNX Runtime on the CPU, and what its other providers (`onnxruntime_xnnpack.py` …) share with it."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.devices.agent import PROVIDERS, Loaded, load_onnxruntime
from kdpipe.targets.explanation import Graph, explanation, timing
from kdpipe.targets.measurements import Explanation, NodePrecision
from kdpipe.targets.runtimes.runtime import Hint, runtime_version, session_name
from kdpipe.targets.runtimes.session import LoadedSession, loaded_by

_INT8_OPERATORS = {"QGemm", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat"}
_COMPUTE = {"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "QLinearConv", "QLinearMatMul", *_INT8_OPERATORS}
# these hand the type of their input on
_CARRIERS = {
    "Transpose",
    "Flatten",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "MaxPool",
    "NhwcMaxPool",
    "Concat",
    "Slice",
    "Gather",
    "Identity",
    "Pad",
    "Split",
    "Resize",
}


class OnnxRuntime:
    """The plug-in of one provider; `runtime`: its name in `agent.PROVIDERS`, `do`: what helps where it is not there."""

    distribution = "onnxruntime"

    def __init__(self, runtime: str, do: str) -> None:
        self.runtime, self.do = runtime, do

    def open(self, model: Path, *, threads: int, hint: Hint) -> LoadedSession:
        """See `Runtime.open`; the hint has no meaning here."""
        name = session_name(self.runtime, runtime_version(self.runtime) or "")
        loaded = loaded_by(self.runtime, model, lambda: load_onnxruntime(str(model), threads, hint, PROVIDERS[self.runtime]), do=self.do)
        return LoadedSession(name, model, loaded, lambda loaded, example: _explained(name, model, threads, hint, loaded, example))


def _explained(name: str, model: Path, threads: int, hint: Hint, loaded: Loaded, example: Float32Array) -> Explanation:
    """Read from the optimised graph that ONNX Runtime itself writes: integer operators, what was fused, Q/DQ left over."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimized.onnx"
        load_onnxruntime(str(model), threads, hint, optimized=str(written))
        graph = _graph(onnx.load(written), onnx.load(model))
    return explanation(name, graph, timing(loaded, example))


def _graph(optimized: Any, original: Any) -> Graph:
    nodes, given = optimized.graph.node, {value.name for value in optimized.graph.input}
    results = {value.name for value in optimized.graph.output}
    types = _types(optimized.graph)
    producer = {output: node for node in nodes for output in node.output}
    precisions, unfused, leftover = [], [], []
    for node in nodes:
        name, operator = _original_name(node), node.op_type
        int8 = types.get(node.output[0]) == "int8" if not _is_compute(node) else _runs_int8(node)
        note = None
        if _is_compute(node) and not int8 and any(_behind_reorder(producer, value) == "DequantizeLinear" for value in node.input):
            note = "quantized in the file, but run in float between DequantizeLinear and QuantizeLinear"
            unfused.append(name)
        if operator == "QuantizeLinear" and _source(producer, node.input[0]) not in given:
            leftover.append(name)
        if operator == "DequantizeLinear" and not _only_feeds(nodes, node.output[0], results):
            leftover.append(name)
        precisions.append(NodePrecision(name=name, operator=operator, precision="int8" if int8 else "float32", fused=_fused(node), note=note))
    inserted = [_original_name(node) for node in nodes if node.op_type == "Transpose"][sum(node.op_type == "Transpose" for node in original.graph.node) :]
    compute = {_original_name(node) for node in nodes if _is_compute(node)}
    return Graph(tuple(precisions), frozenset(compute), tuple(unfused), tuple(leftover), tuple(inserted))


def _is_compute(node: Any) -> bool:
    return node.op_type in _COMPUTE


def _runs_int8(node: Any) -> bool:
    return node.op_type.startswith("QLinear") or node.op_type in _INT8_OPERATORS


def _types(graph: Any) -> Mapping[str, str]:
    """int8 or float32 for every tensor: ONNX's shape inference does not know the runtime's own operators."""
    int8 = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    types = {constant.name: "int8" for constant in graph.initializer if constant.data_type in int8}
    for node in graph.node:  # in topological order
        if node.op_type.startswith("QLinear") or node.op_type == "QuantizeLinear":
            kind = "int8"
        elif node.op_type == "QGemm":
            kind = "int8" if len(node.input) > 7 and node.input[7] else "float32"  # with an output scale it stays integer
        elif node.op_type in _CARRIERS:
            kind = types.get(node.input[0], "float32")
        else:
            kind = "float32"
        types.update(dict.fromkeys(node.output, kind))
    return types


def _behind_reorder(producer: Mapping[str, Any], value: str) -> str | None:
    node = producer.get(value)
    while node is not None and node.op_type in ("ReorderInput", "ReorderOutput", "Transpose"):
        node = producer.get(node.input[0])
    return None if node is None else str(node.op_type)


def _source(producer: Mapping[str, Any], value: str) -> str:
    while value in producer and producer[value].op_type in _CARRIERS:
        value = producer[value].input[0]
    return value


def _only_feeds(nodes: Any, value: str, results: set[str]) -> bool:
    if value in results:
        return True
    users = [node for node in nodes if value in node.input]
    return bool(users) and all(user.op_type in _CARRIERS and _only_feeds(nodes, user.output[0], results) for user in users)


def _fused(node: Any) -> tuple[str, ...]:
    return tuple(attribute.s.decode() for attribute in node.attribute if attribute.name == "activation" and attribute.s)


def _original_name(node: Any) -> str:
    return re.sub(r"(_token_\d+|_nchwc|_quant)+$", "", node.name) or f"{node.op_type} -> {node.output[0]}"


plugin = OnnxRuntime("onnxruntime", do="python -m pip install --force-reinstall onnxruntime")
