"""Train, validation and test: official sets stay what they are, missing ones are drawn from training, stratified, by seed.

Within a split the samples stand in a shuffled order of their own, the same for all seeds: many sources are sorted by class, and
the first thousand samples of a split must be a fair sample of it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.randomness import numpy_stream
from kdpipe.tasks.data.checks import require_every_class, require_known_classes, require_precision
from kdpipe.tasks.data.digest import content_digest
from kdpipe.tasks.data.samples import RowsSplit
from kdpipe.tasks.data.source import Part, Source
from kdpipe.tasks.data.splits import DataSplits, Int64Array
from kdpipe.tasks.data.statistics import statistics
from kdpipe.tasks.data.subset import stratified_subset

SMALL_SET = 5_000
"""Below so many samples, more of them go to the test split: its interval would be too wide otherwise."""


@dataclass(frozen=True)
class Shares:
    """The parts of the training set that become validation and test where the source has none, each in (0, 1). `test` None: 0.3 of a small set, else 0.2."""

    validation: float = 0.1
    test: float | None = None

    def resolved_test(self, count: int) -> float:
        """The share for a set of `count` samples."""
        return self.test if self.test is not None else (0.3 if count < SMALL_SET else 0.2)


def partitioned(
    source: Source, shares: Shares, seed: int, *, half_width: float | None = None, cache: Path | None = None, train_samples: int | None = None
) -> DataSplits:
    """The three splits of `source`, checked; equal seeds give equal splits. `half_width`: see `require_precision`.

    `train_samples`: so many of the training split's, see `stratified_subset`; the other splits are the same whatever it is.

    `cache`: a folder for the statistics of sets that must be decoded to know them. ConfigError where a class is missing from a split.
    """
    for part in source.parts.values():
        require_known_classes(part.labels, source.classes, at=part.at)
    rows = _rows(source, shares, seed)
    if train_samples is not None:
        generator = numpy_stream(seed, "data/train-samples")
        rows["train"] = stratified_subset(source.train.labels, rows["train"], train_samples, generator, at=source.train.at)
    splits = {name: _split(source.parts.get(name, source.train), numpy_stream(0, f"data/order/{name}").permutation(rows[name])) for name in rows}
    for name, split in splits.items():
        require_every_class(split.labels, source.classes, name, at=source.parts.get(name, source.train).at)
    require_precision(len(splits["test"]), half_width, at=(source.test or source.train).at)
    digest = content_digest(source.classes, splits)
    found = statistics(splits, digest, cache=cache, at=source.train.at)
    return DataSplits(
        source.name, source.classes, source.train.samples.shape, splits["train"], splits["validation"], splits["test"], digest, found.mean, found.std
    )


def stratified(labels: Int64Array, candidates: Int64Array, share: float, generator: np.random.Generator, *, classes: tuple[str, ...], at: str) -> Int64Array:
    """About `share` of the `candidates` of each class, at random, sorted: at least one, and at least one stays behind.

    `share` counts from all `labels`. ConfigError names a class that is too small.
    """
    taken = []
    for index, name in enumerate(classes):
        own = generator.permutation(candidates[labels[candidates] == index])
        if len(own) == 0:
            continue  # told by require_every_class, with all that are missing
        if len(own) < 2:
            raise ConfigError(
                f"class {name!r} has too few samples to be split", at=at, do="give each class at least 3 samples, one for each of train, validation and test"
            )
        total = int((labels == index).sum())
        taken.append(own[: min(max(1, round(share * total)), len(own) - 1)])
    return np.sort(np.concatenate(taken))


def _rows(source: Source, shares: Shares, seed: int) -> dict[str, Int64Array]:
    labels = source.train.labels
    remaining = np.arange(len(labels), dtype=np.int64)
    rows: dict[str, Int64Array] = {}
    wanted: dict[str, float] = {"test": shares.resolved_test(len(labels)), "validation": shares.validation}
    for name, share in wanted.items():
        official = source.parts.get(name)
        if official is not None:
            rows[name] = np.arange(len(official.labels), dtype=np.int64)
        else:
            rows[name] = stratified(labels, remaining, share, numpy_stream(seed, f"data/{name}"), classes=source.classes, at=source.train.at)
            remaining = np.setdiff1d(remaining, rows[name], assume_unique=True)
    return {"train": remaining, "validation": rows["validation"], "test": rows["test"]}


def _split(part: Part, rows: Int64Array) -> RowsSplit:
    return RowsSplit(part.samples, rows, part.labels[rows])
