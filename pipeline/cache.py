"""What the store holds, and what of it can go: everything that the latest builds of the project do not use.

The teachers' kept logits (`[distill.cache]`) belong to no one build: a table goes when no training has read it for long enough.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kdpipe.foundation.files import told_disk_errors
from kdpipe.pipeline.steps import Step
from kdpipe.pipeline.store import Store

_BUILDS = "builds"
_TABLES = "targets"  # as kdpipe.stages.target_cache.FOLDER has it, which would import torch; a test compares them
_SHARED = "-"  # the builds that stop before any target
_GOING = "removed-"
_DAY_SECONDS = 86_400.0


@dataclass(frozen=True)
class Entry:
    """An artifact in the store. `used`: by the latest build of one of the project's targets, finished or not."""

    step: str
    fingerprint: str
    size_bytes: int
    seconds: float
    finished: str
    used: bool


@dataclass(frozen=True)
class KeptLogits:
    """A table of a teacher's logits on the training split. `used`: when a training last read or wrote it, UTC, ISO 8601."""

    name: str
    size_bytes: int
    used: str


@dataclass(frozen=True)
class Removal:
    """A folder or file that can go, and why. `what`: 'artifact distill', 'interrupted work', 'damaged artifact', 'teacher logits'."""

    what: str
    folder: Path
    size_bytes: int


def note_build(store: Store, steps: Sequence[Step], *, finished: bool) -> None:
    """Remember, per target, the artifacts of the build that begins or has ended: `collect` keeps them."""
    targets = dict.fromkeys(step.target for step in steps if step.target is not None) or {_SHARED: None}
    shared = [step.fingerprint for step in steps if step.target is None]
    for target in targets:
        used = shared + [step.fingerprint for step in steps if step.target == target]
        name = f"{_BUILDS}/{target}.json"
        noted = {**store.recalled(name), "finished" if finished else "begun": used}
        if finished:
            noted.pop("begun", None)
        store.remember(name, noted)


def entries(store: Store) -> list[Entry]:
    """All artifacts, oldest first."""
    used = _used(store)
    return [
        Entry(
            step=artifact.record.step,
            fingerprint=artifact.record.fingerprint,
            size_bytes=sum(file.size_bytes for file in artifact.record.files.values()),
            seconds=artifact.record.seconds,
            finished=artifact.record.finished,
            used=artifact.record.fingerprint in used,
        )
        for artifact in store.artifacts()
    ]


def kept_logits(store: Store) -> list[KeptLogits]:
    """All tables of teachers' logits, that unused longest first."""
    return [KeptLogits(path.stem, size, datetime.fromtimestamp(used, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")) for path, size, used in _tables(store)]


def removable(store: Store, *, keep_days: float) -> list[Removal]:
    """What `collect` would remove: unused artifacts, work of unfinished steps, damaged artifacts and teachers' logits, each older than `keep_days`."""
    return [removal for _, removal in _removable(store, keep_days)]


def collect(store: Store, *, keep_days: float) -> list[Removal]:
    """Remove what `removable` lists and return it; what another build works on is left alone."""
    for left in store.home.glob(f"{_GOING}*"):  # of a removal that was killed
        shutil.rmtree(left)
    removed = []
    for lock, removal in _removable(store, keep_days):
        if lock is not None and store.locked(lock):
            continue  # a build is at it
        with told_disk_errors(removal.folder):
            _remove(removal.folder, store.home)
        removed.append(removal)
    return removed


def _removable(store: Store, keep_days: float) -> Iterator[tuple[str | None, Removal]]:
    """With the name of the lock that a build would hold on it."""
    used = _used(store)
    before = time.time() - keep_days * _DAY_SECONDS
    for artifact in list(store.artifacts()):
        record = artifact.record
        if record.fingerprint not in used and datetime.fromisoformat(record.finished).timestamp() <= before:
            yield record.fingerprint, Removal(f"artifact {record.step}", artifact.folder, _size(artifact.folder))
    for folder in _folders(store.work_folder):
        if folder.name not in used and _last_change(folder) <= before:
            yield folder.name, Removal("interrupted work", folder, _size(folder))
    for folder in _folders(store.damaged_folder):
        if folder.stat().st_ctime <= before:  # when it was set aside: the rename
            yield None, Removal("damaged artifact", folder, _size(folder))
    for path, size, used_last in _tables(store):
        if used_last <= before:
            yield None, Removal("teacher logits", path, size)


def _used(store: Store) -> set[str]:
    notes = [store.recalled(f"{_BUILDS}/{path.name}") for path in (store.home / _BUILDS).glob("*.json")]
    return {fingerprint for note in notes for used in note.values() for fingerprint in used}


def _tables(store: Store) -> list[tuple[Path, int, float]]:
    """Path, bytes and time of the last use of each table, that unused longest first; what another process removes meanwhile is not there."""
    found = []
    for path in (store.home / _TABLES).glob("*.safetensors"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        found.append((path, status.st_size, status.st_mtime))
    return sorted(found, key=lambda it: (it[2], it[0]))


def _remove(folder: Path, home: Path) -> None:
    """A folder is renamed out of sight first, so that a kill leaves nothing half-removed where it would be looked for."""
    if not folder.is_dir():
        folder.unlink(missing_ok=True)
        return
    gone = home / f"{_GOING}{folder.name}"
    folder.rename(gone)
    shutil.rmtree(gone)


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def _last_change(folder: Path) -> float:
    return max(path.stat().st_mtime for path in [folder, *folder.rglob("*")])


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
