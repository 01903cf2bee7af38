"""The tables of `docs/results.md` that `target_matrix.py` left figures for."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

_NAMES = {"resnet": "ResNet", "mobilenetv2": "MobileNetV2", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_REQUIRED = 99.5
_FAST_ENOUGH = 1.3


def sections(figures: Path) -> Iterator[str]:
    """Markdown, where `figures` (`benchmarks/results/figures/target-matrix.json`) is there."""
    if figures.is_file():
        yield "\n\n".join(_section(json.loads(figures.read_text())))


def _section(found: Mapping[str, Any]) -> Iterator[str]:
    machine, networks = found["machine"], found["networks"]
    yield "## Networks, schemes and chips"
    yield f"`KDPIPE_DATA=… {found['command']}` · {machine['cpu']}, {'with' if 'vnni' in machine['instruction_sets'] else 'without'} VNNI · CIFAR-10"
    yield (
        "Students distilled from the published ResNet-20 and fine-tuned for each scheme: "
        + "; ".join(
            f"`{it['student']}` ({it['macs'] / 1e6:.1f} M multiply-accumulates, {it['train_samples']:,} images, {it['epochs']} epochs)"
            for it in networks.values()
        )
        + ". They were trained for minutes, so accuracy is low and near-ties are many; that makes agreement harder, not easier."
    )
    if found["quality"]:
        yield from _quality(found["quality"])
    if found["speed"]:
        yield from _speed(found["speed"])
    if found["causes"]:
        yield from _causes(found["causes"])


def _quality(rows: Sequence[Row]) -> Iterator[str]:
    own = [row for row in rows if row["own_chip"]]
    reached = [row for row in own if row["agreement"][0] >= _REQUIRED]
    counts = sorted({row["n"] for row in rows}, reverse=True)
    yield (
        f"**Accuracy and agreement** in per cent with 95 % intervals, on the first {' or '.join(f'{n:,}' for n in counts)} test images (fewer on emulated "
        "CPUs); in brackets how many labels differ from the torch twin's, and how many of those are near-ties (two largest logits within 2 % of the spread). "
        f"The chips of a scheme are marked ●: there the twin agrees on at least {_REQUIRED} % in {len(reached)} of {len(own)} cases"
        + ("." if len(reached) == len(own) else f", not in: {_cases(own, reached)} ([why](decisions/rounding-before-additions.md)).")
    )
    places = list(dict.fromkeys(row["place"] for row in rows))
    lines = [f"| network, scheme | twin | {' | '.join(places)} |", f"| --- | --- |{' --- |' * len(places)}"]
    for network, scheme in dict.fromkeys((row["network"], row["scheme"]) for row in rows):
        cells = {row["place"]: row for row in rows if (row["network"], row["scheme"]) == (network, scheme)}
        twin = next(iter(cells.values()))["twin_accuracy"]
        told = " | ".join(_quality_cell(cells[place]) if place in cells else "not measured" for place in places)
        lines.append(f"| {_NAMES[network]}, `{scheme}` | {twin:.1f} | {told} |")
    yield "\n".join(lines)


def _quality_cell(row: Row) -> str:
    differ = f"{row['differ']} differ" + (f", {row['near_ties']} near-ties" if row["differ"] else "")
    mark = "● " if row["own_chip"] else ""
    value, low, high = row["accuracy"]
    agreement, least, _ = row["agreement"]
    return f"{mark}{value:.1f} [{low:.1f}, {high:.1f}]<br>{agreement:.2f} % agree, at least {least:.1f} ({differ}; n = {row['n']:,})"


def _cases(own: Sequence[Row], reached: Sequence[Row]) -> str:
    return "; ".join(f"{_NAMES[row['network']]} `{row['scheme']}`, {row['place']} ({row['agreement'][0]:.1f} %)" for row in own if row not in reached)


def _speed(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "**Time of int8 over float** on this host, one thread, medians of interleaved windows with 95 % intervals (below 1 is faster; "
        f"{1 / _FAST_ENOUGH:.2f} is {_FAST_ENOUGH} times as fast). The files of ARM take one image at a time. The last column is float against itself."
    )
    schemes = list(dict.fromkeys(row["scheme"] for row in rows))
    lines = [
        f"| network, runtime, batch | float ms | {' | '.join(f'`{scheme}`' for scheme in schemes)} | float |",
        f"| --- | --- |{' --- |' * (len(schemes) + 1)}",
    ]
    for network, runtime, batch in dict.fromkeys((row["network"], row["runtime"], row["batch"]) for row in rows):
        cells = {row["scheme"]: row for row in rows if (row["network"], row["runtime"], row["batch"]) == (network, runtime, batch)}
        first = next(iter(cells.values()))
        told = " | ".join(_ratio(cells[scheme]["ratio"]) if scheme in cells else "–" for scheme in schemes)
        lines.append(f"| `{network}`, {_NAMES[runtime]}, {batch} | {first['float_ms']:.3f} | {told} | {_ratio(first['noise'])} |")
    yield "\n".join(lines)


def _ratio(ratio: Sequence[float]) -> str:
    return f"{ratio[0]:.3f} [{ratio[1]:.3f}, {ratio[2]:.3f}]"


def _causes(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        f"**Where int8 is not {_FAST_ENOUGH} times as fast as float**: the weightiest reasons that `explain` gives, with the share of the time that "
        "each accounts for, and the same ratio where a cause was taken away."
    )
    lines = ["| case | int8 over float | the reason given | without it |", "| --- | --- | --- | --- |"]
    for row in rows:
        case = f"`{row['network']}`, {_NAMES[row['runtime']]}, batch {row['batch']}, `{row['scheme']}`"
        reasons = "<br>".join(f"`{it['cause']}`{_share(it['share'])}: {it['text']}" for it in row["findings"]) or "none"
        without = "<br>".join(f"{it['change']}: **{_ratio(it['ratio'])}**" for it in row["without"]) or "nothing to take away here"
        lines.append(f"| {case} | {_ratio(row['ratio'])} | {reasons} | {without} |")
    yield "\n".join(lines)


def _share(share: float | None) -> str:
    return "" if share is None else f" ({100 * share:.0f} %)"
