"""How often `kdpipe compare --latency` calls a file slower that is not, and how often it finds one that is 10 % slower.

    python benchmarks/latency_gate.py [--equal 200] [--slower 100] [--name latency-gate]

Each comparison is the gate as the command runs it, on files of three networks in two runtimes, in a drawn order. Equal: a file against a copy of itself.
Slower: against a file with a larger classifier head, whose size was tuned until the file takes 10 % longer; its true ratio, with its interval, is
measured apart from the comparisons, before the first and after the last. What else the machine did is kept with each comparison.
A run that was stopped goes on where it was (`benchmarks/.work/latency-gate`). Leaves `benchmarks/results/figures/NAME.json`;
another `--name` is another run, with the same files.
"""

import argparse
import itertools
import json
import math
import random
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import torch
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from sklearn.datasets import load_digits

from kdpipe.foundation.files import write_json
from kdpipe.foundation.onnx_file import to_bytes, to_onnx
from kdpipe.targets.devices.local import LocalDevice
from kdpipe.targets.latency_gate import Pair, gate, replicate
from kdpipe.tasks.networks.cnn import cnn
from kdpipe.tasks.networks.mobilenetv2 import mobilenetv2
from kdpipe.tasks.networks.resnet import resnet

ROOT = Path(__file__).parents[1]
WORK = ROOT / "benchmarks" / ".work" / "latency-gate"
RESULTS = ROOT / "benchmarks" / "results" / "figures"
SLOWDOWN = 0.10
TOLERATED = 0.004  # how far from SLOWDOWN the tuned file's ratio may lie
HEAD_LAYERS = 2
WIDEST_HEAD = 65536
TRUTH_PROCESSES = 40  # of each measurement of the true ratio
SEED = 5


@dataclass(frozen=True)
class Cell:
    """A file in a runtime."""

    network: str
    scheme: str
    runtime: str

    @property
    def name(self) -> str:
        """The start of its files' names."""
        return f"{self.network}-{self.scheme}-{self.runtime}"


CELLS = (
    Cell("cnn-small", "int8", "onnxruntime"),
    Cell("cnn-small", "int8", "openvino"),
    Cell("resnet-8", "int8", "onnxruntime"),
    Cell("resnet-8", "float", "openvino"),
    Cell("mobilenetv2-0.25", "float", "onnxruntime"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--equal", type=int, default=200, help="comparisons of equal files")
    parser.add_argument("--slower", type=int, default=100, help="comparisons with a file that is 10 %% slower")
    parser.add_argument("--name", default="latency-gate", help="of the run: its log and its result")
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), help="the files in this runtime alone")
    parser.add_argument("--most", type=int, help="stop after so many comparisons, and tell of them")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    cells = tuple(cell for cell in CELLS if arguments.runtime in (None, cell.runtime))
    for cell in cells:
        _prepared(cell)
    log = WORK / f"{arguments.name}.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    for kind, cell in list(_order(arguments.equal, arguments.slower, cells))[len(done) : arguments.most]:
        done.append(_outcome(kind, cell))
        with log.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
        print(f"{len(done)}: {kind} {cell.name}: {done[-1]['verdict']} {done[-1]['ratio']:.4f}, {done[-1]['seconds']:.1f} s", flush=True)
    after = WORK / f"{arguments.name}-after.json"
    if not after.is_file() and arguments.most is None:
        write_json(after, {cell.name: _truth(cell, WORK / f"{cell.name}-slower.onnx", TRUTH_PROCESSES) for cell in cells})
    command = f"python benchmarks/latency_gate.py --equal {arguments.equal} --slower {arguments.slower} --name {arguments.name}"
    command += f" --runtime {arguments.runtime}" if arguments.runtime else ""
    command += f" --most {arguments.most}" if arguments.most else ""
    write_json(RESULTS / f"{arguments.name}.json", {"command": command, **_summary(done, json.loads(after.read_text()) if after.is_file() else {}, cells)})
    return 0


def _order(equal: int, slower: int, cells: tuple[Cell, ...]) -> Iterator[tuple[str, Cell]]:
    """All comparisons, drawn; every cell equally often."""
    kinds = [("equal", cells[number % len(cells)]) for number in range(equal)] + [("slower", cells[number % len(cells)]) for number in range(slower)]
    random.Random(SEED).shuffle(kinds)
    yield from kinds


def _outcome(kind: str, cell: Cell) -> dict[str, Any]:
    new = WORK / f"{cell.name}-{'again' if kind == 'equal' else 'slower'}.onnx"
    before = psutil.cpu_times(), time.process_time(), psutil.Process().cpu_times()
    result = gate(LocalDevice(), _pair(cell, new))
    after, own = psutil.cpu_times(), psutil.Process().cpu_times()
    ours = sum(own[:4]) - sum(before[2][:4])  # user, system, and those of the finished children
    busy = sum(after) - after.idle - after.iowait - (sum(before[0]) - before[0].idle - before[0].iowait)
    return {
        "kind": kind,
        "cell": cell.name,
        **result.model_dump(mode="json", exclude={"slower_than", "confidence"}),
        "others_cores": round(max(0.0, busy - ours) / result.seconds, 2),
        "steal_share": round((after.steal - before[0].steal) / result.seconds, 4),
    }


