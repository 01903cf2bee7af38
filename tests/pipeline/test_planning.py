from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kdpipe.foundation.errors import ConfigError, UnavailableError
from kdpipe.pipeline.device_records import keep
from kdpipe.pipeline.planning import Plan, make_plan, physical_cores
from kdpipe.pipeline.progress import SilentProgress
from kdpipe.pipeline.runner import run_plan
from kdpipe.pipeline.store import Store
from kdpipe.targets.devices.ssh import SshDevice
from kdpipe.targets.profile import load_profile

Planner = Callable[..., Plan]


@pytest.fixture
def plan(project: Path, tiny: ModuleType) -> Planner:
    """Plans the project anew, after an `edit` of its file."""

    def planned(*edit: tuple[str, str], stages: dict[str, Any] | None = None, until: str | None = None, **arguments: Any) -> Plan:
        text = (project / "kdpipe.toml").read_text()
        for old, new in edit:
            assert old in text
            text = text.replace(old, new)
        (project / "kdpipe.toml").write_text(text)
        made: Plan = make_plan(tiny.config_of(project, **arguments), stages or tiny.STAGES, Store(project), until=until)
        return made

    return planned


@pytest.fixture
def built(project: Path, tiny: ModuleType) -> Store:
    """The tiny project, built."""
    store = Store(project)
    run_plan(tiny.plan_of(project), tiny.STAGES, store, SilentProgress())
    return store


def _states(plan: Plan) -> dict[str, tuple[str, ...]]:
    return {planned.step.name: planned.why for planned in plan.steps if planned.state == "run"}


def test_wrong_labels_made_on_purpose_are_part_of_what_a_step_is(plan: Planner, built: Store) -> None:
    made = plan(("[targets.cpu]", "[task.label_noise]\nrate = 0.2\n[targets.cpu]"))
    assert made.steps[0].step.identity["labels"] == {"how": "symmetric noise, rate 0.2", "wrong": {"train": [216, 1079], "validation": [36, 179]}}
    assert set(_states(made)["teacher"]) >= {"data changed"}
    clean = plan(("[task.label_noise]\nrate = 0.2\n", ""))
    assert "labels" not in clean.steps[0].step.identity
    assert not _states(clean)


def test_the_graph_has_a_shared_prefix_and_a_tail_for_each_target(plan: Planner) -> None:
    made = plan(("[targets.cpu]", "[targets.cpu]\n[targets.arm]"))
    tail = ["qat@{}", "score-qat@{}", "export@{}", "score-export@{}", "bench@{}"]
    shared = ["teacher", "score-teacher", "distill", "score-distill", "prune", "score-prune"]
    assert [planned.step.name for planned in made.steps] == shared + [name.format(target) for target in ("cpu", "arm") for name in tail]
    needs = {planned.step.name: dict(planned.step.needs) for planned in made.steps}
    assert needs["prune"] == {"distill": "distill", "teacher": "teacher"}
    assert needs["qat@arm"] == {"prune": "prune", "teacher": "teacher"}
    assert needs["export@arm"] == {"qat": "qat@arm", "prune": "prune", "teacher": "teacher"}
    assert needs["score-export@arm"] == {
        "export": "export@arm",
        "qat": "qat@arm",
        "score-teacher": "score-teacher",
        "score-distill": "score-distill",
        "score-prune": "score-prune",
        "score-qat": "score-qat@arm",
    }
    assert needs["bench@arm"] == {"export": "export@arm"}


def test_without_pruning_its_consumers_take_the_student(plan: Planner) -> None:
    made = plan(("share = 0.5", "enabled = false"))
    needs = {planned.step.name: dict(planned.step.needs) for planned in made.steps}
    assert "prune" not in needs
    assert needs["qat@cpu"] == {"prune": "distill", "teacher": "teacher"}
    assert "score-prune" not in needs["score-export@cpu"]


def test_until_ends_with_the_stage_and_its_score(plan: Planner) -> None:
    assert [planned.step.name for planned in plan(until="distill").steps] == ["teacher", "score-teacher", "distill", "score-distill"]
    assert plan(until="qat").steps[-1].step.name == "score-qat@cpu"
    assert plan(until="export").steps[-1].step.name == "score-export@cpu"


def test_an_unknown_stage_is_refused_with_the_list(plan: Planner) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(until="distil")
    (problem,) = caught.value.problems
    assert problem.message == "unknown stage 'distil'"
    assert problem.at == "--until distil"
    assert problem.do == "stages, in order: teacher, distill, prune, qat, export, bench"


def test_a_first_build_runs_everything_and_says_so(plan: Planner) -> None:
    assert set(_states(plan()).values()) == {("first build",)}


