"""What weights alone, float16 and mixed precision give and cost beside static int8; and why ONNX Runtime's dynamic quantization is not offered.

    python benchmarks/schemes.py quality                     digits, resnet-8: size, accuracy, agreement of each kind of file in each runtime
    python benchmarks/schemes.py speed                       latency of each kind of file against float, batch 1, one thread: three networks, two runtimes
    python benchmarks/schemes.py arm                         the same files on emulated Cortex-A72 and A76: agreement with the twin
    python benchmarks/schemes.py mixed                       digits, CIFAR-10: the layers that have to stay in float, where any has to
    python benchmarks/schemes.py tuned                       digits, weights of few bits: what the search finds after fine-tuning

Each leaves its part of `benchmarks/results/figures/schemes.json`, of which `schemes_section.py` makes the section of docs/results.md. Networks are trained
once, in `benchmarks/.work/schemes`, where finished cases of `mixed` and `arm` are kept as well. Run `speed` on a quiet machine.
"""

import argparse
import json
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import numpy.typing as npt
import torch
from schemes_files import ROOT, RUNTIMES, WINDOW_SECONDS, WINDOWS, WORK, as_float, changed, dynamic, figures, frozen, post_training, ratios, trained
from schemes_mixed import mixed
from schemes_tuned import tuned

from kdpipe.foundation.files import write_bytes, write_json
from kdpipe.foundation.networks import Network, build_network
from kdpipe.foundation.onnx_file import to_bytes, to_onnx
from kdpipe.foundation.predictor import TorchPredictor
from kdpipe.foundation.quantization.qdq import exportable
from kdpipe.foundation.randomness import numpy_stream, stream
from kdpipe.pipeline.doctor import diagnose
from kdpipe.robustness.intervals import wilson
from kdpipe.stages.twin_file import twin_file
from kdpipe.targets.devices.emulated import Emulated
from kdpipe.targets.devices.messages import PredictRequest
from kdpipe.targets.profile import load_profile
from kdpipe.targets.runtimes.runtime import open_session
from kdpipe.tasks.image_classification import ImageClassification

RESULT = ROOT / "benchmarks" / "results" / "figures" / "schemes.json"
ARM_SAMPLES = 100
KINDS = ("static-int8", "weights-only", "float16")


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
    network = trained("digits", "resnet-8", task, data, epochs=15)
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
    """Each kind of file in ONNX Runtime's ARM build, emulated: whether the chip's kernels say what the twin says. No latency."""
    task = ImageClassification(data="digits", augment=())
    data = task.load(WORK, 0)
    network = trained("digits", "resnet-8", task, data, epochs=15)
    x = data.test.read(np.arange(ARM_SAMPLES))
    rows = []
    for kind, arithmetic in (("static-int8", None), ("weights-only", None), ("float16", None), ("float16", "float16")):
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


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "quality": quality,
    "arm": arm,
    "speed": speed,
    "mixed": partial(mixed, partial(save, "mixed")),
    "tuned": partial(tuned, partial(save, "tuned")),
}

if __name__ == "__main__":
    raise SystemExit(main())
