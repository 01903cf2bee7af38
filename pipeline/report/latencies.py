"""The distribution of latencies, one row a model over a common axis of milliseconds from zero, with p50 and p90."""

from collections.abc import Sequence

from markupsafe import Markup

from kdpipe.pipeline.report.numbers import significant
from kdpipe.pipeline.report.svg import WIDTH, Scale, chart, element, label, line, path
from kdpipe.targets.measurements import Latency

ROW = 64.0
TOP = 8.0
LEFT = 70.0


def latency_rows(latencies: Sequence[Latency]) -> Markup:
    """A row for each of `latencies` (at least one with a histogram); each histogram has its own height, the axis is common.

    The axis ends a little beyond the slowest claimed percentile; runs beyond it are counted in words, not dropped in silence.
    """
    drawn = [latency for latency in latencies if latency.histogram_counts]
    end = max(_end(latency) for latency in drawn)
    x = Scale(0, end, LEFT, WIDTH - 12)
    bottom = TOP + ROW * len(drawn)
    parts: list[str] = []
    for tick in x.ticks(5):
        parts += [line(x(tick), TOP, x(tick), bottom, "grid"), label(x(tick), bottom + 16, f"{tick:g}", anchor="middle")]
    parts.append(label(WIDTH - 12, bottom + 33, "ms for one batch", class_="axis", anchor="end"))
    for k, latency in enumerate(drawn):
        parts += _row(latency, x, TOP + ROW * (k + 1) - 6, end)
    told = "; ".join(f"{it.model}: p50 {_told(it.p50.value_ms)}, p90 {_told(it.p90.value_ms)}, {it.runs} runs" for it in drawn)
    return chart(bottom + 38, "Distribution of latencies", told, *parts)


def _row(latency: Latency, x: Scale, floor: float, end: float) -> list[Markup]:
    edges, counts = latency.histogram_edges_ms, latency.histogram_counts
    density = [n / (high - low) for n, low, high in zip(counts, edges, edges[1:], strict=False)]
    most = max(density) or 1.0
    outline = [(x(min(edges[0], end)), floor)]
    for value, low, high in zip(density, edges, edges[1:], strict=False):
        if low < end:
            height = floor - (ROW - 24) * value / most
            outline += [(x(low), height), (x(min(high, end)), height)]
    outline.append((outline[-1][0], floor))
    accent = " accent" if latency.model == "int8" else ""
    parts = [
        path(outline, f"area{accent}", closed=True),
        line(LEFT, floor, WIDTH - 12, floor, "base"),
        label(LEFT - 8, floor - 4, latency.model, class_=f"name{accent}", anchor="end"),
    ]
    for percentile, name in ((latency.p50, "p50"), (latency.p90, "p90")):
        if percentile.value_ms is not None and percentile.value_ms <= end:
            tip = element("title", f"{latency.model} {name}: {significant(percentile.value_ms)} ms")
            parts.append(element("line", tip, x1=x(percentile.value_ms), y1=floor - ROW + 20, x2=x(percentile.value_ms), y2=floor, class_=f"percentile {name}"))
    told = f"p50 {_told(latency.p50.value_ms)} · p90 {_told(latency.p90.value_ms)}"
    beyond = sum(n for n, low in zip(counts, edges, strict=False) if low >= end)
    told += f" · {beyond} of {latency.runs} runs beyond" if beyond else ""
    parts.append(label(WIDTH - 12, floor - ROW + 17, told, class_="tick", anchor="end"))
    return parts


def _end(latency: Latency) -> float:
    claimed = [p.value_ms for p in (latency.p50, latency.p90, latency.p95, latency.p99) if p.value_ms is not None]
    return min(latency.histogram_edges_ms[-1], 1.25 * max(claimed)) if claimed else latency.histogram_edges_ms[-1]


def _told(value: float | None) -> str:
    return "not claimed" if value is None else f"{significant(value)} ms"
