"""The report: one HTML file without network or script, the verdict first, then every figure of the build with its interval.

Sections are made in `sections.py`, pictures in the charts' files; this file puts them on one page.
"""

import importlib.metadata
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kdpipe.foundation.files import write_text
from kdpipe.pipeline.budgets import Verdict
from kdpipe.pipeline.report import numbers, sections
from kdpipe.pipeline.report.corruptions import corruptions_told, is_trained, trained_corruptions
from kdpipe.pipeline.report.data import DataSection, data_section
from kdpipe.pipeline.report.foreseen import Foreseen, foreseen
from kdpipe.pipeline.report.gallery import Gallery, gallery
from kdpipe.pipeline.report.gaps import Gap, gaps
from kdpipe.pipeline.report.places import Places, places
from kdpipe.pipeline.report.pruning import pruning
from kdpipe.pipeline.report.rules import Rules, rules
from kdpipe.pipeline.results import INT8, Judged, Results, TargetResults, read_results
from kdpipe.pipeline.steps import BuildResult, StepResult
from kdpipe.robustness.scorecard import Figure, MaskingCheck, Scorecard
from kdpipe.stages.parity import Parity
from kdpipe.stages.prune import PruningReport
from kdpipe.stages.qat import Outcome
from kdpipe.targets.measurements import Bench
from kdpipe.tasks.data.splits import Relabelled


@dataclass(frozen=True)
class Headline:
    """The verdict in one line, and what stands below it."""

    text: str
    more: str
    bad: bool


@dataclass(frozen=True)
class BudgetRow:
    """A verdict as it is written: `≤ 1.0 points`, `0.7 points`."""

    name: str
    target: str
    sign: str
    limit: str
    bound: str
    state: str
    reason: str


@dataclass(frozen=True)
class TargetSections:
    """What the page shows of one target."""

    name: str
    tiles: tuple[sections.Tile, ...]
    bench: Bench | None
    latency_charts: tuple[tuple[str, Markup], ...]
    nodes: tuple[sections.Nodes, ...]
    rules: Rules | None
    parity: Parity | None
    quantization: Outcome | None
    beside: tuple[sections.Beside, ...]
    foreseen: Foreseen | None
    places: Places | None
    unsuited: str | None

    @property
    def shipped(self) -> str:
        """What the file that ships is called: 'int8', 'float16'."""
        return INT8 if self.quantization is None else self.quantization.shipped


@dataclass(frozen=True)
class Page:
    """All that the template writes, in its order."""

    title: str
    subtitle: str
    headline: Headline
    verdicts: tuple[BudgetRow, ...]
    targets: tuple[TargetSections, ...]
    judged: tuple[Judged, ...]
    attacks: tuple[str, ...]
    staircase: tuple[Markup, Markup] | None
    samples_told: str
    labels_told: str | None
    pruning: PruningReport | None
    epsilon: tuple[sections.Epsilon, ...]
    heat: tuple[sections.Heat, ...]
    trained_corruptions: tuple[str, ...]
    samples: tuple[Gallery, ...]
    reliability: tuple[tuple[str, Markup], ...]
    masking: tuple[tuple[Judged, MaskingCheck], ...]
    masking_told: str
    data: DataSection | None
    gaps: tuple[Gap, ...]
    histories: tuple[tuple[str, Markup | None, str], ...]
    command: str
    versions: tuple[tuple[str, str], ...]
    steps: tuple[StepResult, ...]
    config: str
    kdpipe: str

    @property
    def contents(self) -> list[tuple[str, str]]:
        """Anchor and title of the sections that are there."""
        shown = {
            "stages": ("Stages", True),
            "pruning": ("Pruning", self.pruning is not None),
            "epsilon": ("Epsilon", bool(self.epsilon)),
            "corruptions": ("Corruptions", bool(self.heat)),
            "samples": ("Samples", bool(self.samples)),
            "reliability": ("Calibration", bool(self.reliability)),
            "places": ("Devices", self.has_places),
            "latency": ("Latency", True),
            "nodes": ("Node precision", self.has_nodes),
            "rules": ("Target's rules", self.has_rules),
            "parity": ("Parity", self.has_parity),
            "precision": ("Stored how", self.has_precision),
            "ptq": ("PTQ and QAT", self.has_beside),
            "masking": ("Masking checks", bool(self.masking)),
            "data": ("Data", self.data is not None),
            "gaps": ("Not measured", True),
            "training": ("Training", bool(self.histories)),
            "provenance": ("Provenance", True),
        }
        return [(anchor, title) for anchor, (title, there) in shown.items() if there]

    @property
    def has_precision(self) -> bool:
        """Whether a file is anything but static int8 throughout, or that was in question."""
        outcomes = [tail.quantization for tail in self.targets if tail.quantization is not None]
        return any(it.scheme.kind is not None or it.float_layers or it.mixed_precision is not None for it in outcomes)

    @property
    def doubts(self) -> tuple[tuple[Judged, MaskingCheck], ...]:
        """The masking checks that did not pass; they come first in `masking`."""
        return tuple(pair for pair in self.masking if not pair[1].passed)

    @property
    def has_nodes(self) -> bool:
        """Whether a runtime explained itself."""
        return any(tail.nodes for tail in self.targets)

    @property
    def has_places(self) -> bool:
        """Whether a device judged a file."""
        return any(tail.places for tail in self.targets)

    @property
    def has_rules(self) -> bool:
        """Whether a file was held against its target's rules."""
        return any(tail.rules for tail in self.targets)

    @property
    def has_parity(self) -> bool:
        """Whether a parity ladder was climbed."""
        return any(tail.parity for tail in self.targets)

    @property
    def has_beside(self) -> bool:
        """Whether PTQ was judged beside QAT."""
        return any(tail.beside for tail in self.targets)


