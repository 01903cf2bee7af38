from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kdpipe.foundation.errors import ConfigError, Problem, UnavailableError
from kdpipe.pipeline.config import Config, assemble
from kdpipe.pipeline.planning import Plan, make_plan
from kdpipe.pipeline.store import Store
from kdpipe.pipeline.toml_source import parse_toml
from kdpipe.stages import prune
from kdpipe.targets.profile import Profile

HEAD = """\
[project]
name = "digits"
[task]
data = "digits"
"""
DEVICES = """\
[devices.old]
kind = "emulated"
cpu = "cortex-a72"
"""
Configured = Callable[..., Config]


@pytest.fixture
def configured(tiny: ModuleType, tmp_path: Path) -> Configured:
    """`configured("[prune]\\nspeedup = 2\\n…", targets=(…))`: the tiny project with the real prune stage."""

    def read(text: str, targets: tuple[str, ...] = ()) -> Config:
        return assemble(tmp_path, parse_toml(HEAD + text, "kdpipe.toml"), {**tiny.STAGES, "prune": prune}, targets)

    return read


@pytest.fixture
def planned(configured: Configured, tiny: ModuleType, tmp_path: Path) -> Callable[..., Plan]:
    def make(text: str, targets: tuple[str, ...] = ()) -> Plan:
        return make_plan(configured(text, targets), {**tiny.STAGES, "prune": prune}, Store(tmp_path), until="prune")

    return make


def _one(configured: Configured, text: str, targets: tuple[str, ...] = ()) -> Problem:
    with pytest.raises(ConfigError) as caught:
        configured(text, targets)
    (problem,) = caught.value.problems
    return problem


def _prune_step(plan: Plan) -> Any:
    return next(it for it in plan.steps if it.step.name == "prune")


@pytest.mark.parametrize("keys", ["speedup = 2\nmeasured_on = 'target'", "latency_ms = 0.1"], ids=["the only target", "latency_ms"])
def test_without_a_name_it_is_the_one_target_of_the_build(configured: Configured, keys: str) -> None:
    config = configured(f"[prune]\n{keys}\n[targets.cpu]\n")
    assert config.pruned_for is config.targets["cpu"]


def test_counting_multiply_accumulates_needs_no_target(configured: Configured) -> None:
    assert configured("[prune]\nspeedup = 2\n[targets.cpu]\n[targets.arm]\n").pruned_for is None


def test_a_named_target_is_the_same_whatever_the_build_is_for(configured: Configured) -> None:
    text = "[prune]\nspeedup = 2\nmeasured_on = 'cpu'\n[targets.cpu]\n[targets.arm]\n"
    alone, both = configured(text, ("arm",)).pruned_for, configured(text).pruned_for
    assert alone is not None
    assert both is not None
    assert (alone.name, alone.profile) == ("cpu", both.profile)


ARM = "[targets.cpu]\n[targets.arm]\n"


@pytest.mark.parametrize(
    ("text", "message", "line", "do"),
    [
        (
            f"[prune]\nspeedup = 2\nmeasured_on = 'target'\n{ARM}",
            "measured_on = 'target', and the build has 2 targets: cpu, arm",
            7,
            "name the one that the network is cut for, e.g. measured_on = 'cpu': the others share it; or build one of them by --target",
        ),
        (
            f"[prune]\nlatency_ms = 0.5\n{ARM}",
            "latency_ms without measured_on, and the build has 2 targets: cpu, arm",
            6,
            "name the one that the network is cut for, e.g. measured_on = 'cpu': the others share it; or build one of them by --target",
        ),
        ("[prune]\nspeedup = 2\nmeasured_on = 'cpuu'\n[targets.cpu]\n", "unknown target 'cpuu'", 7, "did you mean 'cpu'? targets: "),
        (
            f"[prune]\nspeedup = 2\nmeasured_on = 'old'\n{ARM}{DEVICES}",
            "unknown target 'old'",
            7,
            "it is a device: name the target that has it ([targets.NAME] device = 'old')",
        ),
        (
            "[prune]\nspeedup = 2\nmeasured_on = 'cpu'\n[targets.cpu]\nvariants = ['avx2', 'vnni']\n",
            "measured_on = 'cpu' stands for 2 variants",
            7,
            "name one: cpu-avx2, cpu-vnni",
        ),
        ("[prune]\nspeedup = 2\nlatency_ms = 1\n[targets.cpu]\n", "[prune]: give exactly one of speedup, channels and latency_ms", 5, None),
        ("[prune]\nchannels = 0.5\nmeasured_on = 'cpu'\n[targets.cpu]\n", "[prune]: measured_on goes with speedup or latency_ms", 5, None),
        ("[prune]\nlatency_ms = 0\n[targets.cpu]\n", "latency_ms = 0", 6, None),
        ("[prune]\nspeedup = 2\nmachine = 'x'\n[targets.cpu]\n", "unknown key 'machine' in [prune]", 7, None),
    ],
    ids=["several targets", "latency alone", "misspelt", "a device", "variants", "two goals", "channels", "out of range", "not a key"],
)
def test_each_mistake_says_what_where_and_what_to_do(configured: Configured, text: str, message: str, line: int, do: str | None) -> None:
    problem = _one(configured, text)
    assert problem.message.startswith(message)
    assert problem.at == f"kdpipe.toml:{line}"
    assert problem.do
    if do is not None:
        assert problem.do.startswith(do)


