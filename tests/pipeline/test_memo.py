import os
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from kdpipe.pipeline import memo
from kdpipe.pipeline.memo import Watch, memo_key, recalled, remember, watch
from kdpipe.pipeline.progress import SilentProgress
from kdpipe.pipeline.runner import run_plan
from kdpipe.pipeline.steps import BuildResult, Verdict
from kdpipe.pipeline.store import Store

COMMAND = "kdpipe build"


class Remembered:
    """A finished build of the tiny project on data of its own, and its memo."""

    def __init__(self, project: Path, tiny: ModuleType) -> None:
        self.project = project
        self.store = Store(project)
        self.data = project / "data.npz"
        self.images = np.random.default_rng(0).integers(0, 255, (60, 8, 8), dtype=np.uint8)
        np.savez(self.data, images=self.images, labels=np.arange(60) % 2)
        _age(self.data)
        (project / "kdpipe.toml").write_text(tiny.KDPIPE_TOML.replace('"digits"', '"data.npz"'))
        config = tiny.config_of(project)
        self.watched = watch(project, config.resolved, (), {})
        plan = tiny.plan_of(project)
        results = run_plan(plan, tiny.STAGES, self.store, SilentProgress())
        self.bundle = project / "dist" / "tiny" / "cpu"
        self.bundle.mkdir(parents=True)
        (self.bundle / "model.onnx").write_text("model")
        self.report = project / "dist" / "tiny" / "report.html"
        self.report.write_text("report")
        verdicts = (Verdict("size_kb", "cpu", 10.0, "kB", 12.0, "missed", "the file in onnxruntime"),)
        bundles = {"cpu": self.bundle}
        rows = ({"model": "teacher", "clean": {"value": 98.0}},)
        self.build = BuildResult(project, "tiny", config.resolved, COMMAND, ("cpu",), results, rows, verdicts, bundles, self.report, 3)

    @property
    def key(self) -> str:
        return memo_key(self.project, COMMAND, (self.project / "kdpipe.toml").read_bytes())

    def recalled(self) -> BuildResult | None:
        return recalled(self.store, self.key, self.project)


def _age(path: Path) -> None:
    """As if written a minute ago: a file as young as its modification time's grain is never trusted."""
    before = time.time_ns() - 60_000_000_000
    os.utime(path, ns=(before, before))


@pytest.fixture
def remembered(project: Path, tiny: ModuleType) -> Remembered:
    made = Remembered(project, tiny)
    assert made.watched is not None
    remember(made.store, made.key, made.watched, made.build, [made.bundle, made.report])
    return made


def test_an_unchanged_build_is_recalled_whole(remembered: Remembered) -> None:
    build = remembered.recalled()
    assert build is not None
    kept = {name: replace(result, state="kept") for name, result in remembered.build.results.items()}
    assert build == replace(remembered.build, results=kept)
    assert (build.exit_code, build.verdicts[0].state) == (3, "missed")


def test_a_changed_pixel_is_noticed_though_the_file_keeps_its_size(remembered: Remembered) -> None:
    size = remembered.data.stat().st_size
    remembered.images[0, 0, 0] ^= 1
    np.savez(remembered.data, images=remembered.images, labels=np.arange(60) % 2)
    assert remembered.data.stat().st_size == size
    assert remembered.recalled() is None


@pytest.mark.parametrize(
    "harm",
    [
        lambda it: (it.project / "kdpipe.toml").write_text((it.project / "kdpipe.toml").read_text() + "\n"),
        lambda it: it.data.unlink(),
        lambda it: (it.bundle / "model.onnx").unlink(),
        lambda it: (it.bundle / "model.onnx").write_text("other"),
        lambda it: it.report.unlink(),
        lambda it: (it.build.results["teacher"].folder / "weights.txt").write_text("short"),
        lambda it: (it.build.results["teacher"].folder / "artifact.json").unlink(),
        lambda it: (it.store.home / "memo.json").write_text("{"),
        lambda it: it.store.remember("memo.json", {it.key: {"watch": {}}}),
    ],
    ids=["configuration", "data gone", "bundle file gone", "bundle file changed", "report gone", "artifact", "record", "memo cut off", "memo of another form"],
)
def test_any_doubt_leads_to_the_full_plan(remembered: Remembered, harm: Any) -> None:
    harm(remembered)
    assert remembered.recalled() is None


def test_the_key_follows_command_tools_environment_and_kdpipes_own_files(remembered: Remembered, monkeypatch: pytest.MonkeyPatch) -> None:
    key, toml = remembered.key, (remembered.project / "kdpipe.toml").read_bytes()
    assert memo_key(remembered.project, COMMAND, toml) == key
    assert memo_key(remembered.project, f"{COMMAND} --target arm", toml) != key
    monkeypatch.setenv("KDPIPE_SOMETHING", "1")
    assert remembered.key != key
    monkeypatch.delenv("KDPIPE_SOMETHING")
    for name, value in (("_installed", {"torch": "9"}), ("_cpu", "another"), ("_allowed_cores", 99), ("_own_folders", ("foundation",))):
        with monkeypatch.context() as patched:
            patched.setattr(memo, name, lambda value=value: value)
            assert remembered.key != key


