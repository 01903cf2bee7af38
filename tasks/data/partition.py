"""Train, validation and test: official sets stay what they are, missing ones are drawn from training, stratified, by seed.

Within a split the samples stand in a shuffled order of their own, the same for all seeds: many sources are sorted by class, and
the first thousand samples of a split must be a fair sample of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.randomness import numpy_stream
from kdpipe.tasks.data.checks import require_every_class, require_known_classes, require_precision, require_values
from kdpipe.tasks.data.cleaning import cleaned_digest, kept_and_labels, read_manifest, require_fitting
from kdpipe.tasks.data.digest import content_digest
from kdpipe.tasks.data.inspection.findings import SplitName
from kdpipe.tasks.data.label_noise import LabelSource, relabelled
from kdpipe.tasks.data.samples import RowsSplit, chunks
from kdpipe.tasks.data.source import Part, Source
from kdpipe.tasks.data.splits import DataSplits, Int64Array, Relabelled
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


@dataclass(frozen=True, eq=False)
class Drawn:
    """Splits of which no single image was looked at yet. `at`: where the samples of each split lie; `digest`: as in `DataSplits`."""

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    splits: Mapping[SplitName, RowsSplit]
    at: Mapping[SplitName, str]
    digest: str
    relabelled: Relabelled | None = None


def partitioned(
    source: Source,
    shares: Shares,
    seed: int,
    *,
    half_width: float | None = None,
    cache: Path | None = None,
    train_samples: int | None = None,
    noise: LabelSource | None = None,
    clean_validation: bool = False,
    cleaned: Path | None = None,
) -> DataSplits:
    """The three splits of `source`, checked; equal seeds give equal splits. `half_width`: see `require_precision`.

    `train_samples`: so many of the training split's, see `stratified_subset`; the other splits are the same whatever it is.

    `cache`: a folder for the statistics of sets that must be decoded to know them. ConfigError where a class is missing from a split.
    `noise`: other labels for the training split, and for validation unless `clean_validation`; see `label_noise`.
    `cleaned`: the manifest that says what is left out or relabelled of these splits; the source is then a lenient one.
    """
    data = drawn(source, shares, seed, train_samples=train_samples, noise=noise, clean_validation=clean_validation)
    if cleaned is not None:
        data = cleaned_of(data, cleaned)
    splits = data.splits
    require_precision(len(splits["test"]), half_width, at=(source.test or source.train).at)
    if cleaned is not None:
        _require_values(data)
    found = statistics(splits, data.digest, cache=cache, at=source.train.at)
    train, validation, test = splits["train"], splits["validation"], splits["test"]
    return DataSplits(data.name, data.classes, data.shape, train, validation, test, data.digest, found.mean, found.std, data.relabelled)


def cleaned_of(data: Drawn, path: Path) -> Drawn:
    """The splits with the decisions of the manifest at `path`. ConfigError where it is for other data, or leaves a class without samples."""
    manifest = read_manifest(path)
    require_fitting(manifest, data.digest, data.splits, data.classes, at=path)
    splits = {}
    for name, split in data.splits.items():
        kept, labels = kept_and_labels(manifest, name, split.labels)
        splits[name] = RowsSplit(split.samples, split.rows[kept], labels)
        require_every_class(labels, data.classes, name, at=str(path))
    return replace(data, splits=splits, digest=cleaned_digest(data.digest, manifest))


def drawn(
    source: Source, shares: Shares, seed: int, *, train_samples: int | None = None, noise: LabelSource | None = None, clean_validation: bool = False
) -> Drawn:
    """The splits of `partitioned` with their digest, before any image is decoded or any value looked at."""
    for part in source.parts.values():
        require_known_classes(part.labels, source.classes, at=part.at)
    rows = _rows(source, shares, seed)
    if train_samples is not None:
        generator = numpy_stream(seed, "data/train-samples")
        rows["train"] = stratified_subset(source.train.labels, rows["train"], train_samples, generator, at=source.train.at)
    splits = {name: _split(source.parts.get(name, source.train), numpy_stream(0, f"data/order/{name}").permutation(rows[name])) for name in rows}
    at = {name: source.parts.get(name, source.train).at for name in rows}
    record = None
    if noise is not None:
        splits, record = relabelled(splits, noise, ("train",) if clean_validation else ("train", "validation"), source.classes, seed)
    for name, split in splits.items():
        require_every_class(split.labels, source.classes, name, at=at[name])
    return Drawn(source.name, source.classes, source.train.samples.shape, splits, at, content_digest(source.classes, splits), record)


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


def _rows(source: Source, shares: Shares, seed: int) -> dict[SplitName, Int64Array]:
    labels = source.train.labels
    remaining = np.arange(len(labels), dtype=np.int64)
    rows: dict[SplitName, Int64Array] = {}
    wanted: dict[SplitName, float] = {"test": shares.resolved_test(len(labels)), "validation": shares.validation}
    for name, share in wanted.items():
        official = source.parts.get(name)
        if official is not None:
            rows[name] = np.arange(len(official.labels), dtype=np.int64)
        else:
            rows[name] = stratified(labels, remaining, share, numpy_stream(seed, f"data/{name}"), classes=source.classes, at=source.train.at)
            remaining = np.setdiff1d(remaining, rows[name], assume_unique=True)
    return {"train": remaining, "validation": rows["validation"], "test": rows["test"]}


def _require_values(data: Drawn) -> None:
    """What a strict source asks of arrays when it is read; encoded images are looked at with their statistics."""
    for name, split in data.splits.items():
        if split.samples.storage == "float32":
            for rows in chunks(split.rows):
                require_values(split.samples.pixels(rows), at=f"{data.at[name]}, not left out by [task] cleaned")


def _split(part: Part, rows: Int64Array) -> RowsSplit:
    return RowsSplit(part.samples, rows, part.labels[rows])
