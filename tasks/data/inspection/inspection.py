"""The whole check of a data set, from its splits to its findings; each part is a file of this package.

Everything after the first pass is in canonical order, so that the findings are the same in whatever order the samples stand.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdpipe.tasks.data.inspection.confident_learning import class_thresholds, find_label_errors
from kdpipe.tasks.data.inspection.duplicates import NearPair, exact_groups, joined, near_pairs
from kdpipe.tasks.data.inspection.features import learnt_encoder
from kdpipe.tasks.data.inspection.findings import SPLITS, Finding, Inspection, Kind, LabelModel, Sample, Severity, SplitName
from kdpipe.tasks.data.inspection.imbalance import imbalance_findings
from kdpipe.tasks.data.inspection.outliers import LIMIT, outlier_scores
from kdpipe.tasks.data.inspection.pixels import Counted, Pool, pooled
from kdpipe.tasks.data.inspection.probabilities import FOLDS, folds_of, out_of_sample
from kdpipe.tasks.data.splits import Int64Array, Split

FEWEST_OF_A_CLASS = 10
"""training samples; below, the quick label model says nothing of worth"""


@dataclass(frozen=True)
class Checked:
    """What is checked. `place(split, index)` says where the source keeps a sample."""

    name: str
    digest: str
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    splits: Mapping[SplitName, Split]
    place: Callable[[SplitName, int], str]


def inspected(data: Checked, folder: Path, counted: Counted, *, labels: bool = True) -> Inspection:
    """All findings, the serious ones first. `folder`: for temporary files of 1 to 6 kB a sample. `labels`: whether labels are suspected, the longest part."""
    counts = {name: tuple(np.bincount(data.splits[name].labels, minlength=len(data.classes)).tolist()) for name in SPLITS if name in data.splits}
    pool = pooled(data.splits, data.shape, folder, counted)
    told = _Teller(pool, data)
    findings = [*told.unusable(), *told.constant()]

    groups = exact_groups(pool.digests, pool.order)
    single = _without_copies(pool, groups)
    pairs = near_pairs(pool.thumbnails, single[~pool.constant[single]], counted)
    findings += [told.copies(group) for group in groups]
    findings += [told.near(pair) for pair in pairs]
    findings += told.outliers(single)

    model: LabelModel | None = None
    skipped: tuple[str, ...] = ()
    if labels:
        families = joined([*((int(group[0]), int(it)) for group in groups for it in group[1:]), *((pair.first, pair.second) for pair in pairs)], len(pool))
        model, suspected, skipped = _suspected_labels(told, families, folder, counted)
        findings += suspected
    else:
        skipped = ("labels were not checked",)
    findings += imbalance_findings(counts, data.classes)
    severities: Sequence[Severity] = ("serious", "warning", "note")
    findings.sort(key=lambda finding: severities.index(finding.severity))
    return Inspection(
        name=data.name,
        digest=data.digest,
        classes=data.classes,
        shape=data.shape,
        counts=counts,
        label_model=model,
        skipped=skipped,
        findings=tuple(findings),
    )


def _without_copies(pool: Pool, groups: Iterable[Int64Array]) -> Int64Array:
    """The usable positions in canonical order, of each group of copies the first alone."""
    copies = [group[1:] for group in groups]
    return pool.order[~np.isin(pool.order, np.concatenate(copies))] if copies else pool.order


def _suspected_labels(told: "_Teller", families: Int64Array, folder: Path, counted: Counted) -> tuple[LabelModel | None, list[Finding], tuple[str, ...]]:
    """The quick model, the suspects of all splits, the training split's first; or why there are none."""
    pool, classes = told.pool, told.data.classes
    order = pool.order
    in_train = pool.split[order] == SPLITS.index("train")
    labels = pool.labels[order]
    smallest = np.bincount(labels[in_train], minlength=len(classes)).min()
    if smallest < FEWEST_OF_A_CLASS:
        return None, [], (f"labels were not checked: a class has {smallest} usable training samples, {FEWEST_OF_A_CLASS} are needed",)
    if min(pool.thumbnails.shape[2:]) < 2:
        return None, [], ("labels were not checked: the images are one pixel high or wide",)
    folds = np.full(len(order), -1, np.int64)
    folds[in_train] = folds_of(labels[in_train], families[order][in_train])
    encoder = learnt_encoder(pool.thumbnails, order[in_train])
    result = out_of_sample(pool.thumbnails, order, labels, folds, len(classes), encoder, folder, counted)
    thresholds = class_thresholds(labels[in_train], result.probabilities[in_train])
    findings = []
    noise_rate = 0.0
    for number, name in enumerate(SPLITS):
        own = np.flatnonzero(pool.split[order] == number)
        if len(own) == 0:
            continue
        # One set of thresholds: a validation split has too few samples of a class for its own.
        errors = find_label_errors(labels[own], result.probabilities[own], thresholds=thresholds)
        noise_rate = errors.noise_rate if name == "train" else noise_rate
        for row, suggested, confidence, margin in zip(errors.suspects, errors.suggested, errors.confidence, errors.margin, strict=True):
            findings.append(told.suspect(int(order[own[row]]), int(suggested), float(confidence), float(margin)))
    what = f"ridge regression on {encoder.features} averages of {encoder.features // 4} patches, learnt without labels"
    return LabelModel(what=what, folds=FOLDS, features=encoder.features, accuracy=result.accuracy, noise_rate=noise_rate), findings, ()