def write_report(build: BuildResult, verdicts: Sequence[Verdict], path: Path, target: str | tuple[str, ...] | None) -> Path:
    """Write the report of `target` (one, several, None: all) to `path`, whole or not at all; returns `path`."""
    write_text(path, render(build, verdicts, target))
    return path


def render(build: BuildResult, verdicts: Sequence[Verdict], target: str | tuple[str, ...] | None, *, theme: str | None = None) -> str:
    """The page as HTML. `theme`: 'light' or 'dark' where it shall not follow the reader's system."""
    environment = Environment(loader=PackageLoader("kdpipe.pipeline", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= _FILTERS
    css = Markup(files("kdpipe.pipeline.report").joinpath("report.css").read_text(encoding="utf-8"))
    return environment.get_template("report.html.jinja").render(page=page(build, verdicts, target), css=css, theme=theme) + "\n"


def page(build: BuildResult, verdicts: Sequence[Verdict], target: str | tuple[str, ...] | None) -> Page:
    """The page of `target` (one, several, None: all)."""
    results = read_results(build)
    names = build.targets if target is None else (target,) if isinstance(target, str) else target
    tails = tuple(results.targets[name] for name in names)
    own = tuple(verdict for verdict in verdicts if verdict.target in names)
    judged = tuple(it for it in results.judged if it.target is None or it.target in names)
    shipped = tuple(sections.weakest(tail.files) for tail in tails if tail.files)
    beside_teacher = ((results.teacher,) if results.teacher else ()) + shipped
    charts = tuple((_where(it), chart(it)) for it in beside_teacher for chart in (sections.reliability, sections.risk_coverage))
    checks = sorted(((it, check) for it in judged for check in it.card.masking), key=lambda pair: (False, None, True).index(pair[1].passed))
    return Page(
        title=f"{build.name} · {', '.join(names)}" if target else build.name,
        subtitle=_subtitle(build, tails),
        headline=headline(own),
        verdicts=tuple(map(budget_row, own)),
        targets=tuple(_target_sections(build, results, tail, own) for tail in tails),
        judged=judged,
        attacks=tuple(dict.fromkeys(attack.name for it in judged for attack in it.card.attacks)),
        staircase=sections.staircase(judged) if judged else None,
        samples_told=_samples_told(judged),
        labels_told=_labels_told(build),
        pruning=pruning(build),
        epsilon=_epsilon_charts(results, tails),
        heat=tuple(table for it in beside_teacher if (table := sections.heat(it, _where(it), corruptions_told(it, results.teacher))) is not None),
        trained_corruptions=trained_corruptions(build),
        samples=tuple(found for tail in tails if tail.samples and (found := gallery(_gallery_name(tail), tail.samples, results.labels))),
        reliability=tuple((name, picture) for name, picture in charts if picture is not None),
        masking=tuple(checks),
        masking_told=_masking_told([check for _, check in checks]),
        data=data_section(build),
        gaps=gaps(results, own, names),
        histories=sections.histories(results, names),
        command=build.command,
        versions=_versions(build),
        steps=tuple(result for result in build.results.values() if result.step.target is None or result.step.target in names),
        config=json.dumps(build.config, indent=2, ensure_ascii=False),
        kdpipe=importlib.metadata.version("kdpipe"),
    )


def headline(verdicts: Sequence[Verdict]) -> Headline:
    """The verdict over all budgets."""
    by_state = {state: [v for v in verdicts if v.state == state] for state in ("met", "missed", "not checkable")}
    missed, unknown = by_state["missed"], by_state["not checkable"]
    if not verdicts:
        return Headline("No budgets are set", "Without [budgets] in kdpipe.toml nothing is judged: the figures below stand for themselves.", bad=False)
    told = [f"missed: {_named(missed)}"] * bool(missed) + [f"not checkable, which is no pass: {_named(unknown)}"] * bool(unknown)
    if missed:
        return Headline(f"✗ {len(missed)} of {len(verdicts)} budgets missed", "; ".join(told), bad=True)
    if unknown:
        return Headline(f"? {len(unknown)} of {len(verdicts)} budgets could not be checked", "; ".join(told), bad=True)
    return Headline(f"✓ {'The budget is' if len(verdicts) == 1 else f'All {len(verdicts)} budgets are'} met", _named(by_state["met"]), bad=False)


def budget_row(verdict: Verdict) -> BudgetRow:
    """The verdict as its row is written."""
    sign = "≥" if verdict.name == "robust_accuracy" else "≤"
    bound = numbers.NONE if verdict.bound is None else f"{numbers.significant(verdict.bound)} {verdict.unit}"
    return BudgetRow(verdict.name, verdict.target, sign, f"{verdict.limit:g} {verdict.unit}", bound, verdict.state, verdict.reason)


def _named(verdicts: Iterable[Verdict]) -> str:
    listed = tuple(verdicts)
    several = len({verdict.target for verdict in listed}) > 1
    return ", ".join(f"{verdict.name} ({verdict.target})" if several else verdict.name for verdict in listed)


def _where(judged: Judged) -> str:
    return f"{judged.name}, {judged.target}" if judged.target else judged.name


def _subtitle(build: BuildResult, tails: Sequence[TargetResults]) -> str:
    targets = f"target{'s' if len(tails) > 1 else ''} {' and '.join(tail.name for tail in tails)}"
    return f"What kdpipe made of the project {build.name} for the {targets}, and what was measured on the files that it ships."


def _gallery_name(tail: TargetResults) -> str:
    return f"The {tail.shipped} file for {tail.name} in {tail.files[0].card.runtime}"


def _samples_told(judged: Sequence[Judged]) -> str:
    clean = sorted({it.card.clean.n for it in judged if it.card.clean.value is not None})
    attacked = sorted({it.card.robust.n for it in judged if it.card.robust.value is not None})
    told = [f"clean n = {', '.join(map(numbers.count, clean))}"] * bool(clean) + [f"attacked n = {', '.join(map(numbers.count, attacked))}"] * bool(attacked)
    return f"Samples of the test split, which no training, calibration or selection has seen: {'; '.join(told)}." if told else ""


def _labels_told(build: BuildResult) -> str | None:
    """That labels were made wrong on purpose, and how many; None where they were not."""
    values = next((result.step.identity["labels"] for result in build.results.values() if result.step.identity.get("labels")), None)
    return None if values is None else f"{Relabelled.from_json(values).told}."


def _epsilon_charts(results: Results, tails: Sequence[TargetResults]) -> tuple[sections.Epsilon, ...]:
    charts = []
    for tail in tails:
        models = [*results.shared, *((sections.weakest(tail.files),) if tail.files else ())]
        evaluated = next((attack.epsilon for it in models for attack in it.card.attacks), None)
        section = sections.epsilon_section(tail.name, models, evaluated)
        if section is not None:
            charts.append(section)
    return tuple(charts)


def _masking_told(checks: Sequence[MaskingCheck]) -> str:
    failed, unknown = sum(check.passed is False for check in checks), sum(check.passed is None for check in checks)
    passed = len(checks) - failed - unknown
    told = [f"{passed} passed"]
    told += [f"{failed} failed: robust accuracy is suspect there"] * bool(failed)
    told += [f"{unknown} could not be checked"] * bool(unknown)
    return f"{len(checks)} checks: {', '.join(told)}"


def _target_sections(build: BuildResult, results: Results, tail: TargetResults, verdicts: Sequence[Verdict]) -> TargetSections:
    return TargetSections(
        name=tail.name,
        tiles=sections.tiles(results, tail),
        bench=tail.bench,
        latency_charts=sections.latency_charts(tail),
        nodes=sections.nodes(tail),
        rules=rules(tail),
        parity=tail.parity,
        quantization=tail.quantization,
        beside=sections.beside(tail),
        foreseen=foreseen(build, tail),
        places=places(tail, verdicts),
        unsuited=tail.unsuited,
    )


def _versions(build: BuildResult) -> tuple[tuple[str, str], ...]:
    tools: dict[str, Any] = {}
    for result in build.results.values():
        tools |= result.step.identity.get("tools", {})
    data = next((str(result.step.identity["data"]) for result in build.results.values() if result.step.identity.get("data")), None)
    told = ", ".join(f"{tool} {version or 'not installed'}" for tool, version in sorted(tools.items()))
    versions = [("kdpipe", importlib.metadata.version("kdpipe")), ("tools", told)]
    return (*versions, ("digest of the data", data)) if data else tuple(versions)


def _attacked(card: Scorecard, name: str) -> Figure | None:
    return next((attack.accuracy for attack in card.attacks if attack.name == name), None)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


_FILTERS: Mapping[str, Any] = {
    "percent": numbers.percent,
    "percent_with_n": numbers.percent_with_n,
    "points": numbers.points,
    "plain": numbers.plain,
    "value": numbers.value,
    "bounds": numbers.bounds,
    "ms_bounds": numbers.ms_bounds,
    "kilobytes": numbers.kilobytes,
    "amount": numbers.amount,
    "count": numbers.count,
    "is_trained": is_trained,
    "milliseconds": numbers.milliseconds,
    "significant": numbers.significant,
    "seconds": numbers.seconds,
    "attacked": _attacked,
    "sentence": _sentence,
}
