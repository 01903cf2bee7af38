"""One network, three schemes, five places: is the int8 file right on each chip, and is it faster than float on this one?

    KDPIPE_DATA=… python benchmarks/target_matrix.py
    KDPIPE_DATA=… python benchmarks/target_matrix.py --only speed causes       (on a quiet machine: six minutes)

A ResNet-14 and a MobileNetV2 are distilled from the published ResNet-20 on a part of CIFAR-10, fine-tuned for `cpu-avx2` (u8, 7-bit weights),
`cpu-vnni` (u8, 8 bits), `arm` (s8) and `arm-symmetric` (s8, zero point 0: what `arm` was), and exported: `kdpipe build --until export`. Then

- `quality`: the first test images through each file in ONNX Runtime and OpenVINO here, and in ONNX Runtime on an emulated Haswell, Cortex-A72 and Cortex-A76:
  accuracy, and how many labels are those of the torch twin;
- `speed`: the files of a network in turn in one process, one thread, single stream and in batches of 32, beside the float file and the float file once more;
  also of untrained networks of twice the width;
- `causes`: for each file that is not 1.3 times as fast as float, the reason that `explain` gives, and the ratio where that cause is not there:
  of another file or batch of the above, or of the same file with that one thing changed, measured in turn with float once more.

What is finished is kept in `benchmarks/.work/matrix`, by the files' digests. Leaves `benchmarks/results/figures/target-matrix.json`.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from target_matrix_causes import Work, causes
from target_matrix_speed import Files, speed

from kdpipe.foundation.files import write_json, write_text
from kdpipe.foundation.networks import Network, build_network, load_network
from kdpipe.foundation.onnx_file import to_bytes, to_onnx
from kdpipe.foundation.predictor import Float32Array, TorchPredictor
from kdpipe.foundation.quantization.engine import calibrate_, freeze, prepare
from kdpipe.foundation.randomness import stream
from kdpipe.pipeline import build
from kdpipe.pipeline.doctor import diagnose
from kdpipe.pipeline.progress import progress_for
from kdpipe.pipeline.store import sha256_of
from kdpipe.robustness.intervals import accuracy
from kdpipe.stages.macs import count_macs, count_parameters
from kdpipe.stages.twin_file import twin_file
from kdpipe.targets.devices.device import Device
from kdpipe.targets.devices.emulated import Emulated
from kdpipe.targets.devices.local import LocalDevice
from kdpipe.targets.devices.messages import PredictRequest
from kdpipe.targets.profile import Profile, load_profile
from kdpipe.tasks.image_classification import ImageClassification

ROOT = Path(__file__).parents[1]
WORK = ROOT / "benchmarks" / ".work" / "matrix"
FIGURES = ROOT / "benchmarks" / "results" / "figures" / "target-matrix.json"
PARTS = ("quality", "speed", "causes")
NEAR_TIE = 0.02  # of the spread of the logits

NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "resnet": {"student": "resnet-14", "wide": "resnet-14-x2", "train_samples": 8000, "epochs": 5, "batch_size": 128, "learning_rate": 0.1},
    "mobilenetv2": {"student": "mobilenetv2-0.35", "wide": "mobilenetv2-1.0", "train_samples": 4000, "epochs": 4, "batch_size": 64, "learning_rate": 0.05},
}
SCHEMES: Mapping[str, Mapping[str, str]] = {
    "cpu-avx2": {"profile": "cpu"},
    "cpu-vnni": {"profile": "cpu", "variant": "vnni"},
    "arm": {"profile": "arm"},
    "arm-symmetric": {"profile": str(WORK / "symmetric.toml")},
}
PLACES: Mapping[str, tuple[str, str]] = {
    "ONNX Runtime, this host": ("host", "onnxruntime"),
    "OpenVINO, this host": ("host", "openvino"),
    "ONNX Runtime, Haswell": ("Haswell", "onnxruntime"),
    "ONNX Runtime, Cortex-A72": ("cortex-a72", "onnxruntime"),
    "ONNX Runtime, Cortex-A76": ("cortex-a76", "onnxruntime"),
}

SYMMETRIC = """\
extends = "arm"
name = "arm"
[scheme]
activation_symmetric = true
"""

PROJECT = """\
[project]
name = "matrix-{name}"
seed = 0
threads = 1

[task]
data = "cifar10"
augment = ["flip", "crop"]
train_samples = {train_samples}

[teacher]
network = "resnet-20"
network_arguments = {{ shortcut = "pad" }}
weights = "teacher.safetensors"
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]

[distill]
student = "{student}"
objective = "kd"
epochs = {epochs}
batch_size = {batch_size}
learning_rate = {learning_rate}

