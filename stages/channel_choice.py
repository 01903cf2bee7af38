"""Which channels go: the globally least important ones that are just enough, within every layer's limits."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kdpipe.stages.channel_groups import ChannelGroup

Choice = list[tuple[ChannelGroup, list[int]]]
"""for each group the channels that go"""


@dataclass(frozen=True)
class Limits:
    """`round_to`: a cut layer keeps a multiple of so many channels. `most`: group's name to the largest number that may go from now on."""

    round_to: int
    most: Mapping[str, int]

    def removable(self, group: ChannelGroup, wanted: int) -> int:
        """How many of the `wanted` channels may go: rounded down so that what stays is a multiple, or nothing goes."""
        kept = group.width - min(wanted, self.most[group.name])
        return group.width - min(group.width, math.ceil(kept / self.round_to) * self.round_to)


def least_important(groups: Sequence[ChannelGroup], limits: Limits, enough: Callable[[Choice], bool]) -> Choice | None:
    """A smallest choice that is `enough`: no block of any group could be given back; None when all that may go is not enough.

    Taken in the order of the scores over all groups, up to the first point that is enough; then whatever turns out not to be
    needed is given back, the most important first (early layers are cut in costly blocks, which overshoot the goal).
    `enough` must hold for every choice that contains one for which it holds.
    """
    order = sorted((float(score), number, channel) for number, group in enumerate(groups) for channel, score in enumerate(group.scores))
    ranked: list[list[int]] = [[] for _ in groups]
    for _, number, channel in order:
        ranked[number].append(channel)

    def taken(counts: Sequence[int]) -> Choice:
        return [(group, sorted(channels[:count])) for group, channels, count in zip(groups, ranked, counts, strict=True)]

    def lowest(length: int) -> list[int]:
        within = [0] * len(groups)
        for _, number, _ in order[:length]:
            within[number] += 1
        return [limits.removable(group, count) for group, count in zip(groups, within, strict=True)]

    if not enough(taken(lowest(len(order)))):
        return None
    length = bisect_left(range(len(order)), True, key=lambda length: enough(taken(lowest(length))))
    counts = lowest(length)
    while given_back := next((fewer for fewer in _one_block_less(groups, ranked, counts, limits) if enough(taken(fewer))), None):
        counts = given_back
    return taken(counts)


def _one_block_less(groups: Sequence[ChannelGroup], ranked: Sequence[Sequence[int]], counts: Sequence[int], limits: Limits) -> Iterator[list[int]]:
    """`counts` with one group's last block given back, for each group that has one; the group whose removed channels matter most first."""
    cut = [number for number, count in enumerate(counts) if count]
    for number in sorted(cut, key=lambda number: -float(groups[number].scores[ranked[number][counts[number] - 1]])):
        yield [limits.removable(group, counts[i] - 1) if i == number else counts[i] for i, group in enumerate(groups)]
