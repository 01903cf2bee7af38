"""Which widths the int8 kernels of this host like: layers of 14x14 pixels at many widths, in each runtime, one thread, batch 1.

    python benchmarks/kernel_widths.py

Measured as pruning by latency measures its table (`stages/latency_table.py`), in about a minute. Leaves `benchmarks/results/figures/kernel-widths.json`.
"""

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdpipe.foundation.files import write_json
from kdpipe.pipeline.doctor import diagnose
from kdpipe.pipeline.progress import progress_for
from kdpipe.stages.file_latency import stopwatch
from kdpipe.stages.latency_table import LatencyTable
from kdpipe.stages.layer_files import LayerShape
from kdpipe.targets.profile import load_profile
from kdpipe.targets.runtimes.runtime import require_runtime

RESULTS = Path(__file__).parent / "results" / "figures" / "kernel-widths.json"

_SIDE = 14
WIDTHS = (8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64)


def _convolution(inputs: int, outputs: int, kernel: int, groups: int = 1) -> LayerShape:
    return LayerShape(
        op="conv",
        inputs=inputs,
        outputs=outputs,
        size=(_SIDE, _SIDE),
        kernel=(kernel, kernel),
        stride=(1, 1),
        padding=(kernel // 2, kernel // 2),
        dilation=(1, 1),
        groups=groups,
    )


LAYERS: Mapping[str, tuple[tuple[int, LayerShape], ...]] = {
    "3x3, 64 → width": tuple((width, _convolution(64, width, 3)) for width in WIDTHS),
    "3x3, width → 64": tuple((width, _convolution(width, 64, 3)) for width in (*WIDTHS, 30, 62)),
    "1x1, 64 → width": tuple((width, _convolution(64, width, 1)) for width in WIDTHS),
    "3x3 depthwise": tuple((width, _convolution(width, width, 3, width)) for width in (*WIDTHS, 96)),
}


def main() -> int:
    profile = load_profile("cpu", at="benchmark")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, progress_for(as_json=False) as progress, stopwatch(profile, None, Path(name)) as watch:
        for need in profile.runtimes:
            version = require_runtime(need.name, need.versions, at="benchmark")
            table = LatencyTable.opened(replace(watch.setting, runtime=need.name, runtime_version=version), Path(name), progress.say)
            table.measure([shape for layer in LAYERS.values() for _, shape in layer], watch.device, progress)
            figures[f"{need.name} {version}"] = {
                layer: {width: _microseconds(table, shape) for width, shape in sorted(widths, key=lambda pair: pair[0])} for layer, widths in LAYERS.items()
            }
        machine = diagnose(Path(name))
    write_json(RESULTS, {"machine": {"cpu": machine.cpu, "cores": machine.cores}, "microseconds": figures})
    return 0


def _microseconds(table: LatencyTable, shape: LayerShape) -> list[float]:
    """Median, and its 95 % interval."""
    entry = table.entries[shape.name]
    return [round(ns / 1000, 2) for ns in (entry.ns, entry.low_ns, entry.high_ns)]


if __name__ == "__main__":
    sys.exit(main())
