from pathlib import Path

import numpy as np
import pytest

from kdpipe.foundation.errors import UnavailableError
from kdpipe.targets import clock_watch
from kdpipe.targets.clock_watch import require_all, watched
from kdpipe.targets.devices import agent
from kdpipe.targets.devices.local import LocalDevice
from kdpipe.targets.devices.messages import BenchRequest, ComparisonRequest, Elapsed, Hello, ModelFile, Windows

HELLO = Hello(kind="hello", protocol=2, runtimes={})


def windows(*ns: int) -> Windows:
    return Windows(kind="windows", comparison="c", model="int8", ns=(ns,))


def the_problem(messages):
    with pytest.raises(UnavailableError) as caught:
        list(watched(messages, device="pi"))
    (problem,) = caught.value.problems
    assert (caught.value.exit_code, problem.at) == (4, "device pi")
    return problem


def test_messages_of_a_clock_that_runs_as_ours_pass(monkeypatch):
    messages = [HELLO, Elapsed(kind="elapsed", ns=1000), windows(400, 600)]
    assert list(watched(messages, device="pi")) == messages


@pytest.mark.parametrize("hours", [1, -1], ids=["forward", "back"])
def test_a_clock_that_jumped_gives_no_number(monkeypatch, hours):
    ours = iter([0.0, 0.0, 3610.0 if hours < 0 else 10.0])
    monkeypatch.setattr(clock_watch.time, "monotonic", lambda: next(ours))
    there = 3610 if hours > 0 else 10
    problem = the_problem([HELLO, Elapsed(kind="elapsed", ns=there * 10**9), windows(5)])
    assert problem.message == f"the device's clock jumped while measuring: {there}.0 s passed there, {3620 - there}.0 s here"
    assert problem.do == "let its time service settle (timedatectl), keep it from sleeping, then measure again; nothing of this run is used"


def test_runs_longer_than_all_of_it_are_not_believed():
    problem = the_problem([HELLO, Elapsed(kind="elapsed", ns=10**9), windows(6 * 10**8), windows(6 * 10**8)])
    assert problem.message == "the device's times cannot be: 1.2 s of runs in 1.0 s of measuring"
    assert problem.do == "its clock is wrong or its agent is damaged: check both, then measure again"


def test_times_without_a_clock_are_not_believed():
    assert the_problem([HELLO, windows(5)]).message.startswith("the device's times cannot be: 0.0 s of runs in 0.0 s")


def test_a_clock_that_jumps_inside_the_agent_is_noticed(files, samples, tmp_path, monkeypatch):
    source = Path(agent.__file__).read_text()
    jumping = source.replace("ns=time.perf_counter_ns() - told", "ns=time.perf_counter_ns() + 3600 * 10**9 - told")
    assert jumping != source
    (tmp_path / "agent.py").write_text(jumping)
    monkeypatch.setattr(agent, "__file__", str(tmp_path / "agent.py"))
    np.save(tmp_path / "inputs.npy", samples)
    model = ModelFile(name="int8", path=files / "u8.onnx")
    comparison = ComparisonRequest(id="c", runtime="onnxruntime", threads=1, batch=1, inputs=tmp_path / "inputs.npy", models=(model,))
    request = BenchRequest(comparisons=(comparison,), seconds=0.05, runs=11, windows=3, warmup_seconds=0.2, limit_seconds=5)
    problem = the_problem(LocalDevice().ask("bench", request, limit_seconds=60))
    assert problem.message.startswith("the device's clock jumped while measuring: 360")


@pytest.mark.parametrize(
    ("windows", "told"),
    [({"int8": [1, 2]}, "int8 2, float 0"), ({"int8": [1, 2], "float": [1]}, "int8 2, float 1"), ({}, "int8 0, float 0")],
    ids=["a model is missing", "of one fewer windows", "none at all"],
)
def test_models_that_were_not_measured_in_turn_give_no_figures(windows, told):
    with pytest.raises(UnavailableError) as caught:
        require_all(windows, ("int8", "float"), device="pi")
    (problem,) = caught.value.problems
    assert problem.message == f"the device did not measure its models in turn: windows of {told}"
    assert (problem.at, problem.do) == ("device pi", "run it again; if it stays, the agent there is damaged")
    require_all({"int8": [1], "float": [2]}, ("int8", "float"), device="pi")
