"""`kdpipe compare`: the int8 files of two bundles, or of two projects' bundles, side by side on the same samples.

Every difference is B less A. A judged figure has regressed where the whole 95 % interval of its paired difference lies on the wrong side of the margin.
Judged are accuracies, in points, and the Brier score times 100; the others are shown. What cannot be compared says why, and is never counted as equal.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from kdpipe.foundation.errors import ConfigError
from kdpipe.pipeline.answers import ANSWERS_FILE, Answers, read_answers
from kdpipe.pipeline.manifest import MANIFEST_FILE
from kdpipe.pipeline.results import read_model
from kdpipe.pipeline.toml_source import read_toml
from kdpipe.pipeline.variants import expanded
from kdpipe.pipeline.verify import Manifest, whole_manifest
from kdpipe.robustness.comparison import holm, paired_aurc, paired_means
from kdpipe.robustness.intervals import Difference, Float64Array, paired_difference
from kdpipe.robustness.sample_size import samples_for_difference
from kdpipe.robustness.scorecard import Figure, Scorecard
from kdpipe.targets.measurements import Bench, Percentile

State = Literal["regressed", "improved", "no difference shown", "shown only", "not comparable"]

_SEED = 0  # of the bootstraps: the same two bundles always give the same answer
_DIST = "dist"


@dataclass(frozen=True)
class Side:
    """One bundle that is compared."""

    folder: Path
    project: str
    target: str
    cards: tuple[Scorecard, ...]
    answers: dict[str, Answers]
    bench: Bench
    data: str | None


@dataclass(frozen=True)
class Row:
    """One figure of both. `difference`: B less A with its interval, of n samples, in `unit`; `holm_p`: over all judged figures of the comparison."""

    figure: str
    runtime: str
    unit: str
    a: Figure
    b: Figure
    state: State
    judged: bool = False
    difference: Difference | None = None
    holm_p: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Two bundles of one pair of targets. `margin`: points that B may lose."""

    a: Side
    b: Side
    margin: float
    rows: tuple[Row, ...]

    @property
    def regressions(self) -> tuple[Row, ...]:
        """The judged figures that got worse by more than the margin, beyond what the samples can explain."""
        return tuple(row for row in self.rows if row.judged and row.state == "regressed")

    @property
    def exit_code(self) -> int:
        """3 on a regression, else 0."""
        return 3 if self.regressions else 0


def compare(a: Path | str, b: Path | str, *, margin: float = 0.0, target: str | None = None) -> tuple[Comparison, ...]:
    """A comparison for each target that both have; `a` and `b`: a bundle's folder, or a project's with finished bundles; at least one.

    A target with variants is compared variant by variant; `target` names one target, all the variants of one, or one variant. A single bundle on each
    side is compared whatever its target. Raises ConfigError where there is nothing to compare, where the samples differ, or
    where a bundle holds no per-sample answers; VerificationError where a bundle is damaged.
    """
    if not 0 <= margin <= 100:
        raise ConfigError(f"a margin of {margin:g} points is not in [0, 100]", at="--margin", do="give the points that may be lost: 0.5")
    return tuple(_compared(_side(first), _side(second), margin) for first, second in _pairs(_bundles(Path(a)), _bundles(Path(b)), target))


@dataclass(frozen=True)
class _Found:
    """A bundle that can be compared. `part_of`: the target that was built; of one with variants this is one of them, else it is `target`."""

    target: str
    part_of: str
    folder: Path


def _bundles(place: Path) -> dict[str, _Found]:
    """What lies there, by target."""
    if (place / MANIFEST_FILE).is_file():
        return _by_target([place])
    if not (place / "kdpipe.toml").is_file():
        raise ConfigError("neither a bundle nor a project", at=place, do="name dist/PROJECT/TARGET of a finished build, or the folder with its kdpipe.toml")
    name = read_toml(place / "kdpipe.toml").values.get("project", {}).get("name", "*")
    found = sorted(place.glob(f"{_DIST}/{name}/*/{MANIFEST_FILE}"))
    if not found:
        raise ConfigError("the project has no bundle yet", at=place / _DIST, do=f"kdpipe build --project {place}")
    projects = {path.parents[1] for path in found}
    if len(projects) > 1:
        raise ConfigError(f"bundles of {len(projects)} projects: {', '.join(sorted(it.name for it in projects))}", at=place / _DIST, do="name one bundle")
    return _by_target([path.parent for path in found])


