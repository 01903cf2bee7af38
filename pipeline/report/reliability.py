"""The reliability diagram: accuracy against confidence, and how many samples stand behind each bar."""

from collections.abc import Sequence

from markupsafe import Markup

from kdpipe.pipeline.report.svg import Scale, chart, element, label, line
from kdpipe.robustness.scorecard import ReliabilityBin

SIDE = 220.0
WIDTH = 300.0
LEFT, TOP = 44.0, 22.0
COUNTS = 46.0
"""The height of the strip that shows the bins' sizes."""


def reliability_diagram(name: str, bins: Sequence[ReliabilityBin], note: str = "") -> Markup:
    """Bars of each bin's accuracy with a tick at its mean confidence, the diagonal of perfect calibration, and the bins' sizes below."""
    x, y = Scale(0, 1, LEFT, LEFT + SIDE), Scale(0, 1, TOP + SIDE, TOP)
    floor = TOP + SIDE + 8 + COUNTS
    most = max((b.n for b in bins), default=0) or 1
    parts: list[str] = [label(LEFT, 14, f"{name}{f': {note}' if note else ''}", class_="legend")]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts += [line(LEFT, y(tick), LEFT + SIDE, y(tick), "grid"), label(LEFT - 6, y(tick) + 4, f"{tick:g}", anchor="end")]
        parts.append(label(x(tick), floor + 16, f"{tick:g}", anchor="middle"))
    for b in bins:
        if b.accuracy is None or b.confidence is None:
            continue
        left, width = x(b.low) + 1, x(b.high) - x(b.low) - 2
        tip = element("title", f"confidence {b.low:.2f} to {b.high:.2f}: accuracy {b.accuracy:.3f}, mean confidence {b.confidence:.3f}, n = {b.n}")
        tall = COUNTS * b.n / most
        parts += [
            element("rect", tip, x=left, y=y(b.accuracy), width=width, height=TOP + SIDE - y(b.accuracy), class_="bar accent"),
            line(left, y(b.confidence), left + width, y(b.confidence), "confidence"),
            element("rect", tip, x=left, y=floor - tall, width=width, height=tall, class_="bar"),
        ]
    parts += [
        line(x(0), y(0), x(1), y(1), "rule"),
        label(LEFT - 6, floor, "n", class_="axis", anchor="end"),
        label(LEFT + SIDE, floor + 32, "confidence", class_="axis", anchor="end"),
    ]
    told = ", ".join(f"{b.low:.2f} to {b.high:.2f}: accuracy {b.accuracy:.2f}, n {b.n}" for b in bins if b.accuracy is not None)
    return chart(floor + 38, f"Reliability of {name}", told, *parts, width=WIDTH)