def test_after_a_build_everything_is_kept_and_plans_change_nothing(built: Store, plan: Planner) -> None:
    before = sorted(built.home.rglob("*"))
    assert _states(plan()) == {}
    assert sorted(built.home.rglob("*")) == before


def test_a_changed_key_is_named_with_both_values_and_what_follows_names_its_input(built: Store, plan: Planner) -> None:
    changed = _states(plan(('objective = "rslad"\nepochs = 2', 'objective = "rslad"\nepochs = 14')))
    assert changed["distill"] == ("distill.epochs 2 → 14",)
    assert changed["prune"] == ("input distill changed",)
    assert changed["bench@cpu"] == ("input export changed",)
    assert "teacher" not in changed
    assert "score-teacher" not in changed


def test_a_change_of_the_evaluation_retrains_nothing(built: Store, plan: Planner) -> None:
    changed = _states(plan(("[prune]", "[evaluate]\nsamples = 50\n[prune]")))
    assert set(changed) == {"score-teacher", "score-distill", "score-prune", "score-qat@cpu", "score-export@cpu"}
    assert changed["score-teacher"] == ("evaluate.samples 100 → 50",)


def test_the_evaluation_takes_its_strength_from_the_training_attack_unless_told_otherwise(plan: Planner) -> None:
    configs: dict[str, Any] = {planned.step.name: planned.config for planned in plan().steps}
    assert (configs["score-teacher"].epsilon, configs["score-teacher"].subject) == (0.1, "teacher")
    assert [configs[f"score-{name}"].subject for name in ("distill", "prune", "qat@cpu")] == ["student", "pruned", "twin"]
    configs = {planned.step.name: planned.config for planned in plan(("[prune]", "[evaluate]\nepsilon = 0.25\n[prune]")).steps}
    assert configs["score-teacher"].epsilon == 0.25


def test_pruning_and_qat_are_given_the_objective_of_distillation(plan: Planner) -> None:
    configs: dict[str, Any] = {planned.step.name: planned.config for planned in plan().steps}
    assert configs["prune"].objective == configs["qat@cpu"].objective == configs["distill"].objective


def test_the_nearest_earlier_run_is_the_one_compared_with(built: Store, plan: Planner, project: Path, tiny: ModuleType) -> None:
    (project / "kdpipe.toml").write_text((project / "kdpipe.toml").read_text().replace("seed", "seed").replace("epochs = 2", "epochs = 9"))
    run_plan(tiny.plan_of(project, until="teacher"), tiny.STAGES, built, SilentProgress())
    assert _states(plan(settings=["teacher.epochs=9", "teacher.network=large"]))["teacher"] == ("teacher.network small → large",)


def test_seed_threads_version_and_tools_count(built: Store, plan: Planner, tiny: ModuleType) -> None:
    assert _states(plan(settings=["project.seed=1"]))["teacher"] == ("data changed", "project.seed 0 → 1")
    assert _states(plan(settings=["project.threads=7"]))["teacher"] == (f"project.threads {physical_cores()} → 7",)
    newer = tiny.STAGES | {"prune": SimpleNamespace(**{**vars(tiny.STAGES["prune"]), "VERSION": 2})}
    assert _states(plan(stages=newer))["prune"] == ("kdpipe's prune changed",)
    other = tiny.STAGES | {"prune": SimpleNamespace(**{**vars(tiny.STAGES["prune"]), "TOOLS": ("numpy", "no-such-tool")})}
    assert "teacher" not in _states(plan(stages=other))
    assert set(_states(plan(stages=other))) >= {"prune"}


def test_a_profile_counts_for_its_target_alone_field_by_field(built: Store, plan: Planner, project: Path) -> None:
    (project / "cpu2.toml").write_text('extends = "cpu"\nname = "cpu"\nopset = 15\n')
    changed = _states(plan(("[targets.cpu]", '[targets.cpu]\nprofile = "cpu2.toml"')))
    assert set(changed) == {"qat@cpu", "score-qat@cpu", "export@cpu", "score-export@cpu", "bench@cpu"}
    assert changed["qat@cpu"] == (f"profile.opset {load_profile('cpu', at='test').opset} → 15",)


def test_a_file_counts_by_its_content_and_not_by_its_place(project: Path, plan: Planner, tiny: ModuleType) -> None:
    (project / "a.bin").write_text("weights")
    (project / "b.bin").write_text("weights")
    first = plan(settings=["teacher.weights=a.bin"]).steps[0].step.fingerprint
    assert plan(settings=["teacher.weights=b.bin"]).steps[0].step.fingerprint == first
    (project / "b.bin").write_text("weightz")
    assert plan(settings=["teacher.weights=b.bin"]).steps[0].step.fingerprint != first


