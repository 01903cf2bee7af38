"""A cleaned data set without touching the original: a manifest says which samples are left out or relabelled, and why.

A manifest is for the data of one digest alone, the order of its splits included, so that an index means the same sample. The digest of the cleaned data
follows from the original's and from the decisions, not from their reasons: a manifest without decisions leaves it as it is.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.files import canonical_json, write_json
from kdpipe.tasks.data.inspection.findings import SPLITS, Finding, Inspection, Kind, SplitName
from kdpipe.tasks.data.splits import DataSplits, Float32Array, Int64Array, Split

_AGAIN = "write it again for the present data with: kdpipe data clean"


class Decision(BaseModel, extra="forbid", frozen=True):
    """What is done with one sample. `label`: the new label, a class index; None leaves the sample out. `at`, `why` are for readers alone."""

    split: SplitName
    index: int = Field(ge=0)
    at: str
    label: int | None = Field(None, ge=0)
    why: Kind
    source: str = Field(description="what the decision rests on: the option of kdpipe data clean that asked for it, or a person")


class Manifest(BaseModel, extra="forbid", frozen=True):
    """`cleaned.json`. `digest`: of the data that it is for."""

    version: Literal[1] = 1
    name: str
    digest: str
    options: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()


LEAST_MARGIN = 0.5
"""Below, relabelling made labels worse than they were on Fashion-MNIST and CIFAR-10 (docs/data.md)."""


@dataclass(frozen=True)
class Wanted:
    """What a user wants done beyond what is safe. `splits`: where suspected labels are acted on; `least_margin`: how sure the suspicion must be, in [0, 1]."""

    suspected: Literal["keep", "drop", "relabel"] = "keep"
    splits: tuple[SplitName, ...] = ("train",)
    least_margin: float = LEAST_MARGIN


def decided(inspection: Inspection, wanted: Wanted) -> Manifest:
    """The decisions that follow from a check: each sample at most once, a reason to leave it out before a new label.

    Safe, and so always: samples that cannot be used, in any split; copies within training but one; copies in training of what stands in validation or test.
    """
    decisions: dict[tuple[SplitName, int], Decision] = {}
    for finding in inspection.findings:
        for decision in _decisions(finding, wanted):
            decisions.setdefault((decision.split, decision.index), decision)
    if wanted.suspected != "keep":
        for finding in inspection.of("suspected-label"):
            for decision in _on_suspicion(finding, wanted):
                decisions.setdefault((decision.split, decision.index), decision)
    ordered = sorted(decisions.values(), key=lambda it: (SPLITS.index(it.split), it.index))
    return Manifest(name=inspection.name, digest=inspection.digest, options=_options(wanted), decisions=tuple(ordered))


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path`. ConfigError where it is missing or is none."""
    try:
        return Manifest.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ConfigError("no such file", at=path, do="write it with: kdpipe data clean; or take cleaned = … out of [task]") from error
    except OSError as error:
        raise ConfigError(f"cannot read the manifest: {error.strerror or error}", at=path, do="make it readable") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(f"this is no manifest of cleaned data: {place}: {first['msg']}", at=path, do=_AGAIN) from error
    except ValueError as error:
        raise ConfigError(f"this is no JSON file: {error}", at=path, do=_AGAIN) from error


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write it, whole or not at all."""
    write_json(path, manifest.model_dump(mode="json"))


def cleaned_digest(digest: str, manifest: Manifest) -> str:
    """The digest of the data with the decisions applied; `digest` itself where there are none."""
    if not manifest.decisions:
        return digest
    decisions = sorted((it.split, it.index, -1 if it.label is None else it.label) for it in manifest.decisions)
    return hashlib.sha256(canonical_json({"data": digest, "decisions": [list(it) for it in decisions]})).hexdigest()


def require_fitting(manifest: Manifest, digest: str, splits: Mapping[SplitName, Split], classes: tuple[str, ...], *, at: Path) -> None:
    """The manifest is for these data. ConfigError where it is for others, or names samples or labels that they do not have."""
    if manifest.digest != digest:
        raise ConfigError(
            f"the manifest is for other data: {manifest.name!r} of the digest {manifest.digest[:12]}…, the present data have {digest[:12]}…",
            at=at,
            do=f"{_AGAIN}; images, labels, seed and shares of the splits all count",
        )
    for it in manifest.decisions:
        if it.split not in splits or it.index >= len(splits[it.split]):
            raise ConfigError(f"there is no sample {it.index} in {it.split}", at=at, do=_AGAIN)
        if it.label is not None and it.label >= len(classes):
            raise ConfigError(f"label {it.label} of sample {it.index} in {it.split}: there are {len(classes)} classes", at=at, do=_AGAIN)


def kept_and_labels(manifest: Manifest, name: SplitName, labels: Int64Array) -> tuple[Int64Array, Int64Array]:
    """The indices that stay in the split called `name`, sorted, and their labels; `labels` are the given ones."""
    kept = np.ones(len(labels), bool)
    new = labels.copy()
    for it in manifest.decisions:
        if it.split != name:
            continue
        if it.label is None:
            kept[it.index] = False
        else:
            new[it.index] = it.label
    rows = np.flatnonzero(kept).astype(np.int64)
    return rows, new[rows]


@dataclass(frozen=True, eq=False)
class CleanedSplit:
    """Some samples of a split, at `rows`, with labels of their own, (n,)."""

    split: Split
    rows: Int64Array
    labels: Int64Array

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: Int64Array) -> Float32Array:
        """See `Split`."""
        return self.split.read(self.rows[indices])


def cleaned_splits(data: DataSplits, path: Path) -> DataSplits:
    """A user's own splits, cleaned by the manifest at `path`; mean and deviation stay theirs."""
    manifest = read_manifest(path)
    splits: dict[SplitName, Split] = {"train": data.train, "validation": data.validation, "test": data.test}
    require_fitting(manifest, data.digest, splits, data.classes, at=path)
    train, validation, test = (CleanedSplit(split, *kept_and_labels(manifest, name, split.labels)) for name, split in splits.items())
    return replace(data, train=train, validation=validation, test=test, digest=cleaned_digest(data.digest, manifest))


