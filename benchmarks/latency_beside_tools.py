"""kdpipe's p50 beside two tools that know nothing of it: OpenVINO's benchmark_app, and a bare loop around the runtime.

    python benchmarks/latency_beside_tools.py [--rounds 24] [--seconds 1.5]

Each round measures the same file with each tool, each in a fresh process on the same core, in an order that rotates: one thread, one stream, batch 1,
float32, the same samples. A ratio is kdpipe's p50 over the tool's, averaged (in logs) over rounds, with Student's 95 % interval.
benchmark_app takes its times inside of OpenVINO and does not count the call from Python, which kdpipe and the bare loop count, as whoever uses the file does.
kdpipe records that inner clock beside its own (`p50_inside`): like with like is benchmark_app beside it. `resnet-8` takes 0.1 ms, `resnet-20-x2` a millisecond.
Leaves `benchmarks/results/figures/latency-beside-tools.json`.
"""

import argparse
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student
from sklearn.datasets import load_digits

from kdpipe.foundation.files import write_json
from kdpipe.foundation.onnx_file import to_bytes, to_onnx
from kdpipe.targets.devices.local import LocalDevice
from kdpipe.targets.devices.messages import BenchRequest, ComparisonRequest, ModelFile, Windows
from kdpipe.targets.latency import nearest_rank
from kdpipe.tasks.networks.resnet import resnet

RESULT = Path(__file__).parents[1] / "benchmarks" / "results" / "figures" / "latency-beside-tools.json"
NETWORKS: dict[str, dict[str, Any]] = {"resnet-8": {"depth": 8}, "resnet-20-x2": {"depth": 20, "width": 2.0}}
SEED = 5
OURS, APP, INSIDE = "kdpipe", "benchmark_app", "kdpipe, inside the runtime"

BARE = {
    "onnxruntime": """
import sys, time
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
run = lambda batch: session.run(None, {name: batch})
ready = np.asarray
""",
    "openvino": """
import sys, time
import numpy as np, openvino
settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
request = openvino.Core().compile_model(sys.argv[1], "CPU", settings).create_infer_request()
def run(batch):
    request.set_input_tensor(batch)
    request.infer()
ready = openvino.Tensor
""",
}
BARE["openvino, arrays"] = (
    BARE["openvino"]
    + """
run = lambda batch: request.infer([batch])
ready = np.asarray
"""
)
LOOP = """
batches = [ready(np.ascontiguousarray(sample[None])) for sample in np.load(sys.argv[2])]
end, runs = time.perf_counter() + 0.3, 0
while time.perf_counter() < end:
    run(batches[runs % len(batches)]); runs += 1
end, taken = time.perf_counter() + float(sys.argv[3]), []
while True:
    batch = batches[len(taken) % len(batches)]
    begin = time.perf_counter_ns()
    run(batch)
    after = time.perf_counter_ns()
    taken.append(after - begin)
    if after > end * 1e9:
        break
print(sorted(taken)[(len(taken) - 1) // 2] / 1e6)
"""


@dataclass(frozen=True)
class Case:
    """One file in one runtime."""

    model: Path
    inputs: Path
    runtime: str
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=1.5, help="measured time of each tool in a round")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})  # for all processes that are started from here
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row
            for network, settings in NETWORKS.items()
            for runtime in ("onnxruntime", "openvino")
            for row in _compared(network, runtime, _case(Path(folder), network, settings, runtime, arguments.seconds), arguments.rounds)
        ]
    device = LocalDevice().facts()
    machine = {"cpu": device.cpu, "runtimes": device.runtimes, "core": core}
    write_json(RESULT, {"command": "python benchmarks/latency_beside_tools.py", "machine": machine, "rows": rows})
    return 0


def _case(folder: Path, network: str, settings: dict[str, Any], runtime: str, seconds: float) -> Case:
    model, inputs = folder / f"{network}.onnx", folder / "inputs.npy"
    if not model.is_file():
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            made = resnet(in_channels=1, classes=10, image_size=32, **settings)
        model.write_bytes(to_bytes(to_onnx(made.eval(), (1, 32, 32), opset=19, static_batch=1)))
        np.save(inputs, np.kron(load_digits().images[:64].astype(np.float32)[:, None] / 16, np.ones((1, 1, 4, 4), np.float32)))
    return Case(model, inputs, runtime, seconds)


