import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from kdpipe.foundation.errors import UnavailableError
from kdpipe.targets.devices import agent
from kdpipe.targets.devices.local import LocalDevice
from kdpipe.targets.devices.messages import BenchRequest, ComparisonRequest, Facts, ModelFile, StartRequest, Windows
from kdpipe.targets.instruction_sets import probe


@pytest.fixture
def inputs(tmp_path, samples):
    path = tmp_path / "inputs.npy"
    np.save(path, samples)
    return path


@pytest.fixture
def request_of(files, inputs):
    def make(seconds: float = 0.05, runtime: str = "onnxruntime", name: str = "u8.onnx") -> BenchRequest:
        model = ModelFile(name="int8", path=files / name)
        comparison = ComparisonRequest(id="c", runtime=runtime, threads=1, batch=1, inputs=inputs, models=(model,))
        return BenchRequest(comparisons=(comparison,), seconds=seconds, runs=11, windows=3, warmup_seconds=0.2, limit_seconds=max(5.0, seconds))

    return make


@pytest.fixture
def replaced_agent(tmp_path, monkeypatch):
    """The device runs this program in the agent's place."""

    def replace(source: str) -> LocalDevice:
        path = tmp_path / "agent.py"
        path.write_text(source)
        monkeypatch.setattr(agent, "__file__", str(path))
        return LocalDevice()

    return replace


def the_problem(caught):
    (problem,) = caught.value.problems
    assert caught.value.exit_code == 4
    assert problem.at == "device host"
    assert problem.do == "close other programs, or measure fewer models or for less time ([bench] seconds)"
    return problem


def test_the_facts_are_those_of_this_machine():
    facts = LocalDevice().facts()
    assert frozenset(facts.instruction_sets) == probe()
    assert facts.memory_bytes == psutil.virtual_memory().total
    assert facts.cores == len(psutil.Process().cpu_affinity())
    assert facts.runtimes["onnxruntime"] == __import__("onnxruntime").__version__


def test_the_identity_stays_the_same_when_clock_and_temperature_change(monkeypatch):
    before = LocalDevice().identity()
    monkeypatch.setattr(agent, "clock_mhz", lambda: 1.0)
    monkeypatch.setattr(agent, "temperature_celsius", lambda: 99.0)
    assert LocalDevice().identity() == before
    json.dumps(before)
    assert set(before) == {"name", "cpu", "architecture", "instruction_sets", "cores", "runtimes"}


def test_the_agent_answers_from_a_process_of_its_own(request_of):
    messages = list(LocalDevice().ask("bench", request_of(), limit_seconds=60))
    assert [message.kind for message in messages] == ["hello", "elapsed", "windows", "comparison"]
    assert isinstance(messages[2], Windows)
    assert sum(map(len, messages[2].ns)) >= 11
    (facts,) = LocalDevice().ask("probe", limit_seconds=60)
    assert isinstance(facts, Facts)


def test_a_file_that_does_not_load_is_told_with_the_runtime_s_words(request_of, files, inputs, tmp_path):
    (files.parent / "none").mkdir(exist_ok=True)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    request = StartRequest(runtime="onnxruntime", model=broken, threads=1, batch=1, inputs=inputs)
    with pytest.raises(UnavailableError) as caught:
        list(LocalDevice().ask("start", request, limit_seconds=60))
    assert "the device could not run it: " in str(caught.value)
    assert "broken.onnx" in str(caught.value)


def test_a_measurement_that_takes_too_long_is_ended(request_of):
    with pytest.raises(UnavailableError) as caught:
        list(LocalDevice().ask("bench", request_of(seconds=60), limit_seconds=1.5))
    assert the_problem(caught).message.startswith("the measuring process was not done within 1.5 s")


def test_a_process_that_dies_is_told_with_its_last_words(replaced_agent):
    device = replaced_agent("import sys\nsys.exit('out of memory')")
    with pytest.raises(UnavailableError) as caught:
        list(device.ask("probe", limit_seconds=30))
    assert the_problem(caught).message == "the measuring process ended early with status 1: out of memory"


def test_a_process_that_is_killed_is_told_by_its_status(replaced_agent):
    device = replaced_agent("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(UnavailableError) as caught:
        list(device.ask("probe", limit_seconds=30))
    assert the_problem(caught).message == "the measuring process ended early with status -9"


def test_answers_that_are_no_json_are_refused(replaced_agent):
    with pytest.raises(UnavailableError, match="not valid"):
        list(replaced_agent("print('hello')").ask("probe", limit_seconds=30))


SAYS_ITS_PID = """
import json, os, time

print(json.dumps({"kind": "hello", "protocol": 2, "runtimes": {"pid": str(os.getpid())}}), flush=True)
time.sleep(60)
"""


def test_whoever_stops_reading_ends_the_process(replaced_agent):
    device = replaced_agent(SAYS_ITS_PID)
    messages = device.ask("probe", limit_seconds=60)
    pid = int(next(messages).runtimes["pid"])
    assert psutil.pid_exists(pid)
    messages.close()
    assert not psutil.pid_exists(pid)


def test_the_agent_is_one_file_that_runs_from_anywhere(tmp_path):
    copy = tmp_path / "copied.py"
    copy.write_bytes(Path(agent.__file__).read_bytes())
    answer = subprocess.run([sys.executable, "-I", str(copy), "probe"], input="{}", capture_output=True, text=True, timeout=60, check=False)
    assert (answer.returncode, answer.stderr) == (0, "")
