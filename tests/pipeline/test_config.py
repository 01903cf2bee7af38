from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kdpipe.foundation.errors import ConfigError, Problem
from kdpipe.pipeline.config import Config, assemble, read_config
from kdpipe.pipeline.toml_source import parse_toml

PROJECT = """\
[project]
name = "digits"
seed = 3

[task]
kind = "image-classification"
data = "digits"

[teacher]
epochs = 12

[distill]
objective = "rslad"
epochs = 12
robust_share = 0.5

[distill.attack]
norm = "linf"
epsilon = 0.1

[prune]
share = 0.5

[targets.cpu]
[targets.arm.budgets]
size_kb = 100

[budgets]
clean_drop = 1.0
size_kb = 200
"""


def _config(
    tiny: ModuleType, text: str = PROJECT, *, settings: tuple[str, ...] = (), targets: tuple[str, ...] = (), project: Path = Path("/nowhere/my net")
) -> Config:
    return assemble(project, parse_toml(text, "kdpipe.toml").overridden(settings), tiny.STAGES, targets)


def _problems(tiny: ModuleType, text: str, **arguments: Any) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        _config(tiny, text, **arguments)
    assert caught.value.exit_code == 2
    return caught.value.problems


def _one(tiny: ModuleType, text: str, **arguments: Any) -> Problem:
    (problem,) = _problems(tiny, text, **arguments)
    return problem


def test_sections_become_their_models_and_the_rest_defaults(tiny: ModuleType) -> None:
    config = _config(tiny)
    assert (config.name, config.seed, config.threads, config.task_kind) == ("digits", 3, None, "image-classification")
    assert config.sections["teacher"].epochs == 12
    assert config.sections["distill"].objective.name == "rslad"
    assert config.sections["distill"].objective.attack.epsilon == 0.1
    assert config.sections["qat"].epochs == 1
    assert list(config.targets) == ["cpu", "arm"]
    assert config.targets["arm"].profile.name == "arm"


def test_a_targets_own_budget_replaces_the_shared_one_key_by_key(tiny: ModuleType) -> None:
    config = _config(tiny)
    assert (config.targets["cpu"].budgets.size_kb, config.targets["cpu"].budgets.clean_drop) == (200, 1.0)
    assert (config.targets["arm"].budgets.size_kb, config.targets["arm"].budgets.clean_drop) == (100, 1.0)


def test_a_project_of_one_line_has_defaults_for_everything_else(tiny: ModuleType) -> None:
    config = _config(tiny, '[task]\ndata = "digits"\n')
    assert config.name == "my-net"
    assert not config.prunes
    assert list(config.targets) == ["cpu"]
    assert config.sections["distill"].objective.name == "rslad"


def test_pruning_is_left_out_when_switched_off(tiny: ModuleType) -> None:
    assert _config(tiny).prunes
    assert not _config(tiny, PROJECT.replace("share = 0.5\n\n[targets", "enabled = false\nshare = 0.5\n\n[targets")).prunes
    assert _config(tiny, PROJECT.replace("share = 0.5\n\n[targets", "enabled = true\nshare = 0.5\n\n[targets")).prunes


def test_the_resolved_configuration_is_json_with_all_defaults(tiny: ModuleType) -> None:
    resolved = _config(tiny).resolved
    assert resolved["distill"]["attack"]["epsilon"] == 0.1
    assert resolved["distill"]["robust_share"] == 0.5
    assert resolved["targets"]["arm"]["profile"]["name"] == "arm"
    assert resolved["task"]["kind"] == "image-classification"