def test_the_users_code_counts_where_it_is_used(project: Path, plan: Planner) -> None:
    (project / "nets.py").write_text("def net(): ...\n")
    before = plan(("epochs = 2\n[distill]", 'epochs = 2\nnetwork = "nets:net"\n[distill]'))
    (project / "nets.py").write_text("def net(): return 1\n")
    assert plan().steps[0].step.fingerprint != before.steps[0].step.fingerprint
    assert list(before.steps[0].step.identity["code"]) == ["nets"]
    assert before.steps[2].step.identity["code"] == {}


def test_a_damaged_artifact_is_named_with_its_file(built: Store, plan: Planner) -> None:
    teacher = plan().steps[0].step.fingerprint
    (built.folder / teacher / "weights.txt").write_text("other")
    assert _states(plan()) == {"teacher": ("damaged: weights.txt",)}


def test_interrupted_work_is_told(project: Path, plan: Planner) -> None:
    teacher = plan().steps[0].step.fingerprint
    (Store(project).work(teacher) / "half.txt").write_text("half")
    assert _states(plan())["teacher"] == ("first build", "goes on where it was interrupted")


def test_a_stage_that_will_run_may_object_before_anything_runs_and_a_finished_one_may_not(project: Path, tiny: ModuleType, built: Store) -> None:
    def check(sections: Any, inputs: Any) -> None:
        raise ConfigError(f"no student with {sections['distill'].epochs} epochs for {len(inputs.data.classes)} classes", at="[distill]", do="change it")

    stages = {**tiny.STAGES, "distill": SimpleNamespace(**vars(tiny.STAGES["distill"]), check=check)}
    assert all(it.state == "keep" for it in make_plan(tiny.config_of(project), stages, built).steps)
    with pytest.raises(ConfigError, match="no student with 9 epochs for 10 classes"):
        make_plan(tiny.config_of(project, settings=["distill.epochs=9"]), stages, built)


@pytest.fixture
def with_board(project: Path, board: Any, tiny: ModuleType) -> str:
    """The kdpipe.toml gets the board as the device `pi` of the cpu target, its key pinned."""
    settings = board.settings()
    settings.device("pi", project).pin(settings.device("pi", project).presented_key())
    lines = "\n".join(f"{key} = {value!r}" for key, value in settings.model_dump(mode="json", exclude_none=True).items())
    text = (project / "kdpipe.toml").read_text().replace("[targets.cpu]", f"[targets.cpu]\ndevice = 'pi'\n[devices.pi]\n{lines}")
    (project / "kdpipe.toml").write_text(text)
    return text


@pytest.mark.slow
def test_a_device_is_reached_for_what_has_to_be_measured_and_no_more(with_board: str, project: Path, tiny: ModuleType, board: Any, monkeypatch: Any) -> None:
    made = tiny.plan_of(project)
    bench = made.steps[-1]
    assert (bench.step.identity["device"]["name"], bench.config.device) == ("pi", "pi")
    assert str(board.port) not in str(bench.step.identity)  # where it is does not count
    seen = made.seen["pi"]
    assert seen.changes == ()
    assert not (project / ".kdpipe" / "devices").exists()  # a plan writes nothing

    keep(project, "pi", made.config.devices["pi"], seen.facts)
    run_plan(made, tiny.STAGES, Store(project), SilentProgress())
    monkeypatch.setattr(SshDevice, "facts", lambda self: pytest.fail("reached for nothing"))
    kept = tiny.plan_of(project)
    assert not _states(kept)
    assert kept.seen == {}

    other = seen.facts.model_copy(update={"runtimes": {**seen.facts.runtimes, "onnxruntime": "99.0"}})
    monkeypatch.setattr(SshDevice, "facts", lambda self: other)
    again = tiny.plan_of(project, settings=["bench.seconds=2"])
    assert again.seen["pi"].changes == (f"onnxruntime {seen.facts.runtimes['onnxruntime']} → 99.0",)
    (why,) = _states(again).values()
    assert set(why) == {"bench.seconds 1.0 → 2.0", f"device.runtimes.onnxruntime {seen.facts.runtimes['onnxruntime']} → 99.0"}


def test_a_plan_that_needs_a_device_that_is_not_there_says_so_before_anything_is_trained(with_board: str, project: Path, tiny: ModuleType) -> None:
    (project / "kdpipe.toml").write_text(with_board.replace("port = ", "port = 1 #"))
    with pytest.raises(UnavailableError) as caught:
        tiny.plan_of(project)
    assert "is not reached: " in caught.value.problems[0].message
    assert len(tiny.plan_of(project, until="export").steps) == 10


def test_devices_that_judge_are_part_of_the_bench_alone(plan: Planner, built: Store) -> None:
    made = plan(("[targets.cpu]", "[targets.cpu]\ndevice = 'here'\naccuracy_on = ['here']\n[devices.here]\nkind = 'local'"))
    assert not _states(made)  # this host, named
