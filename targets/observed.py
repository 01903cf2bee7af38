"""What was seen of a file in a runtime, before anything is made of it: its nodes, and how long it takes under which conditions."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx

from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.devices.agent import Loaded, usable_cores
from kdpipe.targets.measurements import NodePrecision
from kdpipe.targets.qdq_reading import Reason

NOT_TOLD = "not told"  # the precision of what a runtime keeps to itself
WITHIN_BATCH = 16  # the size at which a sample's marginal time is measured
_TIMED_SECONDS = 0.1  # of each of the loads that are timed in turn
_TURNS = 8
_WARM_SECONDS = 0.02


@dataclass(frozen=True)
class Observed:
    """A file as a runtime runs it. `compute`: names of its convolutions and linear layers.

    `reasons`: why a node runs in float, by the node's name; `leftover`: Q/DQ nodes within the graph that no layer took in;
    `layout`: nodes that only change the memory layout, the runtime's own and the file's; `shapes`: nodes that only compute shapes;
    `originals`: the file's names of what went into a node, where they differ.
    """

    nodes: tuple[NodePrecision, ...]
    compute: frozenset[str] = frozenset()
    reasons: Mapping[str, Reason] = field(default_factory=dict)
    leftover: tuple[str, ...] = ()
    layout: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    fell_back: tuple[str, ...] = ()
    originals: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def share(self, names: Sequence[str]) -> float | None:
        """The part of the nodes' time that these take; None where it was not measured."""
        parts = [node.share for node in self.nodes if node.name in set(names)]
        return None if any(part is None for part in parts) else min(1.0, sum(part for part in parts if part is not None))


@dataclass(frozen=True)
class Times:
    """Times in ms of one inference of one sample, all loaded at once and run in turn; None where it does not apply.

    Each is the tenth percentile: what it takes when nothing else runs on the core, also on a busy machine.

    `within_batch`: one sample's part of a batch of 16 (of a static file with its batch made free);
    `fixed`: with all sides of the input fixed; `one_thread`, `all_cores`: with that many;
    `first`: of the first inference after loading; `float_alone`, `float_one_thread`: of the float file.
    """

    alone: float
    threads: int = 1
    cores: int = 1
    within_batch: float | None = None
    fixed: float | None = None
    one_thread: float | None = None
    all_cores: float | None = None
    first: float | None = None
    float_alone: float | None = None
    float_one_thread: float | None = None


class Opening(Protocol):
    """How a runtime opens files for looking at them: what `times` and `explained` need of it."""

    name: str
    on_cpu: bool
    """whether threads mean anything; an accelerator is also not loaded for the sake of them, which may take it minutes"""

    def load(self, model: Path, *, threads: int, shape: Sequence[int] | None = None) -> Loaded:
        """The file; with `shape` for its input where it has free sides."""
        ...

    def observe(self, model: Path, *, threads: int, example: Float32Array) -> Observed:
        """Its nodes with time and traffic, on one sample."""
        ...


def times(opening: Opening, model: Path, example: Float32Array, *, threads: int, against: Path | None = None) -> Times:
    """About 0.1 s for each condition, in turn so that the machine's mood meets all alike; an orientation, not a benchmark."""
    cores = usable_cores()
    loaded = opening.load(model, threads=threads)
    sample = _batch(example, loaded.batch or 1)
    begin = time.perf_counter_ns()
    loaded.run(sample)
    first = (time.perf_counter_ns() - begin) / 1e6
    runs: dict[str, tuple[Loaded, Float32Array]] = {"alone": (loaded, sample)}
    of_any_batch = loaded if loaded.batch is None else _with_free_batch(opening, model, example, threads)
    if of_any_batch is not None and loaded.batch in (None, 1):
        runs["within_batch"] = (of_any_batch, _batch(example, WITHIN_BATCH))
    if loaded.batch is None or None in loaded.shape:
        runs["fixed"] = (opening.load(model, threads=threads, shape=sample.shape), sample)
    if threads > 1 and opening.on_cpu:
        runs["one_thread"] = (opening.load(model, threads=1), sample)
    if threads > cores and opening.on_cpu:
        runs["all_cores"] = (opening.load(model, threads=cores), sample)
    if against is not None:
        runs["float_alone"] = (opening.load(against, threads=threads), sample)
        if threads > 1 and opening.on_cpu:
            runs["float_one_thread"] = (opening.load(against, threads=1), sample)
    taken = _fastest(runs)
    if "within_batch" in taken:
        taken["within_batch"] /= WITHIN_BATCH
    return Times(threads=threads, cores=cores, first=first, **taken)


