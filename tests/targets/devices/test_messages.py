import json

import pytest

from kdpipe.foundation.errors import UnavailableError
from kdpipe.targets.devices.agent import PROTOCOL
from kdpipe.targets.devices.messages import Done, Windows, parsed

WINDOWS = {"kind": "windows", "comparison": "c", "model": "int8", "ns": [[1, 2], [3]]}
FACTS = {
    "kind": "facts",
    "protocol": PROTOCOL,
    "system": "Linux",
    "cpu": "Cortex-A72",
    "architecture": "aarch64",
    "flags": ["asimd"],
    "cores": 4,
    "governor": None,
    "clock_mhz": 1500.0,
    "temperature_celsius": None,
    "memory_bytes": 4 << 30,
    "runtimes": {"python": "3.11.2"},
}


def the_problem(line: str):
    with pytest.raises(UnavailableError) as caught:
        parsed(line, device="pi")
    (problem,) = caught.value.problems
    assert caught.value.exit_code == 4
    assert problem.at == "device pi"
    return problem


def test_a_line_becomes_its_message():
    assert parsed(json.dumps(WINDOWS), device="pi") == Windows(kind="windows", comparison="c", model="int8", ns=((1, 2), (3,)))
    assert parsed('{"kind": "done"}', device="pi") == Done(kind="done")


def test_the_runtime_s_own_clock_tells_of_the_same_runs():
    told = parsed(json.dumps({**WINDOWS, "inside_ns": [[1, 1], [2]]}), device="pi")
    assert [window.tolist() for window in told.inside] == [[1, 1], [2]]
    assert parsed(json.dumps(WINDOWS), device="pi").inside is None
    assert "inside_ns has other windows than ns" in the_problem(json.dumps({**WINDOWS, "inside_ns": [[1, 1]]})).message


@pytest.mark.parametrize(
    "line",
    [
        "Segmentation fault",
        "[]",
        '{"kind": "greeting"}',
        json.dumps({**WINDOWS, "ns": [[1, -2]]}),
        json.dumps({**WINDOWS, "ns": [[]]}),
        json.dumps({**WINDOWS, "ns": []}),
        json.dumps({**WINDOWS, "more": 1}),
        '{"kind": "start", "load_ns": 1, "first_inference_ns": NaN, "peak_memory_bytes": 1}',
        json.dumps({**WINDOWS, "ns": [[10**30]]}),
        json.dumps({**FACTS, "clock_mhz": float("nan")}),
        json.dumps({**FACTS, "memory_bytes": 10**400}),
        json.dumps({**FACTS, "cpu": "x" * 1000}),
        json.dumps({**FACTS, "runtimes": {str(number): "1" for number in range(1000)}}),
        "[" * 100_000,
    ],
    ids=[
        *("no json", "no object", "unknown kind", "time below 0", "empty window", "no window", "unknown key", "nan"),
        *("a time past all clocks", "nan as a clock", "memory past all numbers", "a name without end", "runtimes without end", "brackets without end"),
    ],
)
def test_an_answer_that_is_not_valid_is_refused(line):
    problem = the_problem(line)
    assert problem.message.startswith("the device's answer is not valid (")
    assert problem.do == "run it again; if it stays, the agent there is damaged"


def test_a_device_s_words_do_not_steer_a_terminal():
    facts = parsed(json.dumps({**FACTS, "cpu": "Cortex\x1b[2J\n\x07A72", "runtimes": {"python": "3\x1b]0;x"}}), device="pi")
    assert (facts.cpu, facts.runtimes) == ("Cortex [2J  A72", {"python": "3 ]0;x"})
    problem = the_problem(json.dumps({"kind": "failure", "message": "Error:\x1b[31m\nno"}))
    assert problem.message == "the device could not run it: Error: [31m no"


def test_a_long_answer_is_not_repeated_whole():
    assert len(the_problem("x" * 10_000).message) < 400


def test_another_protocol_is_told_with_both_numbers():
    problem = the_problem(json.dumps({"kind": "hello", "protocol": PROTOCOL + 1, "runtimes": {}}))
    assert problem.message == f"the agent speaks protocol {PROTOCOL + 1}, this kdpipe speaks {PROTOCOL}"
    assert problem.do == "use the same kdpipe on both sides"


def test_a_failure_there_is_an_unavailable_device_here():
    problem = the_problem('{"kind": "failure", "message": "ImportError: no onnxruntime"}')
    assert problem.message == "the device could not run it: ImportError: no onnxruntime"
    assert problem.do == "check that the runtime is installed there and that the file loads in it"
