"""SVG from small pure pieces: escaped elements, a linear scale with round ticks, a chart's frame.

Charts carry classes and no colours: the page's style sheet colours them, so that light, dark and print need no second picture.
All charts are about 420 units wide and are read at that width on a desktop and on a phone.
"""

import math
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 420.0
"""The width of every chart in SVG units, about a CSS pixel on a phone."""

MARKERS = ("circle", "square", "triangle", "diamond", "ring", "cross")
"""The markers of a chart's series, in order: shapes, so that nothing is told by colour alone."""


@dataclass(frozen=True)
class Scale:
    """A linear map from data [low, high], low < high, to positions [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The position of `value`; outside of [start, end] where it is outside of [low, high]."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Round values inside [low, high], steps of 1, 2, 2.5 or 5 times a power of ten, at most `about` + 1 of them."""
        rough = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(k * step, 12) for k in range(first, last + 1)]


@dataclass(frozen=True)
class LogScale:
    """A logarithmic map from data [low, high], 0 < low < high, to positions [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The position of `value` > 0."""
        return self.start + math.log(value / self.low) / math.log(self.high / self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """1, 2 and 5 times powers of ten inside [low, high]; powers of ten alone from three decades on."""
        factors = (1, 2, 5) if self.high / self.low < 1000 else (1,)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        return [tick for power in powers for factor in factors if self.low <= (tick := round(factor * 10.0**power, 12)) <= self.high]


def number(value: float) -> str:
    """A coordinate with at most two decimals: `12`, `12.5`, `0.25`."""
    return f"{round(value, 2) + 0.0:.2f}".rstrip("0").rstrip(".")  # + 0.0: no minus sign on zero


def element(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """`<name …>children</name>`: text is escaped, Markup is kept; `class_` is `class`, other underscores are hyphens; None is left out."""
    written = Markup("")
    for key, value in attributes.items():
        if value is not None:
            shown = number(value) if isinstance(value, int | float) else value
            written += Markup(' {}="{}"').format(Markup(key.rstrip("_").replace("_", "-")), shown)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, Markup("").join(escape(child) for child in children))


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def label(x: float, y: float, content: str, *, class_: str = "tick", anchor: str = "start") -> Markup:
    """Text whose baseline is at `y`."""
    return element("text", content, x=x, y=y, class_=class_, text_anchor=anchor)


def path(points: list[tuple[float, float]], class_: str, *, closed: bool = False) -> Markup:
    """A polyline through `points` (at least one)."""
    drawn = "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points) + ("Z" if closed else "")
    return element("path", d=drawn, class_=class_)


def marker(shape: str, x: float, y: float, class_: str, title: str = "", radius: float = 4.5) -> Markup:
    """One of `MARKERS` centred on (x, y); `title` is what a pointer that rests on it is told."""
    tip = element("title", title) if title else Markup("")
    r = radius
    if shape in ("circle", "ring"):
        return element("circle", tip, cx=x, cy=y, r=r, class_=f"{class_} hollow" if shape == "ring" else class_)
    corners = {
        "square": [(-r, -r), (r, -r), (r, r), (-r, r)],
        "triangle": [(0.0, -r * 1.2), (r * 1.1, r), (-r * 1.1, r)],
        "diamond": [(0.0, -r * 1.3), (r * 1.3, 0.0), (0.0, r * 1.3), (-r * 1.3, 0.0)],
        "cross": [(-r, -r), (0.0, -r / 3), (r, -r), (r / 3, 0.0), (r, r), (0.0, r / 3), (-r, r), (-r / 3, 0.0)],
    }[shape]
    drawn = "M" + "L".join(f"{number(x + dx)} {number(y + dy)}" for dx, dy in corners) + "Z"
    return element("path", tip, d=drawn, class_=class_)


def chart(height: float, title: str, description: str, *parts: str, width: float = WIDTH) -> Markup:
    """A whole picture. `title` and `description` are what a screen reader says in its place."""
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        *parts,
        viewBox=f"0 0 {number(width)} {number(height)}",
        role="img",
        xmlns="http://www.w3.org/2000/svg",
        class_="chart",
    )