@dataclass(frozen=True, eq=False)
class _Teller:
    """Puts into words what was found at positions of the pool."""

    pool: Pool
    data: Checked

    def sample(self, position: int) -> Sample:
        name, index = self.pool.name(position), int(self.pool.index[position])
        return Sample(split=name, index=index, at=self.data.place(name, index), label=int(self.pool.labels[position]))

    def samples(self, positions: Iterable[int]) -> tuple[Sample, ...]:
        found = (self.sample(int(position)) for position in positions)
        return tuple(sorted(found, key=lambda it: (SPLITS.index(it.split), it.at, it.index)))

    def class_name(self, position: int) -> str:
        return repr(self.data.classes[self.pool.labels[position]])

    def unusable(self) -> Iterable[Finding]:
        kinds: tuple[tuple[Kind, dict[int, str]], ...] = (
            ("unreadable", self.pool.unusable.unreadable),
            ("not-finite", self.pool.unusable.not_finite),
            ("out-of-range", self.pool.unusable.out_of_range),
        )
        for kind, reasons in kinds:
            for position, why in sorted(reasons.items()):
                do = "replace or repair it, or leave it out with kdpipe data clean: a build refuses it"
                yield Finding(kind=kind, severity="serious", what=why, do=do, samples=(self.sample(position),))

    def constant(self) -> Iterable[Finding]:
        for position in np.flatnonzero(self.pool.constant).tolist():
            what = f"one value everywhere, labelled {self.class_name(position)}"
            yield Finding(
                kind="constant", severity="warning", what=what, do="look at it; an empty image teaches only its label", samples=self.samples([position])
            )

    def copies(self, group: Int64Array) -> Finding:
        samples = self.samples(group)
        labels = {sample.label for sample in samples}
        splits = list(dict.fromkeys(sample.split for sample in samples))
        if len(labels) > 1:
            names = " and ".join(repr(self.data.classes[label]) for label in sorted(labels))
            severity: Severity = "warning" if splits == ["train"] else "serious"
            do = "look which label is right, and mend it at the source; kdpipe data clean --drop-suspected leaves out the copies in training"
            return Finding(kind="contradiction", severity=severity, what=f"{len(samples)} copies of one image are labelled {names}", do=do, samples=samples)
        if len(splits) > 1:
            what = f"{len(samples)} copies of one image stand in {' and '.join(splits)}: what is judged was seen before"
            do = "kdpipe data clean leaves out the copies in training" if "train" in splits else "make the splits anew, the copies in one of them"
            return Finding(kind="leak", severity="serious", what=what, do=do, samples=samples)
        do = "kdpipe data clean keeps one" if splits == ["train"] else "each counts in the accuracy; make the split anew without the copies"
        return Finding(kind="duplicate", severity="warning", what=f"{len(samples)} copies of one image in {splits[0]}", do=do, samples=samples)

    def near(self, pair: NearPair) -> Finding:
        samples = self.samples((pair.first, pair.second))
        first, second = samples
        alike = f"two images that correlate to {pair.correlation:.4f} and are alike as no others around them"
        if first.label != second.label:
            names = " and ".join(repr(self.data.classes[it.label]) for it in samples)
            do = "look at both: one label is likely wrong"
            return Finding(kind="near-contradiction", severity="warning", what=f"{alike}, labelled {names}", do=do, samples=samples, score=pair.correlation)
        if first.split != second.split:
            what, do = (
                f"{alike}, in {first.split} and {second.split}",
                "look at both: copies must stand in one split; the source's groups (scene, person) decide",
            )
            return Finding(kind="near-leak", severity="warning", what=what, do=do, samples=samples, score=pair.correlation)
        return Finding(kind="near-duplicate", severity="note", what=alike, do="nothing, unless there are many", samples=samples, score=pair.correlation)

    def outliers(self, positions: Int64Array) -> Iterable[Finding]:
        scores = outlier_scores(self.pool.thumbnails, positions)
        for row in np.argsort(-scores, kind="stable").tolist():
            if scores[row] <= LIMIT:
                return
            position = int(positions[row])
            what = f"unlike the rest: {scores[row]:.1f} robust deviations, labelled {self.class_name(position)}"
            do = "look whether it belongs here; a rare but right image is worth keeping"
            yield Finding(kind="outlier", severity="note", what=what, do=do, samples=self.samples([position]), score=float(scores[row]))

    def suspect(self, position: int, suggested: int, confidence: float, margin: float) -> Finding:
        name = self.data.classes[suggested]
        return Finding(
            kind="suspected-label",
            severity="warning",
            what=f"labelled {self.class_name(position)}, looks like {name!r} ({100 * confidence:.0f} %)",
            do="look at it; kdpipe data clean --drop-suspected or --relabel acts on all of the training split",
            samples=(self.sample(position),),
            score=margin,
            suggested=suggested,
            confidence=confidence,
        )
