"""The speed part of `target_matrix.py`: int8 files beside the float file, in turn, in one process."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import windows_of

from kdpipe.foundation.files import write_json
from kdpipe.foundation.predictor import Float32Array
from kdpipe.foundation.randomness import numpy_stream
from kdpipe.pipeline.store import sha256_of
from kdpipe.targets import latency
from kdpipe.targets.devices.messages import BenchRequest, ComparisonRequest, ModelFile

RUNTIMES = ("onnxruntime", "openvino")
BATCHES = (1, 32)
STATIC = ("arm", "arm-symmetric")
"""Schemes whose files take one sample at a time."""

_AGAIN = "float-again"


@dataclass(frozen=True)
class Files:
    """`by_scheme`: the int8 files and `float`; `float_static`: the float file that takes one sample, as the files of ARM do."""

    by_scheme: Mapping[str, Path]
    float_static: Path

    def baseline(self, scheme: str) -> Path:
        """The float file that an int8 file is held against: it takes as many samples at a time."""
        return self.float_static if scheme in STATIC else self.by_scheme["float"]


def speed(network: str, files: Files, x: Float32Array, work: Path, seconds: float) -> Iterator[dict[str, Any]]:
    """A row for each int8 file, runtime and batch size: its median over the float file's. The files of ARM take one sample at a time."""
    for runtime in RUNTIMES:
        for batch in BATCHES:
            models = {name: path for name, path in files.by_scheme.items() if name not in STATIC} | {_AGAIN: files.by_scheme["float"]}
            if batch == 1:
                models |= {"float-static": files.float_static, **{name: files.by_scheme[name] for name in STATIC}}
            found = _measured(network, runtime, batch, models, x, work, seconds)
            for name in (name for name in files.by_scheme if name != "float" and name in models):
                row = found["models"][name]
                yield {"network": network, "runtime": runtime, "batch": batch, "threads": 1, "scheme": name, **row, "noise": found["noise"]}


def changed_beside_float(name: str, runtime: str, batch: int, changed: Path, baseline: Path, x: Float32Array, work: Path, seconds: float) -> list[float]:
    """The median of a changed file over the float file's, with its interval; kept under `name`."""
    models = {"float": baseline, "changed": changed, _AGAIN: baseline}
    ratio: list[float] = _measured(name, runtime, batch, models, x, work, seconds)["models"]["changed"]["ratio"]
    return ratio


def _measured(network: str, runtime: str, batch: int, models: Mapping[str, Path], x: Float32Array, work: Path, seconds: float) -> dict[str, Any]:
    digests = {name: sha256_of(path) for name, path in models.items()}
    kept = work / "speed" / f"{network}-{runtime}-{batch}.json"
    if kept.is_file() and (before := json.loads(kept.read_text()))["digests"] == digests and before["seconds"] >= seconds:
        return before  # type: ignore[no-any-return]
    kept.parent.mkdir(exist_ok=True)
    inputs = work / "inputs.npy"
    np.save(inputs, x[: 8 * batch if batch > 1 else 64])
    comparison = ComparisonRequest(
        id="one", runtime=runtime, threads=1, batch=batch, hint="latency", inputs=inputs, models=tuple(ModelFile(name=n, path=p) for n, p in models.items())
    )
    request = BenchRequest(comparisons=(comparison,), seconds=seconds, runs=130, warmup_seconds=2.0, limit_seconds=6 * seconds)
    windows = windows_of(request, limit_seconds=20 * seconds + 120)
    measured = latency.measured(windows, numpy_stream(0, f"matrix/{network}/{runtime}/{batch}"))
    rows = {}
    for name in models:
        baseline = measured["float-static" if name in STATIC else "float"]
        ratio = latency.ratio_of(measured[name], baseline)
        rows[name] = {
            "ratio": [ratio.value_ms, ratio.low_ms, ratio.high_ms],
            "int8_ms": latency.percentile_of(measured[name], 50).value_ms,
            "float_ms": latency.percentile_of(baseline, 50).value_ms,
            "runs": len(measured[name].samples),
        }
    found = {"digests": digests, "seconds": seconds, "models": rows, "noise": rows[_AGAIN]["ratio"]}
    print(network, runtime, batch, {name: row["ratio"] for name, row in rows.items()}, flush=True)
    write_json(kept, found)
    return found
