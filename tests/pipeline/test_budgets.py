from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from kdpipe.foundation.files import write_json
from kdpipe.pipeline.budgets import Budgets, Verdict, check_budgets, exit_code
from kdpipe.stages.device_quality import DeviceQuality
from kdpipe.targets.measurements import DeviceFacts


def _only(build_folder: Any, target: str = "cpu", **limits: float) -> Verdict:
    (verdict,) = check_budgets(build_folder.write(), {target: Budgets(**limits)})
    return verdict


def test_the_upper_bound_of_the_paired_drop_decides_and_not_the_drop(build_folder: Any) -> None:
    verdict = _only(build_folder, clean_drop=2.0)  # the drop itself is 1.11 points
    assert verdict.state == "missed"
    assert verdict.bound == pytest.approx(2.13, abs=0.01)
    assert "1.11 points" in verdict.reason
    assert verdict.reason.endswith("paired, n = 540; too few samples to show that the limit is kept: about 700 would, were the value the same")


def test_a_drop_is_met_when_its_whole_interval_is_within_the_limit(build_folder: Any) -> None:
    assert _only(build_folder, clean_drop=2.2).state == "met"


def test_the_drop_of_the_weakest_runtime_counts(build_folder: Any) -> None:
    weak = replace(build_folder.models["int8"], clean=91.0)
    build_folder.weaker = {("int8", "openvino 2026.4.1 CPU"): weak}
    verdict = _only(build_folder, clean_drop=5.0)
    assert verdict.state == "missed"
    assert "openvino" in verdict.reason


def test_the_lower_bound_of_robust_accuracy_decides(build_folder: Any) -> None:
    verdict = _only(build_folder, robust_accuracy=70.0)  # 72.8 % [68.9, 76.4]
    assert verdict.state == "missed"
    assert verdict.bound == pytest.approx(68.87, abs=0.01)
    assert verdict.reason.endswith("n = 540; too few samples to show that the limit is kept: about 1,000 would, were the value the same")


def test_the_size_is_counted_in_thousands_of_bytes(build_folder: Any) -> None:
    build = build_folder.write()
    size = (build.results["export@cpu"].folder / "model.onnx").stat().st_size
    (met,) = check_budgets(build, {"cpu": Budgets(size_kb=size / 1000)})
    (missed,) = check_budgets(build, {"cpu": Budgets(size_kb=(size - 1) / 1000)})
    assert (met.state, met.bound, missed.state) == ("met", size / 1000, "missed")


def test_the_larger_of_the_forms_that_ship_counts(build_folder: Any) -> None:
    build = build_folder.write()
    for name in ("model.xml", "model.bin"):
        (build.results["export@cpu"].folder / name).write_bytes(b"x" * 4000)
    (verdict,) = check_budgets(build, {"cpu": Budgets(size_kb=5)})
    assert (verdict.state, verdict.bound, verdict.reason) == ("missed", 8.0, "model.xml and model.bin")


def test_the_upper_bound_of_the_slowest_setting_decides_p90(build_folder: Any) -> None:
    verdict = _only(build_folder, p90_ms=0.1)  # p90 is 0.0959 ms at 1 thread, its upper bound 0.1017
    assert verdict.state == "missed"
    assert verdict.bound == pytest.approx(1.17 * 0.082 * 1.06)
    assert "1 thread" in verdict.reason


def test_p90_without_a_device_is_not_checkable_and_says_why(build_folder: Any) -> None:
    verdict = _only(build_folder, "arm", p90_ms=100.0)
    assert (verdict.state, verdict.bound, verdict.reason) == ("not checkable", None, "not measured: no device")


def test_p90_with_too_few_runs_is_not_checkable(build_folder: Any) -> None:
    build_folder.runs = 40
    verdict = _only(build_folder, p90_ms=100.0)
    assert verdict.state == "not checkable"
    assert "not claimable: 40 runs, 64 are needed" in verdict.reason


def test_a_build_that_ended_early_meets_nothing(build_folder: Any) -> None:
    build_folder.until = "prune"
    verdicts = check_budgets(build_folder.write(), {"cpu": Budgets(clean_drop=50, robust_accuracy=1, size_kb=1e6, p90_ms=1e6)})
    assert [verdict.state for verdict in verdicts] == ["not checkable"] * 4


def test_only_the_budgets_that_are_set_are_judged_for_each_target(build_folder: Any) -> None:
    verdicts = check_budgets(build_folder.write(), {"arm": Budgets(size_kb=1), "cpu": Budgets(robust_accuracy=10, size_kb=100)})
    assert [(v.target, v.name, v.state) for v in verdicts] == [("cpu", "robust_accuracy", "met"), ("cpu", "size_kb", "met"), ("arm", "size_kb", "missed")]


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ((), 0),
        (("met", "met"), 0),
        (("met", "missed"), 3),
        (("met", "not checkable"), 4),
        (("not checkable", "missed"), 3),
    ],
    ids=["none set", "all met", "one missed", "one not checkable", "missed wins"],
)
def test_the_exit_code_tells_the_worst_fact_about_the_product(states: tuple[Any, ...], code: int) -> None:
    assert exit_code([Verdict("size_kb", "cpu", 1.0, "kB", None, state, "") for state in states]) == code


@pytest.mark.parametrize("wrong", [{"size_kb": 0}, {"robust_accuracy": 101}, {"p90_ms": -1}, {"clean_drop": 1000}, {"p99_ms": 1}], ids=lambda d: next(iter(d)))
def test_limits_out_of_range_and_unknown_ones_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Budgets(**wrong)


def test_the_spread_of_the_accuracies_over_places_is_bounded(build_folder: Any) -> None:
    build = build_folder.write()
    name, limit = build.targets[0], Budgets(device_spread=3.0)
    (verdict,) = check_budgets(build, {name: limit})
    assert verdict.state == "met"
    assert verdict.bound is not None
    assert verdict.reason.startswith("2 places; ")

    bench = build.results[f"bench@{name}"].folder
    card = build_folder.card("int8", "file", "onnxruntime 1.32.0 CPU")
    device = DeviceFacts(name="a72", kind="emulated", cpu="c", architecture="aarch64", instruction_sets=(), cores=1, memory_bytes=1, runtimes={})
    quality = DeviceQuality(device=device, runtime="onnxruntime 1.32.0 CPU", clean=card.clean, agreement=card.clean)
    write_json(bench / "device_quality.json", {"qualities": [quality.model_dump(mode="json")]})
    correct = build_folder.correct("int8", None)["clean"].copy()
    correct[np.flatnonzero(correct)[:54]] = False  # a tenth of the samples
    np.savez(bench / "device_correct.npz", **{"a72/onnxruntime 1.32.0 CPU/clean": correct})
    (verdict,) = check_budgets(build, {name: limit})
    assert (verdict.state, verdict.unit) == ("missed", "points")
    assert "3 places; " in verdict.reason
    assert " minus onnxruntime on a72: 10.00 points, 95 % interval [" in verdict.reason


def test_a_spread_over_one_place_is_not_checkable(build_folder: Any) -> None:
    build = build_folder.write()
    (verdict,) = check_budgets(build, {build.targets[1]: Budgets(device_spread=1.0)})
    assert (verdict.state, verdict.reason) == ("not checkable", "the file was judged in one place only: name [targets.NAME] device or accuracy_on")
