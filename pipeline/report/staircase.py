"""The staircase: what each stage did to size and to accuracy, two pictures with one row a model, the same rows in both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kdpipe.pipeline.report.numbers import kilobytes
from kdpipe.pipeline.report.svg import MARKERS, WIDTH, Scale, chart, element, label, line, marker

ROW = 30.0
TOP = 26.0
RIGHT = 22.0
LONGEST = 22
"""letters of a model's name that are shown"""


@dataclass(frozen=True)
class Interval:
    """A value in per cent and its 95 % bounds."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Stair:
    """One model: its size, and its accuracies by kind ('clean', 'corrupted', 'attacked'); a kind that was not measured is missing."""

    name: str
    size_bytes: int
    accuracies: Mapping[str, Interval]
    accent: bool = False
    """True for what is shipped"""


def size_bars(stairs: Sequence[Stair]) -> Markup:
    """Horizontal bars from zero, each with its size and its share of the first (the teacher's)."""
    largest = max(stair.size_bytes for stair in stairs)
    left = _left(stairs)
    scale = Scale(0, largest, left, WIDTH - 112)
    parts: list[str] = [label(left, 14, "size of the weights or the file", class_="axis")]
    for k, stair in enumerate(stairs):
        middle = TOP + ROW * (k + 0.5)
        share = "" if k == 0 else f" · {_share(stair.size_bytes / stairs[0].size_bytes)}"
        parts += [
            _name(stair, left, middle),
            element("rect", x=left, y=middle - 9, width=max(1.0, scale(stair.size_bytes) - left), height=18, class_=_class("bar", stair)),
            label(scale(stair.size_bytes) + 6, middle + 4.5, f"{kilobytes(stair.size_bytes)}{share}", class_=_class("value", stair)),
        ]
    told = ", ".join(f"{stair.name} {kilobytes(stair.size_bytes)}" for stair in stairs)
    return chart(TOP + ROW * len(stairs) + 6, "Size through the stages", told, *parts)


def accuracy_dots(stairs: Sequence[Stair], kinds: Sequence[str]) -> Markup:
    """A dot with its 95 % interval for each kind of accuracy on a common axis from 0 to 100 per cent; a shape for each kind."""
    left = _left(stairs)
    scale = Scale(0, 100, left, WIDTH - RIGHT)
    bottom = TOP + ROW * len(stairs)
    parts: list[str] = []
    for tick in scale.ticks(5):
        parts += [line(scale(tick), TOP - 4, scale(tick), bottom, "grid"), label(scale(tick), bottom + 16, f"{tick:g} %", anchor="middle")]
    parts += legend(kinds, left, y=13)
    for k, stair in enumerate(stairs):
        middle = TOP + ROW * (k + 0.5)
        parts.append(_name(stair, left, middle))
        for j, kind in enumerate(kinds):
            if kind in stair.accuracies:
                figure = stair.accuracies[kind]
                y = middle + (j - (len(kinds) - 1) / 2) * 5
                tip = f"{stair.name}, {kind}: {figure.value:.1f} % [{figure.low:.1f}, {figure.high:.1f}]"
                parts.append(line(scale(figure.low), y, scale(figure.high), y, f"whisker series-{j}"))
                parts.append(marker(MARKERS[j], scale(figure.value), y, f"mark series-{j}", tip))
    told = "; ".join(f"{s.name}: " + ", ".join(f"{kind} {s.accuracies[kind].value:.1f} %" for kind in kinds if kind in s.accuracies) for s in stairs)
    return chart(bottom + 24, "Accuracy through the stages, with 95 % intervals", told, *parts)


def legend(names: Sequence[str], start: float, y: float) -> list[Markup]:
    """Marker and name of each series on one line, from `start` on."""
    parts, x = [], start
    for j, name in enumerate(names):
        parts += [marker(MARKERS[j], x + 5, y - 4, f"mark series-{j}"), label(x + 14, y, name, class_="legend")]
        x += 14 + 7.2 * len(name) + 14
    return parts


def _left(stairs: Sequence[Stair]) -> float:
    """The width that the names take, about 7 units a letter."""
    return 14 + 7 * min(LONGEST, max(len(stair.name) for stair in stairs))


def _name(stair: Stair, left: float, middle: float) -> Markup:
    shown = stair.name if len(stair.name) <= LONGEST else f"{stair.name[: LONGEST - 1]}…"
    return label(left - 8, middle + 4.5, shown, class_=_class("name", stair), anchor="end")


def _class(base: str, stair: Stair) -> str:
    return f"{base} accent" if stair.accent else base


def _share(share: float) -> str:
    return f"{share:.1%}".replace("%", " %") if share < 0.1 else f"{share:.0%}".replace("%", " %")
