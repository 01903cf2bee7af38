"""Copies of one image: exact ones by digest; near ones by the correlation of thumbnails, among neighbours only.

Two thumbnails are near duplicates when they correlate almost perfectly (a copy that was compressed, brightened or scaled again) *and* are much closer to
each other than to the images around them: where all images are alike, as trousers in Fashion-MNIST are, a high correlation alone means nothing.
Neighbours are looked for in cells around pivots, about sqrt(n) of them, each image in its two nearest cells: the time grows as n^1.5, not as n².
Mirrored, rotated or strongly cropped copies are not found.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from kdpipe.tasks.data.inspection.pixels import Counted
from kdpipe.tasks.data.splits import Float32Array, Int64Array

CORRELATION = 0.99
"""From here on two thumbnails may be copies of one image."""

CLOSER = 0.5
"""A copy is at most so far away, relative to the closer one of the two images' own neighbourhoods."""

_NEIGHBOURHOOD = 5  # the neighbour whose distance says how dense it is around an image
_GRID = 12  # pixels a side of what neighbours are looked for by; in memory, 0.6 kB a grey sample
_ROWS = 1024
_CELL = 4096  # images of a cell that are compared at a time


@dataclass(frozen=True)
class NearPair:
    """Two positions, the smaller first, and the correlation of their thumbnails."""

    first: int
    second: int
    correlation: float


def exact_groups(digests: npt.NDArray[np.uint8], order: Int64Array) -> list[Int64Array]:
    """The positions of equal digests, two or more in a group. `order`: positions sorted by digest."""
    if len(order) == 0:
        return []
    sorted_digests = digests[order]
    new = np.flatnonzero((sorted_digests[1:] != sorted_digests[:-1]).any(axis=1)) + 1
    return [group for group in np.split(order, new) if len(group) > 1]


def near_pairs(thumbnails: npt.NDArray[np.uint8], positions: Int64Array, counted: Counted) -> list[NearPair]:
    """The near duplicates among the thumbnails at `positions`: different images in canonical order. Constant ones have no correlation: leave them out."""
    if len(positions) <= _NEIGHBOURHOOD:
        return []
    coarse = _descriptors(thumbnails, positions)
    neighbours, distances = _neighbours(coarse, counted)
    own = distances[:, -1]
    candidates: set[tuple[int, int]] = set()
    close = distances[:, :-1] <= CLOSER * np.minimum(own[:, None], own[neighbours[:, :-1]])
    for i, k in zip(*np.nonzero(close & (neighbours[:, :-1] >= 0)), strict=True):
        j = int(neighbours[i, k])
        candidates.add((min(int(i), j), max(int(i), j)))
    found = []
    for i, j in sorted(candidates):
        a, b = (_standardised(thumbnails[positions[it]].reshape(1, -1).astype(np.float32))[0] for it in (i, j))
        correlation = float(a @ b)
        if correlation >= CORRELATION:
            first, second = sorted((int(positions[i]), int(positions[j])))
            found.append(NearPair(first, second, correlation))
    return found


def joined(pairs: Iterable[tuple[int, int]], count: int) -> Int64Array:
    """For each of `count` positions the smallest position that it hangs together with through the pairs, (count,); its own where there is none."""
    root = np.arange(count, dtype=np.int64)

    def top(it: int) -> int:
        while root[it] != it:
            root[it] = root[root[it]]
            it = int(root[it])
        return it

    for a, b in pairs:
        low, high = sorted((top(a), top(b)))
        root[high] = low
    return np.array([top(it) for it in range(count)], np.int64)


def _descriptors(thumbnails: npt.NDArray[np.uint8], positions: Int64Array) -> Float32Array:
    """Thumbnails averaged down to the grid, mean removed, of length 1: (n, values). Brightness and contrast are gone."""
    channels, height, width = thumbnails.shape[1:]
    size = min(_GRID, height), min(_GRID, width)
    rows = np.empty((len(positions), channels * size[0] * size[1]), np.float32)
    for start in range(0, len(positions), _ROWS):
        x = torch.from_numpy(np.asarray(thumbnails[positions[start : start + _ROWS]])).float()
        rows[start : start + len(x)] = _standardised(F.adaptive_avg_pool2d(x, size).flatten(1).numpy())
    return rows


def _standardised(rows: Float32Array) -> Float32Array:
    centred = rows - rows.mean(axis=1, keepdims=True)
    length = np.sqrt((centred**2).sum(axis=1, keepdims=True))
    return np.asarray(centred / np.maximum(length, 1e-6), np.float32)


def _neighbours(x: Float32Array, counted: Counted) -> tuple[Int64Array, Float32Array]:
    """The nearest others of each row and their distances, (n, _NEIGHBOURHOOD), the nearest first; -1 and infinity where its cell has too few."""
    count = len(x)
    pivots = x[: max(1, int(np.sqrt(count) / 2))]  # canonical order is as good as random
    nearest = np.concatenate([np.argsort(-(x[start : start + _ROWS] @ pivots.T), axis=1, kind="stable")[:, :2] for start in range(0, count, _ROWS)])
    found = np.full((count, _NEIGHBOURHOOD), -1, np.int64)
    distances = np.full((count, _NEIGHBOURHOOD), np.inf, np.float32)
    for cell in counted(range(len(pivots)), "neighbours", len(pivots)):
        members = np.flatnonzero((nearest == cell).any(axis=1))
        asking = members[nearest[members, 0] == cell]
        for start in range(0, len(asking), _ROWS):
            rows = asking[start : start + _ROWS]
            found[rows], distances[rows] = _best_of(x, rows, members)
    return found, distances


def _best_of(x: Float32Array, rows: Int64Array, members: Int64Array) -> tuple[Int64Array, Float32Array]:
    best = np.full((len(rows), _NEIGHBOURHOOD), -2.0, np.float32)
    places = np.full((len(rows), _NEIGHBOURHOOD), -1, np.int64)
    for start in range(0, len(members), _CELL):
        others = members[start : start + _CELL]
        similar = x[rows] @ x[others].T
        similar[rows[:, None] == others[None, :]] = -2.0
        kept, at = torch.topk(torch.from_numpy(np.concatenate([best, similar], axis=1)), _NEIGHBOURHOOD, dim=1)
        best, at_all = kept.numpy(), np.concatenate([places, np.broadcast_to(others, similar.shape)], axis=1)
        places = np.take_along_axis(at_all, at.numpy(), axis=1)
    places[best <= -2.0] = -1
    return places, np.where(best <= -2.0, np.inf, np.sqrt(np.maximum(0.0, 2 - 2 * best))).astype(np.float32)
