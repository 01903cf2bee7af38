"""A smaller training split with the same share of each class, by seed: for quick experiments, and for learning curves."""

import numpy as np

from kdpipe.foundation.errors import ConfigError
from kdpipe.tasks.data.splits import Int64Array


def stratified_subset(labels: Int64Array, candidates: Int64Array, count: int, generator: np.random.Generator, *, at: str) -> Int64Array:
    """Exactly `count` of the `candidates` (rows), sorted, each class with its share of them, to the nearest whole sample, and at least one.

    `labels` are those of all rows. Whole samples by the largest remainder. ConfigError where there are not so many, or fewer than classes.
    """
    classes, present = np.unique(labels[candidates], return_counts=True)
    if not len(classes) <= count <= len(candidates):
        raise ConfigError(
            f"train_samples = {count} is not in [{len(classes)}, {len(candidates)}]: the classes there are, and the samples that are left for training",
            at=at,
            do="set [task] train_samples within that range, or leave it out for all samples",
        )
    wanted = _whole(count * present / len(candidates), count)
    taken = [generator.permutation(candidates[labels[candidates] == own])[:number] for own, number in zip(classes, wanted, strict=True)]
    return np.sort(np.concatenate(taken))


def _whole(shares: np.typing.NDArray[np.float64], total: int) -> Int64Array:
    """Whole numbers >= 1 near `shares`, of the sum `total`: what rounding leaves goes to the largest remainders; where ones took too much, the largest pay."""
    numbers = np.maximum(1, np.floor(shares)).astype(np.int64)
    order = np.argsort(numbers - shares, kind="stable")
    missing = total - int(numbers.sum())
    if missing > 0:
        numbers[order[:missing]] += 1
    for _ in range(-missing):
        numbers[numbers.argmax()] -= 1
    return numbers
