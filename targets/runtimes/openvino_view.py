"""What OpenVINO made of a file: the compiled model's runtime graph, with the times of its own counters."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.devices.agent import INTERRUPTED, Loaded, Paced
from kdpipe.targets.measurements import NodePrecision
from kdpipe.targets.observed import STEADY_PROFILE, Observed, shares
from kdpipe.targets.qdq_reading import Reason, reading, reasons
from kdpipe.targets.timing import WHILE_SECONDS, batch_of

_PRECISIONS = {"u8": "int8", "i8": "int8", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_BYTES = {"u8": 1, "i8": 1, "boolean": 1, "f16": 2, "bf16": 2, "f32": 4, "i32": 4, "u32": 4, "i64": 8, "f64": 8}
_NOT_COMPUTED = {"Const", "Input", "Output"}
_COMPUTE = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}
_LAYOUT = {"Reorder", "Transpose"}
_SHAPES = {"ShapeOf", "Broadcast", "Range", "NonZero"}
_QUANTIZERS = {"FakeQuantize", "Quantize"}
SECONDS = 0.1
_WARM_RUNS = 10


def view(model: Path, loaded: Loaded, example: Float32Array) -> Observed:
    """The file on a device, from a model loaded with its counters on. They count whole microseconds."""
    micros, lost = _counted(loaded, example)
    file = onnx.load(model) if model.suffix == ".onnx" else None
    why = reasons(reading(file)) if file is not None else {}
    nodes, compute, leftover, layout, shapes = [], set(), [], [], []
    known: dict[str, Reason] = {}
    originals: dict[str, tuple[str, ...]] = {}
    for layer in _layers(loaded.handle):
        operator, name = _told(layer, "layerType"), layer.get_friendly_name()
        names = [original for original in _told(layer, "originalLayersNames").split(",") if original]
        written = _told(layer, "outputPrecisions").split(",")[0]
        precision = _PRECISIONS.get(_told(layer, "runtimePrecision"), _told(layer, "runtimePrecision"))
        if operator not in _COMPUTE and written in _BYTES:  # it is what it hands on; a layer is what it multiplies
            precision = _PRECISIONS.get(written, written)
        if operator in _COMPUTE:
            compute.add(name)
        if operator in _QUANTIZERS and not _fed_by_input(layer):
            leftover.append(name)
        if operator in _LAYOUT:
            layout.append(name)
        if operator in _SHAPES:
            shapes.append(name)
        reason = next((why[it] for it in (name, *names) if it in why), None)
        if reason is not None and precision != "int8":
            known[name] = reason
        originals[name] = tuple(names)
        kernel = _told(layer, "primitiveType")
        nodes.append(
            NodePrecision(
                name=name,
                operator=operator,
                precision=precision,
                fused=tuple(original for original in names if original != name),
                note=f"kernel {kernel}" if kernel else None,
                microseconds=micros.get(name, 0.0),
                bytes_read=_sum([_bytes(source.get_source_output()) for source in layer.inputs()]),
                bytes_written=_sum([_bytes(output) for output in layer.outputs()]),
            )
        )
    return Observed(
        nodes=shares(nodes),
        compute=frozenset(compute),
        reasons=known,
        leftover=tuple(leftover),
        layout=tuple(layout),
        shapes=tuple(shapes),
        originals=originals,
        unsteady=None if lost <= STEADY_PROFILE else f"{100 * lost:.0f} % of the profiled time went to other programs",
    )


def _counted(loaded: Loaded, example: Float32Array) -> tuple[Mapping[str, float], float]:
    """Mean microseconds of one inference by node, and the share of the time that interruptions took, which is in these means.

    The counters hold means since loading: the first runs, which compile, are taken off again.
    """
    request = loaded.handle.create_infer_request()
    sample = batch_of(example, loaded.batch or 1)

    def means() -> dict[str, float]:
        return {it.node_name: it.real_time.total_seconds() * 1e6 for it in request.profiling_info}

    def run(batch: Float32Array) -> None:
        request.infer([batch], share_inputs=True)

    for _ in range(_WARM_RUNS):
        run(sample)
    taken: list[list[int]] = []
    warm, paced = means(), Paced(run, sample)
    end = time.perf_counter() + SECONDS
    while len(taken) < _WARM_RUNS or time.perf_counter() < end:
        taken += paced.runs(WHILE_SECONDS)
    runs = len(taken)
    return {name: max(0.0, (mean * (_WARM_RUNS + runs) - warm.get(name, 0.0) * _WARM_RUNS) / runs) for name, mean in means().items()}, _lost(taken)


def _lost(taken: list[list[int]]) -> float:
    """The share of the time by which interrupted runs were longer than others; all of it where there are no others."""
    quiet = sorted(ns for ns, state in taken if state != INTERRUPTED)
    if not quiet:
        return 1.0
    usual = quiet[len(quiet) // 2]
    return sum(max(0, ns - usual) for ns, state in taken if state == INTERRUPTED) / sum(ns for ns, _ in taken)


def _layers(compiled: Any) -> list[Any]:
    layers = [layer for layer in compiled.get_runtime_model().get_ordered_ops() if _told(layer, "layerType") not in _NOT_COMPUTED]
    return [layer for layer in layers if not _is_constant(layer)]


def _is_constant(layer: Any) -> bool:
    """Whether it reshapes or converts constants only, which happens once."""
    sources = [layer.input(index).get_source_output().get_node() for index in range(layer.get_input_size())]
    return all(_told(source, "layerType") == "Const" for source in sources)


def _fed_by_input(layer: Any) -> bool:
    source = layer.input(0).get_source_output().get_node()
    while _told(source, "layerType") in ("Reorder", "Reshape", "Transpose"):
        source = source.input(0).get_source_output().get_node()
    return _told(source, "layerType") == "Input"


def _bytes(output: Any) -> int | None:
    """Of one value at one sample; None where a side other than the batch is free."""
    shape = output.get_partial_shape()
    if shape.rank.is_dynamic or any(side.is_dynamic for side in list(shape)[1:]):
        return None
    sides = [1 if side.is_dynamic else side.get_length() for side in shape]
    kinds = _told(output.get_node(), "outputPrecisions").split(",")
    return int(np.prod(sides)) * _BYTES.get(kinds[min(output.get_index(), len(kinds) - 1)], 4)


def _sum(parts: list[int | None]) -> int | None:
    return None if any(part is None for part in parts) else sum(part for part in parts if part is not None)


def _told(layer: Any, key: str) -> str:
    facts = layer.get_rt_info()
    return str(facts[key].astype(str)) if key in facts else ""
