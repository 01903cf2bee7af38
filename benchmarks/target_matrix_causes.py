"""The causes part of `target_matrix.py`: what `explain` says of files that are not 1.3 times as fast as float, and the ratio without that cause."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from target_matrix_speed import STATIC

from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.explanation import why_not_faster

FAST_ENOUGH = 1.3
WORTH_REMOVING = 0.05  # of the time; what accounts for less does not make a file slow
_TOLD = 3  # findings a case is told with

_SCHEME_CAUSES = {"run-in-float", "leftover-quantizers", "split-activation", "residual-add", "float-operator", "layout"}
_SIZE_CAUSES = {"overhead", "small-layers", "threads"}


def causes(
    network: str, wide: str, files: Mapping[str, Path], floats: Mapping[str, Path], x: Float32Array, rows: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A case for each row of `network` and `wide` whose int8 file is not fast enough; explained on the trained files, single stream."""
    for row in rows:
        if row["network"] != network or row["ratio"][0] * FAST_ENOUGH <= 1:
            continue
        explained = why_not_faster(row["runtime"], files[row["scheme"]], floats[row["scheme"]], x[:16])
        weighty = [it for it in explained.findings if it.share is not None and it.share >= WORTH_REMOVING]
        told = [{"cause": it.cause, "share": it.share, "text": it.text, "remedy": it.remedy, "nodes": len(it.nodes)} for it in weighty[:_TOLD]]
        kinds = {it.cause for it in weighty}
        without = list(_without(row, wide, kinds, rows))
        case = {key: row[key] for key in ("network", "runtime", "batch", "scheme", "ratio")}
        yield {**case, "findings": told, "without": without}


def _without(row: Mapping[str, Any], wide: str, kinds: set[str | None], rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same measurement with the cause taken away, for each kind of cause that was found and can be."""
    if kinds & _SIZE_CAUSES and row["batch"] == 1:
        yield from _found("in batches of 32: a sample pays a 32nd of what an inference costs", rows, {**_key(row), "batch": 32})
        yield from _found(f"{wide}, untrained: the same operators, more work in each", rows, {**_key(row), "network": wide})
    if kinds & _SCHEME_CAUSES and row["scheme"] in STATIC:
        yield from _found("unsigned activations, as x86 kernels take them: the file of cpu-vnni", rows, {**_key(row), "scheme": "cpu-vnni"})
    if "slow-kernel" in kinds or "memory-bound" in kinds:
        other = "openvino" if row["runtime"] == "onnxruntime" else "onnxruntime"
        yield from _found(f"the same file with the kernels of {other}", rows, {**_key(row), "runtime": other})


def _key(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("network", "runtime", "batch", "scheme")}


def _found(change: str, rows: Sequence[Mapping[str, Any]], key: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for row in rows:
        if all(row[name] == value for name, value in key.items()):
            yield {"change": change, "ratio": row["ratio"]}
