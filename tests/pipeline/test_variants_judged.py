"""A variant on a machine that it is not for: its accuracy there is no evidence, and what is evidence is said."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kdpipe.foundation.files import write_json
from kdpipe.pipeline.budgets import Budgets, check_budgets
from kdpipe.pipeline.report.gaps import gaps
from kdpipe.pipeline.report.render import render
from kdpipe.pipeline.results import read_results
from kdpipe.pipeline.steps import BuildResult
from kdpipe.pipeline.table import summary_rows, table_of
from kdpipe.stages.device_quality import DeviceQuality
from kdpipe.targets.measurements import DeviceFacts
from kdpipe.targets.profile import load_profile

AVX2, VNNI = ["avx2", "x86-64"], ["avx2", "avx512-vnni", "vnni", "x86-64"]
REASON = "measured exactly only where the CPU has vnni or aarch64: this host has not, its sums saturate in 16 bits"
TARGETS = ("cpu-avx2", "cpu-vnni")


def _build(build_folder: Any, sets: list[str]) -> BuildResult:
    """Both variants, exported and judged on a host with these instruction sets."""
    build_folder.targets = build_folder.measured = TARGETS
    build_folder.runtimes = lambda target: ("onnxruntime 1.32.0 CPU", "openvino 2026.4.1 CPU")
    build: BuildResult = build_folder.write()
    profiles = {target: load_profile("cpu", at="test", variant=target.removeprefix("cpu-")) for target in TARGETS}
    config = {**build.config, "targets": {target: {"profile": profile.model_dump(mode="json"), "bundle": "cpu"} for target, profile in profiles.items()}}
    results = {
        name: replace(result, step=replace(result.step, identity={**result.step.identity, "instruction_sets": sets})) if result.step.target else result
        for name, result in build.results.items()
    }
    return replace(build, config=config, results=results)


def _with_device(build: BuildResult, build_folder: Any, name: str, sets: tuple[str, ...], *, right: float) -> BuildResult:
    """The 8-bit file was judged on this device too, `right` per cent correct."""
    folder = build.results["bench@cpu-vnni"].folder
    clean = build_folder.card("int8", "file", "onnxruntime 1.32.0 CPU").clean
    device = DeviceFacts(name=name, kind="emulated", cpu="c", architecture="x86_64", instruction_sets=sets, cores=1, memory_bytes=1, runtimes={})
    quality = DeviceQuality(device=device, runtime="onnxruntime 1.32.0 CPU", clean=clean, agreement=clean)
    correct = np.arange(540) < 540 * right / 100
    write_json(folder / "device_quality.json", {"qualities": [quality.model_dump(mode="json")]})
    np.savez(folder / "device_correct.npz", **{f"{name}/onnxruntime 1.32.0 CPU/clean": correct})  # type: ignore[arg-type]  # numpy's stub
    return build


def test_on_a_host_that_computes_both_exactly_each_budget_holds_for_each(build_folder: Any) -> None:
    build = _build(build_folder, VNNI)
    verdicts = check_budgets(build, dict.fromkeys(TARGETS, Budgets(clean_drop=3.0, robust_accuracy=50.0)))
    assert [(verdict.target, verdict.state) for verdict in verdicts] == [(target, "met") for target in TARGETS for _ in range(2)]


def test_on_a_host_without_vnni_the_8_bit_file_is_not_judged_by_what_it_computes_there(build_folder: Any) -> None:
    build = _build(build_folder, AVX2)
    verdicts = check_budgets(build, dict.fromkeys(TARGETS, Budgets(clean_drop=3.0, robust_accuracy=50.0, device_spread=9.0, size_kb=999)))
    assert {verdict.name: verdict.state for verdict in verdicts if verdict.target == "cpu-avx2"} == dict.fromkeys(
        ("clean_drop", "robust_accuracy", "device_spread", "size_kb"), "met"
    )
    vnni = {verdict.name: (verdict.state, verdict.reason) for verdict in verdicts if verdict.target == "cpu-vnni"}
    for name in ("clean_drop", "robust_accuracy", "device_spread"):
        assert vnni[name] == ("not checkable", REASON)
    assert vnni["size_kb"][0] == "met"


def test_a_device_that_computes_it_exactly_may_judge_it(build_folder: Any) -> None:
    build = _with_device(_build(build_folder, AVX2), build_folder, "lake", tuple(VNNI), right=97)
    (verdict,) = check_budgets(build, {"cpu-vnni": Budgets(clean_drop=30.0)})
    assert verdict.state == "met"
    assert verdict.reason.startswith("teacher minus onnxruntime on lake: ")


def test_a_device_that_saturates_counts_neither_for_it_nor_against_it(build_folder: Any) -> None:
    build = _with_device(_build(build_folder, VNNI), build_folder, "hsw", tuple(AVX2), right=40)
    (spread,) = check_budgets(build, {"cpu-vnni": Budgets(device_spread=5.0)})
    assert (spread.state, spread.reason.startswith("2 places; ")) == ("met", True)  # the two runtimes of this host
    judged = read_results(build).targets["cpu-vnni"].on_devices
    assert [it.unsuited for it in judged] == [REASON.replace("this host", "device hsw")]


@pytest.mark.parametrize("sets", [AVX2, VNNI], ids=["unsuited", "suited"])
def test_table_report_and_gaps_say_where_the_figures_are_of_other_arithmetic(build_folder: Any, sets: list[str]) -> None:
    build = _build(build_folder, sets)
    rows = summary_rows(build)
    assert {row["target"] for row in rows if row["unsuited"]} == ({"cpu-vnni"} if sets is AVX2 else set())
    caption = str(table_of(rows).caption)
    assert (f"cpu-vnni: {REASON}" in caption) is (sets is AVX2)
    found = {gap.why: gap.what for gap in gaps(read_results(build), (), TARGETS)}
    told = found.get(REASON)
    assert told == (("accuracy of the int8 file for cpu-vnni on its chip (what is shown is of this host)",) if sets is AVX2 else None)
    assert (REASON in render(build, (), None)) is (sets is AVX2)
