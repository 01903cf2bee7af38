"""The tables of `docs/results.md` that `wrong_variant.py` and `int8_by_size.py` left figures for."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

VARIANTS = {"avx2": "7 bits (`avx2`)", "vnni": "8 bits (`vnni`)"}
PLACES = {"host": "with VNNI", "Haswell": "without"}
RUNTIMES = ("onnxruntime", "openvino")


def sections(folder: Path) -> Iterator[str]:
    """Markdown, for each of the two that has left its figures in `folder` (`benchmarks/results/figures`)."""
    for name, section in (("wrong-variant", _wrong_variant), ("int8-by-size", _by_size)):
        path = folder / f"{name}.json"
        if path.is_file():
            yield "\n\n".join(section(json.loads(path.read_text())))


def _wrong_variant(record: Mapping[str, Any]) -> Iterator[str]:
    yield "## What the wrong variant costs"
    yield f"`python benchmarks/wrong_variant.py quality`, then `latency` · {record['machine']['cpu']}"
    yield (
        "Trained networks, calibrated alike with 7-bit and with 8-bit weights (u8 activations, per channel). Accuracy in per cent; in brackets the "
        "file's less its twin's, paired, with the 95 % interval; agreement: samples with the twin's label; difference: mean over all logits, in per "
        "cent of their spread. The CPU without VNNI is an emulated Haswell."
    )
    columns = [f"{title}: {figure}" for title in PLACES.values() for figure in ("accuracy", "agreement", "difference")]
    rows = [f"| network | weights | runtime | {' | '.join(columns)} |", f"| --- | --- | --- |{' --- |' * len(columns)}"]
    for network in record["networks"].values():
        for variant, bits in VARIANTS.items():
            for runtime in RUNTIMES:
                cells = [_quality(network["quality"].get(f"{variant}/{place}/{runtime}")) for place in PLACES]
                rows.append(f"| {network['title']} | {bits} | {runtime} | {' | '.join(cells)} |")
    yield "\n".join(rows)
    timed = [(network["title"], entry) for network in record["networks"].values() for entry in network["latency"]]
    if timed:
        yield (
            "Time on the CPU with VNNI, one thread, medians of interleaved windows: 8 bits over 7 bits, and 7 bits over itself, which shows what the "
            "machine's noise is worth."
        )
        rows = [
            "| network | runtime | batch | 7 bits, ms | 8 over 7 bits | 7 bits over itself | 7 bits over float |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        rows += [
            f"| {title} | {entry['runtime']} | {entry['batch']} | {entry['avx2_p50_ms']:.3g} | {_ratio(entry['vnni_over_avx2'])} | "
            f"{_ratio(entry['avx2_over_itself'])} | {_ratio(entry['avx2_over_float'])} |"
            for title, entry in timed
        ]
        yield "\n".join(rows)


def _quality(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "not measured | |"
    if "not_measured" in found:
        return f"not measured: {found['not_measured']} | |"
    clean, apart, agreement = found["clean"], found["file_minus_twin"], found["agreement"]
    accuracy = f"{clean['value']:.1f} ({apart['value']:+.1f} [{apart['low']:+.1f}, {apart['high']:+.1f}]), n {clean['n']:,}"
    return f"{accuracy} | {agreement['value']:.2f} [{agreement['low']:.2f}, {agreement['high']:.2f}] | {found['mean_difference_percent']:.2g}"


def _by_size(record: Mapping[str, Any]) -> Iterator[str]:
    yield "## int8 over float, by the size of the network"
    yield f"`python benchmarks/int8_by_size.py` · {record['machine']['cpu']}"
    yield (
        "int8 time over float time (7-bit weights, u8 activations) at batch 1 with one thread, on a CPU with VNNI; time does not depend on the "
        "weights, and these networks are untrained. `kdpipe plan` expects by these figures."
    )
    rows = [f"| network | multiply-accumulates | {' | '.join(RUNTIMES)} |", "| --- | --- | --- | --- |"]
    for point in record["points"]:
        ratios = [_ratio(point["ratios"][runtime]["int8_over_float"]) for runtime in RUNTIMES]
        rows.append(f"| {point['network']} | {point['macs'] / 1e6:.3g} M | {' | '.join(ratios)} |")
    yield "\n".join(rows)
    noise = [abs(point["ratios"][runtime]["float_over_itself"]["value_ms"] - 1) for point in record["points"] for runtime in RUNTIMES]
    yield f"Float over itself lay within {100 * max(noise):.1f} % of 1 in all of them."


def _ratio(told: Mapping[str, Any]) -> str:
    if told["value_ms"] is None:
        return str(told["reason"])
    return f"{told['value_ms']:.3f} [{told['low_ms']:.3f}, {told['high_ms']:.3f}]"
