"""A split in batches: shuffled by a generator, read one batch at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdpipe.tasks.data.splits import Int64Array, Split


@dataclass(frozen=True, eq=False)
class Batch:
    """`x`: float32 (batch, *shape); `labels`: int64 (batch,); `indices`: int64 (batch,), where in the split each sample stands."""

    x: Tensor
    labels: Tensor
    indices: Tensor


def batches(
    split: Split,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    drop_last: bool = False,
    limit: Int64Array | None = None,
) -> Iterator[Batch]:
    """The split's samples, each once, in batches of `batch_size` (the last may be smaller).

    `generator` shuffles (drawn from once, before the first batch); None keeps the order.
    `drop_last` leaves an incomplete last batch out, unless it is the only one. `limit`: the indices to use, instead of all.
    """
    order = np.arange(len(split), dtype=np.int64) if limit is None else limit
    if generator is not None:
        order = order[torch.randperm(len(order), generator=generator).numpy()]
    for number in range(number_of_batches(split, batch_size, drop_last=drop_last, limit=limit)):
        indices = order[number * batch_size : (number + 1) * batch_size]
        yield Batch(torch.from_numpy(split.read(indices)), torch.from_numpy(split.labels[indices]), torch.from_numpy(indices.copy()))


def number_of_batches(split: Split, batch_size: int, *, drop_last: bool = False, limit: Int64Array | None = None) -> int:
    """How many batches `batches` yields for the same arguments."""
    count = len(split) if limit is None else len(limit)
    complete, rest = divmod(count, batch_size)
    return complete + (1 if rest and not (drop_last and complete) else 0)
