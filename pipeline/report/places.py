"""The accuracy matrix: the int8 file in every place that judged it, this host's runtimes and devices, and how far apart they lie."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kdpipe.pipeline.budgets import Verdict, spread_told
from kdpipe.pipeline.report.numbers import decimal
from kdpipe.pipeline.report.svg import WIDTH, Scale, chart, label, line, marker
from kdpipe.pipeline.results import JudgedThere, TargetResults
from kdpipe.robustness.scorecard import Figure
from kdpipe.targets.runtimes.runtime import runtime_of

ROW = 26.0
TOP = 6.0
LEFT, RIGHT = 168.0, 14.0
_LONGEST = 27  # characters of a name that fit beside the axis
_LEAST_SPAN = 1.0  # points: places that agree are not drawn apart


@dataclass(frozen=True)
class Place:
    """One row. `chip`: the processor; `same`: as the same runtime on this host, None where it is this host; `unsuited`: why it does not count."""

    where: str
    chip: str
    runtime: str
    clean: Figure
    same: Figure | None
    largest_difference: float | None
    unsuited: str | None


@dataclass(frozen=True)
class Places:
    """The matrix of one target, its picture, the spread in words, and the verdict on it where `device_spread` is set."""

    places: tuple[Place, ...]
    picture: Markup
    told: str
    verdict: Verdict | None


def places(tail: TargetResults, verdicts: Sequence[Verdict]) -> Places | None:
    """The places of the target's int8 file; None where no device judged it."""
    if not tail.on_devices:
        return None
    here = [
        Place("this host", "", file.card.runtime or file.name, file.card.clean, None, None, tail.unsuited)
        for file in tail.files
        if file.card.clean.value is not None
    ]
    there = [_there(it) for it in tail.on_devices]
    verdict = next((it for it in verdicts if it.name == "device_spread" and it.target == tail.name), None)
    return Places((*here, *there), _picture([*here, *there]), spread_told(tail), verdict)


def _there(judged: JudgedThere) -> Place:
    quality = judged.quality
    chip = f"{quality.device.cpu}, {quality.device.architecture}"
    return Place(quality.device.name, chip, quality.runtime, quality.clean, quality.agreement, quality.largest_difference, judged.unsuited)


def _picture(rows: Sequence[Place]) -> Markup:
    """A dot and its 95 % interval for each place, over a common axis in per cent."""
    ends = [end for it in rows for end in (it.clean.low, it.clean.high) if end is not None]
    middle, span = (min(ends) + max(ends)) / 2, max(_LEAST_SPAN, max(ends) - min(ends))
    x = Scale(middle - 0.55 * span, middle + 0.55 * span, LEFT, WIDTH - RIGHT)
    bottom = TOP + ROW * len(rows)
    parts: list[str] = []
    for tick in x.ticks(4):
        parts += [line(x(tick), TOP, x(tick), bottom, "grid"), label(x(tick), bottom + 15, f"{tick:g}", anchor="middle")]
    parts.append(label(WIDTH - RIGHT, bottom + 31, "% of the test samples right", class_="axis", anchor="end"))
    for k, it in enumerate(rows):
        y = TOP + ROW * (k + 0.5)
        name = f"{it.where}, {runtime_of(it.runtime)}"
        shown = name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
        parts.append(label(LEFT - 10, y + 4, shown, class_="name", anchor="end"))
        if it.clean.low is not None and it.clean.high is not None:
            parts.append(line(x(it.clean.low), y, x(it.clean.high), y, "whisker"))
        own = " accent" if it.same is None else ""
        tip = f"{name}: {decimal(it.clean.value or 0.0, 2)} %"
        parts.append(marker("ring" if it.unsuited else "circle", x(it.clean.value or 0.0), y, f"mark{own}", tip))
    told = "; ".join(f"{it.where}, {it.runtime}: {decimal(it.clean.value or 0.0, 2)} %" for it in rows)
    return chart(bottom + 36, "Accuracy of the int8 file in each place", told, *parts)
