"""Lines over a common axis: robust accuracy against epsilon, and validation through the epochs of a training."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kdpipe.pipeline.report.svg import MARKERS, WIDTH, Scale, chart, label, line, marker, path

LEFT, RIGHT, TOP, HEIGHT = 36.0, 14.0, 28.0, 190.0
LEGEND_ROW = 20.0


@dataclass(frozen=True)
class Point:
    """One point and the bounds of its 95 % interval (equal to `y` where there is none)."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """A named line; `accent` for what is shipped."""

    name: str
    points: tuple[Point, ...]
    accent: bool = False


def line_chart(
    curves: Sequence[Curve],
    *,
    title: str,
    x_axis: str,
    y_axis: str,
    mark_x: float | None = None,
    mark_label: str = "",
    mark_low: bool = False,
    whole_x: bool = False,
) -> Markup:
    """The curves (each with at least one point) over y from 0 to 100, whiskers for intervals, legend below.

    `mark_x`: where a vertical line is drawn, its label at the top, or at the bottom where the curves rise (`mark_low`).
    `whole_x`: ticks at whole numbers alone.
    """
    xs = [p.x for curve in curves for p in curve.points]
    low_x, high_x = min(xs), max(xs)
    x = Scale(low_x, high_x if high_x > low_x else low_x + 1, LEFT, WIDTH - RIGHT)
    y = Scale(0, 100, TOP + HEIGHT, TOP)
    parts: list[str] = [label(0, 12, y_axis, class_="axis")]
    for tick in y.ticks(5):
        parts += [line(LEFT, y(tick), WIDTH - RIGHT, y(tick), "grid"), label(LEFT - 6, y(tick) + 4, f"{tick:g}", anchor="end")]
    for tick in (tick for tick in x.ticks(5) if not whole_x or tick == round(tick)):
        parts.append(label(x(tick), TOP + HEIGHT + 17, f"{tick:g}", anchor="middle"))
    parts.append(label(WIDTH - RIGHT, TOP + HEIGHT + 34, x_axis, class_="axis", anchor="end"))
    if mark_x is not None and low_x <= mark_x <= high_x:
        parts += [line(x(mark_x), TOP, x(mark_x), TOP + HEIGHT, "rule"), _mark(x(mark_x), mark_label, low=mark_low)]
    legend_top = TOP + HEIGHT + 44
    for j, curve in enumerate(curves):
        style = f"series-{j}" + (" accent" if curve.accent else "")
        parts.append(path([(x(p.x), y(p.y)) for p in curve.points], f"curve {style}"))
        for p in curve.points:
            if p.high > p.low:
                parts.append(line(x(p.x), y(p.low), x(p.x), y(p.high), f"whisker {style}"))
            parts.append(marker(MARKERS[j % len(MARKERS)], x(p.x), y(p.y), f"mark {style}", f"{curve.name}: {p.y:.1f} at {p.x:.4g}", radius=3.5))
        column, row = j % 2, j // 2
        left, middle = LEFT + column * 180, legend_top + LEGEND_ROW * row + 6
        parts += [
            line(left, middle, left + 26, middle, f"curve {style}"),
            marker(MARKERS[j % len(MARKERS)], left + 13, middle, f"mark {style}", radius=3.5),
            label(left + 33, middle + 4, curve.name, class_="legend"),
        ]
    told = "; ".join(f"{c.name}: " + ", ".join(f"{p.y:.1f} at {p.x:.4g}" for p in c.points) for c in curves)
    return chart(legend_top + LEGEND_ROW * ((len(curves) + 1) // 2), title, told, *parts)


def _mark(x: float, text: str, *, low: bool) -> Markup:
    y = TOP + HEIGHT - 8 if low else TOP + 12
    return label(x - 5, y, text, class_="axis", anchor="end") if x > 0.7 * WIDTH else label(x + 5, y, text, class_="axis")
