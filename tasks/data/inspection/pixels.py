"""The one pass over the images: what cannot be read or is no image, a digest of each one's pixels, and a thumbnail.

All later steps work on the thumbnails, at most 32 pixels a side, which lie in a temporary file and not in memory; and in canonical order,
by the digests of the pixels, so that what is found does not depend on the order of the samples.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from kdpipe.foundation.errors import ConfigError
from kdpipe.tasks.data.inspection.findings import SPLITS, SplitName
from kdpipe.tasks.data.splits import Float32Array, Int64Array, Split

LARGEST_SIDE = 32
"""pixels of a thumbnail's longer side; smaller images are kept as they are"""

_CHUNK = 256  # images in memory at a time: they may be large
_DIGEST_BYTES = 16
_RANGE_SLACK = 1e-6  # of float32 arithmetic

Counted = Callable[[Iterable[Any], str, int], Iterable[Any]]
"""(items, label, total) -> items, told to the user while they are taken"""


@dataclass(frozen=True, eq=False)
class Unusable:
    """Position -> why, for the three kinds of samples that are no images."""

    unreadable: dict[int, str] = field(default_factory=dict)
    not_finite: dict[int, str] = field(default_factory=dict)
    out_of_range: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Pool:
    """The samples of all splits one after the other: position -> `split` (an index into SPLITS), `index` in the split, `labels`; all (n,).

    `digests`: (n, 16) uint8 of the pixels. `order`: the usable positions in canonical order. `thumbnails`: uint8, (n, channels, height, width).
    """

    split: npt.NDArray[np.int8]
    index: Int64Array
    labels: Int64Array
    digests: npt.NDArray[np.uint8]
    constant: npt.NDArray[np.bool_]
    thumbnails: npt.NDArray[np.uint8]
    order: Int64Array
    unusable: Unusable

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, position: int) -> SplitName:
        """The split of the sample at `position`."""
        return SPLITS[int(self.split[position])]


def pooled(splits: Mapping[SplitName, Split], shape: tuple[int, ...], folder: Path, counted: Counted) -> Pool:
    """The pool of all splits, each image read once. `folder`: where the thumbnails' temporary file is made."""
    present = [(SPLITS.index(name), splits[name]) for name in SPLITS if name in splits]
    total = sum(len(split) for _, split in present)
    pool = Pool(
        split=np.concatenate([np.full(len(split), number, np.int8) for number, split in present]),
        index=np.concatenate([np.arange(len(split), dtype=np.int64) for _, split in present]),
        labels=np.concatenate([split.labels for _, split in present]).astype(np.int64),
        digests=np.zeros((total, _DIGEST_BYTES), np.uint8),
        constant=np.zeros(total, bool),
        thumbnails=_on_disk((total, *_thumbnail_shape(shape)), folder),
        order=np.empty(0, np.int64),
        unusable=Unusable(),
    )
    starts = np.cumsum([0, *(len(split) for _, split in present)])
    pieces = [(split, int(start), first) for (_, split), start in zip(present, starts, strict=False) for first in range(0, len(split), _CHUNK)]
    for split, start, first in counted(pieces, "read", len(pieces)):
        _look_(pool, split, start, np.arange(first, min(first + _CHUNK, len(split)), dtype=np.int64))
    unusable = {*pool.unusable.unreadable, *pool.unusable.not_finite, *pool.unusable.out_of_range}
    usable = np.setdiff1d(np.arange(total, dtype=np.int64), np.array(sorted(unusable), np.int64))
    keys = pool.digests[usable].view(">u8")
    order = usable[np.lexsort((pool.labels[usable], pool.split[usable], keys[:, 1], keys[:, 0]))]
    return Pool(pool.split, pool.index, pool.labels, pool.digests, pool.constant, pool.thumbnails, order, pool.unusable)


def _look_(pool: Pool, split: Split, start: int, indices: Int64Array) -> None:
    """Fill in what is to be known of the split's samples at `indices`; one by one where they cannot be read together."""
    try:
        images = split.read(indices)
    except ConfigError as error:
        if len(indices) > 1:
            for index in indices:
                _look_(pool, split, start, np.array([index]))
            return
        pool.unusable.unreadable[start + int(indices[0])] = error.problems[0].message
        return
    flat = images.reshape(len(images), -1)
    finite = np.isfinite(flat).all(axis=1)
    for row in np.flatnonzero(~finite).tolist():
        bad = int((~np.isfinite(flat[row])).sum())
        pool.unusable.not_finite[start + int(indices[row])] = f"{bad} of {flat.shape[1]} values are {'NaN' if np.isnan(flat[row]).any() else 'infinite'}"
    low, high = flat.min(axis=1), flat.max(axis=1)
    for row in np.flatnonzero(finite & ((low < -_RANGE_SLACK) | (high > 1 + _RANGE_SLACK))).tolist():
        pool.unusable.out_of_range[start + int(indices[row])] = f"values run from {low[row]:.4g} to {high[row]:.4g}, outside [0, 1]"
    positions = start + indices
    pool.constant[positions] = finite & (low == high)
    for row, position in enumerate(positions):
        pool.digests[position] = np.frombuffer(hashlib.blake2b(flat[row].tobytes(), digest_size=_DIGEST_BYTES).digest(), np.uint8)
    pool.thumbnails[positions] = _thumbnails(images, pool.thumbnails.shape[2:])


def _thumbnails(images: Float32Array, size: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    x = torch.from_numpy(np.nan_to_num(np.clip(images, 0, 1), nan=0.0))
    if tuple(x.shape[2:]) != tuple(size):
        x = F.adaptive_avg_pool2d(x, (size[0], size[1]))
    return (x * 255).round().to(torch.uint8).numpy()


def _thumbnail_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    channels, height, width = shape
    scale = min(1.0, LARGEST_SIDE / max(height, width))
    return channels, max(1, round(height * scale)), max(1, round(width * scale))


def _on_disk(shape: tuple[int, ...], folder: Path) -> npt.NDArray[np.uint8]:
    """An array in a file that has no name and goes with the array."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)
