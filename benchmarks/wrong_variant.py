"""What the wrong variant of an x86 file costs: 7-bit and 8-bit weights on a CPU with an int8 dot product and on one without.

    python benchmarks/wrong_variant.py quality                    # accuracy, and agreement with the twin
    python benchmarks/wrong_variant.py latency                    # 8-bit over 7-bit on this host

The networks are trained ones, from the stores of `benchmarks/int8_files.py` and `benchmarks/target_matrix.py` (KDPIPE_DATA for all but
the digits); nothing in the stores is changed. Each is calibrated on 512 training samples with u8 activations and per-channel weights, once
with 7 and once with 8 bits, and exported. The CPU without VNNI is Haswell, emulated by qemu-user: accuracy, never latency. Finished parts
are kept in `benchmarks/.work/wrong-variant`; the figures go to `benchmarks/results/figures/wrong-variant.json`.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from side_by_side import windows_of

from kdpipe.foundation.errors import KdpipeError
from kdpipe.foundation.files import write_bytes, write_json
from kdpipe.foundation.networks import load_network
from kdpipe.foundation.onnx_file import to_bytes, to_onnx
from kdpipe.foundation.predictor import TorchPredictor
from kdpipe.foundation.quantization.calibration import calibrate_
from kdpipe.foundation.quantization.engine import freeze, prepare
from kdpipe.foundation.quantization.scheme import Scheme
from kdpipe.foundation.randomness import numpy_stream
from kdpipe.pipeline.config import read_config
from kdpipe.pipeline.doctor import diagnose
from kdpipe.pipeline.stages import load_stages
from kdpipe.pipeline.store import Store
from kdpipe.robustness.intervals import accuracy, paired_difference
from kdpipe.stages.twin_file import twin_file
from kdpipe.targets import latency
from kdpipe.targets.devices.device import Device
from kdpipe.targets.devices.emulated import Emulated
from kdpipe.targets.devices.local import LocalDevice
from kdpipe.targets.devices.messages import BenchRequest, ComparisonRequest, ModelFile, PredictRequest
from kdpipe.targets.profile import load_profile
from kdpipe.tasks.data.splits import DataSplits

ROOT = Path(__file__).parents[1]
PROJECTS, WORK = ROOT / "benchmarks" / ".work", ROOT / "benchmarks" / ".work" / "wrong-variant"
FIGURES = ROOT / "benchmarks" / "results" / "figures" / "wrong-variant.json"

NETWORKS = {
    "digits-student": ("digits", "distill", "ResNet-8 on the digits"),
    "digits-teacher": ("digits", "teacher", "ResNet-20 on the digits"),
    "fashion-student": ("fashion-mnist", "distill", "small CNN on Fashion-MNIST"),
    "fashion-teacher": ("fashion-mnist", "teacher", "large CNN on Fashion-MNIST"),
    "cifar-resnet": ("matrix/resnet", "distill", "ResNet-14 on CIFAR-10"),
    "cifar-mobilenet": ("matrix/mobilenetv2", "distill", "MobileNetV2-0.35 on CIFAR-10"),
}
"""name to project, step and what it is"""

BITS = {"avx2": 7, "vnni": 8}
RUNTIMES = ("onnxruntime", "openvino")
CALIBRATION, BATCH = 512, 100
TESTED = {"cifar-resnet": 500, "cifar-mobilenet": 500}  # an emulated CPU takes a second for ten such images
TESTED_ELSE = 2000
SECONDS, BATCHES, FEWEST_RUNS = 6.0, (1, 32), 200
LIMIT_SECONDS = 1800.0


@dataclass(frozen=True)
class Case:
    """A trained network as two int8 files, with what their twins answer to the tested samples, (n, classes)."""

    name: str
    files: dict[str, Path]
    twins: dict[str, npt.NDArray[np.float32]]
    float_logits: npt.NDArray[np.float32]
    x: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["quality", "latency"])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.networks:
        case = _case(name)
        if arguments.part == "quality":
            _quality(case)
        else:
            write_json(WORK / name / "latency.json", list(_latency(case)))
    _collect()
    return 0


def _case(name: str) -> Case:
    project, step, _ = NETWORKS[name]
    config = read_config(PROJECTS / project, load_stages())
    data = config.task.load(PROJECTS / project, config.seed)
    newest = next(artifact for artifact in reversed(list(Store(PROJECTS / project).artifacts())) if artifact.record.step == step)
    network = load_network(newest.folder)
    tested = np.linspace(0, len(data.test) - 1, min(TESTED.get(name, TESTED_ELSE), len(data.test))).astype(np.int64)
    x = data.test.read(tested)
    files, twins = {}, {}
    for variant, bits in BITS.items():
        twin = _twin(network.module, bits, data)
        files[variant] = WORK / name / f"{variant}.onnx"
        files[variant].parent.mkdir(parents=True, exist_ok=True)
        write_bytes(files[variant], twin_file(twin, network.spec.contract, load_profile("cpu", at="benchmark")))
        twins[variant] = TorchPredictor(twin)(x)
    files["float"] = WORK / name / "float.onnx"
    write_bytes(files["float"], to_bytes(to_onnx(network.module.eval(), data.shape, opset=19, static_batch=None)))
    return Case(name, files, twins, TorchPredictor(network.module)(x), x, data.test.labels[tested])


def _twin(module: torch.nn.Module, bits: int, data: DataSplits) -> torch.nn.Module:
    """The network calibrated as `kdpipe build` calibrates, frozen."""
    twin = prepare(module.eval(), Scheme(weight_bits=bits), batch_norm="folded")
    chosen = numpy_stream(0, "qat/calibration").permutation(len(data.train))[:CALIBRATION].astype(np.int64)
    calibrate_(twin, [torch.from_numpy(data.train.read(part)) for part in np.array_split(chosen, 8)], "minmax")
    return freeze(twin).eval()


def _quality(case: Case) -> None:
    """Each file in each runtime on this host and on the emulated CPU; a part that is finished is kept."""
    places: dict[str, Device] = {"host": LocalDevice(), "Haswell": Emulated(kind="emulated", cpu="Haswell").device("Haswell", ROOT)}
    for variant in BITS:
        for place, device in places.items():
            for runtime in RUNTIMES:
                kept = WORK / case.name / f"{variant}-{place}-{runtime}.json"
                if not kept.is_file():
                    started = time.monotonic()
                    told = _judged(case, variant, device, runtime) | {"seconds": round(time.monotonic() - started, 1)}
                    write_json(kept, told)
                    print(case.name, variant, place, runtime, json.dumps(told), flush=True)


def _judged(case: Case, variant: str, device: Device, runtime: str) -> dict[str, Any]:
    request = PredictRequest(runtime=runtime, model=case.files[variant], threads=1)
    parts = [case.x[begin : begin + BATCH] for begin in range(0, len(case.x), BATCH)]
    try:
        logits = np.concatenate(list(device.predict(request, iter(parts), limit_seconds=LIMIT_SECONDS)))
    except KdpipeError as error:
        return {"not_measured": error.problems[0].message}
    twin, right = case.twins[variant], logits.argmax(1) == case.labels
    apart = paired_difference(right, twin.argmax(1) == case.labels)
    spread = float(np.mean(twin.max(1) - twin.min(1)))
    return {
        "n": len(logits),
        "clean": accuracy(right).model_dump(mode="json"),
        "twin": accuracy(twin.argmax(1) == case.labels).model_dump(mode="json"),
        "float": accuracy(case.float_logits.argmax(1) == case.labels).model_dump(mode="json"),
        "file_minus_twin": {"value": apart.value, "low": apart.low, "high": apart.high},
        "agreement": accuracy(logits.argmax(1) == twin.argmax(1)).model_dump(mode="json"),
        "largest_difference": float(np.abs(logits - twin).max()),
        "mean_difference_percent": 100 * float(np.abs(logits - twin).mean()) / spread,
    }


def _latency(case: Case) -> Iterator[dict[str, Any]]:
    """The 8-bit file over the 7-bit one, the latter against itself, and the 7-bit file over float: interleaved windows, one thread."""
    inputs = WORK / case.name / "inputs.npy"
    np.save(inputs, case.x[: 8 * max(BATCHES)])
    names = {"avx2": "avx2", "vnni": "vnni", "avx2-again": "avx2", "float": "float"}
    for runtime in RUNTIMES:
        for batch in BATCHES:
            models = tuple(ModelFile(name=name, path=case.files[file]) for name, file in names.items())
            comparison = ComparisonRequest(id="one", runtime=runtime, threads=1, batch=batch, hint="latency", inputs=inputs, models=models)
            request = BenchRequest(comparisons=(comparison,), seconds=SECONDS, runs=FEWEST_RUNS, warmup_seconds=1.0, limit_seconds=4 * SECONDS)
            windows = windows_of(request, limit_seconds=8 * SECONDS + 60)
            found = latency.measured(windows, numpy_stream(0, f"wrong-variant/{case.name}/{runtime}/{batch}"))
            ratios = {"vnni_over_avx2": ("vnni", "avx2"), "avx2_over_itself": ("avx2-again", "avx2"), "avx2_over_float": ("avx2", "float")}
            told = {
                "runtime": runtime,
                "batch": batch,
                "runs": len(found["avx2"].samples),
                "avx2_p50_ms": latency.percentile_of(found["avx2"], 50).value_ms,
                **{name: latency.ratio_of(found[one], found[other]).model_dump(mode="json") for name, (one, other) in ratios.items()},
            }
            print(case.name, json.dumps(told), flush=True)
            yield told


def _collect() -> None:
    machine = diagnose(ROOT)
    networks = {}
    for name, (_, _, title) in NETWORKS.items():
        parts = {
            f"{variant}/{place}/{runtime}": json.loads(path.read_text())
            for variant in BITS
            for place in ("host", "Haswell")
            for runtime in RUNTIMES
            if (path := WORK / name / f"{variant}-{place}-{runtime}.json").is_file()
        }
        timed = WORK / name / "latency.json"
        if parts:
            networks[name] = {"title": title, "quality": parts, "latency": json.loads(timed.read_text()) if timed.is_file() else []}
    told = {"cpu": machine.cpu, "cores": machine.cores, "instruction_sets": list(machine.instruction_sets), "tools": dict(machine.tools)}
    write_json(FIGURES, {"machine": told, "networks": networks})


if __name__ == "__main__":
    sys.exit(main())
