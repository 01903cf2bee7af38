"""What weights alone, float16 and mixed precision give and cost beside static int8; and why ONNX Runtime's dynamic quantization is not offered.

    python benchmarks/schemes.py quality                     digits, resnet-8: size, accuracy, agreement of each kind of file in each runtime
    python benchmarks/schemes.py speed                       latency of each kind of file against float, batch 1, one thread: three networks, two runtimes
    python benchmarks/schemes.py arm                         the same files on emulated Cortex-A72 and A76: agreement with the twin
    python benchmarks/schemes.py mixed                       networks that static int8 hurts, and the layers that have to stay in float

Each leaves its part of `benchmarks/results/figures/schemes.json`, of which `schemes_section.py` makes the section of docs/results.md. Networks are trained
once, in `benchmarks/.work/schemes`, where finished cases of `mixed` and `arm` are kept as well. Run `speed` on a quiet machine.
"""

import argparse
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import numpy.typing as npt
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from kdpipe.foundation.files import write_bytes, write_json
from kdpipe.foundation.networks import Network, build_network, load_network, save_network
from kdpipe.foundation.onnx_file import to_bytes, to_onnx
from kdpipe.foundation.predictor import TorchPredictor
from kdpipe.foundation.quantization.engine import calibrate_, freeze, prepare
from kdpipe.foundation.quantization.qdq import exportable
from kdpipe.foundation.randomness import numpy_stream, stream
from kdpipe.pipeline.doctor import diagnose
from kdpipe.robustness.intervals import paired_difference, wilson
from kdpipe.stages import qat
from kdpipe.stages.objectives.configured import parse_objective
from kdpipe.stages.qat import Outcome, QatConfig
from kdpipe.stages.stage import Context, Inputs
from kdpipe.stages.training import train
from kdpipe.stages.training_config import TrainingConfig
from kdpipe.stages.twin_file import twin_file
from kdpipe.targets.devices.agent import load
from kdpipe.targets.devices.emulated import Emulated
from kdpipe.targets.devices.messages import PredictRequest
from kdpipe.targets.profile import Profile, load_profile
from kdpipe.targets.runtimes.runtime import open_session
from kdpipe.tasks.data.splits import DataSplits
from kdpipe.tasks.image_classification import ImageClassification

ROOT = Path(__file__).parents[1]
WORK = ROOT / "benchmarks" / ".work" / "schemes"
RESULT = ROOT / "benchmarks" / "results" / "figures" / "schemes.json"
PLAIN = parse_objective("plain", {}, at="benchmark")
KINDS = ("static-int8", "weights-only", "float16")
WINDOWS, WINDOW_SECONDS = 60, 0.02
LIMIT = 3.0
"""Points below the float network on validation, upper 95 % bound; 179 digits that are all answered alike show 1.5."""
ARM_SAMPLES = 100
RUNTIMES = ("onnxruntime", "openvino")


class Printing:
    """A progress that prints what a stage says."""

    def __call__(self, items: Iterable[Any], label: str, *, total: int | None = None, unit: str = "batch") -> Iterable[Any]:
        """The items, uncounted."""
        return items

    def say(self, message: str) -> None:
        """Print it."""
        print(f"  {message}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=tuple(PARTS))
    part = parser.parse_args().part
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)  # quantize_dynamic advises a pre-processing that float.onnx does not need
    WORK.mkdir(parents=True, exist_ok=True)
    save(part, PARTS[part]())
    return 0


def save(part: str, made: dict[str, Any]) -> None:
    kept = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    machine = diagnose(WORK)
    kept[part] = {"machine": {"cpu": machine.cpu, "instruction_sets": list(machine.instruction_sets), "tools": dict(machine.tools)}, **made}
    write_json(RESULT, kept)


def quality() -> dict[str, Any]:
    """Each kind of file of one network trained on the digits."""
    task = ImageClassification(data="digits", augment=())
    data = task.load(WORK, 0)
    network = trained("digits", "resnet-8", {}, task, data, epochs=15)
    test = data.test
    x, labels = test.read(np.arange(len(test))), test.labels
    floating = TorchPredictor(network.module)(x)
    rows = []
    for kind in (*KINDS, "dynamic"):
        profile = load_profile("cpu", at="benchmark", scheme=None if kind == "dynamic" else kind)
        path, twin = WORK / f"digits-{kind}.onnx", None
        if kind == "dynamic":
            dynamic(as_float(network, profile), path)
        else:
            twin, content = post_training(network, profile, data)
            write_bytes(path, content)
        for runtime in RUNTIMES:
            with open_session(runtime, path) as session:
                logits = session(x)
            rows.append({"kind": kind, "runtime": session.name, "size_bytes": path.stat().st_size, **figures(logits, floating, twin and twin(x), labels)})
            print(rows[-1], flush=True)
    right = floating.argmax(1) == labels
    low, high = wilson(int(right.sum()), len(labels))
    size = as_float(network, load_profile("cpu", at="benchmark")).stat().st_size
    return {
        "network": "resnet-8",
        "float": {"accuracy": 100 * float(right.mean()), "low": 100 * low, "high": 100 * high, "size_bytes": size},
        "rows": rows,
    }


