"""How much faster int8 is than float, by the size of the network: what `kdpipe plan` expects before anything is trained.

    python benchmarks/int8_by_size.py

Untrained networks, since time does not depend on the weights, from small to large: ResNets and plain CNNs (dense convolutions) and
MobileNetV2s (depthwise ones). Each is calibrated on noise, exported for `cpu-avx2` and timed beside its float file in interleaved
windows, batch 1, one thread, in both runtimes. The figures go to `benchmarks/results/figures/int8-by-size.json`, and the points that
the rule uses to `targets/int8_gains.toml`.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import windows_of

from kdpipe.foundation.files import write_bytes, write_json, write_text
from kdpipe.foundation.networks import InputContract
from kdpipe.foundation.onnx_file import to_bytes, to_onnx
from kdpipe.foundation.quantization.calibration import calibrate_
from kdpipe.foundation.quantization.engine import freeze, prepare
from kdpipe.foundation.quantization.scheme import Scheme
from kdpipe.foundation.randomness import numpy_stream, stream
from kdpipe.pipeline.doctor import diagnose
from kdpipe.stages.macs import macs_by_kind
from kdpipe.stages.twin_file import twin_file
from kdpipe.targets import latency
from kdpipe.targets.devices.messages import BenchRequest, ComparisonRequest, ModelFile
from kdpipe.targets.expectation import GAINS_FILE
from kdpipe.targets.profile import load_profile
from kdpipe.tasks.networks.named import named_network

ROOT = Path(__file__).parents[1]
WORK = ROOT / "benchmarks" / ".work" / "int8-by-size"
FIGURES = ROOT / "benchmarks" / "results" / "figures" / "int8-by-size.json"
SECONDS, RUNS = 4.0, 200
RUNTIMES = ("onnxruntime", "openvino")

SIZES = (
    ("cnn-small", 8),
    ("resnet-8", 8),
    ("cnn-small", 28),
    ("resnet-8", 28),
    ("resnet-20", 28),
    ("resnet-20", 32),
    ("resnet-20-x2", 32),
    ("resnet-20-x2", 64),
    ("mobilenetv2-0.25", 28),
    ("mobilenetv2-0.5", 32),
    ("mobilenetv2-1.0", 32),
    ("mobilenetv2-1.0", 64),
    ("mobilenetv2-1.0", 96),
)
"""name, and side of the square image; grey up to 28, colour above"""


def main() -> int:
    torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    points = [_point(name, side) for name, side in SIZES]
    machine = diagnose(ROOT)
    told = {"cpu": machine.cpu, "instruction_sets": list(machine.instruction_sets), "tools": dict(machine.tools)}
    write_json(FIGURES, {"machine": told, "points": points})
    write_text(GAINS_FILE, _gains(points, machine.cpu))
    return 0


def _point(name: str, side: int) -> dict[str, Any]:
    shape = (1 if side <= 28 else 3, side, side)
    named = named_network(name, at="benchmark")
    module_name, factory = named.factory.split(":")
    torch.manual_seed(0)  # this process trains nothing
    module = getattr(import_module(module_name), factory)(in_channels=shape[0], classes=10, image_size=side, **named.arguments).eval()
    twin = prepare(module, Scheme(), batch_norm="folded")
    calibrate_(twin, [torch.rand(16, *shape, generator=stream(0, f"{name}/{side}"))], "minmax")
    files = {}
    contract, profile = InputContract(shape=shape, labels=tuple("0123456789")), load_profile("cpu", at="benchmark")
    floating = to_bytes(to_onnx(module, shape, opset=profile.opset, static_batch=None))
    for kind, content in (("int8", twin_file(freeze(twin).eval(), contract, profile)), ("float", floating)):
        files[kind] = WORK / f"{name}-{side}-{kind}.onnx"
        write_bytes(files[kind], content)
    inputs = WORK / "inputs.npy"
    np.save(inputs, np.random.default_rng(0).random((64, *shape), dtype=np.float32))
    macs = macs_by_kind(module, shape)
    told = {
        "network": f"{name} at {side}×{side}",
        "macs": macs.total,
        "depthwise_share": round(macs.depthwise_share, 4),
        "ratios": {runtime: _timed(runtime, files, inputs) for runtime in RUNTIMES},
    }
    print(told, flush=True)
    return told


def _timed(runtime: str, files: dict[str, Path], inputs: Path) -> dict[str, Any]:
    """int8 over float, and float over itself."""
    models = tuple(ModelFile(name=name, path=files[name.partition("-")[0]]) for name in ("int8", "float", "float-again"))
    comparison = ComparisonRequest(id="one", runtime=runtime, threads=1, batch=1, hint="latency", inputs=inputs, models=models)
    request = BenchRequest(comparisons=(comparison,), seconds=SECONDS, runs=RUNS, warmup_seconds=1.0, limit_seconds=10 * SECONDS)
    windows = windows_of(request, limit_seconds=20 * SECONDS + 60)
    found = latency.measured(windows, numpy_stream(0, f"int8-by-size/{runtime}"))
    return {
        "int8_ms": latency.percentile_of(found["int8"], 50).value_ms,
        "int8_over_float": latency.ratio_of(found["int8"], found["float"]).model_dump(mode="json"),
        "float_over_itself": latency.ratio_of(found["float-again"], found["float"]).model_dump(mode="json"),
    }


def _gains(points: list[dict[str, Any]], cpu: str) -> str:
    lines = ["# int8 time over float time, batch 1, one thread, u8 activations and 7-bit weights, on an x86 CPU with VNNI.", f"# {cpu}"]
    lines.append("# Written by benchmarks/int8_by_size.py; the intervals are in benchmarks/results/figures/int8-by-size.json.")
    for point in points:
        lines += ["", "[[points]]", f'network = "{point["network"]}"', f"macs = {point['macs']}"]
        lines.append(f"depthwise = {str(point['depthwise_share'] > 0).lower()}")
        lines += [f"{runtime} = {point['ratios'][runtime]['int8_over_float']['value_ms']:.3f}" for runtime in RUNTIMES]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
