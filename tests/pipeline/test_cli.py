import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from kdpipe.pipeline import cli
from kdpipe.pipeline.progress import SilentProgress
from kdpipe.pipeline.runner import run_plan
from kdpipe.pipeline.store import Store

COMMANDS = ["init", "advise", "build", "plan", "targets", "doctor", "report", "compare", "samples", "eval", "bench", "verify", "cache", "data", "devices"]
HEAVY = {"torch", "numpy", "onnx", "onnxruntime", "openvino", "pydantic", "rich", "psutil", "matplotlib", "jinja2"}


Kdpipe = Callable[..., "subprocess.CompletedProcess[str]"]


def _kdpipe(*arguments: str, folder: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "kdpipe.pipeline", *arguments], capture_output=True, text=True, check=False, cwd=folder)


def _problem(told: "subprocess.CompletedProcess[str]") -> dict[str, str]:
    (problem,) = json.loads(told.stdout)["error"]["problems"]
    assert isinstance(problem, dict)
    return problem


def test_help_lists_the_commands_and_imports_nothing_heavy() -> None:
    script = "import sys\nfrom kdpipe.pipeline.cli import main\ntry:\n    main()\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    told = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True, check=True)
    assert all(command in told.stdout for command in COMMANDS)
    assert HEAVY.isdisjoint(told.stderr.split())


def test_every_option_has_a_help_text(kdpipe: Kdpipe) -> None:
    for command in COMMANDS:
        told = kdpipe(command, *{"cache": ["gc"], "data": ["clean"], "devices": ["add"], "targets": ["check"]}.get(command, []), "--help")
        assert told.returncode == 0
        options = [line.split(maxsplit=1) for line in told.stdout.splitlines() if line.startswith("  --")]
        assert options
        assert all(len(option) == 2 for option in options)


def test_no_arguments_show_the_help() -> None:
    assert _kdpipe().stdout == _kdpipe("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["buildit"], "No such command 'buildit'"),
        (["build", "--nope"], "No such option: --nope"),
        (["cache"], "Missing command"),
        (["cache", "gc", "--keep-days", "x"], "Invalid value for '--keep-days'"),
    ],
    ids=["command", "option", "sub-command", "value"],
)
def test_a_usage_error_exits_with_2_and_points_to_help(arguments: list[str], message: str) -> None:
    told = _kdpipe(*arguments)
    assert told.returncode == 2
    assert message in told.stderr
    assert "do:  kdpipe --help lists the commands, kdpipe COMMAND --help its options" in told.stderr
    assert told.stdout == ""


@pytest.mark.parametrize("command", ["build", "plan", "report"])
def test_where_there_is_no_project_the_way_to_one_is_shown(command: str, tmp_path: Path, kdpipe: Kdpipe) -> None:
    told = kdpipe(command, folder=tmp_path)
    assert told.returncode == 2
    assert told.stderr == f"error: no kdpipe.toml here\n  at:  {tmp_path}\n  do:  write one with: kdpipe init\n"
    assert told.stdout == ""


def test_with_json_an_error_is_one_object_on_stdout_too(tmp_path: Path, kdpipe: Kdpipe) -> None:
    told = kdpipe("build", "--json", "--project", str(tmp_path / "none"))
    assert told.returncode == 2
    assert json.loads(told.stdout)["error"]["exit_code"] == 2
    assert _problem(told) == {"message": "no such folder", "at": str(tmp_path / "none"), "do": "give the folder that holds kdpipe.toml"}
    assert "error: no such folder" in told.stderr
    assert "Traceback" not in told.stderr


def test_debug_adds_the_traceback(tmp_path: Path, kdpipe: Kdpipe) -> None:
    told = kdpipe("build", "--debug", folder=tmp_path)
    assert told.returncode == 2
    assert "Traceback" in told.stderr


def test_what_nobody_foresaw_is_a_defect_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise ZeroDivisionError("division by zero")

    assert cli.told(command, as_json=False, debug=False) == 1
    told = capsys.readouterr()
    assert (
        told.err == "error: a defect of kdpipe: ZeroDivisionError: division by zero\n  do:  please report it with what the same command prints with --debug\n"
    )
    assert cli.told(command, as_json=True, debug=True) == 1
    told = capsys.readouterr()
    assert "Traceback" in told.err
    assert json.loads(told.out)["error"]["exit_code"] == 1


def test_an_interrupt_exits_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise KeyboardInterrupt

    assert cli.told(command, as_json=False, debug=False) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    told = subprocess.run(f"{sys.executable} -m kdpipe.pipeline targets --json | head -c 1", shell=True, capture_output=True, text=True, check=True)
    assert told.stdout == "{"
    assert "Traceback" not in told.stderr


def test_targets_are_listed_and_shown_in_full(kdpipe: Kdpipe) -> None:
    listed = json.loads(kdpipe("targets", "--json").stdout)["targets"]
    assert [profile["name"] for profile in listed] == ["arm", "arm-a72", "arm-a76", "cpu", "gpu", "npu"]
    assert json.loads(kdpipe("targets", "arm", "--json").stdout)["profile"] == listed[0]
    assert "x86 CPU" in kdpipe("targets").stdout