def test_user_code_profiles_and_named_files_are_watched(project: Path, tiny: ModuleType) -> None:
    for name, text in (("nets.py", "x = 1\n"), ("board.toml", 'extends = "arm"\n'), ("start.bin", "w")):
        (project / name).write_text(text)
        _age(project / name)
    resolved = {"teacher": {"network": "nets:net", "weights": "start.bin"}, "task": {"data": "digits"}}
    watched = watch(project, resolved, [project / "nets.py"], {})
    assert watched is not None
    assert set(watched.roots) == {"start.bin", str(project / "nets.py")} | ({os.environ["KDPIPE_DATA"]} if os.environ.get("KDPIPE_DATA") else set())
    (project / "start.bin").write_text("v")
    _age(project / "start.bin")
    changed = watch(project, resolved, [project / "nets.py"], {})
    assert changed is not None
    assert changed.digest != watched.digest


def test_a_new_file_in_a_data_folder_is_noticed(project: Path) -> None:
    (project / "images").mkdir()
    for name in ("a", "b"):
        (project / "images" / name).write_text("x")
        _age(project / "images" / name)
    resolved = {"task": {"data": "images"}}
    first = watch(project, resolved, (), {})
    (project / "images" / "c").write_text("x")
    _age(project / "images" / "c")
    second = watch(project, resolved, (), {})
    assert isinstance(first, Watch)
    assert isinstance(second, Watch)
    assert first.digest != second.digest


def test_what_cannot_be_watched_or_was_just_written_makes_no_memo(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert watch(project, {"task": {"data": "mine:load"}}, (), {}) is None
    (project / "fresh.npz").write_text("x")
    assert watch(project, {"task": {"data": "fresh.npz"}}, (), {}) is None
    _age(project / "fresh.npz")
    assert watch(project, {"task": {"data": "fresh.npz"}}, (), {}) is not None
    monkeypatch.setattr(memo, "_MOST_FILES", 0)
    assert watch(project, {"task": {"data": "fresh.npz"}}, (), {}) is None


def test_a_changed_profile_of_the_user_is_noticed(remembered: Remembered) -> None:
    board = remembered.project / "board.toml"
    base = remembered.project / "base.toml"
    base.write_text('extends = "arm"\n')
    board.write_text('extends = "base.toml"\n')
    assert remembered.watched is not None
    watched = replace(remembered.watched, profiles=((str(board), None, memo.profile_digest(str(board), None)),))
    remember(remembered.store, remembered.key, watched, remembered.build, [remembered.bundle, remembered.report])
    assert remembered.recalled() is not None
    base.write_text('extends = "arm"\nopset = 15\n')
    assert remembered.recalled() is None


def test_the_oldest_memos_go(remembered: Remembered) -> None:
    assert remembered.watched is not None
    for number in range(12):
        remember(remembered.store, f"key-{number}", remembered.watched, remembered.build, [])
    memos = remembered.store.recalled("memo.json")
    assert list(memos) == [f"key-{number}" for number in range(4, 12)]


def test_a_class_folder_called_dist_or_behind_a_link_is_watched(project: Path) -> None:
    for folder in ("images/dist", "elsewhere"):
        (project / folder).mkdir(parents=True)
        (project / folder / "1.png").write_text("x")
        _age(project / folder / "1.png")
    (project / "images" / "linked").symlink_to(project / "elsewhere")
    (project / "images" / "linked" / "round").symlink_to(project / "images")  # a circle must end
    resolved = {"task": {"data": "images"}}
    digests = set()
    for name in ("", "images/dist/2.png", "elsewhere/2.png"):
        if name:
            (project / name).write_text("x")
            _age(project / name)
        watched = watch(project, resolved, (), {})
        assert watched is not None
        digests.add(watched.digest)
    assert len(digests) == 3


def test_what_a_build_writes_into_its_project_is_not_taken_for_data(project: Path) -> None:
    (project / "ant").mkdir()
    (project / "ant" / "1.png").write_text("x")
    for path in (project / "ant" / "1.png", project / "kdpipe.toml"):
        _age(path)
    first = watch(project, {"task": {"data": "."}}, (), {})
    (project / "dist" / "tiny").mkdir(parents=True)
    (project / "dist" / "tiny" / "report.html").write_text("x")
    assert first is not None
    assert watch(project, {"task": {"data": "."}}, (), {}) == first
