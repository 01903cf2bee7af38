"""What the parts of `schemes.py` share: networks, their files, how far a file's answers are from the float network's, and its latency beside float."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from kdpipe.foundation.files import write_bytes
from kdpipe.foundation.networks import Network, build_network, load_network, save_network
from kdpipe.foundation.onnx_file import to_bytes, to_onnx
from kdpipe.foundation.predictor import TorchPredictor
from kdpipe.foundation.quantization.engine import calibrate_, freeze, prepare
from kdpipe.foundation.randomness import numpy_stream, stream
from kdpipe.robustness.intervals import paired_difference
from kdpipe.stages.objectives.configured import parse_objective
from kdpipe.stages.objectives.objective import Objective
from kdpipe.stages.stage import Context, Inputs
from kdpipe.stages.training import train
from kdpipe.stages.training_config import TrainingConfig
from kdpipe.stages.twin_file import twin_file
from kdpipe.targets.devices.agent import load
from kdpipe.targets.profile import Profile
from kdpipe.tasks.data.splits import DataSplits
from kdpipe.tasks.image_classification import ImageClassification

ROOT = Path(__file__).parents[1]
WORK = ROOT / "benchmarks" / ".work" / "schemes"
PLAIN = parse_objective("plain", {}, at="benchmark")
WINDOWS, WINDOW_SECONDS = 60, 0.02
RUNTIMES = ("onnxruntime", "openvino")


class Printing:
    """A progress that prints what a stage says."""

    def __call__(self, items: Iterable[Any], label: str, *, total: int | None = None, unit: str = "batch") -> Iterable[Any]:
        """The items, uncounted."""
        return items

    def say(self, message: str) -> None:
        """Print it."""
        print(f"  {message}", flush=True)


def trained(key: str, name: str, task: ImageClassification, data: DataSplits, *, epochs: int, objective: Objective = PLAIN) -> Network:
    """The network, trained by `objective`; once."""
    folder = WORK / f"{key}-{name}"
    if not (folder / "network.json").is_file():
        network = build_network(task.network_spec(name, {}, data, at="benchmark"), stream(0, key))
        context = Context(folder=WORK / f"{key}-{name}-training", project=WORK, seed=0, threads=1, progress=Printing())
        train(network, objective, None, Inputs({}, data, task), TrainingConfig(epochs=epochs), context, label=key)
        save_network(network, folder)
    return load_network(folder)


def post_training(network: Network, profile: Profile, data: DataSplits) -> tuple[TorchPredictor, bytes]:
    """The twin and its file, calibrated on training samples."""
    chosen = numpy_stream(0, "calibration").permutation(len(data.train))[: profile.calibration.samples]
    twin = frozen(network, profile, data.train.read(np.sort(chosen)))
    return TorchPredictor(twin), twin_file(twin, network.spec.contract, profile)


def frozen(network: Network, profile: Profile, x: npt.NDArray[np.float32]) -> torch.nn.Module:
    prepared = prepare(network.module, profile.chosen_scheme, batch_norm="folded")
    if profile.chosen_scheme.quantizes_activations:
        calibrate_(prepared, [torch.from_numpy(x)])
    return freeze(prepared)


def changed(profile: Profile, **scheme: Any) -> Profile:
    return profile.model_copy(update={"scheme": profile.scheme.model_copy(update=scheme)})


def as_float(network: Network, profile: Profile, name: str = "digits") -> Path:
    path = WORK / f"{name}-float.onnx"
    write_bytes(path, to_bytes(to_onnx(network.module, network.spec.contract.shape, opset=profile.opset, static_batch=None)))
    return path


def dynamic(floating: Path, path: Path) -> Path:
    """ONNX Runtime's own: DynamicQuantizeLinear with ConvInteger and MatMulInteger."""
    quantize_dynamic(str(floating), str(path), op_types_to_quantize=["Conv", "MatMul", "Gemm"], weight_type=QuantType.QUInt8)
    return path


def figures(logits: npt.NDArray[Any], floating: npt.NDArray[Any], twin: npt.NDArray[Any] | None, labels: npt.NDArray[np.int64]) -> dict[str, Any]:
    right, before = logits.argmax(1) == labels, floating.argmax(1) == labels
    lost = paired_difference(before, right)
    spread = float(np.ptp(floating, axis=1).mean())
    return {
        "accuracy": 100 * float(right.mean()),
        "lost_to_float": lost.value,
        "lost_low": lost.low,
        "lost_high": lost.high,
        "agreement_with_float": 100 * float((logits.argmax(1) == floating.argmax(1)).mean()),
        "distance_to_float": 100 * float(np.abs(logits - floating).mean()) / spread,
        "agreement_with_twin": None if twin is None else 100 * float((logits.argmax(1) == twin.argmax(1)).mean()),
        "n": len(labels),
    }


def ratios(runtime: str, files: dict[str, Path], x: npt.NDArray[np.float32]) -> dict[str, Any]:
    """p50 of batch 1 over the float file's, in paired windows whose order rotates; 95 % interval by bootstrap over the windows."""
    opened = {kind: load(runtime, str(path), 1, "latency") for kind, path in files.items()}
    runs: dict[str, int] = {}
    for kind, loaded in opened.items():
        once = timed(lambda i, run=loaded.run: run(x[i % len(x)][None]), 50)
        runs[kind] = max(5, int(WINDOW_SECONDS / float(np.median(once))))
    medians: dict[str, list[float]] = {kind: [] for kind in opened}
    order = list(opened)
    for window in range(WINDOWS):
        for kind in order[window % len(order) :] + order[: window % len(order)]:
            medians[kind].append(float(np.median(timed(lambda i, run=opened[kind].run: run(x[i % len(x)][None]), runs[kind])[1:])))
    draws = numpy_stream(0, "bootstrap").integers(0, WINDOWS, (2000, WINDOWS))
    floating = np.array(medians["float"])
    told = {}
    for kind, values in medians.items():
        paired = np.array(values) / floating
        again = np.median(paired[draws], axis=1)
        low, high = np.percentile(again, [2.5, 97.5])
        told[kind] = {"p50_ms": 1000 * float(np.median(values)), "ratio": float(np.median(paired)), "low": float(low), "high": float(high)}
    return told


def timed(run: Callable[[int], object], times: int) -> npt.NDArray[np.float64]:
    taken = np.empty(times)
    for k in range(times):
        begin = time.perf_counter_ns()
        run(k)
        taken[k] = (time.perf_counter_ns() - begin) / 1e9
    return taken
