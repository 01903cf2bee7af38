import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdpipe.targets.devices import agent
from kdpipe.targets.devices.agent import PROTOCOL, Meter

SOURCE = Path(agent.__file__)


def ask(command: str, request: object) -> tuple[int, list[dict], str]:
    answer = subprocess.run([sys.executable, str(SOURCE), command], input=json.dumps(request), capture_output=True, text=True, timeout=120, check=False)
    return answer.returncode, [json.loads(line) for line in answer.stdout.splitlines()], answer.stderr


def running(run) -> agent.Loaded:
    return agent.Loaded(run, None, "input", "tensor(float)", None, (), 1)


def test_the_agent_is_written_in_python_3_8():
    ast.parse(SOURCE.read_text(), feature_version=(3, 8))


def test_the_agent_needs_the_standard_library_numpy_and_its_runtime_alone():
    imported = set()
    for node in ast.walk(ast.parse(SOURCE.read_text())):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime", "openvino"}


def test_probe_tells_the_machine_in_one_line_and_ends():
    code, lines, _ = ask("probe", {})
    assert (code, [line["kind"] for line in lines]) == (0, ["facts", "done"])
    facts = lines[0]
    assert facts["protocol"] == PROTOCOL
    assert facts["cores"] == agent.usable_cores() >= 1
    assert facts["memory_bytes"] > 2**20
    assert set(facts["runtimes"]) >= {"python", "numpy", "onnxruntime", "openvino"}


@pytest.mark.parametrize(
    ("command", "request_", "said"),
    [("start", {"inputs": "/nowhere.npy"}, "FileNotFoundError"), ("dance", {}, "KeyError: 'dance'"), ("bench", {}, "KeyError: 'comparisons'")],
    ids=["no input file", "unknown command", "incomplete request"],
)
def test_what_goes_wrong_is_told_in_a_line_and_by_the_status(command, request_, said):
    code, lines, _ = ask(command, request_)
    assert code == 1
    assert lines[-1]["kind"] == "failure"
    assert said in lines[-1]["message"]


NOISY = """
import importlib.util, os, sys

spec = importlib.util.spec_from_file_location("agent", sys.argv[1])
agent = sys.modules["agent"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(agent)
quiet_facts = agent.facts

def facts():
    os.write(1, b"BANNER")  # as native code prints, past sys.stdout
    return quiet_facts()

agent.facts = facts
sys.argv = ["agent", "probe"]
sys.exit(agent.main())
"""


@pytest.mark.parametrize(
    ("name", "machine", "told"),
    [
        ("python3.11", "x86_64", None),
        ("python3.11", "riscv64", None),
        ("qemu-x86_64-static", "x86_64", "qemu-x86_64-static"),
        ("qemu-aarch64", "aarch64", "qemu-aarch64"),
        ("box64", "aarch64", "box64"),
    ],
    ids=["as it is", "a machine that we do not know", "the same architecture", "another", "an emulator that we do not know"],
)
def test_programs_that_are_emulated_are_known_by_what_the_kernel_runs(tmp_path, name, machine, told):
    program = tmp_path / name
    program.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00" + (62).to_bytes(2, "little"))  # of an x86-64 program
    (tmp_path / "exe").symlink_to(program)
    assert agent.emulator(str(tmp_path / "exe"), machine) == told
    assert agent.emulator(str(tmp_path / "none"), machine) is None
    assert agent.emulator() is None


_IMPORTED = """
import multiprocessing, sys
from kdpipe.targets.devices.agent import import_openvino
openvino = import_openvino()
print(openvino.__name__, len(multiprocessing.active_children()), [name for name in sys.modules if name.startswith("openvino_telemetry")])
"""


def test_openvino_is_imported_without_telling_its_makers():
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    done = subprocess.run([sys.executable, "-c", _IMPORTED], capture_output=True, text=True, env=environment, timeout=120, check=True)
    assert done.stdout == "openvino 0 []\n", done.stderr


def test_a_runtime_s_own_printing_does_not_reach_the_answers():
    answer = subprocess.run([sys.executable, "-c", NOISY, str(SOURCE)], input="{}", capture_output=True, text=True, timeout=60, check=False)
    assert [json.loads(line)["kind"] for line in answer.stdout.splitlines()] == ["facts", "done"]
    assert "BANNER" in answer.stderr


def test_bench_measures_every_model_in_equally_many_windows(files, samples, tmp_path):
    np.save(tmp_path / "inputs.npy", samples)
    models = [{"name": name, "path": str(files / f"{name}.onnx")} for name in ("u8", "float")]
    comparison = {"id": "c", "runtime": "onnxruntime", "threads": 1, "batch": 4, "hint": "latency", "inputs": str(tmp_path / "inputs.npy"), "models": models}
    request = {"comparisons": [comparison], "seconds": 0.05, "runs": 64, "windows": 5, "window_seconds": 0.005, "warmup_seconds": 0.5, "limit_seconds": 20}
    code, lines, _ = ask("bench", request)
    assert (code, [line["kind"] for line in lines]) == (0, ["hello", "elapsed", "windows", "windows", "comparison", "done"])
    windows = {line["model"]: line["ns"] for line in lines if line["kind"] == "windows"}
    assert len(windows["u8"]) == len(windows["float"]) >= 5
    for own in windows.values():
        assert sum(map(len, own)) >= 64
        assert all(isinstance(ns, int) and ns > 0 for window in own for ns in window)
    assert set(lines[4]["warm"]) == {"u8", "float"}