def _pair(cell: Cell, new: Path) -> Pair:
    return Pair(old=WORK / f"{cell.name}.onnx", new=new, runtime=cell.runtime, inputs=WORK / f"{cell.network}.npy")


def _prepared(cell: Cell) -> None:
    """The cell's files: the network, its copy, and the one that is 10 % slower, tuned here."""
    truth = WORK / f"{cell.name}-truth.json"
    if truth.is_file():
        return
    base = WORK / f"{cell.name}.onnx"
    _write_network(cell, base)
    shutil.copy(base, WORK / f"{cell.name}-again.onnx")
    slower = WORK / f"{cell.name}-slower.onnx"
    width, ratio = _tuned(cell, base, slower)
    print(f"{cell.name}: head of {HEAD_LAYERS} layers, {width} wide, takes {ratio:.4f} times as long", flush=True)
    write_json(truth, {"head_width": width, **_truth(cell, slower, TRUTH_PROCESSES)})


def _write_network(cell: Cell, path: Path) -> None:
    side = 8 if cell.network == "cnn-small" else 28
    images = np.repeat(np.repeat(load_digits().images[:64].astype(np.float32)[:, None] / 16, 4, axis=2), 4, axis=3)[:, :, 2:30, 2:30]
    samples = np.ascontiguousarray(images if side == 28 else load_digits().images[:64].astype(np.float32)[:, None] / 16)
    np.save(WORK / f"{cell.network}.npy", samples)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        made = {
            "cnn-small": lambda: cnn(in_channels=1, classes=10, image_size=8, channels=[16, 16, 32, 32]),
            "resnet-8": lambda: resnet(in_channels=1, classes=10, image_size=28, depth=8),
            "mobilenetv2-0.25": lambda: mobilenetv2(in_channels=1, classes=10, image_size=28, width=0.25),
        }[cell.network]()
    path.write_bytes(to_bytes(to_onnx(made.eval(), samples.shape[1:], opset=19, static_batch=None)))
    if cell.scheme == "int8":
        floating = path.with_suffix(".float.onnx")
        path.rename(floating)
        quantize_static(floating, path, _Reader(samples), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8)


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, samples: np.ndarray) -> None:
        self.feeds = iter([{"input": sample[None]} for sample in samples[:16]])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def _tuned(cell: Cell, base: Path, slower: Path) -> tuple[int, float]:
    """The width of the head whose file takes 1 + SLOWDOWN times as long, by bisection on measured ratios; the nearest of all that were tried."""
    low, high = 1, WIDEST_HEAD
    tried: dict[int, float] = {}
    while high - low > 1 and len(tried) < 14:
        width = round(math.sqrt(low * high))
        if width in tried:
            break
        _write_slower(base, slower, width)
        tried[width] = _truth(cell, slower, 6)["ratio"]
        if abs(tried[width] - 1 - SLOWDOWN) < TOLERATED / 2:
            break
        low, high = (width, high) if tried[width] < 1 + SLOWDOWN else (low, width)
    best = min(tried, key=lambda width: abs(tried[width] - 1 - SLOWDOWN))
    _write_slower(base, slower, best)
    return best, tried[best]


def _write_slower(base: Path, path: Path, width: int) -> None:
    """`base` with HEAD_LAYERS linear layers of `width` behind its logits."""
    model = onnx.load(base)
    generator = np.random.default_rng(SEED)
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["trunk" if name == output else name for name in node.output]
    sides = [10, *[width] * (HEAD_LAYERS - 1), 10]
    source = "trunk"
    for number, (inner, outer) in enumerate(itertools.pairwise(sides)):
        weight = (generator.standard_normal((inner, outer)) / math.sqrt(inner)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, f"head{number}.weight"))
        target = output if number == HEAD_LAYERS - 1 else f"head{number}"
        model.graph.node.append(helper.make_node("MatMul", [source, f"head{number}.weight"], [target], name=f"head{number}"))
        source = target
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _truth(cell: Cell, new: Path, processes: int) -> dict[str, Any]:
    """The ratio of the medians over many fresh processes, with its 95 % interval."""
    figures = np.array([replicate(LocalDevice(), _pair(cell, new)).log_ratio for _ in range(processes)])
    half = 1.96 * figures.std(ddof=1) / math.sqrt(processes)
    return {
        "ratio": math.exp(figures.mean()),
        "low": math.exp(figures.mean() - half),
        "high": math.exp(figures.mean() + half),
        "process_sd": float(figures.std(ddof=1)),
        "processes": processes,
    }


def _summary(done: list[dict[str, Any]], after: dict[str, Any], cells: tuple[Cell, ...]) -> dict[str, Any]:
    device = LocalDevice().facts()
    return {
        "machine": {"cpu": device.cpu, "cores": device.cores, "runtimes": device.runtimes},
        "false_alarms": sum(it["kind"] == "equal" and it["verdict"] == "regression" for it in done),
        "equal": sum(it["kind"] == "equal" for it in done),
        "found": sum(it["kind"] == "slower" and it["verdict"] == "regression" for it in done),
        "slower": sum(it["kind"] == "slower" for it in done),
        "could_not_tell": sum(it["verdict"] == "could not tell" for it in done),
        "true_ratios": {cell.name: {"before": json.loads((WORK / f"{cell.name}-truth.json").read_text()), "after": after.get(cell.name)} for cell in cells},
        "comparisons": done,
    }


if __name__ == "__main__":
    sys.exit(main())
