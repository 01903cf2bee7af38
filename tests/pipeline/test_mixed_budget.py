from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from kdpipe.foundation.errors import ConfigError
from kdpipe.pipeline.budgets import Budgets
from kdpipe.pipeline.fingerprint import present
from kdpipe.pipeline.mixed_budget import with_limit
from kdpipe.pipeline.target_sections import Target
from kdpipe.stages.qat import QatConfig
from kdpipe.targets.profile import load_profile


def _target(**budgets: Any) -> Target:
    return Target("cpu", load_profile("cpu", at="test"), None, None, None, Budgets(**budgets))


def test_a_search_takes_the_targets_budget_and_the_runtimes_that_decide() -> None:
    found = with_limit(QatConfig(keep_float="auto"), _target(clean_drop=1.5))
    assert isinstance(found, QatConfig)
    assert found.keep_float_drop == 1.5
    assert found.measured_in is not None
    assert [runtime.split()[0] for runtime in found.measured_in] == ["onnxruntime", "openvino"]


def test_a_limit_of_its_own_comes_before_the_budget() -> None:
    found = with_limit(QatConfig(keep_float="auto", keep_float_drop=0.5), _target(clean_drop=1.5))
    assert isinstance(found, QatConfig)
    assert found.keep_float_drop == 0.5


def test_without_a_search_the_budget_is_no_part_of_the_step() -> None:
    for section in (QatConfig(), QatConfig(keep_float=("conv1",))):
        assert with_limit(section, _target(clean_drop=1.5)) is section
    assert {"keep_float", "keep_float_drop", "measured_in"}.isdisjoint(present(QatConfig().model_dump(mode="json")))


def test_a_search_without_any_budget_says_where_to_set_one() -> None:
    with pytest.raises(ConfigError) as caught:
        with_limit(QatConfig(keep_float="auto"), _target())
    (problem,) = caught.value.problems
    assert problem.message == "keep_float = 'auto' has no budget to keep to"
    assert problem.at == "[qat] keep_float, target 'cpu'"
    assert problem.do == "set clean_drop in [budgets] (points below the teacher), or keep_float_drop in [qat]"


def test_a_runtime_that_is_not_here_is_part_of_the_step_too(monkeypatch: pytest.MonkeyPatch, tiny: ModuleType) -> None:
    target = _target(clean_drop=1.0)
    missing = replace(target, profile=target.profile.model_copy(update={"runtimes": target.profile.runtimes[:1]}))
    monkeypatch.setattr("kdpipe.pipeline.mixed_budget.runtime_version", lambda name: None)
    found = with_limit(QatConfig(keep_float="auto"), missing)
    assert isinstance(found, QatConfig)
    assert found.measured_in == ("onnxruntime missing",)
