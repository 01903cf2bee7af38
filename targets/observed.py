"""What was seen of a file in a runtime, before anything is made of it: its nodes, their time and traffic, and why they are in float."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.devices.agent import Loaded
from kdpipe.targets.measurements import NodePrecision
from kdpipe.targets.qdq_reading import Reason

NOT_TOLD = "not told"  # the precision of what a runtime keeps to itself
STEADY_PROFILE = 0.05  # of a profile's time, lost to interruptions: what is more is no profile


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
    unsteady: str | None = None
    """why the times of its nodes are none: other programs interrupted it; None: they are"""

    @property
    def claimable(self) -> "Observed":
        """The same without the times of its nodes where they cannot be claimed."""
        if self.unsteady is None:
            return self
        return replace(self, nodes=tuple(node.model_copy(update={"microseconds": None, "share": None}) for node in self.nodes))

    def share(self, names: Sequence[str]) -> float | None:
        """The part of the nodes' time that these take; None where it was not measured."""
        parts = [node.share for node in self.nodes if node.name in set(names)]
        return None if any(part is None for part in parts) else min(1.0, sum(part for part in parts if part is not None))


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


def shares(nodes: Sequence[NodePrecision]) -> tuple[NodePrecision, ...]:
    """The same nodes with their parts of the time."""
    whole = sum(node.microseconds or 0.0 for node in nodes)
    if whole <= 0:
        return tuple(nodes)
    return tuple(node.model_copy(update={"share": (node.microseconds or 0.0) / whole}) for node in nodes)
