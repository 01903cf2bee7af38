import json
import os
import signal
import subprocess
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from kdpipe.foundation.errors import ConfigError, UnavailableError
from kdpipe.pipeline.progress import PlainProgress, SilentProgress
from kdpipe.pipeline.runner import run_plan
from kdpipe.pipeline.store import Store

SCRIPT = Path(__file__).with_name("tiny_project.py")


class Notes(SilentProgress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def _run(project: Path, tiny: ModuleType, stages: dict[str, Any] | None = None, **arguments: Any) -> tuple[dict[str, str], list[str]]:
    notes = Notes()
    results = run_plan(tiny.plan_of(project, **arguments), stages or tiny.STAGES, Store(project), notes)
    return {name: result.state for name, result in results.items()}, notes.said


def _runs(project: Path, stage: str) -> int:
    path = project / "runs" / stage
    return len(path.read_text().splitlines()) if path.exists() else 0


def _with(tiny: ModuleType, stage: str, run: Any) -> dict[str, Any]:
    return {**tiny.STAGES, stage: SimpleNamespace(**{**vars(tiny.STAGES[stage]), "run": run})}


def test_each_step_runs_once_and_then_is_kept(project: Path, tiny: ModuleType) -> None:
    first, _ = _run(project, tiny)
    second, said = _run(project, tiny)
    assert set(first.values()) == {"built"}
    assert set(second.values()) == {"kept"}
    assert said == []
    assert _runs(project, "teacher") == 1


def test_a_second_target_costs_its_own_tail_only(project: Path, tiny: ModuleType) -> None:
    _run(project, tiny)
    states, _ = _run(project, tiny, targets=["cpu", "arm"])
    assert {name for name, state in states.items() if state == "built"} == {"qat@arm", "score-qat@arm", "export@arm", "score-export@arm", "bench@arm"}


def test_a_stage_gets_its_inputs_by_name_and_a_score_its_subject(project: Path, tiny: ModuleType) -> None:
    seen: dict[str, Any] = {}

    def noted(inputs: Any, config: Any, context: Any) -> Path:
        seen[config.subject or "file"] = (dict(inputs.artifacts), inputs.profile)
        return Path(tiny.run(inputs, config, context))

    stages = _with(tiny, "score", noted)
    plan = tiny.plan_of(project)
    results = run_plan(plan, stages, Store(project), SilentProgress())
    artifacts, profile = seen["student"]
    assert artifacts == {"distill": results["distill"].folder, "subject": results["distill"].folder}
    assert profile is None
    artifacts, profile = seen["twin"]
    assert artifacts["subject"] == artifacts["qat"] == results["qat@cpu"].folder
    assert profile.name == "cpu"


def test_equal_inputs_leave_equal_files(project: Path, tiny: ModuleType, tmp_path: Path) -> None:
    _run(project, tiny)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kdpipe.toml").write_text(tiny.KDPIPE_TOML)
    _run(elsewhere, tiny)
    first, second = ({a.record.fingerprint: {n: f.sha256 for n, f in a.record.files.items()} for a in Store(p).artifacts()} for p in (project, elsewhere))
    assert first == second


def test_what_is_finished_stays_when_a_later_stage_fails(project: Path, tiny: ModuleType) -> None:
    def fails(inputs: Any, config: Any, context: Any) -> Path:
        raise ConfigError("no good", at="x", do="y")

    notes = Notes()
    with pytest.raises(ConfigError, match="no good"):
        run_plan(tiny.plan_of(project, until="distill"), _with(tiny, "distill", fails), Store(project), notes)
    assert notes.said[-1] == "stopped in distill; finished steps are kept (teacher, score-teacher): the same command goes on from here"
    states, _ = _run(project, tiny, until="distill")
    assert states == {"teacher": "kept", "score-teacher": "kept", "distill": "built", "score-distill": "built"}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "distill stopped: cannot write: No space left on device"),
        (OSError(30, "Read-only file system"), "distill stopped: cannot write: Read-only file system"),
        (MemoryError(), "distill stopped: out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"), "distill stopped: out of memory"),
    ],
    ids=["full", "read-only", "memory", "torch memory"],
)
def test_what_the_machine_refuses_is_told_as_such(project: Path, tiny: ModuleType, error: Exception, message: str) -> None:
    def fails(inputs: Any, config: Any, context: Any) -> Path:
        raise error

    with pytest.raises(UnavailableError) as caught:
        _run(project, tiny, _with(tiny, "distill", fails), until="distill")
    (problem,) = caught.value.problems
    assert problem.message == message
    assert problem.at is not None
    assert "/.kdpipe/work/" in problem.at
    assert problem.do == "free what is missing, then run the same command again: finished steps are kept"