def _decisions(finding: Finding, wanted: Wanted) -> list[Decision]:
    train = [sample for sample in finding.samples if sample.split == "train"]
    match finding.kind:
        case "unreadable" | "not-finite" | "out-of-range":
            left = list(finding.samples)
        case "duplicate":
            left = train[1:]
        case "leak":
            left = train
        case "contradiction" if len(train) < len(finding.samples):
            left = train  # whatever their labels: what is judged must not be seen
        case "contradiction" if wanted.suspected == "drop" and "train" in wanted.splits:
            left = train
        case _:
            left = []
    source = "--drop-suspected" if finding.kind == "contradiction" and len(train) == len(finding.samples) else "safe"
    return [Decision(split=it.split, index=it.index, at=it.at, why=finding.kind, source=source) for it in left]


def _on_suspicion(finding: Finding, wanted: Wanted) -> list[Decision]:
    [sample] = finding.samples
    if sample.split not in wanted.splits or (finding.score or 0.0) < wanted.least_margin:
        return []
    label = finding.suggested if wanted.suspected == "relabel" else None
    source = "--relabel" if wanted.suspected == "relabel" else "--drop-suspected"
    return [Decision(split=sample.split, index=sample.index, at=sample.at, label=label, why="suspected-label", source=source)]


def _options(wanted: Wanted) -> tuple[str, ...]:
    if wanted.suspected == "keep":
        return ()
    action = "--relabel" if wanted.suspected == "relabel" else "--drop-suspected"
    return (action, *(f"--split {name}" for name in wanted.splits), f"--least-margin {wanted.least_margin:g}")