@pytest.mark.parametrize(
    ("old", "new", "message", "line", "do"),
    [
        ("[teacher]", "[taecher]", "unknown section 'taecher'", 9, "did you mean 'teacher'? sections: "),
        (
            "epochs = 12\n\n[distill]",
            "epoch = 12\n\n[distill]",
            "unknown key 'epoch' in [teacher]",
            10,
            "did you mean 'epochs'? keys of [teacher]: epochs, network, weights",
        ),
        (
            "robust_share",
            "robust_shaer",
            "unknown key 'robust_shaer' in [distill]",
            15,
            "did you mean 'robust_share'? keys of [distill]: attack, epochs, objective, robust_share",
        ),
        ("epsilon = 0.1", "epsilon = 8.0", "epsilon = 8 is not in (0, 1] for linf; 8/255 is 0.0314", 19, "it is: "),
        ("epsilon = 0.1", "epsilno = 0.1", "unknown key 'epsilno' in [distill.attack]", 19, "did you mean 'epsilon'? keys of [distill.attack]: epsilon, norm"),
        ('norm = "linf"', 'norm = "l-inf"', 'norm = "l-inf" is not one of "linf", "l2"', 18, 'did you mean "linf"?'),
        ("epochs = 12\n\n[distill]", "epochs = 0\n\n[distill]", "epochs = 0 is not in [1, 100]", 10, "it is: passes over the data, in [1, 100]"),
        ("epochs = 12\n\n[distill]", 'epochs = "12"\n\n[distill]', 'epochs = "12": a number is needed', 10, "remove the quotes: epochs = 12"),
        ("epochs = 12\n\n[distill]", "epochs = 1.5\n\n[distill]", "epochs = 1.5: a whole number is needed", 10, "it is: passes over the data, in [1, 100]"),
        ("epochs = 12\n\n[distill]", "epochs = true\n\n[distill]", "epochs = true: a number is needed", 10, "write a number"),
        ("epochs = 12\n\n[distill]", "epochs = inf\n\n[distill]", "epochs = inf is not a finite number", 10, "write a finite number"),
        ("epochs = 12\n\n[distill]", "epochs = [1]\n\n[distill]", "epochs = [1]: a whole number is needed", 10, "it is: passes over the data, in [1, 100]"),
        ('name = "digits"', "name = 2024-01-01", "name = 2024-01-01 is a date or time", 2, "put it in quotes if a text is meant"),
        ('name = "digits"', "name = 3", "name = 3: a text in quotes is needed", 2, "it is: name of the project"),
        ("robust_share = 0.5", "robust_share = 1.5", "robust_share = 1.5 is above 1", 15, "it is: b: share of the adversarial term"),
        ("robust_share = 0.5", 'robust_share = "x"', 'robust_share = "x": a table is needed', 15, "it is: b: share of the adversarial term"),
        ('objective = "rslad"', 'objective = "rsald"', "objective = \"rsald\": unknown name 'rsald'", 13, "did you mean 'rslad'? known: "),
        ("[distill.attack]\nnorm", "attack = 3\n[x]\nnorm", "attack = 3: a table is needed", 17, "it is: the attack inside the step"),
        ('data = "digits"', "", "[task] needs 'data'", 5, "it is: digits, fashion-mnist"),
        (
            'kind = "image-classification"',
            'kind = "image-clasification"',
            "kind = 'image-clasification': there is no such task",
            6,
            "did you mean 'image-classification'? known: ",
        ),
        ("share = 0.5\n\n[targets", "\n\n[targets", "[prune] needs 'share'", 21, "it is: share of the channels that goes, in (0, 1)"),
        ("share = 0.5\n\n[targets", 'share = 0.5\nobjective = "kd"\n\n[targets', "unknown key 'objective' in [prune]", 23, "keys of [prune]: share"),
        ("[targets.cpu]", "[targets.cpu]\nprofile = 'amr'", "unknown target profile 'amr'", 25, "did you mean 'arm'?"),
        ("[targets.cpu]", "[targets.cpu]\nprofile = 'mine.toml'", "no such profile file: /nowhere/my net/mine.toml", 25, "check the path"),
        ("[targets.cpu]", "[targets.cpu]\ndevice = 'pi'", "unknown device 'pi'", 25, "write [devices.pi]; devices: none yet"),
        ("[targets.cpu]", "[targets]\ncpu = 'x'", "cpu = … stands in [targets] itself", 25, "write it below [targets.NAME]"),
        ("size_kb = 100", "size_kB = 100", "unknown key 'size_kB' in [targets.arm.budgets]", 26, "did you mean 'size_kb'?"),
        ("clean_drop = 1.0", "clean_drop = 200", "clean_drop = 200 is not in [-100, 100]", 29, "it is: percentage points"),
        ("[targets.cpu]", "[devices.pi]\nkind = 'sssh'\n[targets.cpu]", "kind = 'sssh': there is no such kind of device", 25, "did you mean 'ssh'? known: "),
        (
            "[targets.cpu]",
            "[devices.pi]\nkind = 'ssh'\nhost='-oX'\n[targets.cpu]",
            "host = \"-oX\": not a host name, address or alias, with or without 'user@' before it",
            26,
            "it is: 'user@host'",
        ),
        ("[targets.cpu]", "[devices.pi]\nkind = 'ssh'\n[targets.cpu]", "[devices.pi] needs 'host'", 24, "it is: 'user@host'"),
        ("[targets.cpu]", "[devices.'../pi']\n[targets.cpu]", "a device cannot be called '../pi'", 24, "its record is a file of that name"),
        ("[targets.cpu]", "[targets.cpu]\naccuracy_on = ['a72']", "unknown device 'a72'", 25, "write [devices.a72]; devices: none yet"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_each_mistake_says_what_where_and_what_to_do(tiny: ModuleType, old: str, new: str, message: str, line: int, do: str) -> None:
    assert PROJECT.count(old) == 1
    problems = _problems(tiny, PROJECT.replace(old, new))
    assert message in [problem.message for problem in problems]
    problem = next(problem for problem in problems if problem.message == message)
    assert problem.at == f"kdpipe.toml:{line}"
    assert problem.do is not None
    assert do in problem.do


def test_all_problems_come_in_one_go_in_the_order_of_their_lines(tiny: ModuleType) -> None:
    text = (
        PROJECT.replace("seed = 3", "sed = 3")
        .replace("epsilon = 0.1", "epsilon = 0.1\nstep = 3")
        .replace("epochs = 12\nrobust", 'epochs = "x"\nrobust')
        .replace("share = 0.5\n", "share = 2\n")
    )
    problems = _problems(tiny, text)
    assert [problem.at for problem in problems] == [f"kdpipe.toml:{line}" for line in (3, 14, 15, 20, 23)]


def test_a_mistake_in_set_names_the_set(tiny: ModuleType) -> None:
    problem = _one(tiny, PROJECT, settings=("distill.epochs=0",))
    assert problem.message == "epochs = 0 is not in [1, ∞)"
    assert problem.at == "--set distill.epochs=0"
    assert problem.do == "it is: passes over the data, in [1, ∞)"
    assert _one(tiny, PROJECT, settings=("distil.epochs=1",)).at == "--set distil.epochs=1"


def test_set_overrides_the_file(tiny: ModuleType) -> None:
    config = _config(tiny, settings=("teacher.epochs=7", "project.name=other", "prune.enabled=false"))
    assert (config.sections["teacher"].epochs, config.name, config.prunes) == (7, "other", False)


def test_an_unknown_target_is_answered_with_the_nearest(tiny: ModuleType) -> None:
    problem = _one(tiny, PROJECT, targets=("amr",))
    assert problem.message == "unknown target 'amr'"
    assert problem.at == "--target amr"
    assert problem.do == "did you mean 'arm'? targets: cpu, arm, arm-a72, arm-a76, gpu, npu"


def test_wanted_targets_are_built_alone_and_a_shipped_profile_needs_no_section(tiny: ModuleType) -> None:
    assert list(_config(tiny, targets=("arm",)).targets) == ["arm"]
    assert list(_config(tiny, targets=("npu", "cpu")).targets) == ["npu", "cpu"]


def test_a_target_that_is_not_wanted_is_checked_all_the_same(tiny: ModuleType) -> None:
    assert _one(tiny, PROJECT.replace("size_kb = 100", "size_kb = -1"), targets=("cpu",)).at == "kdpipe.toml:26"


def test_a_targets_profile_may_be_a_file_of_the_project(tiny: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "board.toml").write_text('extends = "arm"\ntitle = "my board"\n')
    config = _config(tiny, PROJECT.replace("[targets.cpu]", '[targets.board]\nprofile = "board.toml"'), project=tmp_path)
    assert config.targets["board"].profile.title == "my board"
    assert config.targets["board"].profile_path == tmp_path / "board.toml"


def test_a_mistake_in_a_profile_file_names_that_file_and_its_line(tiny: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "board.toml").write_text('extends = "arm"\nopset = "x"\n')
    problem = _one(tiny, PROJECT.replace("[targets.cpu]", '[targets.board]\nprofile = "board.toml"'), project=tmp_path)
    assert problem.at == f"{tmp_path / 'board.toml'}:2"


def test_a_folder_without_configuration_points_to_init(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path, tiny.STAGES)
    (problem,) = caught.value.problems
    assert problem.message == "no kdpipe.toml here"
    assert problem.at == str(tmp_path)
    assert problem.do == "write one with: kdpipe init"


def test_a_users_own_objective_gets_the_same_checks(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """\
from pydantic import Field
from kdpipe.stages.objectives.kd import Kd
class Mine(Kd):
    weight: float = Field(1.0, gt=0, le=2, description="how much")
"""
    (tmp_path / "my_objectives.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    text = PROJECT.replace('objective = "rslad"', 'objective = "my_objectives:Mine"').replace(
        'robust_share = 0.5\n\n[distill.attack]\nnorm = "linf"\nepsilon = 0.1', "weigt = 1.0\ntemperature = 0.0"
    )
    unknown, cold = _problems(tiny, text)
    assert (unknown.message, unknown.at) == ("unknown key 'weigt' in [distill]", "kdpipe.toml:15")
    assert unknown.do == "did you mean 'weight'? keys of [distill]: epochs, label_share, objective, temperature, weight, weighting"
    assert (cold.message, cold.at) == ("temperature = 0.0 is not above 0", "kdpipe.toml:16")


@pytest.mark.parametrize("name", ["../../x", "", ".hidden", "a/b", "report.html", "x" * 101], ids=["upwards", "empty", "hidden", "slash", "the report", "long"])
def test_a_targets_name_cannot_lead_out_of_its_folder_in_dist(tiny: ModuleType, name: str) -> None:
    problem = _one(tiny, PROJECT + f'[targets."{name}"]\nprofile = "cpu"\n')
    assert problem.message == f"a target cannot be called {name!r}"
    assert problem.at == "kdpipe.toml:31"
    assert problem.do == "it becomes a folder in dist/: up to 100 letters, digits, '.', '_' and '-', the first a letter or digit, and not report.html"


def test_a_projects_name_that_no_folder_can_have_says_what_it_may_be(tiny: ModuleType) -> None:
    for name in ("../../x", "x" * 101):
        problem = _one(tiny, PROJECT.replace('name = "digits"', f'name = "{name}"'))
        assert problem.at == "kdpipe.toml:2"
        assert problem.do == (
            "it is: name of the project and of its folder in dist/, up to 100 letters, digits, '.', '_' and '-', "
            "the first a letter or digit; default: the folder's name"
        )


def test_a_misspelt_augmentation_is_answered_with_the_nearest(tiny: ModuleType) -> None:
    for written in ('["flipp"]', '[{ name = "flipp" }]'):
        problem = _one(tiny, PROJECT.replace('data = "digits"', f'data = "digits"\naugment = {written}'))
        known = ", ".join(f'"{name}"' for name in ("flip", "crop", "noise", "blur", "cutout", "randaugment", "augmix"))
        assert problem.message == f'augment[0] is called "flipp", which is not one of {known}'
        assert problem.at == "kdpipe.toml:8"
        assert problem.do == 'did you mean "flip"?'