def test_an_unknown_target_is_answered_with_the_nearest(kdpipe: Kdpipe) -> None:
    told = kdpipe("targets", "amr", "--json")
    assert told.returncode == 2
    assert _problem(told)["message"] == "unknown target profile 'amr'"
    assert "did you mean 'arm'?" in _problem(told)["do"]


def test_mistakes_in_the_file_reach_the_terminal_all_at_once(tmp_path: Path, kdpipe: Kdpipe) -> None:
    (tmp_path / "kdpipe.toml").write_text('[task]\ndata = "digits"\n[teacher]\nepoch = 3\n[distill.attack]\nepsilon = 8.0\n')
    told = kdpipe("plan", folder=tmp_path)
    assert told.returncode == 2
    assert "error: unknown key 'epoch' in [teacher]\n  at:  kdpipe.toml:4\n  do:  did you mean 'epochs'?" in told.stderr
    assert "error: epsilon = 8 is not in (0, 1] for linf; 8/255 is 0.0314\n  at:  kdpipe.toml:6\n" in told.stderr


def test_a_plan_says_how_many_labels_were_made_wrong(tmp_path: Path, kdpipe: Kdpipe) -> None:
    (tmp_path / "kdpipe.toml").write_text('[task]\ndata = "digits"\n[task.label_noise]\nrate = 0.2\n[targets.cpu]\n')
    told = kdpipe("plan", "--until", "teacher", folder=tmp_path).stdout
    assert "labels were made noisy on purpose (symmetric noise, rate 0.2): 216 of 1,079 training labels, 36 of 179 validation labels" in " ".join(told.split())
    as_json = json.loads(kdpipe("plan", "--until", "teacher", "--json", folder=tmp_path).stdout)
    assert as_json["labels"] == {"how": "symmetric noise, rate 0.2", "wrong": {"train": [216, 1079], "validation": [36, 179]}}


def test_a_misspelt_key_of_label_noise_is_answered_with_its_line(tmp_path: Path, kdpipe: Kdpipe) -> None:
    (tmp_path / "kdpipe.toml").write_text('[task]\ndata = "digits"\n[task.label_noise]\nrat = 0.2\n')
    told = kdpipe("plan", folder=tmp_path)
    assert told.returncode == 2
    assert "error: unknown key 'rat' in [task.label_noise]\n  at:  kdpipe.toml:4\n  do:  did you mean 'rate'?" in told.stderr


def test_the_cache_is_listed_and_cleaned(project: Path, tiny: ModuleType, kdpipe: Kdpipe) -> None:
    run_plan(tiny.plan_of(project, until="teacher"), tiny.STAGES, Store(project), SilentProgress())
    listed = json.loads(kdpipe("cache", "ls", "--json", folder=project).stdout)["artifacts"]
    assert [(entry["step"], entry["used"]) for entry in listed] == [("teacher", False), ("score-teacher", False)]
    assert "score-teacher" in kdpipe("cache", "ls", folder=project).stdout
    assert "would free" in kdpipe("cache", "gc", "--dry-run", "--keep-days", "0", folder=project).stdout
    assert json.loads(kdpipe("cache", "gc", "--keep-days", "0", "--json", folder=project).stdout)["freed_bytes"] > 0
    assert json.loads(kdpipe("cache", "ls", "--json", folder=project).stdout) == {"artifacts": [], "teacher_logits": []}


def test_the_store_is_verified_byte_for_byte(project: Path, tiny: ModuleType, kdpipe: Kdpipe) -> None:
    results = run_plan(tiny.plan_of(project, until="teacher"), tiny.STAGES, Store(project), SilentProgress())
    assert kdpipe("verify", folder=project).stdout == "2 artifacts, every digest agrees\n"
    path = results["teacher"].folder / "weights.txt"
    facts, content = path.stat(), path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    told = kdpipe("verify", "--json", folder=project)
    assert told.returncode == 5
    assert _problem(told) == {
        "message": "damaged: weights.txt",
        "at": str(results["teacher"].folder),
        "do": "run kdpipe build: it sets the folder aside and builds the step again",
    }


def test_the_python_interface_is_there_without_its_weight() -> None:
    script = """
import sys
import kdpipe.pipeline as pipeline
assert "torch" not in sys.modules
from kdpipe.pipeline import build, plan
print(callable(build), callable(plan), hasattr(pipeline, "nothing"))
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout == "True True False\n"


def test_an_error_while_the_disk_of_temporary_files_is_full_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def short() -> None:
        raise OSError("196608 requested and 17376 written")  # as numpy.save says it

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert cli.told(short, as_json=False, debug=False) == 1
    capsys.readouterr()
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 4096})())
    assert cli.told(short, as_json=False, debug=False) == 4
    said = capsys.readouterr().err
    assert "error: the disk of temporary files is full (OSError)" in said
    assert f"at:  {tmp_path}" in said
    assert "do:  free space there, or name another folder: TMPDIR=" in said
