"""Which channels go when a millisecond is the goal: those whose importance is least for the time that they take.

A knapsack with a cost that does not add up (a layer's time depends on two groups, and in blocks), solved greedily and then by exchanges. Greedy by
single blocks would stand still on a kernel's plateau, where one block saves nothing; so each move may take any number of blocks of one group.
Source of the idea: Shen et al. 2021 (arXiv:2110.10811): a knapsack of Taylor scores and latencies from a table; ours asks for the time of the
whole network at each move, so that no score needs to be charged to one layer.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from kdpipe.stages.channel_choice import Choice, Limits
from kdpipe.stages.channel_groups import ChannelGroup

Removed = tuple[int, ...]
"""how many channels go, by group"""
Milliseconds = Callable[[Removed], float]
Float64Array = npt.NDArray[np.float64]

_MOST_WIDTHS = 24  # of one group that are tried
_SMALLEST_SAVING = 1e-4  # share of the time: less is noise of the table
_MOST_EXCHANGES = 20
_MOST_TRIED = 20_000  # exchanges, of a network of many groups: a second or two


def steps_of(group: ChannelGroup, limits: Limits) -> tuple[int, ...]:
    """How many channels of the group may go, ascending from 0: what stays is a multiple of `round_to`, of a wide group of twice, four times … that."""
    most = limits.removable(group, group.width)
    block = limits.round_to
    while most // block > _MOST_WIDTHS:
        block *= 2
    kept = range(-(-(group.width - most) // block) * block, group.width, block)
    return (0, *sorted(group.width - width for width in kept))


def least_loss(losses: Sequence[Float64Array], steps: Sequence[Sequence[int]], milliseconds: Milliseconds, goal_ms: float) -> Removed | None:
    """How many channels of each group go so that `milliseconds` <= `goal_ms`, at little loss; None where even the fastest choice is not enough.

    `losses[g][n]`: what is lost when n channels of group g go, rising from 0. `steps[g]`: the numbers that are allowed, ascending from 0.
    """
    quickest = fastest(steps, milliseconds)
    if milliseconds(quickest) > goal_ms:
        return None
    removed: Removed = (0,) * len(steps)
    while (now := milliseconds(removed)) > goal_ms:
        moves = [(move, now - milliseconds(move), _lost(losses, move) - _lost(losses, removed)) for move in _deeper(removed, steps)]
        worth = [(lost / saved, move) for move, saved, lost in moves if saved > _SMALLEST_SAVING * now]
        if not worth:  # only several groups together would save: blocks of kernels that two groups share
            removed = quickest
            break
        removed = min(worth)[1]
    return _exchanged(_given_back(removed, losses, steps, milliseconds, goal_ms), losses, steps, milliseconds, goal_ms)


def fastest(steps: Sequence[Sequence[int]], milliseconds: Milliseconds) -> Removed:
    """The choice that takes least time. Not always the one that removes most: kernels have widths that they dislike."""
    removed: Removed = tuple(allowed[-1] for allowed in steps)
    while True:
        near = [_with(removed, group, count) for group, allowed in enumerate(steps) for count in allowed]
        best = min(near, key=milliseconds, default=removed)
        if milliseconds(best) >= milliseconds(removed):
            return removed
        removed = best


def cumulative(group: ChannelGroup, *, raw: bool) -> Float64Array:
    """(width + 1,): the sum of the n lowest scores for n = 0 …; `raw`: before they were divided by the group's mean, comparable between groups as a loss is."""
    scores = np.sort(group.scores.double().numpy()) * (group.mean_score if raw else 1.0)
    return np.concatenate([[0.0], np.cumsum(scores)])


def evenly(width: int) -> Float64Array:
    """(width + 1,): log(width / kept) for n = 0 … channels that go: to keep half costs the same in every group, whatever its scores.

    A network that is trained after its cut keeps its shape and forgets its weights (Liu et al. 2019, arXiv:1810.05270), so capacity is worth as much as scores.
    The last channel is not to be had: infinity.
    """
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(width) - np.log(np.arange(width, -1.0, -1.0)), np.float64)


def lowest(groups: Sequence[ChannelGroup], removed: Sequence[int]) -> Choice:
    """The channels with the lowest scores, so many of each group; of equal ones the first."""
    orders = [sorted(range(group.width), key=lambda channel, group=group: (float(group.scores[channel]), channel)) for group in groups]  # type: ignore[misc]
    return [(group, sorted(order[:count])) for group, order, count in zip(groups, orders, removed, strict=True)]


def _deeper(removed: Removed, steps: Sequence[Sequence[int]]) -> Iterator[Removed]:
    """Every choice in which one group loses more."""
    for group, allowed in enumerate(steps):
        yield from (_with(removed, group, count) for count in allowed if count > removed[group])


def _shallower(removed: Removed, steps: Sequence[Sequence[int]]) -> Iterator[Removed]:
    """Every choice in which one group loses less."""
    for group, allowed in enumerate(steps):
        yield from (_with(removed, group, count) for count in allowed if count < removed[group])


def _given_back(removed: Removed, losses: Sequence[Float64Array], steps: Sequence[Sequence[int]], milliseconds: Milliseconds, goal_ms: float) -> Removed:
    """Without what is not needed: as long as one group can have channels back within the goal, the group that gains most has."""
    while fitting := [move for move in _shallower(removed, steps) if milliseconds(move) <= goal_ms]:
        removed = min(fitting, key=lambda move: _lost(losses, move))
    return removed


def _exchanged(removed: Removed, losses: Sequence[Float64Array], steps: Sequence[Sequence[int]], milliseconds: Milliseconds, goal_ms: float) -> Removed:
    """With one group's channels back for another's, as long as that loses less within the goal; the least loss first."""
    for _ in range(_MOST_EXCHANGES):
        bound = _lost(losses, removed) * (1 - 1e-9)
        pairs = {move for back in _shallower(removed, steps) for move in _deeper(back, steps)}
        better = sorted((lost, move) for move in pairs if (lost := _lost(losses, move)) < bound)
        found = next((move for _, move in better[:_MOST_TRIED] if milliseconds(move) <= goal_ms), None)
        if found is None:
            break
        removed = _given_back(found, losses, steps, milliseconds, goal_ms)
    return removed


def _lost(losses: Sequence[Float64Array], removed: Removed) -> float:
    return float(sum(loss[count] for loss, count in zip(losses, removed, strict=True)))


def _with(removed: Removed, group: int, count: int) -> Removed:
    return (*removed[:group], count, *removed[group + 1 :])
