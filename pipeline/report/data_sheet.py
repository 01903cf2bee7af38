"""The sheet of a data check: one HTML file with every kind of finding counted, and the worst of each to look at."""

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.files import write_text
from kdpipe.pipeline.report import numbers
from kdpipe.pipeline.report.gallery import png
from kdpipe.pipeline.report.svg import WIDTH, Scale, chart, element, label
from kdpipe.tasks.data.inspection.findings import Finding, Inspection, Kind, Sample, Severity, SplitName
from kdpipe.tasks.data.splits import Split

_MOST_SUSPECTS = 60
_MOST_GROUPS = 24
_MOST_OF_A_GROUP = 6
_MOST_OUTLIERS = 40
_MOST_ROWS = 50
_MOST_CLASSES = 40
_NEAR: tuple[Kind, ...] = ("near-contradiction", "near-leak", "near-duplicate")
_BAR = 18.0  # SVG units from one bar to the next

_TITLES: Mapping[Kind, str] = {
    "unreadable": "images that cannot be read",
    "not-finite": "images with NaN or infinite values",
    "out-of-range": "images with values outside [0, 1]",
    "leak": "images with copies in several splits",
    "contradiction": "images whose copies have different labels",
    "near-leak": "near copies across splits",
    "near-contradiction": "near copies with different labels",
    "duplicate": "images with copies in one split",
    "suspected-label": "suspected labels",
    "constant": "images of one value",
    "imbalance": "uneven classes",
    "shift": "splits with other class shares",
    "near-duplicate": "near copies in one split",
    "outlier": "images unlike the rest",
}


@dataclass(frozen=True)
class SummaryRow:
    """All findings of one kind and severity."""

    severity: Severity
    findings: int
    kind: Kind
    title: str
    example: str
    do: str


@dataclass(frozen=True)
class Card:
    """One picture with what is said below it; `image` is None where it cannot be shown. `wrong`: the line that is marked."""

    image: str | None
    alt: str
    lines: tuple[str, ...]
    wrong: str = ""


@dataclass(frozen=True)
class Group:
    """Pictures that belong together, side by side."""

    cards: tuple[Card, ...]
    says: str
    more: int = 0


@dataclass(frozen=True)
class Section:
    """One part of the sheet: `groups` of pictures, those of one picture flow. `told` says how many are shown of how many."""

    anchor: str
    title: str
    about: str
    told: str
    groups: tuple[Group, ...]


def write_sheet(path: Path, inspection: Inspection, splits: Mapping[SplitName, Split], *, project: str) -> Path:
    """Write the sheet to `path`, whole or not at all; returns `path`. `splits`: what was inspected; the shown images are read again."""
    write_text(path, render_sheet(inspection, splits, project=project))
    return path


def render_sheet(inspection: Inspection, splits: Mapping[SplitName, Split], *, project: str, theme: str | None = None) -> str:
    """The page as HTML. `theme`: 'light' or 'dark' where it shall not follow the reader's system."""
    environment = Environment(loader=PackageLoader("kdpipe.pipeline", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"count": numbers.count}
    css = "\n".join(files("kdpipe.pipeline.report").joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "data_sheet.css"))
    unusable = inspection.of("unreadable", "not-finite", "out-of-range")
    return (
        environment.get_template("data_sheet.html.jinja").render(
            project=project,
            inspection=inspection,
            headline=headline(inspection),
            rows=summary_rows(inspection),
            unusable=unusable[:_MOST_ROWS],
            unusable_count=len(unusable),
            classes=class_chart(inspection),
            sections=[section for section in _sections(inspection, splits) if section.groups],
            kdpipe=importlib.metadata.version("kdpipe"),
            css=Markup(css),
            theme=theme,
        )
        + "\n"
    )


def headline(inspection: Inspection) -> tuple[str, bool]:
    """The result in one line, and whether it is bad."""
    serious = sum(finding.severity == "serious" for finding in inspection.findings)
    warnings = sum(finding.severity == "warning" for finding in inspection.findings)
    if serious:
        return f"✗ {numbers.count(serious)} serious finding{'s' if serious > 1 else ''}: figures or a training would be wrong", True
    if warnings:
        return f"✓ Nothing serious; {numbers.count(warnings)} warning{'s' if warnings > 1 else ''}", False
    return "✓ Nothing to warn of", False


def summary_rows(inspection: Inspection) -> list[SummaryRow]:
    """One row for each kind and severity, in the order of the findings: serious ones first."""
    by_kind: dict[tuple[Severity, Kind], list[Finding]] = {}
    for finding in inspection.findings:
        by_kind.setdefault((finding.severity, finding.kind), []).append(finding)
    rows = []
    for (severity, kind), found in by_kind.items():
        first = found[0]
        where = ", ".join(f"{sample.split}: {sample.at}" for sample in first.samples[:2])
        rows.append(SummaryRow(severity, len(found), kind, _TITLES[kind], f"{where} – {first.what}" if where else first.what, first.do))
    return rows


