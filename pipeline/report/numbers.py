"""How figures are written, the same everywhere: `91.2 % [89.0, 93.1], n = 540`, `41.3 kB`, `1.24 ms`, `−0.6 points [−1.9, 0.7]`."""

import math

from kdpipe.robustness.scorecard import Figure
from kdpipe.targets.measurements import Percentile

MINUS = "−"
NBSP = "\u00a0"
"""no-break space, between a number and its unit"""

NONE = "–"
"""What stands where there is no value and the reason stands beside it."""


def decimal(value: float, places: int) -> str:
    """A number with a true minus sign; `-0.0` is written `0.0`."""
    text = f"{value:.{places}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def percent(figure: Figure) -> str:
    """`91.2 % [89.0, 93.1]`, or `not measured`."""
    if figure.value is None:
        return "not measured"
    return f"{decimal(figure.value, 1)}{NBSP}%{interval(figure, 1)}"


def percent_with_n(figure: Figure) -> str:
    """`91.2 % [89.0, 93.1], n = 540`, or `not measured: the reason`."""
    if figure.value is None:
        return f"not measured: {figure.reason or 'no reason was recorded'}"
    return f"{percent(figure)}, n{NBSP}={NBSP}{count(figure.n)}"


def interval(figure: Figure, places: int) -> str:
    """` [89.0, 93.1]` with a blank before it, or nothing where there is no interval."""
    if figure.low is None or figure.high is None:
        return ""
    return f" [{decimal(figure.low, places)},{NBSP}{decimal(figure.high, places)}]"


def plain(figure: Figure) -> str:
    """`0.213 [0.180, 0.251]` of a figure without unit, three decimals; or `not measured`."""
    return "not measured" if figure.value is None else f"{decimal(figure.value, 3)}{interval(figure, 3)}"


def value(figure: Figure) -> str:
    """`91.2 %` of a figure that was measured."""
    return f"{decimal(figure.value or 0.0, 1)}{NBSP}%"


def bounds(figure: Figure, places: int = 1) -> str:
    """`[89.0, 93.1]`, or nothing."""
    return interval(figure, places).strip()


def ms_bounds(percentile: Percentile) -> str:
    """`[1.20, 1.31]`, or nothing."""
    if percentile.low_ms is None or percentile.high_ms is None:
        return ""
    return f"[{significant(percentile.low_ms)},{NBSP}{significant(percentile.high_ms)}]"


def points(value: float, low: float, high: float) -> str:
    """A difference of accuracies: `−0.6 points [−1.9, 0.7]`."""
    return f"{decimal(value, 1)}{NBSP}points [{decimal(low, 1)},{NBSP}{decimal(high, 1)}]"


def kilobytes(size_bytes: int) -> str:
    """`41.3 kB` (1 kB = 1000 bytes), `1.24 MB` from a million bytes on, `8.1 GB` from a thousand million."""
    if size_bytes >= 1_000_000_000:
        return f"{size_bytes / 1e9:.1f}{NBSP}GB"
    if size_bytes >= 1_000_000:
        return f"{size_bytes / 1e6:.2f}{NBSP}MB"
    return f"{size_bytes / 1000:.1f}{NBSP}kB"


def count(value: int) -> str:
    """`12,345`."""
    return f"{value:,}"


def amount(value: int | None) -> str:
    """A large count in short: `273 k`, `40.8 M`."""
    if value is None:
        return NONE
    for size, unit in ((1_000_000_000, "G"), (1_000_000, "M"), (1000, "k")):
        if value >= size:
            return f"{value / size:.3g}{NBSP}{unit}"
    return str(value)


def milliseconds(value: float | None) -> str:
    """Three significant figures: `0.124 ms`, `12.4 ms`."""
    return NONE if value is None else f"{significant(value)}{NBSP}ms"


def latency(percentile: Percentile) -> str:
    """`1.24 ms [1.20, 1.31]`, or the reason why it is not claimed."""
    if percentile.value_ms is None:
        return percentile.reason or "not measured"
    return f"{significant(percentile.value_ms)}{NBSP}ms {ms_bounds(percentile)}".rstrip()


def significant(value: float) -> str:
    """Three significant figures without an exponent: `0.0124`, `1.24`, `124`, `1,240`."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    places = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{places}f}".replace("-", MINUS)


def seconds(value: float) -> str:
    """`0.4 s`, `12.3 s`, `3 min 20 s`."""
    if value < 60:
        return f"{value:.1f}{NBSP}s"
    whole = round(value)
    return f"{whole // 60}{NBSP}min{NBSP}{whole % 60:02d}{NBSP}s"
