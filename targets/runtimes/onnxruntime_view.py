"""What ONNX Runtime made of a file: the optimised graph that it writes, with the times, shapes and types of its own profile."""

import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.devices.agent import NEEDED, profiled_onnxruntime
from kdpipe.targets.measurements import NodePrecision
from kdpipe.targets.observed import NOT_TOLD, Observed, shares
from kdpipe.targets.qdq_reading import CARRIERS, LAYERS, Reading, Reason, reading, reasons, source_of, takers_of
from kdpipe.targets.runtimes.runtime import Hint

_INT8_OPERATORS = {"QGemm", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat"}
_COMPUTE = {"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "QLinearConv", "QLinearMatMul", *_INT8_OPERATORS}
_LAYOUT = {"Transpose", "ReorderInput", "ReorderOutput"}
_SHAPES = {"Shape", "Size", "ConstantOfShape", "Range", "NonZero"}
_SHORT = {"uint8": "int8", "float": "float32", "double": "float64"}
_FUSABLE = {"Conv", "FusedConv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Concat"}
_X86 = ("x86_64", "amd64", "i686")
_QDQ = ("QuantizeLinear", "DequantizeLinear")
SECONDS = 0.1  # of profiling on a quiet machine
LIMIT_SECONDS = 2.0  # on a busy one


@dataclass(frozen=True)
class Event:
    """A node in the profile: its time in one run (tenth percentile of undisturbed ones), and its traffic; `bytes_read` of activations alone."""

    name: str
    operator: str
    provider: str
    microseconds: float
    bytes_read: int
    bytes_written: int
    type: str
    """of its first output, in ONNX Runtime's words"""

    @property
    def precision(self) -> str:
        """The same in ours."""
        return _SHORT.get(self.type, self.type) or NOT_TOLD


def cpu_view(model: Path, threads: int, hint: Hint, example: Float32Array) -> Observed:
    """The file on the CPU. Times are whole microseconds in ONNX Runtime's profile, so those of very short nodes are rounded down."""
    found = profiled_onnxruntime(str(model), threads, hint, example, SECONDS, LIMIT_SECONDS)
    return view_of(model, found["graph"], [Event(**node) for node in found["nodes"]], (found["undisturbed"], found["runs"]), platform.machine())


def view_of(model: Path, graph: bytes, events: Sequence[Event], undisturbed: tuple[int, int], architecture: str) -> Observed:
    """What was profiled, here or on a device.

    `graph`: the optimised file, large weights left out; `undisturbed`: runs, and of how many; `architecture`: as uname says.
    """
    by_name = {event.name: event for event in events}
    seen = _observed(onnx.load_from_string(graph), onnx.load(model), by_name, architecture)
    return replace(seen, unsteady=_unsteady(*undisturbed))


def accelerated_view(model: Path, threads: int, hint: Hint, provider: str, example: Float32Array) -> Observed:
    """The file in an accelerator, which keeps to itself what is in the parts that it compiled: they are one node each."""
    found = profiled_onnxruntime(str(model), threads, hint, example, SECONDS, LIMIT_SECONDS, provider)
    events = {node["name"]: Event(**node) for node in found["nodes"]}
    fell_back = [name for name, event in events.items() if event.provider != provider]
    nodes = [
        NodePrecision(
            name=name,
            operator=event.operator,
            precision=event.precision if name in fell_back else NOT_TOLD,
            note=f"run by {event.provider.removesuffix('ExecutionProvider')}",
            microseconds=event.microseconds,
            bytes_read=event.bytes_read,
            bytes_written=event.bytes_written,
        )
        for name, event in events.items()
    ]
    return Observed(nodes=shares(nodes), fell_back=tuple(fell_back), unsteady=_unsteady(found["undisturbed"], found["runs"]))


def _unsteady(undisturbed: int, runs: int) -> str | None:
    return None if undisturbed >= NEEDED else f"only {undisturbed} of {runs} profiled inferences were not interrupted"


def _observed(optimized: Any, original: Any, events: Mapping[str, Event], architecture: str) -> Observed:
    graph, read = optimized.graph, reading(original)
    given, results = {value.name for value in graph.input}, {value.name for value in graph.output}
    made = reading(optimized)
    constants = {tensor.name: int(np.prod(tensor.dims)) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize for tensor in graph.initializer}
    why = reasons(read)
    timed = _by_node(graph.node, events)
    nodes, leftover, shapes, known = [], [], [], {}
    for node, event in zip(graph.node, timed, strict=True):
        name = _original_name(node)
        int8 = _runs_int8(node) or (not _is_compute(node) and event is not None and event.precision in ("int8", "uint8"))
        if (node.op_type == "QuantizeLinear" and _source(made, node.input[0]) not in given) or (
            node.op_type == "DequantizeLinear" and not _only_feeds(made, node.output[0], results)
        ):
            leftover.append(name)
        if node.op_type in _SHAPES:
            shapes.append(name)
        reason = _reason(made, node, why) or _signed(made, node, architecture)
        if reason is not None and not int8:
            known[name] = reason
        unfused = _is_compute(node) and not int8 and _fed_by_quantized(made, node)
        nodes.append(
            NodePrecision(
                name=name,
                operator=node.op_type,
                precision="int8" if int8 else "float32" if event is None or node.op_type in _QDQ else event.precision,
                fused=tuple(attribute.s.decode() for attribute in node.attribute if attribute.name == "activation" and attribute.s),
                note="quantized in the file, but run in float between DequantizeLinear and QuantizeLinear" if unfused else None,
                microseconds=event.microseconds if event else 0.0,
                bytes_read=event.bytes_read + sum(constants.get(value, 0) for value in node.input) if event else 0,
                bytes_written=event.bytes_written if event else 0,
            )
        )
    for node in graph.node:  # Q/DQ that the file itself gives no reason for belong to the float node that they stand beside
        if node.op_type in _QDQ and _original_name(node) not in known:
            beside = [known[_original_name(it)] for it in _beside(made, node) if _original_name(it) in known and it.op_type not in _QDQ]
            known.update({_original_name(node): beside[0]} if beside else {})
    return Observed(
        nodes=shares(nodes),
        compute=frozenset(_original_name(node) for node in graph.node if _is_compute(node)),
        reasons=known,
        leftover=tuple(leftover),
        layout=tuple(_original_name(node) for node in graph.node if node.op_type in _LAYOUT),
        shapes=tuple(shapes),
        originals={_original_name(node): _layers_of(read, _original_name(node)) for node in graph.node if _is_compute(node)},
    )


def _by_node(nodes: Sequence[Any], events: Mapping[str, Event]) -> Iterator[Event | None]:
    """Of each node its event. Nodes that the runtime made without a name are named by their operator and place in the profile."""
    unnamed = {name: event for name, event in events.items() if name not in {node.name for node in nodes}}
    for node in nodes:
        name = node.name or next((name for name, event in unnamed.items() if event.operator == node.op_type), "")
        unnamed.pop(name, None)
        yield events.get(name)


def _reason(made: Reading, node: Any, why: Mapping[str, Reason]) -> Reason | None:
    """By the node's name in the file, else, for what the runtime made of one of its nodes, by that of the value it computes."""
    own = why.get(_original_name(node)) or why.get(node.name.split("/")[0])
    if own is not None or node.op_type in _QDQ:
        return own
    return next((why[name] for value in node.output for name in (value.removesuffix(".out"), value) if name in why), None)


def _signed(made: Reading, node: Any, architecture: str) -> Reason | None:
    """Of a node on x86 that is quantized on all sides and has an int8 activation: ONNX Runtime fuses uint8 ones only, and shifts int8 ones that one node takes.

    Source: ONNX Runtime's `qdq_s8_to_u8.cc` (one output edge) and `QDQIsInt8Allowed` (ARM alone); with `session.qdqisint8allowed` these nodes fuse on x86
    as well, and are 6 times slower than in float (1.32.0, MobileNetV2): its kernels there have no signed product.
    """
    if architecture.lower() not in _X86 or node.op_type not in _FUSABLE:
        return None
    sources = [source_of(made, value, _LAYOUT) for value in node.input if value and value not in made.constants]
    takers = list(takers_of(made, node, _LAYOUT))
    if not all(it is not None and it.op_type == "DequantizeLinear" for it in sources) or not takers or not all(it.op_type == "QuantizeLinear" for it in takers):
        return None
    activations = [it for it in sources if it is not None and it.input[0] not in made.constants]
    signed = [it for it in (*activations, *takers) if _zero_type(made, it) == onnx.TensorProto.INT8]
    origin = None if not signed else made.producer.get(signed[0].input[0]) if signed[0].op_type == "DequantizeLinear" else signed[0]
    return None if origin is None else Reason("signed-activation", _original_name(origin))


def _zero_type(made: Reading, quantizer: Any) -> int | None:
    zero = made.constants.get(quantizer.input[2]) if len(quantizer.input) > 2 else None
    return None if zero is None else int(zero.data_type)


def _layers_of(read: Reading, name: str) -> tuple[str, ...]:
    """The file's layer behind a node that is named after the value that it ends in (blocked float layers are)."""
    node = read.producer.get(name)
    while node is not None and node.op_type not in LAYERS:
        node = read.producer.get(node.input[0]) if node.input else None
    return (node.name,) if node is not None else ()


def _is_compute(node: Any) -> bool:
    return node.op_type in _COMPUTE


def _runs_int8(node: Any) -> bool:
    return node.op_type.startswith("QLinear") or node.op_type in _INT8_OPERATORS


def _fed_by_quantized(made: Reading, node: Any) -> bool:
    sources = [source_of(made, value, _LAYOUT) for value in node.input]
    return any(it is not None and it.op_type == "DequantizeLinear" for it in sources)


def _beside(made: Reading, node: Any) -> Iterator[Any]:
    """The nearest nodes before and behind, layout changes and further Q/DQ looked through."""
    source = made.producer.get(node.input[0])
    while source is not None and (source.op_type in _QDQ or source.op_type in _LAYOUT):
        source = made.producer.get(source.input[0])
    takers = list(made.users.get(node.output[0], []))
    while takers:
        taker = takers.pop()
        if taker.op_type in _QDQ or taker.op_type in _LAYOUT:
            takers += made.users.get(taker.output[0], [])
        else:
            yield taker
    if source is not None:
        yield source


def _source(made: Reading, value: str) -> str:
    while value in made.producer and made.producer[value].op_type in (*CARRIERS, "NhwcMaxPool", "Concat"):
        value = made.producer[value].input[0]
    return value


def _only_feeds(made: Reading, value: str, results: set[str]) -> bool:
    if value in results:
        return True
    users = made.users.get(value, [])
    return bool(users) and all(user.op_type in CARRIERS and _only_feeds(made, user.output[0], results) for user in users)


def _original_name(node: Any) -> str:
    return re.sub(r"(_token_\d+|_nchwc|_quant)+$", "", node.name) or f"{node.op_type} -> {node.output[0]}"
