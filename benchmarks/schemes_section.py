"""The section of `docs/results.md` that `schemes.py` left figures for: kinds of files beside static int8, and layers that stay in float."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

_ORDER = ("static-int8", "weights-only", "weights-only, DequantizeLinear", "float16", "float16 arithmetic", "dynamic", "float-again")
_NAMES = {
    "static-int8": "`static-int8`",
    "weights-only": "`weights-only`",
    "weights-only, DequantizeLinear": "the same by `DequantizeLinear` (not offered)",
    "float16": "`float16`",
    "float16 arithmetic": "`float16`, computing in it (not on CPUs)",
    "dynamic": "ONNX Runtime's dynamic quantization (not offered)",
    "float-again": "float once more: the noise",
}
_RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def sections(figures: Path) -> Iterator[str]:
    """Markdown, where `figures` (the folder) holds `schemes.json`."""
    path = figures / "schemes.json"
    if path.is_file():
        yield "\n\n".join(_section(json.loads(path.read_text())))


def _section(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Kinds of numbers, and layers in float"
    for part, written in (("quality", _quality), ("arm", _arm), ("speed", _speed), ("mixed", _mixed), ("tuned", _tuned)):
        if part in found:
            machine = found[part]["machine"]
            yield f"`python benchmarks/schemes.py {part}` · {machine['cpu']}, {'with' if 'vnni' in machine['instruction_sets'] else 'without'} VNNI"
            yield from written(found[part])


def _quality(found: Row) -> Iterator[str]:
    floating, rows = found["float"], found["rows"]
    yield (
        f"Digits, `{found['network']}`, {rows[0]['n']} test samples; float: {floating['accuracy']:.1f} % [{floating['low']:.1f}, {floating['high']:.1f}], "
        f"{floating['size_bytes'] / 1000:.1f} kB. Post-training, nothing fine-tuned. Lost: points of accuracy to float, paired. "
        "Distance: mean difference of the logits, in per cent of their spread."
    )
    lines = ["| file | runtime | kB | lost to float | labels as float | distance | labels as the twin |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        twin = "–" if row["agreement_with_twin"] is None else f"{row['agreement_with_twin']:.1f} %"
        lines.append(
            f"| {_NAMES[row['kind']]} | {_RUNTIMES[row['runtime'].split()[0]]} | {row['size_bytes'] / 1000:.1f} | {row['lost_to_float']:.2f} "
            f"[{row['lost_low']:.2f}, {row['lost_high']:.2f}] | {row['agreement_with_float']:.1f} % | {row['distance_to_float']:.3f} % | {twin} |"
        )
    yield "\n".join(lines)


def _arm(found: Row) -> Iterator[str]:
    yield "The same network's files in ONNX Runtime's ARM build, emulated (accuracy alone, no latency):"
    lines = ["| file | CPU | labels as the twin | mean distance of the logits to the twin's, of their spread |", "| --- | --- | --- | --- |"]
    for row in found["rows"]:
        told = f"{row['agreement_with_twin']:.1f} %, n {row['n']} | {row['distance_to_twin']:.4f} %"
        lines.append(f"| {_NAMES[row['kind']].replace(' (not on CPUs)', '')} | {row['cpu']} | {told} |")
    yield "\n".join(lines)


def _speed(found: Row) -> Iterator[str]:
    cases = found["cases"]
    yield (
        f"p50 at batch 1, one thread, over the float file's, from {found['windows']} paired windows whose order rotates, with 95 % intervals; "
        "in brackets the size. Untrained networks: time does not depend on the weights."
    )
    columns = [f"`{name}`, {case['side']} × {case['side']}, {_RUNTIMES[it]}" for name, case in cases.items() for it in case["ratios"]]
    lines = [f"| file | {' | '.join(columns)} |"]
    lines.append(f"| --- |{' --- |' * sum(len(case['ratios']) for case in cases.values())}")
    for kind in _ORDER:
        cells = [f"{_ratio(own[kind])} ({case['files'][kind] / 1000:,.0f} kB)" for case in cases.values() for own in case["ratios"].values()]
        lines.append(f"| {_NAMES[kind]} | {' | '.join(cells)} |")
    yield "\n".join(lines)


def _mixed(found: Row) -> Iterator[str]:
    yield (
        "`[qat] keep_float`, `auto`: calibrated only; the limit is the upper 95 % bound of the points below the float network on validation "
        "(of 179 digits even equal answers show 1.5). Files on test, without layers in float → with those that were found; lost: points of accuracy to float, "
        "paired; latency: p50 at batch 1 over float, measured beside other work. "
        "The CIFAR-10 network is the published one, which has seen the validation images."
    )
    lines = [
        "| data, network | float | limit, n | in float | files tried, CPU s | runtime | kB | lost to float | latency |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, case in found["cases"].items():
        told = f"{case['data']}, {name} | {case['float_accuracy']:.1f} % | {case['limit']:g}, {case['validation']:,} | {_kept(case)}"
        for runtime in case["latency"]:
            plain, mixed = (next(row for row in case["test"] if row["file"] == file and row["runtime"].startswith(runtime)) for file in ("plain", "mixed"))
            lines.append(
                f"| {told} | {case['files_measured']}, {case['seconds_cpu']:.0f} | {_RUNTIMES[runtime]} "
                f"| {plain['size_bytes'] / 1000:.1f} → {mixed['size_bytes'] / 1000:.1f} | {_lost(plain)} → {_lost(mixed)} "
                f"| {case['latency'][runtime]['plain']['ratio']:.2f} → {case['latency'][runtime]['mixed']['ratio']:.2f} |"
            )
    yield "\n".join(lines)


def _kept(case: Row) -> str:
    layers = [f"`{layer.removeprefix('body.')}`" for layer in case["float_layers"]]
    if len(layers) > 6:
        return f"{len(layers)} of {case['layers']}: {', '.join(layers[:3])} …"
    return ", ".join(layers) or {"not needed": "none has to", "out of reach": "none: no precision helps"}[case["outcome"]]


def _tuned(found: Row) -> Iterator[str]:
    yield (
        "Digits, `resnet-8`, weights of few bits, fine-tuned plainly and then searched. Points below the float network on 179 validation samples, every layer "
        "on integers and none: where the second is no smaller, no layer is to blame, and fine-tuning once more with some in float has nothing to mend."
    )
    lines = [
        "| weights, limit | epochs, seed | every layer rounded | the same weights unrounded | in float | test accuracy |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in found["rows"]:
        kept = {"not needed": "none has to", "out of reach": "none: it would not help", "found": f"{row['float_layers']} layers"}[row["outcome"]]
        rounded, unrounded = (f"{it['value']:.1f} [{it['low']:.1f}, {it['high']:.1f}]" for it in (row["rounded"], row["unrounded"]))
        told = f"{row['weight_bits']} bits, {row['limit']:g} | {row['epochs']}, {row['seed']}"
        lines.append(f"| {told} | {rounded} | {unrounded} | {kept} | {row['test_accuracy']:.1f} % |")
    yield "\n".join(lines)


def _lost(row: Row) -> str:
    return f"{row['lost_to_float']:.1f} [{row['lost_low']:.1f}, {row['lost_high']:.1f}]"


def _ratio(row: Row) -> str:
    return f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
