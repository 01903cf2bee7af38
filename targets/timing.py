"""How long a file takes under which conditions (in a batch, with fixed sides, with fewer threads, in float), on a machine where others compute too.

All conditions are loaded at once and run in turn in whiles of 3 ms. A run during which another program had the core (the kernel counts involuntary
context switches) is not counted, and a while with such a run is followed by a rest, which makes the next less likely to be interrupted. A time is the tenth
percentile of the undisturbed runs. Whether it can be claimed is told by the times themselves: enough undisturbed runs, either half of the whiles alike, and the
file loaded once more (A/A) as fast. Where that is not reached within the limit there are no times: `unsteady` says why.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.conditions import OTHERS_FLOOR, STOLEN_FLOOR
from kdpipe.targets.devices.agent import COUNTED, INTERRUPTED, NEEDED, UNCOUNTED, Loaded, Paced, Watch, affinity, in_turn, interruptions, usable_cores
from kdpipe.targets.observed import Opening

WITHIN_BATCH = 16  # the size at which a sample's marginal time is measured
WHILE_SECONDS = 0.003  # of one condition, before it is the next one's turn
STEADY = 0.05  # halves, and the file against itself, differ by less: half of what the causes are told from
TIMED_SECONDS = 0.1  # of each condition on a quiet machine
LIMIT_SECONDS = 5.0  # of all of them on a busy one
_BUSY = 0.25  # of the cores, taken by others: then more threads than cores cannot be judged
_QUANTILE = 0.1
_LEAST_OF_A_HALF = 3

Whiles = Sequence[Sequence[Sequence[int]]]
"""of one condition: of each while, of each run, nanoseconds and state (`agent.COUNTED` …)"""


@dataclass(frozen=True)
class Times:
    """Times in ms of one inference of one sample; None where it does not apply, or `unsteady` says why nothing can be claimed.

    `within_batch`: one sample's part of a batch of 16 (of a static file with its batch made free);
    `fixed`: with all sides of the input fixed; `one_thread`, `all_cores`: with that many;
    `first`: of the first inference after loading; `float_alone`, `float_one_thread`: of the float file.
    """

    alone: float | None
    threads: int = 1
    cores: int = 1
    within_batch: float | None = None
    fixed: float | None = None
    one_thread: float | None = None
    all_cores: float | None = None
    first: float | None = None
    float_alone: float | None = None
    float_one_thread: float | None = None
    unsteady: tuple[str, ...] = ()


@dataclass(frozen=True)
class Condition:
    """A file as it is to be run. `shape`: of its input, where free sides are to be fixed; `batch`: samples at a time."""

    name: str
    path: Path
    threads: int
    batch: int
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Machine:
    """What it did meanwhile, as shares of the time of its cores; None where it does not tell."""

    cores: int
    others_share: float | None = None
    stolen_share: float | None = None


def times(opening: Opening, model: Path, example: Float32Array, *, threads: int, against: Path | None = None) -> Times:
    """Here and now: about 0.1 s for each condition, up to 5 s for all where the machine is busy; an orientation, not a benchmark."""
    watch = Watch(affinity())
    loaded = opening.load(model, threads=threads)
    sample = batch_of(example, loaded.batch or 1)
    before, begin = interruptions(), time.perf_counter_ns()
    loaded.run(sample)
    first = time.perf_counter_ns() - begin, interruptions() != before
    with tempfile.TemporaryDirectory() as folder:
        free = model if loaded.batch is None else free_batch(opening, model, example, threads, Path(folder))
        asked = planned(model, loaded.batch, (loaded.shape, sample.shape[1:]), threads, usable_cores(), on_cpu=opening.on_cpu, against=against, free=free)
        kept: dict[tuple[Path, int, tuple[int, ...] | None, bool], Loaded] = {(model, threads, None, False): loaded}
        paced = {}
        for it in asked:
            key = it.path, it.threads, it.shape, it.name == "again"
            kept[key] = kept[key] if key in kept else opening.load(it.path, threads=it.threads, shape=it.shape)
            paced[it.name] = Paced(kept[key].run, batch_of(example, it.batch))
        runs = in_turn(paced, WHILE_SECONDS, TIMED_SECONDS, LIMIT_SECONDS)
    told = watch.conditions()
    machine = Machine(usable_cores(), told["others_share"], told["stolen_share"])
    return concluded_times(asked, runs, None if first[1] else first[0], machine, threads=threads)


def planned(
    model: Path,
    batch: int | None,
    sides: tuple[Sequence[int | None], Sequence[int]],
    threads: int,
    cores: int,
    *,
    on_cpu: bool,
    against: Path | None,
    free: Path | None,
) -> tuple[Condition, ...]:
    """What is timed. `sides`: of a sample in the file, and as it is given; `free`: the file with its batch free, None where there is none."""
    size = batch or 1
    several, over = threads > 1 and on_cpu, threads > cores and on_cpu
    asked = [
        Condition("alone", model, threads, size),
        Condition("again", model, threads, size) if on_cpu else None,  # an accelerator may take minutes to load it
        Condition("within_batch", free, threads, WITHIN_BATCH) if free is not None and size == 1 else None,
        Condition("fixed", model, threads, size, (size, *sides[1])) if batch is None or None in sides[0] else None,
        Condition("one_thread", model, 1, size) if several else None,
        Condition("all_cores", model, cores, size) if over else None,
        Condition("float_alone", against, threads, size) if against is not None else None,
        Condition("float_one_thread", against, 1, size) if against is not None and several else None,
    ]
    return tuple(it for it in asked if it is not None)


def concluded_times(asked: Sequence[Condition], runs: Mapping[str, Whiles], first_ns: int | None, machine: Machine, *, threads: int) -> Times:
    """The times that can be claimed, and why others cannot. `first_ns`: of the first run, None where it was interrupted."""
    over = {it.name: it.threads > machine.cores for it in asked}  # such threads interrupt each other
    halves = {name: (_undisturbed(own[::2], over[name]), _undisturbed(own[1::2], over[name])) for name, own in runs.items()}
    lost = {name: why for name, own in halves.items() if (why := _why_lost(runs[name], own, over[name], machine)) is not None}
    taken = {name: _quantile([*own[0], *own[1]]) / 1e6 for name, own in halves.items() if name not in lost}
    again, alone = taken.pop("again", None), taken.get("alone")
    if again is not None and alone is not None and abs(again / alone - 1) > STEADY:
        lost["alone"] = f"the file against itself came out {again / alone:.2f} instead of 1"
    if "alone" in lost or "again" in lost:
        why = lost.get("alone", lost.get("again", ""))
        return Times(alone=None, threads=threads, cores=machine.cores, unsteady=(why, *_meanwhile(machine)))
    if "within_batch" in taken:
        taken["within_batch"] /= WITHIN_BATCH
    unsteady = tuple(f"{_TITLES[name]}: {why}" for name, why in lost.items())
    first = None if first_ns is None else first_ns / 1e6
    return Times(threads=threads, cores=machine.cores, first=first, unsteady=(*unsteady, *(_meanwhile(machine) if lost else ())), **taken)


_TITLES = {
    "within_batch": f"in a batch of {WITHIN_BATCH}",
    "fixed": "with fixed sides",
    "one_thread": "with one thread",
    "all_cores": "with a thread a core",
    "float_alone": "in float",
    "float_one_thread": "in float with one thread",
}


def _why_lost(whiles: Whiles, halves: tuple[list[int], list[int]], over: bool, machine: Machine) -> str | None:
    counted = [state for runs in whiles for _, state in runs if state != UNCOUNTED]
    if sum(map(len, halves)) < NEEDED or min(map(len, halves)) < _LEAST_OF_A_HALF:
        hit = sum(state == INTERRUPTED for state in counted)
        return f"{hit:,} of {len(counted):,} inferences were interrupted" if hit else f"only {len(counted)} inferences in {LIMIT_SECONDS:g} s"
    apart = abs(_quantile(halves[0]) / _quantile(halves[1]) - 1)
    if apart > STEADY:
        return f"two halves of the same inferences differ by {100 * apart:.0f} %"
    return "more threads than cores, beside other programs" if over and (machine.others_share or 0.0) > _BUSY else None


def _meanwhile(machine: Machine) -> Iterator[str]:
    if (machine.others_share or 0.0) > OTHERS_FLOOR:
        yield f"other programs took {100 * (machine.others_share or 0.0):.0f} % of its cores"
    if (machine.stolen_share or 0.0) > STOLEN_FLOOR:
        yield f"the hypervisor took {100 * (machine.stolen_share or 0.0):.0f} % of them"


def _undisturbed(whiles: Whiles, over: bool) -> list[int]:
    allowed = (COUNTED, INTERRUPTED) if over else (COUNTED,)
    return [ns for runs in whiles for ns, state in runs if state in allowed]


def _quantile(values: Sequence[int]) -> int:
    return sorted(values)[int(len(values) * _QUANTILE)]


def batch_of(example: Float32Array, size: int) -> Float32Array:
    """`size` samples, from the first one again where there are fewer."""
    return np.ascontiguousarray(example[np.arange(size) % len(example)])


def free_batch(opening: Opening, model: Path, example: Float32Array, threads: int, folder: Path) -> Path | None:
    """A static ONNX file with its batch made free, for looking at what a batch would cost; None where the batch is written within the network too."""
    if model.suffix != ".onnx":
        return None
    changed = onnx.load(model)
    for value in (*changed.graph.input, *changed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del changed.graph.value_info[:]
    _free_reshapes(changed.graph)
    path = folder / f"free-{model.name}"
    onnx.save(changed, path)
    try:
        opening.load(path, threads=threads).run(batch_of(example, WITHIN_BATCH))
    except Exception:  # whatever a runtime raises: then this is not known, and not told
        return None
    return path


def _free_reshapes(graph: onnx.GraphProto) -> None:
    """A Reshape to (1, …) has the batch in it: (-1, …) takes any."""
    targets = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    made = {node.output[0]: attribute.t for node in graph.node if node.op_type == "Constant" for attribute in node.attribute if attribute.name == "value"}
    for name, constant in {**{it.name: it for it in graph.initializer}, **made}.items():
        sides = onnx.numpy_helper.to_array(constant) if name in targets else np.zeros(0)
        if sides.ndim == 1 and len(sides) and sides[0] == 1 and (sides > 0).all():
            constant.CopyFrom(onnx.numpy_helper.from_array(np.array([-1, *sides[1:]], np.int64), constant.name))