def test_an_emulated_device_is_refused_with_the_reason(configured: Configured) -> None:
    problem = _one(configured, f"[prune]\nlatency_ms = 1\n[targets.arm]\ndevice = 'old'\n{DEVICES}")
    assert problem.message.startswith("target 'arm' gives no latency to prune by: ")
    assert "emulated" in problem.message
    assert problem.at == "kdpipe.toml:6"
    assert problem.do == "name a target whose device is a real machine, or prune by speedup alone, which counts multiply-accumulates"


def test_a_target_without_device_that_this_host_is_not_stops_before_anything_is_trained(planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Profile, "measurable_here", lambda self: False)
    with pytest.raises(UnavailableError) as caught:
        planned("[prune]\nspeedup = 2\nmeasured_on = 'npu'\n[targets.npu]\n")
    problem = caught.value.problems[0]
    assert problem.message.startswith("[prune] is measured on target 'npu', which has no device: not measured: ")
    assert problem.at == "[prune] measured_on"
    assert problem.do == "give the target a device (kdpipe devices add, then [targets.npu] device), or prune by speedup alone"


def test_a_pruning_by_latency_holds_the_device_and_the_profile_in_its_fingerprint(planned: Callable[..., Plan]) -> None:
    step = _prune_step(planned("[prune]\nspeedup = 2\nmeasured_on = 'cpu'\n[targets.cpu]\n"))
    identity = step.step.identity
    assert identity["device"]["cpu"]
    assert identity["device"]["runtimes"]["onnxruntime"]
    assert identity["profile"]["name"] == "cpu"
    assert identity["config"]["measured_on"] == "cpu"
    assert step.step.target is None  # all targets share it
    assert (step.config.profile.name, step.config.machine) == ("cpu", None)


def test_another_way_to_choose_by_latency_repeats_prunings_by_latency_alone(planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    by_latency, by_count = "[prune]\nspeedup = 2\nmeasured_on = 'cpu'\n[targets.cpu]\n", "[prune]\nspeedup = 2\n[targets.cpu]\n"
    before = [_prune_step(planned(text)).step.fingerprint for text in (by_latency, by_count)]
    monkeypatch.setattr("kdpipe.pipeline.planning.LATENCY_PRUNING", 99)
    after = [_prune_step(planned(text)).step.fingerprint for text in (by_latency, by_count)]
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_the_same_target_by_name_or_as_the_only_one_is_the_same_step(planned: Callable[..., Plan]) -> None:
    by_name = _prune_step(planned("[prune]\nspeedup = 2\nmeasured_on = 'cpu'\n[targets.cpu]\n[targets.arm]\n"))
    only = _prune_step(planned("[prune]\nspeedup = 2\nmeasured_on = 'target'\n[targets.cpu]\n"))
    assert by_name.step.fingerprint == only.step.fingerprint


def test_a_pruning_by_multiply_accumulates_is_what_it_was(planned: Callable[..., Plan]) -> None:
    identity = _prune_step(planned("[prune]\nspeedup = 2\n[targets.cpu]\n")).step.identity
    assert set(identity) == {"stage", "version", "config", "inputs", "data", "task", "tools", "seed", "threads", "code"}
    assert not {"measured_on", "latency_ms", "profile", "machine"} & set(identity["config"])