def _with_free_batch(opening: Opening, model: Path, example: Float32Array, threads: int) -> Loaded | None:
    """A static ONNX file with its batch made free, for looking at what a batch would cost; None where the batch is written within the network too."""
    if model.suffix != ".onnx":
        return None
    with tempfile.TemporaryDirectory() as folder:
        changed = onnx.load(model)
        for value in (*changed.graph.input, *changed.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        del changed.graph.value_info[:]
        _free_reshapes(changed.graph)
        path = Path(folder) / model.name
        onnx.save(changed, path)
        try:
            loaded = opening.load(path, threads=threads)
            loaded.run(_batch(example, WITHIN_BATCH))
        except Exception:  # whatever a runtime raises: then this is not known, and not told
            return None
    return loaded


def _free_reshapes(graph: onnx.GraphProto) -> None:
    """A Reshape to (1, …) has the batch in it: (-1, …) takes any."""
    targets = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    made = {node.output[0]: attribute.t for node in graph.node if node.op_type == "Constant" for attribute in node.attribute if attribute.name == "value"}
    for name, constant in {**{it.name: it for it in graph.initializer}, **made}.items():
        sides = onnx.numpy_helper.to_array(constant) if name in targets else np.zeros(0)
        if sides.ndim == 1 and len(sides) and sides[0] == 1 and (sides > 0).all():
            constant.CopyFrom(onnx.numpy_helper.from_array(np.array([-1, *sides[1:]], np.int64), constant.name))


def copy_rate(size: int) -> float:
    """Bytes read and written in a second by a plain copy in one thread that moves `size` bytes in all: what memory (or the cache that holds it) gives."""
    source = np.ones(max(1, size // 2), np.uint8)
    target = np.empty_like(source)
    taken = []
    for _ in range(5):
        begin = time.perf_counter_ns()
        np.copyto(target, source)
        taken.append(time.perf_counter_ns() - begin)
    return 2 * source.nbytes / max(1, min(taken[1:])) * 1e9


def shares(nodes: Sequence[NodePrecision]) -> tuple[NodePrecision, ...]:
    """The same nodes with their parts of the time."""
    whole = sum(node.microseconds or 0.0 for node in nodes)
    if whole <= 0:
        return tuple(nodes)
    return tuple(node.model_copy(update={"share": (node.microseconds or 0.0) / whole}) for node in nodes)


def _batch(example: Float32Array, size: int) -> Float32Array:
    return np.ascontiguousarray(example[np.arange(size) % len(example)])


def _fastest(runs: Mapping[str, tuple[Loaded, Float32Array]]) -> dict[str, float]:
    taken: dict[str, list[int]] = {name: [] for name in runs}
    for turn in range(_TURNS + 1):  # the first turn warms up
        for name, (loaded, batch) in runs.items():
            end = time.perf_counter() + (_TIMED_SECONDS / _TURNS if turn else _WARM_SECONDS)
            loaded.run(batch)  # pays for what the others left in the caches
            while len(taken[name]) < 2 or time.perf_counter() < end:
                begin = time.perf_counter_ns()
                loaded.run(batch)
                taken[name].append(time.perf_counter_ns() - begin)
        if not turn:
            taken = {name: [] for name in runs}
    return {name: sorted(values)[len(values) // 10] / 1e6 for name, values in taken.items()}
