"""The distribution of latencies, one row a model over a common logarithmic axis, with p50 and p90."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from kdpipe.pipeline.report.numbers import significant
from kdpipe.pipeline.report.svg import WIDTH, LogScale, chart, element, label, line, path
from kdpipe.targets.measurements import Latency

ROW = 64.0
TOP = 8.0
LEFT, RIGHT = 70.0, 12.0


def latency_rows(latencies: Sequence[Latency], shipped: str = "int8") -> Markup:
    """A row for each of `latencies` that has a histogram (at least one).

    The axis is logarithmic, so that a factor is the same distance for a student of 0.1 ms and for a teacher of 10 ms, and a
    row's height is its runs per factor, scaled to its own highest. It ends beyond the 99th percentile of the slowest row;
    runs still slower are counted in words. `shipped`: what the file that ships is called, whose role is "int8".
    """
    drawn = [latency for latency in latencies if latency.histogram_counts]
    low = min(_first_edge(latency) for latency in drawn)
    high = 1.3 * max(_slow(latency) for latency in drawn)
    x = LogScale(low / 1.1, high, LEFT, WIDTH - RIGHT)
    bottom = TOP + ROW * len(drawn)
    parts: list[str] = []
    for tick in x.ticks():
        parts += [line(x(tick), TOP, x(tick), bottom, "grid"), label(x(tick), bottom + 16, f"{tick:g}", anchor="middle")]
    parts.append(label(WIDTH - RIGHT, bottom + 33, "ms for one batch, logarithmic", class_="axis", anchor="end"))
    for k, latency in enumerate(drawn):
        parts += _row(latency, x, TOP + ROW * (k + 1) - 6, shipped)
    told = "; ".join(f"{_name(it, shipped)}: p50 {_told(it.p50.value_ms)}, p90 {_told(it.p90.value_ms)}, {it.runs} runs" for it in drawn)
    return chart(bottom + 38, "Distribution of latencies", told, *parts)


def _name(latency: Latency, shipped: str) -> str:
    return shipped if latency.model == "int8" else latency.model


def _row(latency: Latency, x: LogScale, floor: float, shipped: str) -> list[Markup]:
    edges = (_first_edge(latency), *latency.histogram_edges_ms[1:])
    bins = list(zip(edges, edges[1:], latency.histogram_counts, strict=False))
    density = [n / math.log(high / low) for low, high, n in bins]
    most = max(density) or 1.0
    outline = [(x(edges[0]), floor)]
    for (low, high, _), value in zip(bins, density, strict=True):
        if low < x.high:
            height = floor - (ROW - 26) * value / most
            outline += [(x(low), height), (x(min(high, x.high)), height)]
    outline.append((outline[-1][0], floor))
    accent = " accent" if latency.model == "int8" else ""
    parts = [
        path(outline, f"area{accent}", closed=True),
        line(LEFT, floor, WIDTH - RIGHT, floor, "base"),
        label(LEFT - 8, floor - 4, _name(latency, shipped), class_=f"name{accent}", anchor="end"),
    ]
    for percentile, name in ((latency.p50, "p50"), (latency.p90, "p90")):
        if percentile.value_ms is not None and percentile.value_ms <= x.high:
            tip = element("title", f"{_name(latency, shipped)} {name}: {significant(percentile.value_ms)} ms")
            at = x(percentile.value_ms)
            parts.append(element("line", tip, x1=at, y1=floor - ROW + 22, x2=at, y2=floor, class_=f"percentile {name}"))
    told = f"p50 {_told(latency.p50.value_ms)} · p90 {_told(latency.p90.value_ms)}"
    beyond = sum(n for low, _, n in bins if low >= x.high)
    told += f" · {beyond} of {latency.runs:,} runs beyond" if beyond else ""
    parts.append(label(WIDTH - RIGHT, floor - ROW + 17, told, anchor="end"))
    return parts


def _slow(latency: Latency) -> float:
    """The edge below which 99 % of the runs lie."""
    wanted, seen = 0.99 * sum(latency.histogram_counts), 0
    for count, edge in zip(latency.histogram_counts, latency.histogram_edges_ms[1:], strict=True):
        seen += count
        if seen >= wanted:
            return edge
    return latency.histogram_edges_ms[-1]


def _first_edge(latency: Latency) -> float:
    """The histogram's lower edge; a tenth of the next where it is 0, which has no place on a logarithmic axis."""
    first, second, *_ = latency.histogram_edges_ms
    return first if first > 0 else second / 10


def _told(value: float | None) -> str:
    return "not claimed" if value is None else f"{significant(value)} ms"