def _compared(network: str, runtime: str, case: Case, rounds: int) -> list[dict[str, Any]]:
    tools: list[Callable[[Case], dict[str, float]]] = [_kdpipe, _bare]
    if runtime == "openvino":
        tools += [_arrays, _benchmark_app]
    p50: dict[str, list[float]] = {}
    for number in range(rounds):
        shift = number % len(tools)
        for tool in tools[shift:] + tools[:shift]:
            for name, value in tool(case).items():
                p50.setdefault(name, []).append(value)
        print(network, runtime, {name: round(values[-1], 5) for name, values in p50.items()}, flush=True)
    ours = p50[OURS]
    rows = [
        {"tool": name, "against": OURS, "p50_ms": own, "against_p50_ms": ours, **_ratio(ours, own)} for name, own in p50.items() if name not in (OURS, INSIDE)
    ]
    if INSIDE in p50:
        rows.append({"tool": APP, "against": INSIDE, "p50_ms": p50[APP], "against_p50_ms": p50[INSIDE], **_ratio(p50[INSIDE], p50[APP])})
    return [{"network": network, "runtime": runtime, **row} for row in rows]


def _ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    logs = np.log(np.array(ours) / np.array(theirs))
    half = float(student.ppf(0.975, len(logs) - 1)) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    mean = float(logs.mean())
    microseconds = float(np.median(np.array(ours) - np.array(theirs))) * 1000
    return {"ratio": math.exp(mean), "low": math.exp(mean - half), "high": math.exp(mean + half), "difference_us": microseconds}


def _kdpipe(case: Case) -> dict[str, float]:
    models = (ModelFile(name="m", path=case.model),)
    comparison = ComparisonRequest(id="c", runtime=case.runtime, threads=1, batch=1, inputs=case.inputs, models=models)
    request = BenchRequest(comparisons=(comparison,), seconds=case.seconds, runs=64, warmup_seconds=1.0, limit_seconds=60)
    for message in LocalDevice().ask("bench", request, limit_seconds=120):
        if isinstance(message, Windows):
            inside = {} if message.inside is None else {INSIDE: nearest_rank(np.concatenate(message.inside), 50) / 1e6}
            return {OURS: nearest_rank(np.concatenate(message.arrays), 50) / 1e6, **inside}
    raise SystemExit("the agent gave no windows")


def _bare(case: Case) -> dict[str, float]:
    return {"bare loop": _looped(case, case.runtime)}


def _arrays(case: Case) -> dict[str, float]:
    return {"bare loop with arrays": _looped(case, "openvino, arrays")}


def _looped(case: Case, script: str) -> float:
    arguments = [case.model, case.inputs, str(case.seconds)]
    return float(subprocess.run([sys.executable, "-c", BARE[script] + LOOP, *arguments], check=True, capture_output=True, text=True).stdout)


def _benchmark_app(case: Case) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder) / "sample.npy"
        np.save(sample, np.load(case.inputs)[:1])
        options = [
            "-hint",
            "none",
            "-nstreams",
            "1",
            "-nthreads",
            "1",
            "-nireq",
            "1",
            "-api",
            "sync",
            "-infer_precision",
            "f32",
            "-t",
            str(math.ceil(case.seconds)),
        ]
        program = Path(sys.executable).with_name("benchmark_app")
        told = subprocess.run([program, "-m", case.model, "-d", "CPU", "-i", sample, *options], check=True, capture_output=True, text=True).stdout
    found = re.search(r"Median:\s+([\d.]+) (us|ms)", told)
    if found is None:
        raise SystemExit(f"benchmark_app told no median: {told[-500:]}")
    return {APP: float(found[1]) / (1000 if found[2] == "us" else 1)}


if __name__ == "__main__":
    sys.exit(main())