[qat]
epochs = 1
batch_size = 128
learning_rate = 0.01

[targets.cpu-avx2]
profile = "cpu"
[targets.cpu-vnni]
profile = "cpu"
variant = "vnni"
[targets.arm]
[targets.arm-symmetric]
profile = "../symmetric.toml"

[evaluate]
attacks = []
corruptions = []
square_queries = 0
masking = false
"""


@dataclass(frozen=True)
class Built:
    """A network with its files: `exports` and `twins` by scheme."""

    name: str
    student: Network
    exports: Mapping[str, Path]
    twins: Mapping[str, Network]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="what to measure; the rest stays as it was")
    parser.add_argument("--samples", type=int, default=2000, help="test images for quality on this host (default: 2000)")
    parser.add_argument("--emulated", type=int, default=300, help="the first of them, for emulated CPUs, which are 20 to 50 times slower (default: 300)")
    parser.add_argument("--kept", action="store_true", help="leave out the emulated runs that are not finished yet")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured time of one comparison in s (default: 10)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    matrix = Matrix(arguments.samples, arguments.emulated, arguments.seconds, kept_only=arguments.kept)
    before = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    found = {part: list(getattr(matrix, part)()) if part in arguments.only else before.get(part, []) for part in PARTS}
    machine = diagnose(ROOT)
    told = {"cpu": machine.cpu, "cores": machine.cores, "instruction_sets": list(machine.instruction_sets), "tools": dict(machine.tools)}
    networks = {name: _told(built) for name, built in matrix.built.items()}
    write_json(FIGURES, {"command": "python benchmarks/target_matrix.py", "machine": told, "networks": networks, **found})
    return 0


class Matrix:
    """The parts, each made of what the work folder holds already and what is still to do."""

    def __init__(self, samples: int, emulated: int, seconds: float, *, kept_only: bool = False) -> None:
        self.samples, self.emulated, self.seconds, self.kept_only = samples, emulated, seconds, kept_only

    @cached_property
    def built(self) -> Mapping[str, Built]:
        """Both networks, trained and exported."""
        return {name: _built(name) for name in NETWORKS}

    @cached_property
    def test(self) -> tuple[Float32Array, np.ndarray]:
        """The first test images and their labels."""
        test = ImageClassification.model_validate({"data": "cifar10"}).load(WORK, seed=0).test
        chosen = np.arange(self.samples)
        return test.read(chosen), test.labels[chosen]

    @cached_property
    def wide(self) -> Mapping[str, Files]:
        """Untrained networks of twice the width, as files."""
        return {name: _wide(name, self.test[0][:64]) for name in NETWORKS}

    def quality(self) -> Iterator[dict[str, Any]]:
        """Each file in each place, against its twin."""
        x, labels = self.test
        for name, built in self.built.items():
            for scheme in SCHEMES:
                twin = TorchPredictor(built.twins[scheme].module)(x)
                for place, (device, runtime) in PLACES.items():
                    n = self.samples if device == "host" else self.emulated
                    model = built.exports[scheme] / "model.onnx"
                    if self.kept_only and device != "host" and not _place_of(model, device, runtime, n).is_file():
                        continue
                    logits = _logits(device, runtime, model, x[:n])
                    compared = _compared(twin[:n], logits, labels[:n])
                    row = {"network": name, "scheme": scheme, "place": place, "own_chip": _own_chip(scheme, device), **compared}
                    print(row, flush=True)
                    yield row

    def speed(self) -> Iterator[dict[str, Any]]:
        """Each network's files in turn, in each runtime and batch size."""
        for name, built in self.built.items():
            yield from speed(NETWORKS[name]["student"], _files(built), self.test[0], WORK, self.seconds)
            yield from speed(NETWORKS[name]["wide"], self.wide[name], self.test[0], WORK, self.seconds)

    def causes(self) -> Iterator[dict[str, Any]]:
        """Why files are not faster, and what they are without the cause."""
        rows = list(self.speed())
        for name, built in self.built.items():
            work = Work(self.test[0], WORK, self.seconds, rows)
            yield from causes(NETWORKS[name]["student"], _files(built), work, wider=NETWORKS[name]["wide"])
            yield from causes(NETWORKS[name]["wide"], self.wide[name], work)


