import pytest

from kdpipe.foundation.errors import UnavailableError
from kdpipe.targets.devices.device import changed, device_facts, identity_of, require_runtime_there
from kdpipe.targets.devices.messages import Facts

TOLD = Facts(
    kind="facts",
    protocol=2,
    system="Linux",
    cpu="Cortex-A76",
    architecture="aarch64",
    flags=("fp", "asimd", "asimddp"),
    cores=4,
    governor="ondemand",
    clock_mhz=2400.0,
    temperature_celsius=50.0,
    memory_bytes=8_000_000_000,
    runtimes={"python": "3.11.2", "onnxruntime": "1.22.0"},
)


def test_a_board_s_flags_get_our_names():
    facts = device_facts("pi", "ssh", TOLD)
    assert facts.instruction_sets == ("aarch64", "asimd", "asimddp")
    assert (facts.name, facts.kind, facts.temperature_celsius) == ("pi", "ssh", 50.0)
    assert set(identity_of(facts)) == {"name", "cpu", "architecture", "instruction_sets", "cores", "runtimes"}


def test_what_changed_is_told_in_words():
    before = identity_of(device_facts("pi", "ssh", TOLD))
    after = identity_of(device_facts("pi", "ssh", TOLD.model_copy(update={"cores": 2, "flags": ("asimd", "i8mm"), "runtimes": {"python": "3.12.1"}})))
    assert changed(before, before) == ()
    assert changed(before, after) == ("instruction_sets: -asimddp, +i8mm", "cores 4 → 2", "onnxruntime 1.22.0 → none", "python 3.11.2 → 3.12.1")


@pytest.mark.parametrize(
    ("runtime", "versions", "message", "do"),
    [
        ("openvino", "", "the runtime openvino is not installed on device pi", "install it there, in its Python 3.11.2: python -m pip install 'openvino'"),
        (
            "onnxruntime",
            ">=1.23",
            "device pi has onnxruntime 1.22.0, >=1.23 is needed",
            "install it there, in its Python 3.11.2: python -m pip install 'onnxruntime>=1.23'",
        ),
        (
            "onnxruntime-xnnpack",
            ">=1.22",
            "device pi cannot run onnxruntime-xnnpack: its onnxruntime 1.22.0 has onnxruntime",
            "use an onnxruntime built with --use_xnnpack (PyPI's wheels are not), or the runtime onnxruntime",
        ),
        ("mine:Run", "", "the runtime mine:Run is your own: it runs on this host only", "measure in a runtime that ships: onnxruntime, openvino"),
    ],
    ids=["missing", "another version", "without the provider", "the user's own"],
)
def test_a_runtime_that_the_device_has_not_is_told(runtime, versions, message, do):
    facts = device_facts("pi", "ssh", TOLD)
    assert require_runtime_there(facts, "onnxruntime", ">=1.22", at="profile arm") == "1.22.0"
    with pytest.raises(UnavailableError) as caught:
        require_runtime_there(facts, runtime, versions, at="profile arm")
    (problem,) = caught.value.problems
    assert (caught.value.exit_code, problem.message, problem.at, problem.do) == (4, message, "profile arm", do)
