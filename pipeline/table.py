"""The table a build ends with: every stage and every target in one row each; and the same rows for machines."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from rich import box
from rich.table import Table
from rich.text import Text

from kdpipe.pipeline.steps import BuildResult
from kdpipe.robustness.attacks.strength import strongest
from kdpipe.robustness.scorecard import AttackFigure, Figure
from kdpipe.targets.measurements import Latency, Percentile
from kdpipe.targets.runtimes.runtime import runtime_of

if TYPE_CHECKING:
    from kdpipe.pipeline.results import Judged, Results


class Row(TypedDict):
    """One row: accuracies in per cent with their 95 % bounds, None where not measured; `latency_reason` says why there is none."""

    model: str
    target: str | None
    runtime: str | None
    size_bytes: int
    clean: dict[str, Any]
    attack: str | None
    attacked: dict[str, Any]
    robust: dict[str, Any]
    corrupted: dict[str, Any]
    p50_ms: float | None
    p90_ms: float | None
    latency_threads: int | None
    latency_reason: str | None
    shipped: str
    """what the file that ships is called by its scheme: 'int8', 'float16'; its role in `model` is 'int8' always"""
    unsuited: str | None
    """why the accuracies are not those of the file on its chip; None: they are"""


def summary_rows(build: BuildResult) -> list[Row]:
    """The rows of `summary_table` as JSON values, in the same order."""
    from kdpipe.pipeline.results import read_results  # it brings torch; a table of known rows does without

    results = read_results(build)
    return [_row(results, judged) for judged in results.judged]


def summary_table(build: BuildResult) -> Table:
    """The rows as a rich table, readable from 80 columns on: no colour carries a meaning of its own."""
    return table_of(summary_rows(build))


def table_of(rows: Sequence[Row]) -> Table:
    """`summary_table` of rows that are known."""
    attacks = {row["attack"] for row in rows if row["attack"]}
    attack = attacks.pop() if len(attacks) == 1 else "attacked"
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("model", no_wrap=True, overflow="ellipsis")
    table.add_column("size\nkB", justify="right", no_wrap=True)
    table.add_column("clean\n% [95 % interval]", justify="right", no_wrap=True)
    table.add_column(f"{attack}\n%", justify="right", no_wrap=True)
    table.add_column("corrupted\n%", justify="right", no_wrap=True)
    table.add_column("p50 / p90\nms", min_width=13, max_width=24)
    target: str | None = None
    for row in rows:
        if row["target"] != target:
            target = row["target"]
            table.add_section()
            table.add_row(Text(f"target {target}", style="bold"))
        table.add_row(*_cells(row), style="bold" if row["model"] == "int8" else None)
    table.caption = _caption(rows)
    table.caption_justify = "left"
    return table


def strongest_pgd(attacks: Sequence[AttackFigure]) -> AttackFigure | None:
    """The strongest projected-gradient attack, in the order that all of kdpipe has; None where there is none."""
    return strongest((attack for attack in attacks if attack.name.startswith("pgd")), lambda attack: attack)


def _row(results: "Results", judged: "Judged") -> Row:
    card = judged.card
    attack = strongest_pgd(card.attacks)
    latency, reason = _latency(results, judged)
    p50, p90 = (None, None) if latency is None else (latency.p50, latency.p90)
    return Row(
        model=card.model,
        target=judged.target,
        runtime=card.runtime,
        size_bytes=card.size_bytes,
        clean=_json(card.clean),
        attack=attack.name if attack else None,
        attacked=_json(attack.accuracy if attack else Figure(value=None, reason="no PGD attack was asked for")),
        robust=_json(card.robust),
        corrupted=_json(card.corruption_mean),
        p50_ms=p50.value_ms if p50 else None,
        p90_ms=p90.value_ms if p90 else None,
        latency_threads=latency.threads if latency else None,
        shipped=judged.shipped,
        latency_reason=reason or (_unclaimed(p50, p90) if p50 and p90 else None),
        unsuited=results.targets[judged.target].unsuited if judged.target and card.runtime else None,
    )


def _latency(results: "Results", judged: "Judged") -> tuple[Latency | None, str | None]:
    """The latency at batch 1 and the fewest threads of an int8 file, or why there is none; neither for what is not shipped."""
    if judged.target is None or judged.card.model != "int8":
        return None, None
    bench = results.targets[judged.target].bench
    if bench is None:
        return None, "not measured: no bench was run"
    if bench.not_measured is not None:
        return None, bench.not_measured
    own = [it for it in bench.latencies if it.model == "int8" and it.batch == 1 and _same_runtime(it.runtime, judged.card.runtime)]
    if own:
        return min(own, key=lambda it: it.threads), None
    runtime = "" if judged.card.runtime is None else runtime_of(judged.card.runtime)
    left_out = (line for line in bench.warnings if line.startswith(f"not measured in {runtime}: "))  # the device lacks it
    return None, next(left_out, "not measured: not at batch 1 in this runtime")


def _same_runtime(first: str, second: str | None) -> bool:
    return second is not None and runtime_of(first) == runtime_of(second)


def _unclaimed(p50: Percentile, p90: Percentile) -> str | None:
    return p50.reason or p90.reason


def _json(figure: Figure) -> dict[str, Any]:
    value: dict[str, Any] = figure.model_dump(mode="json")
    return value


def _caption(rows: Sequence[Row]) -> str:
    """What the figures are of: sizes are not all of one kind of file, and a latency means little without its threads."""
    threads = sorted({row["latency_threads"] for row in rows if row["latency_threads"] is not None})
    told = "size: weights file of networks and twins, ONNX file of what ships and of ptq; 1 kB = 1000 bytes"
    counts = " or ".join(map(str, threads))
    told += f"\nlatency: batch 1, {counts} thread{'' if threads == [1] else 's'}" if threads else ""
    unsuited = dict.fromkeys(f"\n{row['target']}: {row['unsuited']}" for row in rows if row.get("unsuited"))
    return told + "".join(unsuited)


def _cells(row: Row) -> tuple[str, ...]:
    model = row.get("shipped", "int8") if row["model"] == "int8" else row["model"]  # an earlier build's rows have no such key
    name = model if row["runtime"] is None else f"{model} {runtime_of(row['runtime'])}"
    return (
        f" {name}" if row["target"] else name,
        f"{row['size_bytes'] / 1000:,.1f}",
        _accuracy(row["clean"], with_interval=True),
        _accuracy(row["attacked"]),
        _accuracy(row["corrupted"]),
        _latency_cell(row),
    )


def _accuracy(figure: dict[str, Any], *, with_interval: bool = False) -> str:
    if figure["value"] is None:
        return "-"
    interval = f" [{figure['low']:.1f}, {figure['high']:.1f}]" if with_interval and figure["low"] is not None else ""
    return f"{figure['value']:.1f}{interval}"


def _latency_cell(row: Row) -> str:
    if row["p50_ms"] is None:
        return row["latency_reason"] or ""
    p90 = f"{row['p90_ms']:.3g}" if row["p90_ms"] is not None else "-"
    return f"{row['p50_ms']:.3g} / {p90}"