def arm() -> dict[str, Any]:
    """Files with float arithmetic in ONNX Runtime's ARM build, emulated: whether the chip's kernels say what the twin says. No latency."""
    task = ImageClassification(data="digits", augment=())
    data = task.load(WORK, 0)
    network = trained("digits", "resnet-8", {}, task, data, epochs=15)
    x = data.test.read(np.arange(ARM_SAMPLES))
    rows = []
    for kind, arithmetic in (("weights-only", None), ("float16", None), ("float16", "float16")):
        profile = load_profile("arm", at="benchmark", scheme=kind).model_copy(update={"batch": "dynamic"})
        profile = changed(profile, arithmetic=arithmetic) if arithmetic else profile
        twin, content = post_training(network, profile, data)
        path = WORK / f"arm-{kind}-{arithmetic}.onnx"
        write_bytes(path, content)
        expected = twin(x)
        for cpu in ("cortex-a72", "cortex-a76"):
            kept = WORK / f"{path.stem}-{cpu}.json"
            if kept.is_file():
                rows.append(json.loads(kept.read_text()))
                continue
            device = Emulated(kind="emulated", cpu=cpu).device(cpu, WORK)
            request = PredictRequest(runtime="onnxruntime", model=path, threads=1, hint="latency")
            logits = np.concatenate(list(device.predict(request, [x], limit_seconds=1800)))
            spread = float(np.ptp(expected, axis=1).mean())
            rows.append(
                {
                    "kind": f"{kind} arithmetic" if arithmetic else kind,
                    "cpu": cpu,
                    "n": len(x),
                    "agreement_with_twin": 100 * float((logits.argmax(1) == expected.argmax(1)).mean()),
                    "distance_to_twin": 100 * float(np.abs(logits - expected).mean()) / spread,
                }
            )
            write_json(kept, rows[-1])
            print(rows[-1], flush=True)
    return {"rows": rows}


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


def speed() -> dict[str, Any]:
    """Latency ratios to the float file, interleaved; the float file a second time is the noise check."""
    task = ImageClassification(data="digits", augment=())
    data = task.load(WORK, 0)
    cases = {}
    for name, size in (("resnet-8", 8), ("resnet-20", 32), ("mobilenetv2-0.35", 32)):
        spec = task.network_spec(name, {}, data, at="benchmark")
        spec = spec.model_copy(update={"contract": spec.contract.model_copy(update={"shape": (1, size, size)})})
        network = build_network(spec, stream(0, name))
        network.module.eval()
        x = numpy_stream(0, "speed").random((64, 1, size, size), dtype=np.float32)
        files = speed_files(network, x, name)
        cases[name] = {
            "side": size,
            "files": {kind: path.stat().st_size for kind, path in files.items()},
            "ratios": {it: ratios(it, files, x) for it in RUNTIMES},
        }
        print(name, json.dumps(cases[name]["ratios"], indent=1), flush=True)
    return {"windows": WINDOWS, "window_seconds": WINDOW_SECONDS, "cases": cases}


def speed_files(network: Network, x: npt.NDArray[np.float32], name: str) -> dict[str, Path]:
    """Beside the kinds: float16 arithmetic, weights as DequantizeLinear, and ONNX Runtime's dynamic quantization."""
    cpu = load_profile("cpu", at="benchmark")
    floating = as_float(network, cpu, name)
    files = {"float": floating, "float-again": floating}

    def keep(kind: str, content: bytes) -> None:
        files[kind] = WORK / f"{name}-{kind}.onnx"
        write_bytes(files[kind], content)

    for kind in KINDS:
        profile = load_profile("cpu", at="benchmark", scheme=kind)
        twin = frozen(network, profile, x)
        keep(kind, twin_file(twin, network.spec.contract, profile))
        if kind == "weights-only":
            keep("weights-only, DequantizeLinear", to_bytes(to_onnx(exportable(twin), network.spec.contract.shape, opset=19, static_batch=None)))
        if kind == "float16":
            half = profile.model_copy(update={"scheme": profile.scheme.model_copy(update={"arithmetic": "float16"})})
            keep("float16 arithmetic", twin_file(frozen(network, half, x), network.spec.contract, half))
    files["dynamic"] = dynamic(floating, WORK / f"{name}-dynamic.onnx")
    return files


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


def mixed() -> dict[str, Any]:
    """Networks that static int8 hurts; what keeps them near the float network on validation, judged on test."""
    task = ImageClassification(data="digits", augment=())
    data = task.load(WORK, 0)
    resnet = trained("digits", "resnet-8", {}, task, data, epochs=15)
    mobile = trained("digits", "mobilenetv2-0.1", {}, task, data, epochs=40)
    cpu = load_profile("cpu", at="benchmark")
    cases: dict[str, tuple[Network, Profile]] = {
        "resnet-8, one channel 3,000 times as large": (with_outlier(resnet, "body.layer2.0", 3000), cpu),
        "mobilenetv2-0.1, 4-bit weights": (mobile, changed(cpu, weight_bits=4)),
        "resnet-8, as the profile has it": (resnet, cpu),
        "mobilenetv2-0.1, as the profile has it": (mobile, cpu),
        "resnet-8, 3-bit weights": (resnet, changed(cpu, weight_bits=3)),
    }
    done: dict[str, Any] = {}
    for name, (network, profile) in cases.items():
        kept = WORK / f"{folder_name(name)}.json"
        if not kept.is_file():
            write_json(kept, searched(name, network, task, data, profile))
        done[name] = json.loads(kept.read_text())
        save("mixed", {"limit": LIMIT, "cases": done})
    return {"limit": LIMIT, "cases": done}


