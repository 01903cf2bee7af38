from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kdpipe.foundation.errors import UnavailableError
from kdpipe.pipeline.device_records import Seen, keep
from kdpipe.pipeline.planning import make_plan
from kdpipe.pipeline.store import Store
from kdpipe.pipeline.variant_choice import settled
from kdpipe.targets.devices.emulated import EmulatedDevice
from kdpipe.targets.instruction_sets import probe
from kdpipe.targets.measurements import DeviceFacts

AVX2 = ("avx2", "x86-64")
VNNI = ("avx-vnni", "avx2", "vnni", "x86-64")


def _facts(sets: tuple[str, ...]) -> DeviceFacts:
    return DeviceFacts(
        name="board", kind="emulated", cpu="A CPU", architecture="x86_64", instruction_sets=sets, cores=1, memory_bytes=1, runtimes={"onnxruntime": "1.32.0"}
    )


@pytest.fixture
def auto(project: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tiny project with an emulated device that its one target follows; called with what the device is to say, or None where it must not be asked."""
    text = (project / "kdpipe.toml").read_text()
    target = "[targets.cpu]\nvariant = 'auto'\ndevice = 'board'\n[devices.board]\nkind = 'emulated'\ncpu = 'Haswell'\n"
    (project / "kdpipe.toml").write_text(text.replace("[targets.cpu]\n", target))

    def saying(sets: tuple[str, ...] | None) -> Path:
        def facts(self: EmulatedDevice) -> DeviceFacts:
            return _facts(sets) if sets else pytest.fail("asked for nothing")

        monkeypatch.setattr(EmulatedDevice, "facts", facts)
        return project

    return saying


@pytest.mark.parametrize(("sets", "variant", "bits"), [(AVX2, "avx2", 7), (VNNI, "vnni", 8)], ids=["without VNNI", "with AVX-VNNI"])
def test_the_scheme_follows_the_device_and_never_this_host(auto: Any, tiny: ModuleType, sets: tuple[str, ...], variant: str, bits: int) -> None:
    made = tiny.plan_of(auto(sets))
    (choice,) = made.variants
    assert (choice.target, choice.variant, choice.device) == ("cpu", variant, "board")
    assert choice.told.startswith(f"target cpu: variant {variant}, because on device board: this CPU has ")
    assert made.config.targets["cpu"].profile.chosen_scheme.weight_bits == bits
    assert made.config.resolved["targets"]["cpu"]["profile"]["variant"] == ("default" if variant == "avx2" else "vnni")
    assert made.seen["board"].facts.instruction_sets == sets  # recorded by the build


def test_a_plan_is_that_of_the_variant_written_out(auto: Any, tiny: ModuleType) -> None:
    project = auto(VNNI)
    by_device = {it.step.name: it.step.fingerprint for it in tiny.plan_of(project).steps}
    text = (project / "kdpipe.toml").read_text()
    (project / "kdpipe.toml").write_text(text.replace("variant = 'auto'", "variant = 'vnni'"))
    assert {it.step.name: it.step.fingerprint for it in tiny.plan_of(project).steps} == by_device


def test_a_device_that_was_reached_before_is_not_asked_again_for_its_variant(auto: Any, tiny: ModuleType) -> None:
    project = auto(VNNI)
    config = tiny.config_of(project)
    keep(project, "board", config.devices["board"], _facts(VNNI))
    auto(None)
    settled_config, (choice,) = settled(config, {})
    assert (choice.variant, settled_config.targets["cpu"].profile.variant) == ("vnni", "vnni")
    assert make_plan(config, tiny.STAGES, Store(project), until="qat").config.targets["cpu"].variant == "vnni"


def test_a_device_that_turns_out_to_be_another_changes_the_variant_in_the_same_plan(auto: Any, tiny: ModuleType) -> None:
    project = auto(AVX2)
    config = tiny.config_of(project)
    keep(project, "board", config.devices["board"], _facts(VNNI))
    made = tiny.plan_of(project)  # the bench has to run, and so reaches it
    assert made.variants[0].variant == "avx2"
    assert made.config.targets["cpu"].profile.variant == "default"
    assert made.seen["board"].changes == ("instruction_sets: -avx-vnni, -vnni",)


def test_a_device_of_which_nothing_is_known_and_that_is_not_there_stops_the_plan(auto: Any, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    project = auto(AVX2)

    def facts(self: EmulatedDevice) -> DeviceFacts:
        raise UnavailableError("qemu is not installed", at="device board", do="install it")

    monkeypatch.setattr(EmulatedDevice, "facts", facts)
    with pytest.raises(UnavailableError) as caught:
        tiny.plan_of(project, until="qat")
    (problem,) = caught.value.problems
    assert (problem.message, problem.at, problem.do) == ("qemu is not installed", "device board", "install it")


def test_this_host_decides_where_it_is_named_as_the_device(project: Path, tiny: ModuleType) -> None:
    text = (project / "kdpipe.toml").read_text()
    (project / "kdpipe.toml").write_text(text.replace("[targets.cpu]\n", "[targets.cpu]\nvariant = 'auto'\ndevice = 'here'\n[devices.here]\nkind = 'local'\n"))
    (choice,) = settled(tiny.config_of(project), {})[1]
    assert choice.variant == ("vnni" if {"vnni", "avx2"} <= probe() else "avx2")


def test_what_was_seen_counts_before_what_was_recorded(auto: Any, tiny: ModuleType) -> None:
    project = auto(None)
    config = tiny.config_of(project)
    keep(project, "board", config.devices["board"], _facts(VNNI))
    assert settled(config, {"board": Seen(_facts(AVX2), ())})[1][0].variant == "avx2"
