import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdpipe.foundation.errors import UnavailableError, VerificationError
from kdpipe.foundation.files import sha256_of
from kdpipe.pipeline.steps import Step
from kdpipe.pipeline.store import Artifact, Store

FINGERPRINT = "ab" * 32


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def _committed(store: Store, fingerprint: str = FINGERPRINT, **files: str) -> Artifact:
    work = store.work(fingerprint)
    (work / "deep").mkdir()
    for name, text in (files or {"weights.txt": "w" * 1000, "deep/history.json": "[]"}).items():
        (work / name).write_text(text)
    step = Step("qat@cpu", "qat", "cpu", fingerprint, {"config": {"epochs": 3}})
    return store.commit(step, seconds=1.23456, peak_memory_bytes=7, kdpipe="0.1.0")


def test_a_committed_step_is_found_with_all_that_made_it(store: Store) -> None:
    _committed(store)
    artifact = store.find(FINGERPRINT)
    assert artifact is not None
    assert artifact.folder == store.folder / FINGERPRINT
    assert not (store.work_folder / FINGERPRINT).exists()
    record = artifact.record
    assert (record.step, record.identity, record.kdpipe, record.seconds, record.peak_memory_bytes) == ("qat@cpu", {"config": {"epochs": 3}}, "0.1.0", 1.235, 7)
    assert set(record.files) == {"weights.txt", "deep/history.json"}
    assert record.files["weights.txt"].sha256 == sha256_of(artifact.folder / "weights.txt")
    assert record.files["weights.txt"].size_bytes == 1000
    assert store.damage(FINGERPRINT, thorough=True) is None


def test_what_is_not_there_is_neither_found_nor_damaged(store: Store) -> None:
    assert store.find(FINGERPRINT) is None
    assert store.damage(FINGERPRINT, thorough=True) is None
    assert list(store.artifacts()) == []


def test_a_write_that_a_kill_cut_off_is_no_part_of_the_artifact(store: Store) -> None:
    work = store.work(FINGERPRINT)
    (work / ".weights.txt.123.partial").write_text("half")
    assert set(_committed(store).record.files) == {"weights.txt", "deep/history.json"}


@pytest.mark.parametrize("keeps_mtime", [False, True], ids=["written to", "rotten on the disk"])
def test_a_flipped_byte_is_damage(store: Store, keeps_mtime: bool) -> None:
    path = _committed(store).folder / "weights.txt"
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    if keeps_mtime:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    fresh = Store(store.home.parent)  # another process: what this one has verified is not known there
    assert fresh.damage(FINGERPRINT, thorough=True) == "damaged: weights.txt"
    assert fresh.damage(FINGERPRINT, thorough=False) == (None if keeps_mtime else "damaged: weights.txt")


@pytest.mark.parametrize("harm", ["truncated", "missing", "record missing", "record empty", "record of another"])
def test_every_kind_of_harm_is_damage(store: Store, harm: str) -> None:
    folder = _committed(store).folder
    record = folder / "artifact.json"
    if harm == "truncated":
        os.truncate(folder / "weights.txt", 10)
    elif harm == "missing":
        (folder / "deep" / "history.json").unlink()
    elif harm == "record missing":
        record.unlink()
    elif harm == "record empty":
        record.write_text("")
    else:
        record.write_text(json.dumps(json.loads(record.read_text()) | {"fingerprint": "cd" * 32}))
    damage = store.damage(FINGERPRINT, thorough=False)
    assert damage is not None
    assert damage.startswith("damaged: ")


def test_a_touched_file_with_the_same_content_is_sound(store: Store) -> None:
    os.utime(_committed(store).folder / "weights.txt")
    assert store.damage(FINGERPRINT, thorough=False) is None


def test_a_record_that_cannot_be_read_names_folder_and_way_out(store: Store) -> None:
    folder = _committed(store).folder
    (folder / "artifact.json").write_text("{")
    with pytest.raises(VerificationError) as caught:
        store.find(FINGERPRINT)
    (problem,) = caught.value.problems
    assert problem.message == "damaged: artifact.json"
    assert problem.at == str(folder)
    assert problem.do == "run kdpipe build: it sets the folder aside and builds the step again"


