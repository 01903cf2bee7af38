"""Why int8 is, or is not, faster here: from what a runtime made of the file, the CPU, and how the time divides."""

import statistics
import time
from dataclasses import dataclass

import numpy as np

from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.devices.agent import Loaded
from kdpipe.targets.instruction_sets import probe
from kdpipe.targets.measurements import Explanation, NodePrecision

WITHIN_BATCH = 16  # the size at which a sample's marginal time is measured
OVERHEAD_SHARE = 0.3  # from this share on, overhead is named as a reason
LAYOUT_CHANGES = 2  # one behind the input and one before the output are normal
_TIMED_SECONDS = 0.1
_NAMED = 4  # nodes that a finding names


@dataclass(frozen=True)
class Graph:
    """A file as a runtime runs it. `compute`: names of convolutions and linear layers; the rest are nodes that cost time for nothing.

    `unfused`: compute nodes that are quantized in the file but run in float; `leftover`: Q/DQ nodes within the graph;
    `layout_changes`: Transpose or Reorder nodes that the runtime put in.
    """

    nodes: tuple[NodePrecision, ...]
    compute: frozenset[str]
    unfused: tuple[str, ...]
    leftover: tuple[str, ...]
    layout_changes: tuple[str, ...]


@dataclass(frozen=True)
class Timing:
    """`alone_ms`: one sample by itself; `within_batch_ms`: one sample's share of a batch of 16, None for a static file."""

    alone_ms: float
    within_batch_ms: float | None

    @property
    def overhead_share(self) -> float | None:
        """The share of a single inference that a sample within a batch does not pay, in [0, 1]."""
        return None if self.within_batch_ms is None else min(1.0, max(0.0, 1 - self.within_batch_ms / self.alone_ms))


def timing(loaded: Loaded, example: Float32Array) -> Timing:
    """Medians over about 0.1 s each, after as many warm-up runs; an orientation, not a benchmark."""
    alone = _median_ms(loaded, example[np.arange(loaded.batch or 1) % len(example)])
    if loaded.batch is not None:
        return Timing(alone, None)
    return Timing(alone, _median_ms(loaded, example[np.arange(WITHIN_BATCH) % len(example)]) / WITHIN_BATCH)


def explanation(runtime: str, graph: Graph, timed: Timing) -> Explanation:
    """The nodes, the share of convolutions and linear layers in int8, and every reason that was found."""
    compute = [node for node in graph.nodes if node.name in graph.compute]
    share = sum(node.precision == "int8" for node in compute) / len(compute) if compute else 0.0
    return Explanation(runtime=runtime, nodes=graph.nodes, int8_share=share, findings=findings(graph, timed, probe()))


def findings(graph: Graph, timed: Timing, instruction_sets: frozenset[str]) -> tuple[str, ...]:
    """The reasons why int8 may not be faster than float, in plain language, each with what was seen."""
    found = []
    if graph.unfused:
        found.append(
            f"{len(graph.unfused)} of {len(graph.compute)} convolutions and linear layers are quantized in the file but run in float: {_listed(graph.unfused)}"
        )
    if graph.leftover:
        found.append(
            f"{len(graph.leftover)} quantize or dequantize nodes were not fused into a layer and cost a pass over memory each: {_listed(graph.leftover)}"
        )
    if len(graph.layout_changes) > LAYOUT_CHANGES:
        found.append(f"the runtime inserted {len(graph.layout_changes)} nodes that only change the memory layout: {_listed(graph.layout_changes)}")
    lacking = _missing_dot_product(instruction_sets)
    if lacking:
        found.append(lacking)
    if timed.overhead_share is not None and timed.overhead_share >= OVERHEAD_SHARE:
        part = "most" if timed.overhead_share >= 0.5 else "much"
        found.append(
            f"the network is tiny: one sample takes {timed.alone_ms:.3f} ms alone and {timed.within_batch_ms:.3f} ms within a batch of {WITHIN_BATCH}; "
            f"{part} of a single inference ({100 * timed.overhead_share:.0f} %) is per-inference overhead, which int8 does not shorten"
        )
    return tuple(found)


def _missing_dot_product(instruction_sets: frozenset[str]) -> str | None:
    if "x86-64" in instruction_sets and "vnni" not in instruction_sets:
        return "this CPU has no int8 dot product (VNNI): an int8 multiplication costs about as much as a float one, only memory traffic is saved"
    if "aarch64" in instruction_sets and instruction_sets.isdisjoint({"asimddp", "i8mm"}):
        return "this CPU has no int8 dot product (asimddp): int8 values are widened to 16 bits first, which leaves little gain over float"
    return None


def _median_ms(loaded: Loaded, batch: Float32Array) -> float:
    batch = np.ascontiguousarray(batch)
    begin = time.perf_counter_ns()
    loaded.run(batch)
    runs = max(5, int(_TIMED_SECONDS * 1e9 / (time.perf_counter_ns() - begin)))
    taken = []
    for _ in range(2 * runs):
        begin = time.perf_counter_ns()
        loaded.run(batch)
        taken.append(time.perf_counter_ns() - begin)
    return statistics.median(taken[runs:]) / 1e6


def _listed(names: tuple[str, ...]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
