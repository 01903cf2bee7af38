"""How figures are written, the same everywhere: `91.2 % [89.0, 93.1], n = 540`, `41.3 kB`, `1.24 ms`, `−0.6 points [−1.9, 0.7]`."""

import math

from kdpipe.robustness.scorecard import Figure
from kdpipe.targets.measurements import Percentile

MINUS = "−"
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
    return f"{decimal(figure.value, 1)} %{interval(figure, 1)}"


def percent_with_n(figure: Figure) -> str:
    """`91.2 % [89.0, 93.1], n = 540`, or `not measured: the reason`."""
    if figure.value is None:
        return f"not measured: {figure.reason or 'no reason was recorded'}"
    return f"{percent(figure)}, n = {count(figure.n)}"


def nats(figure: Figure) -> str:
    """`0.312 [0.280, 0.345]`, or `not measured`."""
    return "not measured" if figure.value is None else f"{decimal(figure.value, 3)}{interval(figure, 3)}"


def interval(figure: Figure, places: int) -> str:
    """` [89.0, 93.1]` with a blank before it, or nothing where there is no interval."""
    if figure.low is None or figure.high is None:
        return ""
    return f" [{decimal(figure.low, places)}, {decimal(figure.high, places)}]"


def points(value: float, low: float, high: float) -> str:
    """A difference of accuracies: `−0.6 points [−1.9, 0.7]`."""
    return f"{decimal(value, 1)} points [{decimal(low, 1)}, {decimal(high, 1)}]"


def kilobytes(size_bytes: int) -> str:
    """`41.3 kB` (1 kB = 1000 bytes), `1.24 MB` from a million bytes on."""
    if size_bytes >= 1_000_000:
        return f"{size_bytes / 1e6:.2f} MB"
    return f"{size_bytes / 1000:.1f} kB"


def count(value: int) -> str:
    """`12,345`."""
    return f"{value:,}"


def amount(value: int | None) -> str:
    """A large count in short: `273 k`, `40.8 M`."""
    if value is None:
        return NONE
    for size, unit in ((1_000_000_000, "G"), (1_000_000, "M"), (1000, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)


def milliseconds(value: float | None) -> str:
    """Three significant figures: `0.124 ms`, `12.4 ms`."""
    return NONE if value is None else f"{significant(value)} ms"


def latency(percentile: Percentile) -> str:
    """`1.24 ms [1.20, 1.31]`, or the reason why it is not claimed."""
    if percentile.value_ms is None:
        return percentile.reason or "not measured"
    bounds = "" if percentile.low_ms is None or percentile.high_ms is None else f" [{significant(percentile.low_ms)}, {significant(percentile.high_ms)}]"
    return f"{significant(percentile.value_ms)} ms{bounds}"


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
        return f"{value:.1f} s"
    whole = round(value)
    return f"{whole // 60} min {whole % 60:02d} s"