def _built(name: str) -> Built:
    folder = WORK / name
    folder.mkdir(parents=True, exist_ok=True)
    write_text(WORK / "symmetric.toml", SYMMETRIC)
    write_text(folder / "kdpipe.toml", PROJECT.format(name=name, **NETWORKS[name]))
    if not (folder / "teacher.safetensors").is_file():
        shutil.copyfile(Path(os.environ["KDPIPE_DATA"]) / "pretrained" / "cifar10-resnet20.safetensors", folder / "teacher.safetensors")
    with progress_for(as_json=False) as progress:
        result = build(folder, until="export", progress=progress)
    steps = {step: done.folder for step, done in result.results.items()}
    return Built(
        name,
        load_network(steps["distill"]),
        {scheme: steps[f"export@{scheme}"] for scheme in SCHEMES},
        {scheme: load_network(steps[f"qat@{scheme}"]) for scheme in SCHEMES},
    )


def _files(built: Built) -> Files:
    files = {"float": built.exports["cpu-avx2"] / "float.onnx", **{scheme: folder / "model.onnx" for scheme, folder in built.exports.items()}}
    return Files(files, built.exports["arm"] / "float.onnx")


def _profile(scheme: str) -> Profile:
    return load_profile(SCHEMES[scheme]["profile"], at="benchmark", variant=SCHEMES[scheme].get("variant"))


def _device(name: str) -> Device:
    return LocalDevice() if name == "host" else Emulated(kind="emulated", cpu=name).device(name, WORK)


def _own_chip(scheme: str, device: str) -> bool:
    """Whether the device is of the kind that the profile is for."""
    sets, profile = frozenset(_device(device).facts().instruction_sets), _profile(scheme)
    return profile.architecture in sets and set(profile.needed_sets) <= sets


def _logits(device: str, runtime: str, model: Path, x: Float32Array) -> Float32Array:
    """The file's logits for `x` on the device; kept."""
    kept = _place_of(model, device, runtime, len(x))
    if not kept.is_file():
        kept.parent.mkdir(exist_ok=True)
        batches = [x[start : start + 100] for start in range(0, len(x), 100)]
        request = PredictRequest(runtime=runtime, model=model, threads=1, hint="latency")
        np.save(kept, np.concatenate(list(_device(device).predict(request, batches, limit_seconds=7200))))
    logits: Float32Array = np.load(kept)
    return logits


def _place_of(model: Path, device: str, runtime: str, n: int) -> Path:
    return WORK / "quality" / f"{sha256_of(model)[:16]}-{device}-{runtime}-{n}.npy"


def _compared(twin: Float32Array, logits: Float32Array, labels: np.ndarray) -> dict[str, Any]:
    same = twin.argmax(1) == logits.argmax(1)
    second, first = np.sort(twin, axis=1)[:, -2:].T
    spread = float(np.ptp(twin, axis=1).mean())
    right, agreement = accuracy(logits.argmax(1) == labels), accuracy(same)
    return {
        "n": len(labels),
        "accuracy": [right.value, right.low, right.high],
        "twin_accuracy": accuracy(twin.argmax(1) == labels).value,
        "agreement": [agreement.value, agreement.low, agreement.high],
        "differ": int((~same).sum()),
        "near_ties": int((~same & (first - second <= NEAR_TIE * spread)).sum()),
        "mean_difference": float(np.abs(twin.astype(np.float64) - logits).mean() / spread),
    }


def _wide(name: str, x: Float32Array) -> Files:
    """Calibrated, not trained: time does not depend on the weights."""
    folder = WORK / "wide" / name
    paths = {scheme: folder / f"{scheme}.onnx" for scheme in ("float", "float-static", *SCHEMES)}
    if not all(path.is_file() for path in paths.values()):
        folder.mkdir(parents=True, exist_ok=True)
        task = ImageClassification.model_validate({"data": "cifar10"})
        network = build_network(task.network_spec(NETWORKS[name]["wide"], {}, task.load(WORK, seed=0), at="benchmark"), stream(0, "init"))
        module, contract = network.module.eval(), network.spec.contract
        for kind, batch in (("float", None), ("float-static", 1)):
            paths[kind].write_bytes(to_bytes(to_onnx(module, contract.shape, opset=_profile("arm").opset, static_batch=batch)))
        for scheme in SCHEMES:
            twin = prepare(module, _profile(scheme).chosen_scheme, batch_norm="live")
            calibrate_(twin, [torch.from_numpy(x)])
            paths[scheme].write_bytes(twin_file(freeze(twin), contract, _profile(scheme)))
    return Files({kind: path for kind, path in paths.items() if kind != "float-static"}, paths["float-static"])


def _told(built: Built) -> dict[str, Any]:
    shape = built.student.spec.contract.shape
    student = built.student.module
    return {**NETWORKS[built.name], "macs": count_macs(student, shape), "parameters": count_parameters(student)}


if __name__ == "__main__":
    sys.exit(main())
