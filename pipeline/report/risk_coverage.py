"""Risk against coverage: how often the model errs when it answers its most confident samples alone."""

from collections.abc import Sequence

from markupsafe import Markup

from kdpipe.pipeline.report.svg import Scale, chart, element, label, line, marker, path
from kdpipe.robustness.scorecard import CoveragePoint

SIDE = 220.0
HEIGHT = 274.0
"""as high as the reliability diagram with its strip of counts: they stand side by side"""
WIDTH = 300.0
LEFT, TOP = 44.0, 22.0


def risk_coverage_chart(name: str, points: Sequence[CoveragePoint], note: str = "") -> Markup:
    """The error rate on the most confident share of the samples with its band of 95 % intervals; a flat line means that confidence says nothing.

    `points`: at least one, coverage rising, each measured.
    """
    bounds = [(point.coverage, point.risk.value or 0.0, _or(point.risk.low, point.risk.value), _or(point.risk.high, point.risk.value)) for point in points]
    top = max(high for *_, high in bounds) or 1.0
    x, y = Scale(0, 1, LEFT, LEFT + SIDE), Scale(0, top * 1.05, TOP + HEIGHT, TOP)
    parts: list[str] = [label(LEFT, 14, f"{name}{f': {note}' if note else ''}", class_="legend")]
    for tick in y.ticks(5):
        parts += [line(LEFT, y(tick), LEFT + SIDE, y(tick), "grid"), label(LEFT - 6, y(tick) + 4, f"{tick:g}", anchor="end")]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(label(x(tick), TOP + HEIGHT + 16, f"{tick:g}", anchor="middle"))
    band = [(x(c), y(high)) for c, _, _, high in bounds] + [(x(c), y(low)) for c, _, low, _ in reversed(bounds)]
    parts.append(path(band, "band", closed=True))
    parts.append(line(x(0), y(bounds[-1][1]), x(1), y(bounds[-1][1]), "rule"))
    parts.append(path([(x(c), y(value)) for c, value, *_ in bounds], "curve accent"))
    for point, (coverage, value, low, high) in zip(points, bounds, strict=True):
        tip = f"the most confident {100 * coverage:.0f} % (n = {point.risk.n}): {value:.1f} % errors [{low:.1f}, {high:.1f}]"
        parts.append(marker("circle", x(coverage), y(value), "mark accent", tip, radius=2.5))
    parts += [
        element("text", "errors, %", x=LEFT - 38, y=TOP + 14, class_="axis"),
        label(LEFT + SIDE, TOP + HEIGHT + 32, "share of the samples that is answered", class_="axis", anchor="end"),
    ]
    told = ", ".join(f"{100 * c:.0f} %: {value:.1f} % errors" for c, value, *_ in bounds)
    return chart(TOP + HEIGHT + 38, f"Risk against coverage of {name}", told, *parts, width=WIDTH)


def _or(bound: float | None, value: float | None) -> float:
    return (value or 0.0) if bound is None else bound
