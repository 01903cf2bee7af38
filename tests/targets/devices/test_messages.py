import json

import pytest

from kdpipe.foundation.errors import UnavailableError
from kdpipe.targets.devices.agent import PROTOCOL
from kdpipe.targets.devices.messages import Done, Windows, parsed

WINDOWS = {"kind": "windows", "comparison": "c", "model": "int8", "ns": [[1, 2], [3]]}


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
    ],
    ids=["no json", "no object", "unknown kind", "time below 0", "empty window", "no window", "unknown key", "nan"],
)
def test_an_answer_that_is_not_valid_is_refused(line):
    problem = the_problem(line)
    assert problem.message.startswith("the device's answer is not valid (")
    assert problem.do == "run it again; if it stays, the agent there is damaged"


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