def folder_name(case: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in case)


def changed(profile: Profile, **scheme: Any) -> Profile:
    return profile.model_copy(update={"scheme": profile.scheme.model_copy(update=scheme)})


def searched(name: str, network: Network, task: ImageClassification, data: DataSplits, profile: Profile) -> dict[str, Any]:
    """The search by `[qat] keep_float = "auto"`, and the test accuracy of float, of the plain file and of the mixed one in each runtime."""
    print(name, flush=True)
    folder = WORK / folder_name(name)
    shutil.rmtree(folder, ignore_errors=True)
    start = save_network(network, folder / "network")
    inputs = Inputs({"prune": start, "teacher": start}, data, task, profile)
    context = Context(folder=folder / "qat", project=WORK, seed=0, threads=1, progress=Printing())
    began = time.process_time()
    made = qat.run(inputs, QatConfig(epochs=0, keep_float="auto", keep_float_drop=LIMIT), context)
    seconds = time.process_time() - began
    outcome = Outcome.model_validate_json((made / "quantization.json").read_bytes())
    found = outcome.mixed_precision
    assert found is not None
    x, labels = data.test.read(np.arange(len(data.test))), data.test.labels
    floating = np.concatenate([TorchPredictor(network.module)(x[k : k + 256]) for k in range(0, len(x), 256)])
    _, plain = post_training(network, profile, data)
    write_bytes(folder / "plain.onnx", plain)
    write_bytes(folder / "mixed.onnx", twin_file(load_network(made).module, network.spec.contract, profile))
    test, files = [], {"plain": folder / "plain.onnx", "mixed": folder / "mixed.onnx"}
    for kind, path in files.items():
        for runtime in RUNTIMES:
            with open_session(runtime, path) as session:
                test.append({"file": kind, "runtime": session.name, "size_bytes": path.stat().st_size, **figures(session(x), floating, None, labels)})
    timing = {it: ratios(it, {"float": as_float(network, profile, folder.name), **files}, x[:64]) for it in RUNTIMES}
    layers = sum(1 for row in found.sensitivities) or None
    return {
        "float_accuracy": 100 * float((floating.argmax(1) == labels).mean()),
        "layers": layers,
        "seconds_cpu": round(seconds, 1),
        "outcome": found.outcome,
        "float_layers": list(found.float_layers),
        "files_measured": len(found.trials),
        "sensitivities": [row.model_dump() for row in found.sensitivities[:6]],
        "test": test,
        "latency": timing,
    }


def trained(key: str, name: str, arguments: dict[str, Any], task: ImageClassification, data: DataSplits, *, epochs: int) -> Network:
    """The network, trained plainly; once."""
    folder = WORK / f"{key}-{name}"
    if not (folder / "network.json").is_file():
        network = build_network(task.network_spec(name, arguments, data, at="benchmark"), stream(0, key))
        context = Context(folder=WORK / f"{key}-{name}-training", project=WORK, seed=0, threads=1, progress=Printing())
        train(network, PLAIN, None, Inputs({}, data, task), TrainingConfig(epochs=epochs), context, label=key)
        save_network(network, folder)
    return load_network(folder)


def with_outlier(network: Network, block: str, factor: float) -> Network:
    """The same function: the strongest channel between the two convolutions of a block is `factor` times as large, the weights that take it as much smaller."""
    result = Network(network.spec, build_network(network.spec, stream(0, "copy")).module)
    result.module.load_state_dict(network.module.state_dict())
    result.module.eval()
    residual = result.module.get_submodule(block)
    with torch.no_grad():
        channel = int(residual.bn1.weight.abs().argmax())
        residual.bn1.weight[channel] *= factor
        residual.bn1.bias[channel] *= factor
        residual.conv2.weight[:, channel] /= factor
    return result


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


def as_float(network: Network, profile: Profile, name: str = "digits") -> Path:
    path = WORK / f"{name}-float.onnx"
    write_bytes(path, to_bytes(to_onnx(network.module, network.spec.contract.shape, opset=profile.opset, static_batch=None)))
    return path


def dynamic(floating: Path, path: Path) -> Path:
    """ONNX Runtime's own: DynamicQuantizeLinear with ConvInteger and MatMulInteger."""
    quantize_dynamic(str(floating), str(path), op_types_to_quantize=["Conv", "MatMul", "Gemm"], weight_type=QuantType.QUInt8)
    return path


PARTS: dict[str, Callable[[], dict[str, Any]]] = {"quality": quality, "arm": arm, "speed": speed, "mixed": mixed}

if __name__ == "__main__":
    raise SystemExit(main())
