"""The sections of `docs/results.md` that `kernel_widths.py` and `latency_pruning.py` left figures for."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def sections(figures: Path) -> Iterator[str]:
    """Markdown; `figures`: `benchmarks/results/figures`."""
    widths, pruned = figures / "kernel-widths.json", figures / "latency-pruning.json"
    if widths.is_file():
        yield "\n\n".join(_widths(json.loads(widths.read_text())))
    if pruned.is_file():
        yield "\n\n".join(_pruned(json.loads(pruned.read_text())))


def _widths(record: Mapping[str, Any]) -> Iterator[str]:
    yield "## Which widths int8 kernels like"
    yield f"`python benchmarks/kernel_widths.py` · {record['machine']['cpu']}, one thread, batch 1"
    yield "Microseconds of one layer on 14x14 pixels, by its width (medians; 95 % intervals are in the raw figures, most within 1 %):"
    layers = next(iter(record["microseconds"].values()))
    widths = sorted({int(width) for layer in layers.values() for width in layer})
    lines = [f"| layer | {' | '.join(map(str, widths))} |", f"| --- |{' --- |' * len(widths)}"]
    for runtime, own in record["microseconds"].items():
        for layer, times in own.items():
            cells = [f"{times[str(width)][0]:.1f}" if str(width) in times else "" for width in widths]
            lines.append(f"| {runtime.split()[0]}, {layer} | {' | '.join(cells)} |")
    yield "\n".join(lines)


def _pruned(record: Mapping[str, Any]) -> Iterator[str]:
    seeds = record["seeds"]
    yield "## Pruning for the chip, and for multiply-accumulates"
    yield f"`{record['command']}` · {seeds[0]['machine']['cpu']} · {seeds[0]['where']}"
    yield (
        f"Fashion-MNIST, {record['task']['train_samples']:,} training images; student `{record['student']['network']}`, {record['student']['epochs']} epochs, "
        f"pruned in one step with {record['prune']['epochs']} epochs of `kd` from the unpruned one, `max_ratio = {record['prune']['max_ratio']}`; "
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}. Int8 files, calibrated, not fine-tuned as int8. "
        "Time: measured in turn in one process, median with its 95 % interval. "
        "By multiply-accumulates: the least cut whose file was measured to be so much faster, found by bisection. "
        "Last column: how many points the file pruned by latency is more accurate than this one, on the same 10,000 test images."
    )
    for seed in seeds:
        yield f"Seed {seed['seed']}:"
        yield "\n".join(_table(seed))
    pooled = [row for row in record["pooled"] if row["seeds"] > 1]
    if pooled:
        yield "Over all seeds:"
        yield "\n".join(
            [
                "| compared with | speed-up asked for | more accurate by |",
                "| --- | --- | --- |",
                *(f"| {row['method']} | {row['speedup']:g} | {_difference(row['latency less this'])} |" for row in pooled),
            ]
        )
    tried = [attempt for seed in seeds for row in seed["rows"] for attempt in row.get("attempts", ())]
    errors = [abs(attempt["error"]) for attempt in tried]
    mean, most = 100 * sum(errors) / len(errors), 100 * max(errors)
    yield f"The table foretold the time of {len(errors)} files that were measured with an error of {mean:.1f} % on average, {most:.1f} % at most."
    yield "Which way was taken, and validation accuracy of each after the short training that chose between them:"
    yield "\n".join(_ways(seeds))


def _ways(seeds: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rows = [(seed["seed"], row) for seed in seeds for row in seed["rows"] if row["method"] == "latency"]
    names = list(dict.fromkeys(attempt["way"] for _, row in rows for attempt in row["attempts"]))
    yield f"| seed | asked for | {' | '.join(names)} |"
    yield f"| --- | --- |{' --- |' * len(names)}"
    for seed, row in sorted(rows, key=lambda pair: (pair[1]["speedup"], pair[0])):
        judged = {attempt["way"]: attempt["validation"] for attempt in row["attempts"] if attempt["validation"] is not None}
        cells = [f"{'**' * (name == row['way'])}{100 * judged[name]:.1f}{'**' * (name == row['way'])}" if name in judged else "" for name in names]
        yield f"| {seed} | {row['speedup']:g} | {' | '.join(cells)} |"


def _table(seed: Mapping[str, Any]) -> Iterator[str]:
    yield "| pruned by | asked for | as fast | ms | multiply-accumulates | clean % | latency's is better by |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for row in sorted(seed["rows"], key=lambda row: row["speedup"] or 0):
        time, clean = row["time"], row["clean"]
        p50, ratio = time["p50"], time["ratio"]
        faster = f"{1 / ratio['value_ms']:.2f} [{1 / ratio['high_ms']:.2f}, {1 / ratio['low_ms']:.2f}]" if row["speedup"] else "1"
        better = _difference(row["latency less this"]) if "latency less this" in row else ""
        cells = [
            row["method"] if row["speedup"] else "(unpruned)",
            f"{row['speedup']:g}" if row["speedup"] else "",
            faster,
            f"{p50['value_ms']:.4f} [{p50['low_ms']:.4f}, {p50['high_ms']:.4f}]",
            f"{row['macs']:.2f} times fewer" if row["speedup"] else "all",
            f"{clean['value']:.1f} [{clean['low']:.1f}, {clean['high']:.1f}]",
            better,
        ]
        yield f"| {' | '.join(cells)} |"


def _difference(figure: Mapping[str, Any]) -> str:
    return f"{figure['value']:+.1f} [{figure['low']:+.1f}, {figure['high']:+.1f}]"
