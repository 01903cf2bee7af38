from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from kdpipe.foundation.errors import ConfigError
from kdpipe.pipeline.budgets import Budgets
from kdpipe.pipeline.fingerprint import present
from kdpipe.pipeline.mixed_budget import with_limits
from kdpipe.pipeline.target_sections import Target
from kdpipe.stages.qat import QatConfig
from kdpipe.stages.score import EvaluateConfig
from kdpipe.stages.search_attack import SearchAttack
from kdpipe.targets.profile import load_profile

CLEAN, ATTACKED = EvaluateConfig(attacks=()), EvaluateConfig(attacks=("autoattack",), norm="l2", epsilon=0.25)


def _target(**budgets: Any) -> Target:
    return Target("cpu", load_profile("cpu", at="test"), None, None, None, Budgets(**budgets))


def test_a_search_takes_the_targets_budget_and_the_runtimes_that_decide() -> None:
    found = with_limits(QatConfig(keep_float="auto"), _target(clean_drop=1.5), CLEAN)
    assert isinstance(found, QatConfig)
    assert found.keep_float_drop == 1.5
    assert found.measured_in is not None
    assert [runtime.split()[0] for runtime in found.measured_in] == ["onnxruntime", "openvino"]


def test_a_limit_of_its_own_comes_before_the_budget() -> None:
    found = with_limits(QatConfig(keep_float="auto", keep_float_drop=0.5), _target(clean_drop=1.5), CLEAN)
    assert isinstance(found, QatConfig)
    assert found.keep_float_drop == 0.5


def test_without_a_search_the_budget_is_no_part_of_the_step() -> None:
    for section in (QatConfig(), QatConfig(keep_float=("conv1",))):
        assert with_limits(section, _target(clean_drop=1.5), CLEAN) is section
    assert {"keep_float", "keep_float_drop", "measured_in"}.isdisjoint(present(QatConfig().model_dump(mode="json")))


def test_a_search_without_any_budget_says_where_to_set_one() -> None:
    with pytest.raises(ConfigError) as caught:
        with_limits(QatConfig(keep_float="auto"), _target(), CLEAN)
    (problem,) = caught.value.problems
    assert problem.message == "keep_float = 'auto' has no budget to keep to"
    assert problem.at == "[qat] keep_float, target 'cpu'"
    assert problem.do == (
        "set clean_drop (points below the teacher) or, where [evaluate] has attacks, robust_accuracy (per cent) in [budgets], "
        "or keep_float_drop or keep_float_robust in [qat]"
    )


def test_a_budget_on_robust_accuracy_is_searched_for_in_the_ball_of_the_evaluation() -> None:
    found = with_limits(QatConfig(keep_float="auto"), _target(clean_drop=1.5, robust_accuracy=40), ATTACKED)
    assert isinstance(found, QatConfig)
    assert (found.keep_float_drop, found.keep_float_robust) == (1.5, 40)
    assert found.search_attack == SearchAttack(norm="l2", epsilon=0.25)


def test_a_budget_on_robust_accuracy_alone_is_enough() -> None:
    found = with_limits(QatConfig(keep_float="auto"), _target(robust_accuracy=40), ATTACKED)
    assert isinstance(found, QatConfig)
    assert (found.keep_float_drop, found.keep_float_robust) == (None, 40)
    own = with_limits(QatConfig(keep_float="auto", keep_float_robust=35), _target(robust_accuracy=40), ATTACKED)
    assert isinstance(own, QatConfig)
    assert own.keep_float_robust == 35


def test_where_nothing_is_attacked_the_search_is_the_one_on_clean_answers() -> None:
    asked = QatConfig(keep_float="auto")
    assert with_limits(asked, _target(clean_drop=1.5, robust_accuracy=40), CLEAN) == with_limits(asked, _target(clean_drop=1.5), ATTACKED)
    identity = present(with_limits(asked, _target(clean_drop=1.5), ATTACKED).model_dump(mode="json"))
    assert {"keep_float_robust", "search_attack"}.isdisjoint(identity)


def test_a_limit_under_attack_without_an_attack_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        with_limits(QatConfig(keep_float="auto", keep_float_robust=40), _target(clean_drop=1.5), CLEAN)
    (problem,) = caught.value.problems
    assert problem.message == "keep_float_robust = 40 has no attack: [evaluate] attacks is empty"
    assert problem.at == "[qat] keep_float, target 'cpu'"
    assert problem.do == "name an attack in [evaluate] attacks, e.g. ['pgd-20'], or remove keep_float_robust"


def test_a_runtime_that_is_not_here_is_part_of_the_step_too(monkeypatch: pytest.MonkeyPatch, tiny: ModuleType) -> None:
    target = _target(clean_drop=1.0)
    missing = replace(target, profile=target.profile.model_copy(update={"runtimes": target.profile.runtimes[:1]}))
    monkeypatch.setattr("kdpipe.pipeline.mixed_budget.runtime_version", lambda name: None)
    found = with_limits(QatConfig(keep_float="auto"), missing, CLEAN)
    assert isinstance(found, QatConfig)
    assert found.measured_in == ("onnxruntime missing",)
