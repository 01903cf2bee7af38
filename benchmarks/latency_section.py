"""The sections of `docs/results.md` on latency: how the gate decided, and kdpipe's figures beside those of other tools."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from scipy.stats import beta

GATES = {
    "latency-gate": ", with priority over other programs",
    "latency-gate-loaded": ", with no priority",
}
TOOLS = "latency-beside-tools"


def sections(folder: Path) -> Iterator[str]:
    """Markdown of what `folder` (`benchmarks/results/figures`) holds."""
    gates = {told: json.loads(path.read_text()) for name, told in GATES.items() if (path := folder / f"{name}.json").is_file()}
    if gates:
        yield "\n\n".join(_gate(gates))
    if (folder / f"{TOOLS}.json").is_file():
        yield "\n\n".join(_tools(json.loads((folder / f"{TOOLS}.json").read_text())))


def _gate(gates: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    first = next(iter(gates.values()))
    yield "## The latency gate: false alarms, and slowdowns found"
    machine = f"{first['machine']['cpu']}, {first['machine']['cores']} cores"
    yield f"`kdpipe compare --latency`, threshold 5 %, on {machine}, while other programs ran; in brackets 95 % bounds of the true rates:"
    yield "\n".join(_verdicts(gates))
    yield "The files, and how long the slower one truly takes, measured before and after apart from the comparisons (95 % interval over 40 processes each):"
    yield "\n".join(_cells([record for record in gates.values() if all(truth["after"] for truth in record["true_ratios"].values())]))


def _verdicts(gates: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    columns = ("run", "equal files called slower", "10 % slower files found", "could not tell", "seconds each, median (longest)", "processes each")
    yield f"| {' | '.join(columns)} | others took, of the cores |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for told, record in gates.items():
        done = record["comparisons"]
        seconds = [it["seconds"] for it in done]
        processes = sorted({len(it["process_ratios"]) for it in done})
        others = 100 * fmean(it["others_cores"] for it in done) / record["machine"]["cores"]
        alarms = f"{record['false_alarms']} of {record['equal']} (rate below {_at_most(record['false_alarms'], record['equal']):.1f} %)"
        found = f"{record['found']} of {record['slower']} (above {100 - _at_most(record['slower'] - record['found'], record['slower']):.1f} %)"
        verdicts = f"{alarms} | {found} | {record['could_not_tell']}"
        span = f"{processes[0]}" if len(processes) == 1 else f"{processes[0]} to {processes[-1]}"
        run = f"`{record['command'].removeprefix('python benchmarks/')}`{told}"
        yield f"| {run} | {verdicts} | {median(seconds):.1f} ({max(seconds):.1f}) | {span} | {others:.0f} % |"


def _at_most(count: int, n: int) -> float:
    """The upper 95 % bound of a rate in per cent, one-sided and exact. Source: Clopper & Pearson 1934."""
    return 100.0 if count == n else 100 * float(beta.ppf(0.95, count + 1, n - count))


def _cells(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| file and runtime | true ratio before | after | ratios of equal files | of the slower file |"
    yield "| --- | --- | --- | --- | --- |"
    for record in records:
        for cell, truth in record["true_ratios"].items():
            own = [it for it in record["comparisons"] if it["cell"] == cell]
            spans = " | ".join(_span([it["ratio"] for it in own if it["kind"] == kind]) for kind in ("equal", "slower"))
            yield f"| {cell} | {_interval(truth['before'])} | {_interval(truth['after'])} | {spans} |"


def _span(ratios: Sequence[float]) -> str:
    return f"{min(ratios):.3f} to {max(ratios):.3f}, n {len(ratios)}" if ratios else "–"


def _tools(record: Mapping[str, Any]) -> Iterator[str]:
    yield "## Latency beside other tools"
    yield f"`{record['command']}` · {record['machine']['cpu']} · one thread, batch 1; a fresh process for each tool in each round, in turn, on one core"
    rows = ["| network | runtime | what | its p50 ms | beside | its p50 ms | ratio | rounds |", "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for row in record["rows"]:
        ours, theirs = median(row["against_p50_ms"]), median(row["p50_ms"])
        told = f"{_interval(row)} ({row['difference_us']:+.1f} µs)"
        rows.append(f"| {row['network']} | {row['runtime']} | {row['against']} | {ours:.4g} | {row['tool']} | {theirs:.4g} | {told} | {len(row['p50_ms'])} |")
    yield "\n".join(rows)
    yield (
        "`benchmark_app` reads its clock inside OpenVINO: the call from Python is in kdpipe's figures, as whoever uses the file waits for it, and not in its "
        'own. kdpipe records that inner clock of the same runs beside them (`p50_inside` in `bench.json`, "in the runtime" in the report): the last row of '
        "each network is like with like. Arrays instead of prepared tensors add the making of a tensor in OpenVINO's Python, which kdpipe leaves out."
    )


def _interval(figure: Mapping[str, float]) -> str:
    return f"{figure['ratio']:.4f} [{figure['low']:.4f}, {figure['high']:.4f}]"
