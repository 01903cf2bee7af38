"""A comparison as people and machines read it: the table of `kdpipe compare`, the verdict below it, and the same as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from kdpipe.pipeline.comparing import Comparison, Row
from kdpipe.pipeline.printing import table
from kdpipe.robustness.scorecard import Figure


def shown(comparison: Comparison) -> tuple[str, Table, str]:
    """Title, table and verdict of one comparison."""
    a, b = comparison.a, comparison.b
    rows = table("figure", "runtime", "A", "B", "B - A [95 %]", "p (Holm)", "", "")
    for row in comparison.rows:
        p = "" if row.holm_p is None else "< 0.001" if row.holm_p < 0.001 else f"{row.holm_p:.3f}"
        rows.add_row(row.figure, row.runtime, _figure(row.a, row.unit), _figure(row.b, row.unit), _difference(row), p, row.state, row.reason or "")
    return f"A: {a.project} for {a.target} ({a.folder})\nB: {b.project} for {b.target} ({b.folder})", rows, _verdict(comparison)


def as_json_value(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """One JSON object; names as in the table."""
    return {
        "comparisons": [
            {
                "a": {"folder": str(each.a.folder), "project": each.a.project, "target": each.a.target},
                "b": {"folder": str(each.b.folder), "project": each.b.project, "target": each.b.target},
                "margin": each.margin,
                "rows": [_row(row) for row in each.rows],
                "regressions": [f"{row.figure} ({row.runtime})" for row in each.regressions],
                "exit_code": each.exit_code,
            }
            for each in comparisons
        ],
        "exit_code": max(each.exit_code for each in comparisons),
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "figure": row.figure,
        "runtime": row.runtime or None,
        "unit": row.unit,
        "a": row.a.model_dump(mode="json"),
        "b": row.b.model_dump(mode="json"),
        "difference": None if row.difference is None else asdict(row.difference),
        "holm_p": row.holm_p,
        "judged": row.judged,
        "state": row.state,
        "reason": row.reason,
    }


def _figure(figure: Figure, unit: str) -> str:
    if figure.value is None:
        return "not measured"
    places = 1 if unit in ("%", "points", "kB") else 3
    bounds = "" if figure.low is None or figure.high is None else f" [{figure.low:.{places}f}, {figure.high:.{places}f}]"
    return f"{figure.value:.{places}f}{bounds} {unit}"


def _difference(row: Row) -> str:
    if row.difference is None:
        return ""
    places = 3 if row.unit == "nats" else 1
    it = row.difference
    return f"{it.value:+.{places}f} [{it.low:+.{places}f}, {it.high:+.{places}f}]"


def _verdict(comparison: Comparison) -> str:
    margin = f" by more than {comparison.margin:g} points" if comparison.margin else ""
    lost = comparison.regressions
    if lost:
        return f"regression: {', '.join(f'{row.figure} in {row.runtime}' for row in lost)} got worse{margin}, beyond what the samples can explain"
    judged = sum(row.judged for row in comparison.rows)
    return f"no regression: none of {judged} judged figures is shown to be worse{margin}; how far they may still differ, the intervals say"