def test_a_damaged_artifact_is_set_aside_whole_and_a_second_one_beside_it(store: Store) -> None:
    _committed(store)
    first = store.set_aside(FINGERPRINT)
    _committed(store)
    second = store.set_aside(FINGERPRINT)
    assert first != second
    assert (first / "weights.txt").is_file()
    assert (second / "weights.txt").is_file()
    assert store.find(FINGERPRINT) is None


def test_artifacts_are_listed_oldest_first_and_unreadable_ones_left_out(store: Store) -> None:
    for number, finished in ((1, "2025-01-02T00:00:00Z"), (2, "2025-01-01T00:00:00Z"), (3, "2025-01-03T00:00:00Z")):
        path = _committed(store, f"{number:02x}" * 32).folder / "artifact.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"finished": finished}) if number != 3 else "")
    assert [artifact.record.fingerprint[:2] for artifact in store.artifacts()] == ["02", "01"]


def test_of_two_artifacts_finished_in_one_second_the_one_written_first_is_older(store: Store) -> None:
    for number in (9, 1, 5):
        path = _committed(store, f"{number:02x}" * 32).folder / "artifact.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"finished": "2025-01-01T00:00:00Z"}))
        os.utime(path, ns=(0, 1_000_000_000 + 10 - number))
    assert [artifact.record.fingerprint[:2] for artifact in store.artifacts()] == ["09", "05", "01"]


HOLD = """
import sys, time
from pathlib import Path
from kdpipe.pipeline.store import Store
with Store(Path(sys.argv[1])).lock("x", lambda: None):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def _holder(project: Path, seconds: float) -> "subprocess.Popen[str]":
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(project), str(seconds)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_lock_that_another_process_holds_is_waited_for_and_said_once(store: Store) -> None:
    said: list[str] = []
    with _holder(store.home.parent, 1.0):
        assert store.locked("x")
        with store.lock("x", lambda: said.append("waiting")):
            assert said == ["waiting"]
    assert not store.locked("x")


def test_the_lock_of_a_killed_process_is_free(store: Store) -> None:
    said: list[str] = []
    with _holder(store.home.parent, 60) as holder:
        holder.kill()
        holder.wait()
        with store.lock("x", lambda: said.append("waiting")):
            pass
    assert said == []


def test_what_is_remembered_is_recalled_and_nonsense_is_nothing(store: Store) -> None:
    store.remember("memo.json", {"a": 1})
    assert store.recalled("memo.json") == {"a": 1}
    (store.home / "memo.json").write_text("[1")
    assert store.recalled("memo.json") == {}
    (store.home / "memo.json").write_text("[1]")
    assert store.recalled("memo.json") == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A disk of 256 kB; only root can mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = (
        shutil.which("mount") and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, check=False).returncode == 0
    )
    if not mounted:
        pytest.skip("a small disk can only be mounted by root")
    yield folder
    subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_told_and_keeps_what_is_finished(small_disk: Path) -> None:
    store = Store(small_disk)
    _committed(store)
    work = store.work("cd" * 32)
    with pytest.raises(OSError, match="No space"):
        (work / "weights.txt").write_bytes(b"w" * 1_000_000)
    step = Step("teacher", "teacher", None, "cd" * 32, {})
    with pytest.raises(UnavailableError) as caught:
        store.commit(step, seconds=0, peak_memory_bytes=0, kdpipe="0.1.0")
    (problem,) = caught.value.problems
    assert problem.message == "cannot write: No space left on device"
    assert problem.at is not None
    assert problem.at.startswith(str(work))
    assert problem.do is not None
    assert "finished work is kept" in problem.do
    assert store.find("cd" * 32) is None
    assert store.damage(FINGERPRINT, thorough=True) is None


def test_a_read_only_store_can_be_read_and_refuses_work_with_the_reason(small_disk: Path) -> None:
    store = Store(small_disk)
    _committed(store)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert store.damage(FINGERPRINT, thorough=True) is None
    with pytest.raises(UnavailableError) as caught:
        store.work("cd" * 32)
    (problem,) = caught.value.problems
    assert problem.message == "cannot write: Read-only file system"
    assert problem.at == str(store.work_folder / ("cd" * 32))
    with pytest.raises(UnavailableError), store.lock("x", lambda: None):
        pass
