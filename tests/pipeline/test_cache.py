import json
import os
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from kdpipe.pipeline.cache import collect, entries, kept_logits, note_build, removable
from kdpipe.pipeline.planning import Plan
from kdpipe.pipeline.progress import SilentProgress
from kdpipe.pipeline.runner import run_plan
from kdpipe.pipeline.store import Store
from kdpipe.stages.target_cache import FOLDER, Table


@pytest.fixture
def store(project: Path) -> Store:
    return Store(project)


def _built(store: Store, tiny: ModuleType, *, finished: bool = True, until: str = "distill", **arguments: object) -> Plan:
    plan: Plan = tiny.plan_of(store.home.parent, until=until, **arguments)
    run_plan(plan, tiny.STAGES, store, SilentProgress())
    note_build(store, [planned.step for planned in plan.steps], finished=finished)
    return plan


def _steps(store: Store) -> dict[str, list[bool]]:
    listed: dict[str, list[bool]] = {}
    for entry in entries(store):
        listed.setdefault(entry.step, []).append(entry.used)
    return listed


def test_the_latest_build_keeps_what_it_uses_and_the_rest_goes(store: Store, tiny: ModuleType) -> None:
    _built(store, tiny)
    _built(store, tiny, settings=["distill.epochs=9"])
    assert sorted(_steps(store)["distill"]) == [False, True]
    assert _steps(store)["teacher"] == [True]
    removed = collect(store, keep_days=0)
    assert sorted(removal.what for removal in removed) == ["artifact distill", "artifact score-distill"]
    assert all(removal.size_bytes > 0 for removal in removed)
    assert _steps(store) == {"teacher": [True], "score-teacher": [True], "distill": [True], "score-distill": [True]}
    assert sorted(path.name for path in store.home.iterdir() if path.name.startswith("removed")) == []


def test_a_dry_run_lists_the_same_and_removes_nothing(store: Store, tiny: ModuleType) -> None:
    _built(store, tiny)
    _built(store, tiny, settings=["distill.epochs=9"])
    listed = removable(store, keep_days=0)
    assert len(entries(store)) == 6
    assert [removal.folder for removal in listed] == [removal.folder for removal in collect(store, keep_days=0)]


def test_each_targets_latest_build_counts(store: Store, tiny: ModuleType) -> None:
    _built(store, tiny, until="qat", targets=["cpu"])
    _built(store, tiny, until="qat", targets=["arm"])
    assert removable(store, keep_days=0) == []


def test_a_build_that_has_begun_is_spared_beside_the_last_finished_one(store: Store, tiny: ModuleType) -> None:
    _built(store, tiny)
    _built(store, tiny, settings=["distill.epochs=9"], finished=False)
    assert removable(store, keep_days=0) == []


def test_what_is_young_stays(store: Store, tiny: ModuleType) -> None:
    _built(store, tiny)
    _built(store, tiny, settings=["distill.epochs=9"])
    assert removable(store, keep_days=1) == []


def test_interrupted_work_and_damaged_artifacts_go_when_nobody_uses_them(store: Store, tiny: ModuleType) -> None:
    plan = _built(store, tiny, until="teacher")
    (store.work("ab" * 32) / "checkpoint").write_text("c" * 100)
    (store.work("cd" * 32) / "checkpoint").write_text("c")
    own = plan.steps[0].step.fingerprint
    store.set_aside(own)
    (store.work(own) / "checkpoint").write_text("c")
    with store.lock("cd" * 32, lambda: None):
        removed = collect(store, keep_days=0)
    assert [(removal.what, removal.folder.name[:2]) for removal in removed] == [("interrupted work", "ab"), ("damaged artifact", own[:2])]
    assert removed[0].size_bytes == 100
    assert (store.work_folder / own / "checkpoint").exists()


def test_the_age_of_an_artifact_is_when_it_was_finished(store: Store, tiny: ModuleType) -> None:
    plan = _built(store, tiny, until="teacher")
    _built(store, tiny, until="teacher", settings=["teacher.epochs=9"])
    record = store.folder / plan.steps[0].step.fingerprint / "artifact.json"
    old = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3 * 86400))
    record.write_text(json.dumps(json.loads(record.read_text()) | {"finished": old}))
    assert [removal.what for removal in removable(store, keep_days=2)] == ["artifact teacher"]
    assert removable(store, keep_days=4) == []


def test_what_a_killed_removal_left_goes_the_next_time(store: Store) -> None:
    left = store.home / "removed-abc"
    left.mkdir(parents=True)
    (left / "file").write_text("x")
    collect(store, keep_days=0)
    assert not left.exists()


def test_teachers_logits_are_listed_and_go_once_no_training_has_read_them_for_long(store: Store) -> None:
    tables = [Table(store.home.parent / FOLDER, {"weights": name}, most_mb=1) for name in ("old", "new")]
    for table, rows in zip(tables, (300, 200), strict=True):
        table.write(torch.zeros(rows, 10), lambda told: None)
    before = time.time() - 3 * 86400
    os.utime(tables[0].path, (before, before))
    old, new = kept_logits(store)
    assert (old.name, new.name) == (tables[0].path.stem, tables[1].path.stem)
    assert old.size_bytes == tables[0].path.stat().st_size > 12_000
    assert old.used == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(before))
    assert [(removal.what, removal.folder) for removal in removable(store, keep_days=2)] == [("teacher logits", tables[0].path)]
    assert collect(store, keep_days=4) == []
    assert [removal.size_bytes for removal in collect(store, keep_days=2)] == [old.size_bytes]
    assert list((store.home.parent / FOLDER).iterdir()) == [tables[1].path]


def test_an_empty_store_has_nothing(store: Store) -> None:
    assert entries(store) == []
    assert kept_logits(store) == []
    assert collect(store, keep_days=0) == []
    assert not store.folder.exists()