def _by_target(folders: Sequence[Path]) -> dict[str, _Found]:
    """The bundles in `folders`, each variant by itself."""
    made: dict[str, _Found] = {}
    for folder in folders:
        part_of = _named(folder)
        for member in expanded(folder):
            one = _Found(_named(member), part_of, member)
            if one.target in made:
                raise ConfigError(f"two bundles of target {one.target!r}: {made[one.target].folder} and {member}", at=member, do="name one of them")
            made[one.target] = one
    return made


def _named(folder: Path) -> str:
    return read_model(folder / MANIFEST_FILE, _Named).target


class _Named(BaseModel, extra="ignore", frozen=True):
    target: str


def _pairs(a: dict[str, _Found], b: dict[str, _Found], target: str | None) -> list[tuple[Path, Path]]:
    if target is None and len(a) == len(b) == 1:
        return [(next(iter(a.values())).folder, next(iter(b.values())).folder)]
    common = [name for name in a if name in b and target in (None, name, a[name].part_of, b[name].part_of)]
    if not common:
        asked = "no common target" if target is None else f"the target {target!r} is not on both sides"
        raise ConfigError(f"{asked}: A has {', '.join(a)}; B has {', '.join(b)}", at="the two bundles", do="name two bundles, or build the missing target")
    return [(a[name].folder, b[name].folder) for name in common]


class _Cards(BaseModel, extra="forbid", frozen=True):
    scorecards: tuple[Scorecard, ...]


def _side(folder: Path) -> Side:
    manifest: Manifest = whole_manifest(folder)
    if ANSWERS_FILE not in manifest.files:
        raise ConfigError(
            "the bundle holds no per-sample answers: an older kdpipe wrote it",
            at=folder / ANSWERS_FILE,
            do="write it again from its project: kdpipe report --project PROJECT",
        )
    cards = tuple(card for card in read_model(folder / "scorecard.json", _Cards).scorecards if card.model == "int8")
    bench = read_model(folder / "bench.json", Bench)
    return Side(folder, manifest.project, manifest.target, cards, read_answers(folder / ANSWERS_FILE), bench, manifest.data)


def _compared(a: Side, b: Side, margin: float) -> Comparison:
    pairs = [(first, second) for first in a.cards for second in b.cards if _short(first.runtime) == _short(second.runtime)]
    if not pairs:
        runtimes = "; ".join(f"{name} ran in {', '.join(str(card.runtime) for card in side.cards)}" for name, side in (("A", a), ("B", b)))
        raise ConfigError(f"no common runtime: {runtimes}", at=b.folder, do="build both for a target of one runtime")
    rows = [row for first, second in pairs for row in _of_runtime(a, b, first, second, margin)]
    rows += list(_latencies(a.bench, b.bench))
    judged = [number for number, row in enumerate(rows) if row.judged and row.difference is not None]
    adjusted = holm([difference.p for number in judged if (difference := rows[number].difference) is not None])
    for number, p in zip(judged, adjusted, strict=True):
        rows[number] = replace(rows[number], holm_p=p)
    return Comparison(a, b, margin, tuple(rows))


def _of_runtime(a: Side, b: Side, first: Scorecard, second: Scorecard, margin: float) -> Iterator[Row]:
    runtime = _short(first.runtime)
    ours, theirs = a.answers[first.runtime or ""], b.answers[second.runtime or ""]
    _require_same_samples(a, b, ours, theirs)
    make = _Maker(runtime, ours, theirs, margin)
    yield make.accuracy("clean", "clean", first.clean, second.clean)
    attacks = {attack.name: attack for attack in first.attacks}, {attack.name: attack for attack in second.attacks}
    told = tuple(", ".join(f"{it.name} ({it.norm}, ε = {it.epsilon:.3g})" for it in side.values()) or "no attack" for side in attacks)
    settings = tuple({(it.name, it.norm, it.epsilon, it.steps, it.restarts) for it in side.values()} for side in attacks)
    reason = None if settings[0] == settings[1] else f"A met {told[0]}; B met {told[1]}"
    yield make.accuracy("robust (worst attack)", "robust", first.robust, second.robust, reason)
    for name in dict.fromkeys((*attacks[0], *attacks[1])):
        one, other = attacks[0].get(name), attacks[1].get(name)
        if one is None or other is None:
            missing = Figure(value=None, reason="not attacked with it")
            yield Row(name, runtime, "%", one.accuracy if one else missing, other.accuracy if other else missing, "not comparable", reason="met by one alone")
            continue
        same = (one.norm, one.epsilon, one.steps, one.restarts) == (other.norm, other.epsilon, other.steps, other.restarts)
        reason = None if same else f"A: {one.norm}, ε = {one.epsilon:.3g}, {one.steps} steps; B: {other.norm}, ε = {other.epsilon:.3g}, {other.steps} steps"
        yield make.accuracy(name, f"attack/{name}", one.accuracy, other.accuracy, reason)
    yield make.corruptions(first.corruption_mean, second.corruption_mean)
    yield from make.calibration(first, second)
    size_a, size_b = (Figure(value=card.size_bytes / 1000) for card in (first, second))
    yield Row("size", runtime, "kB", size_a, size_b, "shown only", reason=f"B is {second.size_bytes / first.size_bytes:.3g} times A")


