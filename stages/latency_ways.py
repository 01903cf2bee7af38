"""The ways in which channels are chosen for a latency: each gives a choice that the table promises to be fast enough, and they differ in what they spare.

Which one leaves the better network differs from goal to goal, and no score of the cut tells it reliably (docs/decisions/latency-pruning.md): so there are
several, and `trial` judges them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from kdpipe.foundation.networks import Network
from kdpipe.stages.channel_choice import Choice, Limits, least_important
from kdpipe.stages.channel_groups import ChannelGroup
from kdpipe.stages.latency_search import Removed, cumulative, evenly, fastest, least_loss, lowest
from kdpipe.stages.latency_timing import Timing
from kdpipe.stages.trial import Trial

Way = Literal["loss per ms", "importance per ms", "importance", "importance in wide blocks", "evenly per ms", "fastest"]
"""How channels are chosen. By score as a part of the loss, for each ms; by score relative to its group's, for each ms; by that alone, in order, as where
multiply-accumulates are the goal; the same in the blocks that kernels work in; by the share of its channels that each group keeps, for each ms; or what
takes least time, where no way is fast enough."""

WAYS: tuple[Way, ...] = tuple(way for way in get_args(Way) if way != "fastest")

_WIDE_BLOCK = 16
"""channels: the outputs that an int8 kernel makes at once (AVX-512 holds sixteen 32-bit sums in a register; narrower ones divide it)"""


@dataclass(frozen=True)
class Cut:
    """One step's question. `steps`: how many channels may go, by group; `exact`: the measured file must meet the goal (in the last step)."""

    trial: Trial
    groups: Sequence[ChannelGroup]
    limits: Limits
    steps: Sequence[Sequence[int]]
    timing: Timing
    goal_ms: float
    exact: bool

    def chosen(self, way: Way, scale: float, goal_ms: float) -> Removed | None:
        """How many channels of each group go by this way, so that the table promises the goal; None where it promises it for no choice."""
        if way == "importance":
            return self._in_order(self.limits.round_to, scale, goal_ms)
        if way == "importance in wide blocks":
            return self._in_order(self.limits.round_to * math.ceil(_WIDE_BLOCK / self.limits.round_to), scale, goal_ms)
        if way == "fastest":
            return fastest(self.steps, lambda removed: self.timing.ms(removed, scale))
        losses = [evenly(group.width) if way == "evenly per ms" else cumulative(group, raw=way == "loss per ms") for group in self.groups]
        return least_loss(losses, self.steps, lambda removed: self.timing.ms(removed, scale), goal_ms)

    def without(self, removed: Removed) -> Network:
        """The network without so many of each group's lowest channels."""
        return self.trial.cut(lowest(self.groups, removed))

    def _in_order(self, block: int, scale: float, goal_ms: float) -> Removed | None:
        """The globally least important channels; what stays of a cut group is a multiple of `block`."""

        def milliseconds(removed: Removed) -> float:
            return self.timing.ms(removed, scale)

        # no further than the fastest choice: beyond it kernels dislike what is left, and less would be slower
        steps = [[gone for gone in allowed if gone == 0 or (group.width - gone) % block == 0] for group, allowed in zip(self.groups, self.steps, strict=True)]
        most = {group.name: gone for group, gone in zip(self.groups, fastest(steps, milliseconds), strict=True)}
        choice = least_important(self.groups, Limits(block, most), lambda choice: milliseconds(_counts(choice)) <= goal_ms)
        return None if choice is None else _counts(choice)


def _counts(choice: Choice) -> Removed:
    return tuple(len(channels) for _, channels in choice)