def class_chart(inspection: Inspection) -> Markup | None:
    """The training samples of each class as bars, in the classes' order; None for more classes than can be read."""
    counts, names = inspection.counts["train"], inspection.classes
    if len(names) > _MOST_CLASSES:
        return None
    scale = Scale(0, max(*counts, 1), 120, WIDTH - 60)
    parts: list[Markup] = []
    for place, (name, count) in enumerate(zip(names, counts, strict=True)):
        y = 4 + _BAR * place
        shown = name if len(name) <= 18 else f"{name[:17]}…"
        parts.append(label(112, y + 11, shown, class_="legend", anchor="end"))
        parts.append(element("rect", x=120, y=y, width=max(1.0, scale(count) - 120), height=_BAR - 5, class_="bar accent"))
        parts.append(label(scale(count) + 6, y + 11, numbers.count(count)))
    listed = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
    return chart(8 + _BAR * len(names), "Training samples of each class", listed, *parts)


def _sections(inspection: Inspection, splits: Mapping[SplitName, Split]) -> Iterable[Section]:
    shown = _Pictures(inspection.classes, splits)
    copies = inspection.of("leak", "contradiction", "duplicate")
    yield Section(
        "copies", "Copies", "Equal to the last pixel. Copies across splits come first.", _told(copies, _MOST_GROUPS), shown.groups(copies[:_MOST_GROUPS])
    )
    near = [it for kind in _NEAR for it in sorted(inspection.of(kind), key=lambda it: -(it.score or 0.0))]
    yield Section(
        "near",
        "Near copies",
        "Thumbnails that correlate almost perfectly, brightness and contrast aside, and are much closer to each other than to the images around them. "
        "Whether they are copies is for you to judge.",
        _told(near, _MOST_GROUPS),
        shown.groups(near[:_MOST_GROUPS]),
    )
    suspects = sorted(inspection.of("suspected-label"), key=lambda it: -(it.score or 0.0))
    yield Section(
        "labels",
        "Suspected labels",
        "The given label, and below it the one that a model trained on other samples finds likelier. The surest suspicions come first; further down they are "
        "more often wrong. A model that is itself weak suspects hard images.",
        _told(suspects, _MOST_SUSPECTS),
        tuple(shown.suspect(finding) for finding in suspects[:_MOST_SUSPECTS]),
    )
    unlike = inspection.of("outlier", "constant")
    yield Section(
        "outliers",
        "Unlike the rest",
        "Far from the middle of all images, in robust deviations. Rare is not wrong: look before you drop.",
        _told(unlike, _MOST_OUTLIERS),
        tuple(shown.single(finding) for finding in unlike[:_MOST_OUTLIERS]),
    )


def _told(findings: Sequence[Finding], most: int) -> str:
    count = len(findings)
    return f"the first {most} of {numbers.count(count)}" if count > most else f"{count} in all"


@dataclass(frozen=True)
class _Pictures:
    classes: tuple[str, ...]
    splits: Mapping[SplitName, Split]

    def groups(self, findings: Sequence[Finding]) -> tuple[Group, ...]:
        return tuple(
            Group(tuple(self.card(sample) for sample in finding.samples[:_MOST_OF_A_GROUP]), finding.what, max(0, len(finding.samples) - _MOST_OF_A_GROUP))
            for finding in findings
        )

    def single(self, finding: Finding) -> Group:
        score = () if finding.score is None else (f"{finding.score:.1f} deviations",)
        return Group((self.card(finding.samples[0], *score),), "")

    def suspect(self, finding: Finding) -> Group:
        suggested, confidence = finding.suggested, finding.confidence
        assert suggested is not None
        assert confidence is not None
        return Group((self.card(finding.samples[0], wrong=f"→ {self.classes[suggested]}, {100 * confidence:.0f}{numbers.NBSP}%"),), "")

    def card(self, sample: Sample, *lines: str, wrong: str = "") -> Card:
        name = self.classes[sample.label]
        return Card(self.image(sample), f"{name}, {sample.split} {sample.index}", (name, *lines, f"{sample.split} {sample.index}", sample.at), wrong)

    def image(self, sample: Sample) -> str | None:
        try:
            pixels = self.splits[sample.split].read(np.array([sample.index], np.int64))[0]
        except ConfigError:
            return None
        return png(np.nan_to_num(pixels)) if pixels.ndim == 3 and pixels.shape[0] in (1, 3) else None