@dataclass(frozen=True)
class _Maker:
    """The rows of one runtime."""

    runtime: str
    a: Answers
    b: Answers
    margin: float

    def accuracy(self, figure: str, question: str, a: Figure, b: Figure, reason: str | None = None) -> Row:
        """An accuracy of the samples that both were asked, judged."""
        if reason is None:
            reason = next((f"{side}: {it.reason or 'not measured'}" for side, it in (("A", a), ("B", b)) if it.value is None), None)
        shared = None if reason else self._shared(question)
        if shared is None:
            return Row(figure, self.runtime, "%", a, b, "not comparable", reason=reason or "which samples were asked is not known, or none is common to both")
        ours, theirs = shared
        difference = paired_difference(self.b.correct[question][theirs], self.a.correct[question][ours])
        note = None if difference.n == a.n == b.n else f"on the {difference.n:,} samples that both were asked"
        return self._judged(Row(figure, self.runtime, "%", a, b, "no difference shown", reason=note), difference, higher_is_better=True)

    def corruptions(self, a: Figure, b: Figure) -> Row:
        """Mean accuracy over all corruptions and severities, judged."""
        cells = tuple(sorted(name for name in side.correct if name.startswith("corruption/")) for side in (self.a, self.b))
        row = Row("corrupted (mean)", self.runtime, "%", a, b, "not comparable", reason="the corruptions are not the same")
        if not cells[0] or not cells[1]:
            return replace(row, reason="not measured on both sides")
        shared = self._shared(cells[0][0]) if cells[0] == cells[1] else None
        if shared is None:
            return row
        ours, theirs = (self._mean(side, cells[0])[at] for side, at in zip((self.a, self.b), shared, strict=True))
        difference = paired_means(100 * theirs, 100 * ours, seed=_SEED, name="corruption")
        return self._judged(replace(row, reason=None), difference, higher_is_better=True)

    def _mean(self, side: Answers, cells: Sequence[str]) -> Float64Array:
        shares: Float64Array = np.stack([side.correct[cell] for cell in cells]).mean(axis=0, dtype=np.float64)
        return shares

    def calibration(self, a: Scorecard, b: Scorecard) -> Iterator[Row]:
        """Brier (judged), NLL, AURC, and ECE, whose difference has no interval that holds."""
        ours, theirs = self.a.graded, self.b.graded
        if ours is None or theirs is None:
            why = "made before these figures were kept; the score step must run again"
            yield Row("Brier score × 100", self.runtime, "points", _times(a.brier, 100), _times(b.brier, 100), "not comparable", reason=why)
        else:
            brier = paired_means(100 * theirs.brier, 100 * ours.brier, seed=_SEED, name="brier")
            row = Row("Brier score × 100", self.runtime, "points", _times(a.brier, 100), _times(b.brier, 100), "no difference shown")
            yield self._judged(row, brier, higher_is_better=False)
            nll = paired_means(theirs.nll, ours.nll, seed=_SEED, name="nll")
            yield Row("NLL", self.runtime, "nats", a.nll, b.nll, "shown only", difference=nll)
            yield Row("risk-coverage area", self.runtime, "%", a.aurc, b.aurc, "shown only", difference=paired_aurc(theirs, ours, seed=_SEED))
        yield Row("ECE", self.runtime, "%", a.ece, b.ece, "shown only", reason="its bias depends on the model, so a difference has no interval")

    def _shared(self, question: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
        """Where the samples that both were asked stand in the answers of A and of B."""
        if question not in self.a.correct or question not in self.b.correct:
            return None
        ours, theirs = self.a.indices_of(question), self.b.indices_of(question)
        if ours is None or theirs is None:
            return None
        common, at_ours, at_theirs = np.intersect1d(ours, theirs, assume_unique=True, return_indices=True)
        return (at_ours.astype(np.int64), at_theirs.astype(np.int64)) if len(common) else None

    def _judged(self, row: Row, difference: Difference, *, higher_is_better: bool) -> Row:
        worst, best = (difference.high, difference.low) if higher_is_better else (-difference.low, -difference.high)
        state: State = "regressed" if worst < -self.margin else "improved" if best > 0 else "no difference shown"
        reason = row.reason
        if state == "no difference shown" and row.unit == "%" and row.figure != "corrupted (mean)" and difference.value != 0:
            reason = "; ".join(filter(None, (reason, _needed(difference))))
        return replace(row, state=state, judged=True, difference=difference, reason=reason)


def _needed(difference: Difference) -> str | None:
    """How many samples would tell a difference of this size from none, where these few do not."""
    share = abs(difference.value) / 100
    # the interval's half-width is that of `share` ± z √(discordant / n): the share of discordant samples follows from it
    half = (difference.high - difference.low) / 200
    discordant = min(1.0, max(share, difference.n * (half / 1.96) ** 2 + share**2))
    needed = samples_for_difference(share, discordant)
    return f"to show a difference this small takes about {float(f'{needed:.2g}'):,.0f} samples" if needed > difference.n else None


def _require_same_samples(a: Side, b: Side, ours: Answers, theirs: Answers) -> None:
    """The judged split must be the same, sample by sample; builds that did not write its digest are told by that of their whole data."""
    told = (ours.digest, theirs.digest) if ours.digest and theirs.digest else (a.data, b.data)
    if told[0] is None or told[0] != told[1]:
        raise ConfigError(
            f"the two were judged on different samples: {_brief(told[0])} in A, {_brief(told[1])} in B",
            at=f"{a.folder} and {b.folder}",
            do="build both from the same data with the same [project] seed; other figures cannot be paired",
        )


def _latencies(a: Bench, b: Bench) -> Iterator[Row]:
    """p50 and p90 at batch 1 of the int8 file, for each setting that both measured. They were not measured side by side, so they are only shown."""
    reason = _not_comparable(a, b)
    if reason is not None:
        yield Row("latency", "", "ms", Figure(value=None), Figure(value=None), "not comparable", reason=reason)
        return
    theirs = {(_short(it.runtime), it.threads): it for it in b.latencies if it.model == "int8" and it.batch == 1}
    for it in a.latencies:
        other = theirs.get((_short(it.runtime), it.threads))
        if it.model != "int8" or it.batch != 1 or other is None:
            continue
        for name, ours, other_p in (("p50", it.p50, other.p50), ("p90", it.p90, other.p90)):
            threads = f"{it.threads} thread{'' if it.threads == 1 else 's'}"
            why = "measured in two sessions: kdpipe bench A B measures them in turns"
            figure = f"latency {name}, batch 1, {threads}"
            yield Row(figure, _short(it.runtime), "ms", _milliseconds(ours, it.runs), _milliseconds(other_p, other.runs), "shown only", reason=why)


def _milliseconds(p: Percentile, runs: int) -> Figure:
    return Figure(value=p.value_ms, low=p.low_ms, high=p.high_ms, n=runs, reason=p.reason)


def _not_comparable(a: Bench, b: Bench) -> str | None:
    for name, bench in (("A", a), ("B", b)):
        if bench.not_measured is not None or bench.device is None:
            return f"{name}: {bench.not_measured or 'not measured'}"
    assert a.device is not None
    assert b.device is not None
    facts: Sequence[tuple[str, Callable[[Bench], object]]] = (
        ("CPU", lambda it: it.device and it.device.cpu),
        ("architecture", lambda it: it.device and it.device.architecture),
        ("cores", lambda it: it.device and it.device.cores),
        ("kind of device", lambda it: it.device and it.device.kind),
    )
    differing = [f"{name} {read(a)} and {read(b)}" for name, read in facts if read(a) != read(b)]
    return f"two machines: {'; '.join(differing)}" if differing else None


def _times(figure: Figure, factor: float) -> Figure:
    if figure.value is None or figure.low is None or figure.high is None:
        return figure
    return figure.model_copy(update={"value": factor * figure.value, "low": factor * figure.low, "high": factor * figure.high})


def _short(runtime: str | None) -> str:
    """`onnxruntime` of `onnxruntime 1.32.0 CPU`: versions may differ, and both stand on the scorecards."""
    return (runtime or "").partition(" ")[0]


def _brief(digest: str | None) -> str:
    return "unknown data" if digest is None else f"sha256 {digest[:12]}…"