@pytest.mark.parametrize(("runtime", "has_one"), [("onnxruntime", False), ("openvino", True)])
def test_each_run_is_also_told_by_the_runtime_s_own_clock_where_it_has_one(runtime, has_one, files, samples, tmp_path):
    np.save(tmp_path / "inputs.npy", samples)
    models = [{"name": "float", "path": str(files / "float.onnx")}]
    comparison = {"id": "c", "runtime": runtime, "threads": 1, "batch": 4, "hint": "latency", "inputs": str(tmp_path / "inputs.npy"), "models": models}
    request = {"comparisons": [comparison], "seconds": 0.05, "runs": 64, "windows": 5, "window_seconds": 0.005, "warmup_seconds": 0.5, "limit_seconds": 20}
    _, lines, said = ask("bench", request)
    (told,) = [line for line in lines if line["kind"] == "windows"]
    assert ("inside_ns" in told) == has_one, said
    if has_one:
        pairs = [pair for ours, own in zip(told["ns"], told["inside_ns"], strict=True) for pair in zip(ours, own, strict=True)]
        assert all(0 < inside <= outside for outside, inside in pairs), "the call from Python is around it"


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_throughput_counts_the_runs_of_each_caller_and_says_what_the_machine_did(runtime, files, samples, tmp_path):
    np.save(tmp_path / "inputs.npy", samples)
    models = [{"name": name, "path": str(files / "float.onnx")} for name in ("a", "again")]
    comparison = {"id": "c", "runtime": runtime, "threads": 1, "batch": 4, "hint": "throughput", "inputs": str(tmp_path / "inputs.npy"), "models": models}
    comparison |= {"mode": "throughput", "streams": 3}
    request = {"comparisons": [comparison], "seconds": 0.05, "runs": 1, "windows": 4, "window_seconds": 0.02, "warmup_seconds": 0.1, "limit_seconds": 20}
    code, lines, said = ask("bench", request)
    assert (code, [line["kind"] for line in lines]) == (0, ["hello", "elapsed", "throughput", "throughput", "comparison", "done"]), said
    for line in lines[2:4]:
        assert len(line["windows"]) >= 4
        assert all(len(window) == 3 for window in line["windows"])
        assert all(runs >= 1 and ns >= 20_000_000 for window in line["windows"] for runs, ns in window)
    conditions = lines[4]["conditions"]
    assert set(conditions["cores"]) <= os.sched_getaffinity(0)
    assert conditions["seconds"] >= 0.05


def test_a_comparison_is_kept_on_as_many_cores_as_it_has_threads(files, samples, tmp_path):
    np.save(tmp_path / "inputs.npy", samples)
    models = [{"name": "float", "path": str(files / "float.onnx")}]
    comparison = {"id": "c", "runtime": "onnxruntime", "threads": 1, "batch": 1, "hint": "latency", "inputs": str(tmp_path / "inputs.npy"), "models": models}
    request = {"comparisons": [comparison] * 2, "seconds": 0.02, "runs": 1, "windows": 2, "window_seconds": 0.005, "warmup_seconds": 0.1, "limit_seconds": 20}
    code, lines, said = ask("bench", request)
    cores = [line["conditions"]["cores"] for line in lines if line["kind"] == "comparison"]
    assert code == 0, said
    assert cores[0] == cores[1]  # one choice for the whole process: a runtime keeps its threads where they were
    assert len(cores[0]) == 1


def test_a_window_gives_real_inputs_in_turn_and_does_not_count_its_first_run():
    seen = []
    meter = Meter("m", running(lambda batch: seen.append(int(batch[0]))), [np.array([index]) for index in range(3)], window_seconds=0.001)
    taken = meter.window()
    assert (len(taken), len(seen)) == (1, 2)
    meter.medians_ns[-1] = 1e6 / 4  # as if a run took a quarter of the window
    assert len(meter.window()) == 4
    assert seen == [0, 1, 2, 0, 1, 2, 0]
    assert meter.runs_total == 5


@pytest.mark.parametrize(("medians", "warm"), [([9, 5, 5], False), ([9, 5.0, 5.1, 5.2], True), ([9, 5, 5, 6], False), ([5, 5, 5], False)])
def test_warm_is_three_windows_in_a_row_within_five_per_cent_after_the_first(medians, warm):
    meter = Meter("m", running(lambda batch: batch), [np.zeros(1)], window_seconds=0.001)
    meter.medians_ns = list(medians)
    assert meter.warm() is warm


def test_batches_are_distinct_samples_and_wrap_around_a_small_split():
    samples = np.arange(10)
    assert [list(batch) for batch in agent._batches(samples, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert list(agent._batches(samples, 12)[0]) == [*range(10), 0, 1]


def test_the_cpu_is_named_from_the_kernel_s_text():
    assert agent._cpu_name("model name\t: AMD EPYC\ncpu family\t: 26\nmodel\t: 2\n") == "AMD EPYC (cpu family 26, model 2)"
    assert agent._flags("flags : b a\nflags : a\n") == ["a"]
