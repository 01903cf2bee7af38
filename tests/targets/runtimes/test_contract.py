"""Every runtime and provider passes the contract; those that this machine has not say so, with exit code 4."""

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kdpipe.foundation.errors import UnavailableError
from kdpipe.targets.devices import agent
from kdpipe.targets.runtimes.contract import RULES, Subject, samples
from kdpipe.targets.runtimes.runtime import open_session, runtime_names

# the example of the documentation, as it stands there
OWN_RUNTIME = re.search(r"```python\n(.*?)```", (Path(__file__).parents[3] / "docs" / "runtimes.md").read_text(encoding="utf-8"), re.DOTALL).group(1)
OWN = "my_runtimes:interpreter"
THERE = [name for name in runtime_names() if name in agent.runtimes()]
MISSING = [name for name in runtime_names() if name not in THERE]


@pytest.fixture(scope="module", params=[*THERE, OWN])
def subject(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("contract")
    (folder / "my_runtimes.py").write_text(OWN_RUNTIME)
    sys.path.insert(0, str(folder))
    yield Subject(request.param, folder)
    sys.path.remove(str(folder))
    sys.modules.pop("my_runtimes", None)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_contract(rule, subject):
    rule(subject)


def test_both_runtimes_that_kdpipe_requires_are_among_those_tested():
    assert {"onnxruntime", "openvino"} <= set(THERE)


@pytest.mark.parametrize("runtime", MISSING)
def test_a_provider_that_is_not_here_is_unavailable_with_what_is_there_and_never_replaced_by_the_cpu(runtime, tmp_path):
    with pytest.raises(UnavailableError) as caught:
        open_session(runtime, Subject(runtime, tmp_path).file("float"))
    (problem,) = caught.value.problems
    assert caught.value.exit_code == 4
    if runtime.startswith("onnxruntime"):
        assert f"has no {agent.PROVIDERS[runtime]}, it has " in problem.message
        assert problem.message.endswith("CPUExecutionProvider")
    else:
        assert problem.message == f"OpenVINO finds no {agent.OPENVINO_DEVICES[runtime]} on this machine, it finds CPU"
    assert problem.at == str(tmp_path / "float.onnx")
    assert problem.do


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "more"), [("onnxruntime", 2), ("openvino", 1)])
def test_threads_are_threads_of_the_operating_system(runtime, more, tmp_path):
    """ONNX Runtime starts as many as asked beside the caller's; OpenVINO's pool at most one for each core, at least one for two."""
    file = Subject(runtime, tmp_path).file("float")
    inputs = tmp_path / "inputs.npy"
    np.save(inputs, samples(64))
    script = (
        "import os, sys, numpy; from pathlib import Path; from kdpipe.targets.runtimes.runtime import open_session\n"
        "session = open_session(sys.argv[1], Path(sys.argv[2]), threads=int(sys.argv[4]))\n"
        "for _ in range(20): session(numpy.load(sys.argv[3]))\n"
        "print(len(os.listdir('/proc/self/task')))"
    )
    counted = [
        int(subprocess.run([sys.executable, "-c", script, runtime, str(file), str(inputs), str(count)], capture_output=True, check=True, text=True).stdout)
        for count in (1, 1 + more)
    ]
    assert counted[1] - counted[0] == more


def test_every_rule_can_be_broken(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "bad_runtimes.py").write_text(BAD_RUNTIMES)
    monkeypatch.setattr("kdpipe.targets.runtimes.contract.time.process_time", lambda: 2 * time.perf_counter())  # two cores, whatever this machine has to spare
    passed = {}
    for name in ("changing", "shared"):
        for rule in RULES:
            try:
                rule(Subject(f"bad_runtimes:{name}", tmp_path))
            except Exception:  # whatever a broken runtime ends in
                continue
            passed.setdefault(rule.__name__, []).append(name)
    assert [rule for rule, names in passed.items() if len(names) == 2] == []


BAD_RUNTIMES = """
import itertools
import numpy as np

from kdpipe.targets.measurements import Explanation, NodePrecision

calls = itertools.count()


class Bad:
    name = "bad"

    def __init__(self, out):
        self.out = out

    def __call__(self, batch):
        answer = np.zeros((64, 5), np.float32) if self.out is None else self.out
        answer[:] = next(calls)
        return answer[: len(batch)]

    def close(self):
        pass

    def explain(self, example):
        node = NodePrecision(name="a", operator="Conv", precision="int8", share=0.5)
        return Explanation(runtime="good", nodes=(node,), int8_share=1.0)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return error[0] is KeyError


class BadRuntime:
    distribution = "numpy"

    def __init__(self, out):
        self.out = out

    def open(self, model, *, threads, hint):
        return Bad(self.out)


changing, shared = BadRuntime(None), BadRuntime(np.zeros((64, 5), np.float32))
"""
