"""`[[distill.teachers]]` in the plan of a build: real stages, planned and partly run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kdpipe.foundation.errors import ConfigError, Problem
from kdpipe.foundation.networks import load_spec
from kdpipe.pipeline.config import read_config
from kdpipe.pipeline.planning import Plan, make_plan
from kdpipe.pipeline.progress import SilentProgress
from kdpipe.pipeline.runner import run_plan
from kdpipe.pipeline.stages import load_stages
from kdpipe.pipeline.store import Store

PROJECT = """\
[project]
threads = 1
[task]
data = "digits"
[teacher]
network = "cnn-small"
objective = "trades"
epochs = 1
[teacher.attack]
epsilon = 0.1
steps = 1
[distill]
student = "cnn-small"
objective = "mtard"
epochs = 1
[distill.attack]
epsilon = 0.1
steps = 1
[[distill.teachers]]
name = "natural"
role = "natural"
network = "cnn-small"
objective = "plain"
epochs = 1
[prune]
speedup = 1.4
[evaluate]
attacks = []
corruptions = []
square_queries = 0
[targets.cpu]
"""

Planner = Callable[..., Plan]


@pytest.fixture
def plan(tmp_path: Path) -> Planner:
    """Plans PROJECT, its lines changed by `edits` and `settings`."""

    def planned(*edits: tuple[str, str], settings: tuple[str, ...] = (), until: str | None = None) -> Plan:
        text = PROJECT
        for old, new in edits:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "kdpipe.toml").write_text(text)
        stages = load_stages()
        return make_plan(read_config(tmp_path, stages, settings=settings), stages, Store(tmp_path), until=until)

    return planned


def _fingerprints(plan: Plan) -> dict[str, str]:
    return {planned.step.name: planned.step.fingerprint for planned in plan.steps}


def test_a_further_teacher_is_a_step_that_those_need_who_learn_from_it(plan: Planner) -> None:
    made = plan()
    needs = {planned.step.name: dict(planned.step.needs) for planned in made.steps}
    assert list(needs)[:5] == ["teacher", "score-teacher", "teacher-natural", "distill", "score-distill"]
    teachers = {"teacher": "teacher", "teacher-natural": "teacher-natural"}
    assert needs["teacher-natural"] == {}
    assert needs["distill"] == teachers
    assert needs["prune"] == {"distill": "distill", **teachers}
    assert needs["qat@cpu"] == {"prune": "prune", **teachers}
    assert needs["export@cpu"] == {"qat": "qat@cpu", "prune": "prune", "teacher": "teacher"}


def test_its_role_and_weight_train_it_not_anew_but_those_who_learn_from_it(plan: Planner) -> None:
    before = _fingerprints(plan())
    changed = {name for name, value in _fingerprints(plan(('role = "natural"', 'role = "robust"'))).items() if value != before[name]}
    assert {"teacher", "score-teacher", "teacher-natural"} & changed == set()
    assert {"distill", "prune", "qat@cpu"} <= changed


def test_its_own_training_changes_it_and_not_the_first(plan: Planner) -> None:
    before, after = _fingerprints(plan()), _fingerprints(plan(('objective = "plain"', 'objective = "plain"\nlabel_smoothing = 0.1')))
    changed = {name for name, value in after.items() if value != before[name]}
    assert {"teacher", "score-teacher"} & changed == set()
    assert {"teacher-natural", "distill", "prune", "qat@cpu"} <= changed


def test_an_objective_that_asks_no_teacher_trains_no_further_one(plan: Planner) -> None:
    assert "teacher-natural" not in _fingerprints(plan(settings=("distill.objective=at",)))


def test_with_one_teacher_no_step_knows_of_any_of_this(plan: Planner) -> None:
    further = PROJECT[PROJECT.index("[[distill") : PROJECT.index("[prune]")]
    made = plan((further, ""), ('objective = "mtard"', 'objective = "rslad"'))
    for planned in made.steps:
        keys = json.dumps(planned.step.identity["config"])
        assert not any(f'"{key}"' in keys for key in ("teachers", "mixture", "trust_teacher", "name", "role")), planned.step.name


def test_built_it_is_kept_and_its_changes_are_told_by_its_name(plan: Planner, tmp_path: Path) -> None:
    run_plan(plan(until="distill"), load_stages(), Store(tmp_path), SilentProgress())
    again = plan(until="distill")
    assert {planned.state for planned in again.steps} == {"keep"}
    changed = plan(('objective = "plain"\nepochs = 1', 'objective = "plain"\nepochs = 2'), until="distill")
    why = {planned.step.name: planned.why for planned in changed.steps if planned.state == "run"}
    assert why == {
        "teacher-natural": ("distill.teachers.natural.epochs 1 → 2",),
        "distill": ("input teacher-natural changed",),
        "score-distill": ("input distill changed",),
    }
    folder = Store(tmp_path).folder / _fingerprints(again)["teacher-natural"]
    assert load_spec(folder).contract.labels == tuple("0123456789")


def _problem(plan: Planner, *edits: tuple[str, str]) -> Problem:
    with pytest.raises(ConfigError) as caught:
        plan(*edits)
    (problem,) = caught.value.problems
    return problem


def test_a_missing_natural_teacher_is_told_at_the_objectives_line(plan: Planner) -> None:
    further = PROJECT[PROJECT.index("[[distill") : PROJECT.index("[prune]")]
    problem = _problem(plan, (further, ""))
    assert problem.message == "objective 'mtard' needs 2 teachers, robust and natural; there is only [teacher]"
    assert problem.at == f"kdpipe.toml:{PROJECT[: PROJECT.index('mtard')].count(chr(10)) + 1}"
    assert problem.do == "add [[distill.teachers]] with a name and role = 'natural'; [teacher] is then the robust one"


def test_a_misspelt_key_of_its_objective_is_answered_with_the_nearest_and_the_line(plan: Planner) -> None:
    problem = _problem(plan, ('objective = "plain"', 'objective = "plain"\nlabel_smothing = 0.1'))
    assert problem.message == "unknown key 'label_smothing' in [[distill.teachers]]"
    assert problem.at == f"kdpipe.toml:{PROJECT[: PROJECT.index('plain')].count(chr(10)) + 2}"
    assert (problem.do or "").startswith("did you mean 'label_smoothing'? keys of [[distill.teachers]]: ")


def test_its_attack_is_checked_as_any_other(plan: Planner) -> None:
    problem = _problem(plan, ('objective = "plain"\nepochs = 1', 'objective = "at"\nepochs = 1\n[distill.teachers.attack]\nepsilon = 8.0'))
    assert problem.message == "epsilon = 8 is not in (0, 1] for linf; 8/255 is 0.0314"
    assert problem.do == "it is: radius of the ball; at most 1 for linf, in (0, ∞)"


def test_what_the_pipeline_fills_in_is_no_key_of_the_first_teacher(plan: Planner) -> None:
    problem = _problem(plan, ('[teacher]\nnetwork = "cnn-small"', '[teacher]\nname = "first"\nnetwork = "cnn-small"'))
    assert problem.message == "unknown key 'name' in [teacher]"
    assert problem.at == "kdpipe.toml:6"
