"""What a latency table says of a whole network: overhead + scale · the sum of its layers, for any choice of channels.

The overhead is measured on a file without layers; the scale is what the last measured file came to over its layers in the table. It covers what is in no
table (pooling, activations of their own) and what layers save or lose beside each other (caches, orders of memory).
"""

from collections.abc import Iterator, Sequence

from kdpipe.stages.latency_search import Removed
from kdpipe.stages.latency_table import LatencyTable, grid
from kdpipe.stages.layer_calls import PrunableCall, Side
from kdpipe.stages.layer_files import LayerShape

_NS_PER_MS = 1e6
_SMALLEST_SCALE = 0.01  # a file cannot be faster than its overhead; noise can say so


class Timing:
    """The calls of one network, and the table."""

    def __init__(self, calls: Sequence[PrunableCall], table: LatencyTable, overhead_ms: float) -> None:
        self._calls, self._table, self._overhead_ms = calls, table, overhead_ms
        self._known: list[dict[tuple[int, int], float]] = [{} for _ in calls]

    def ms(self, removed: Removed, scale: float) -> float:
        """The predicted time."""
        return self._overhead_ms + scale * self._layers_ms(removed)

    def scale(self, removed: Removed, measured_ms: float) -> float:
        """The one with which the prediction would have been right."""
        return max(_SMALLEST_SCALE, (measured_ms - self._overhead_ms) / self._layers_ms(removed))

    def shapes(self, steps: Sequence[Sequence[int]]) -> Iterator[LayerShape]:
        """What must be in the table to predict any choice of `steps`."""
        for call in self._calls:
            inputs, outputs = (self._widths(side, steps) for side in (call.inputs, call.outputs))
            if call.inputs == call.outputs:  # both sides lose the same channels
                yield from (call.call.shape.resized(width, width) for width in outputs)
            else:
                yield from grid(call.call.shape, inputs, outputs)

    def _widths(self, side: Side, steps: Sequence[Sequence[int]]) -> list[int]:
        """The widths that a side can have; of several groups at once (a concatenation) when they are cut alike."""
        if not side.shares:
            return [side.whole]
        deepest = max(len(steps[group]) for group, _ in side.shares)
        removed = [[allowed[min(position, len(allowed) - 1)] for allowed in steps] for position in range(deepest)]
        return [side.left(counts) for counts in removed]

    def _layers_ms(self, removed: Removed) -> float:
        total = 0.0
        for call, known in zip(self._calls, self._known, strict=True):
            widths = call.inputs.left(removed), call.outputs.left(removed)
            ns = known.get(widths)
            if ns is None:
                ns = known[widths] = self._table.ns(call.shape(removed)) * call.call.times
            total += ns
        return total / _NS_PER_MS