def test_a_defect_of_a_stage_is_not_dressed_up(project: Path, tiny: ModuleType) -> None:
    def fails(inputs: Any, config: Any, context: Any) -> Path:
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError, match="ours"):
        _run(project, tiny, _with(tiny, "distill", fails), until="distill")


@pytest.mark.parametrize("keeps_mtime", [False, True], ids=["written to", "rotten on the disk"])
def test_a_damaged_input_is_set_aside_said_and_rebuilt_before_it_is_used(project: Path, tiny: ModuleType, keeps_mtime: bool) -> None:
    _run(project, tiny, until="teacher")
    store = Store(project)
    teacher = next(artifact for artifact in store.artifacts() if artifact.record.step == "teacher")
    path = teacher.folder / "weights.txt"
    before, facts = path.read_bytes(), path.stat()
    path.write_bytes(bytes([before[0] ^ 1]) + before[1:])
    if keeps_mtime:
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    states, said = _run(project, tiny, until="distill")
    assert states["teacher"] == "built"
    assert states["score-teacher"] == "kept"
    aside = f".kdpipe/damaged/{teacher.record.fingerprint[:16]}-1"
    assert f"teacher: damaged: weights.txt; set aside to {aside}, building it again" in said
    assert (project / aside / "weights.txt").is_file()
    assert path.read_bytes() == before


def test_seconds_and_peak_memory_are_the_steps_own(project: Path, tiny: ModuleType) -> None:
    def hungry(inputs: Any, config: Any, context: Any) -> Path:
        block = torch.ones(100_000_000)  # 400 MB
        time.sleep(0.3)
        assert block.sum() > 0
        return Path(tiny.run(inputs, config, context))

    results = run_plan(tiny.plan_of(project, until="distill"), _with(tiny, "teacher", hungry), Store(project), SilentProgress())
    assert results["teacher"].seconds >= 0.3
    assert results["teacher"].peak_memory_bytes > results["distill"].peak_memory_bytes + 200_000_000


def test_torch_is_deterministic_with_the_plans_threads_meanwhile_and_as_before_afterwards(project: Path, tiny: ModuleType) -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    seen: list[tuple[int, bool]] = []

    def noted(inputs: Any, config: Any, context: Any) -> Path:
        seen.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))
        assert context.threads == 2
        return Path(tiny.run(inputs, config, context))

    _run(project, tiny, _with(tiny, "teacher", noted), until="teacher", settings=["project.threads=2"])
    assert seen == [(2, True)]
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def _started(python: list[str], project: Path, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([*python, SCRIPT, project], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})


def _inside(process: "subprocess.Popen[str]", stage: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"inside {stage}\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_a_killed_build_goes_on_where_it_stopped(project: Path, tiny: ModuleType, number: signal.Signals, warm_python: list[str]) -> None:
    with _started(warm_python, project, TINY_STAGE="distill") as process:
        _inside(process, "distill")
        process.send_signal(number)
        _, told = process.communicate(timeout=120)
    if number == signal.SIGINT:
        assert "stopped in distill; finished steps are kept (teacher, score-teacher): the same command goes on from here" in told
    states, said = _run(project, tiny, until="distill")
    assert states == {"teacher": "kept", "score-teacher": "kept", "distill": "built", "score-distill": "built"}
    assert "distill: resumed" in said
    assert "distill: first build; goes on where it was interrupted" in said
    assert _runs(project, "teacher") == 1


@pytest.mark.slow
def test_of_two_builds_at_once_the_second_waits_and_finds_the_steps_kept(project: Path, tiny: ModuleType, warm_python: list[str]) -> None:
    with _started(warm_python, project, TINY_STAGE="distill") as first:
        _inside(first, "distill")
        with _started(warm_python, project) as second:
            assert second.stderr is not None
            told = ""
            while "waiting" not in told and (line := second.stderr.readline()):
                told += line
            (project / "go").touch()
            out, rest = second.communicate(timeout=120)
        own, _ = first.communicate(timeout=120)
    told += rest
    assert "distill: another build of this project is at it, waiting for it to finish" in told
    assert "distill: kept, another build has just finished it" in told
    assert json.loads(out)["distill"] == "kept"
    assert json.loads(own.splitlines()[-1])["distill"] == "built"
    assert _runs(project, "teacher") == _runs(project, "distill") == 1


def test_progress_tells_the_reasons_as_steps_run(project: Path, tiny: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    run_plan(tiny.plan_of(project, until="teacher"), tiny.STAGES, Store(project), PlainProgress())
    told = capsys.readouterr()
    assert told.out == ""
    assert "teacher: first build\n" in told.err
    assert "teacher: built in 0.0 s\n" in told.err
