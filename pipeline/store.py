"""The store: finished artifacts by fingerprint, there whole or not at all.

`<project>/.kdpipe/` holds `store/<fingerprint>/` (an artifact and its `artifact.json`), `work/<fingerprint>/` (a step that
runs or was killed; its checkpoints live there), `locks/`, and `damaged/` (what was set aside). A work folder becomes an
artifact by one rename, after every file in it was flushed to disk and its digest written down.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, Field, JsonValue, ValidationError

from kdpipe.foundation.errors import VerificationError
from kdpipe.foundation.files import sha256_of, told_disk_errors, write_json
from kdpipe.pipeline.steps import Step

HOME = ".kdpipe"
RECORD_FILE = "artifact.json"

_LOCK_POLL_SECONDS = 0.2


class FileRecord(BaseModel, extra="forbid", frozen=True):
    """One file of an artifact. `mtime_ns` serves the cheap check: a file that still has it and its size was not written to."""

    sha256: str
    size_bytes: int
    mtime_ns: int


class ArtifactRecord(BaseModel, extra="forbid", frozen=True):
    """artifact.json: what made the artifact, what is in it, and what it cost."""

    step: str = Field(description="the step's name: 'teacher', 'qat@arm'")
    fingerprint: str
    identity: dict[str, JsonValue] = Field(description="all that the fingerprint is taken of: inputs, resolved configuration, tool versions, …")
    kdpipe: str = Field(description="version of kdpipe")
    seconds: float
    peak_memory_bytes: int
    finished: str = Field(description="UTC, ISO 8601")
    files: dict[str, FileRecord]


@dataclass(frozen=True)
class Artifact:
    """A finished step on disk."""

    folder: Path
    record: ArtifactRecord


class Store:
    """The artifacts of one project."""

    def __init__(self, project: Path) -> None:
        self.home = project / HOME
        self.folder = self.home / "store"
        self.work_folder = self.home / "work"
        self.damaged_folder = self.home / "damaged"
        self._verified: set[str] = set()

    def find(self, fingerprint: str) -> Artifact | None:
        """The artifact, or None when the store does not hold it. Raises VerificationError when its record cannot be read."""
        folder = self.folder / fingerprint
        if not folder.is_dir():
            return None
        try:
            record = ArtifactRecord.model_validate_json((folder / RECORD_FILE).read_bytes())
        except (OSError, ValidationError) as error:
            raise VerificationError(f"damaged: {RECORD_FILE}", at=folder, do="run kdpipe build: it sets the folder aside and builds the step again") from error
        if record.fingerprint != fingerprint:
            raise VerificationError(
                f"damaged: {RECORD_FILE} is of another artifact", at=folder, do="run kdpipe build: it sets the folder aside and builds the step again"
            )
        return Artifact(folder, record)

    def artifacts(self) -> Iterator[Artifact]:
        """All artifacts whose record can be read, oldest first."""
        found = []
        for folder in self.folder.iterdir() if self.folder.is_dir() else ():
            try:
                artifact = self.find(folder.name)
                written_ns = (folder / RECORD_FILE).stat().st_mtime_ns  # tells two apart that were finished in one second
            except (VerificationError, FileNotFoundError):
                continue  # told when a build wants it, or removed by another process; a list of what is usable does without
            if artifact is not None:
                found.append((artifact.record.finished, written_ns, artifact.record.fingerprint, artifact))
        yield from (artifact for *_, artifact in sorted(found, key=lambda it: it[:3]))

    def damage(self, fingerprint: str, *, thorough: bool) -> str | None:
        """What is wrong with an artifact that is there (`damaged: weights.safetensors`), or None.

        Cheap: every recorded file has its size and modification time, and where it has not, its digest.
        `thorough`: the digest of every file, once in a process.
        """
        try:
            artifact = self.find(fingerprint)
        except VerificationError as error:
            return error.problems[0].message
        if artifact is None or (thorough and fingerprint in self._verified):
            return None
        for name, file in artifact.record.files.items():
            if not _intact(artifact.folder / name, file, thorough=thorough):
                return f"damaged: {name}"
        if thorough:
            self._verified.add(fingerprint)
        return None

    def set_aside(self, fingerprint: str) -> Path:
        """Move a damaged artifact out of the store; returns where it is now."""
        number = 1
        while (aside := self.damaged_folder / f"{fingerprint[:16]}-{number}").exists():
            number += 1
        with told_disk_errors(aside):
            self.damaged_folder.mkdir(parents=True, exist_ok=True)
            (self.folder / fingerprint).rename(aside)
        self._verified.discard(fingerprint)
        return aside

    def work(self, fingerprint: str) -> Path:
        """The work folder of a step: new, or as a killed run left it."""
        folder = self.work_folder / fingerprint
        with told_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def commit(self, step: Step, *, seconds: float, peak_memory_bytes: int, kdpipe: str) -> Artifact:
        """Turn the step's work folder into its artifact. Until the rename at the end the store does not change."""
        work = self.work_folder / step.fingerprint
        destination = self.folder / step.fingerprint
        with told_disk_errors(work):
            for leftover in work.rglob(".*.partial"):  # a write that a kill cut off
                leftover.unlink()
            files = {path.relative_to(work).as_posix(): path for path in sorted(work.rglob("*")) if path.is_file() and path != work / RECORD_FILE}
            for path in files.values():
                _flush(path)
            record = ArtifactRecord(
                step=step.name,
                fingerprint=step.fingerprint,
                identity=dict(step.identity),
                kdpipe=kdpipe,
                seconds=round(seconds, 3),
                peak_memory_bytes=peak_memory_bytes,
                finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                files={
                    name: FileRecord(sha256=sha256_of(path), size_bytes=path.stat().st_size, mtime_ns=path.stat().st_mtime_ns) for name, path in files.items()
                },
            )
            write_json(work / RECORD_FILE, record.model_dump(mode="json"))
            for folder in [work, *(path for path in work.rglob("*") if path.is_dir())]:
                _flush(folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            work.rename(destination)
            _flush(self.folder)
        self._verified.add(step.fingerprint)
        return Artifact(destination, record)

    @contextmanager
    def lock(self, name: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the lock called `name` (a fingerprint); `waiting` is called once when another process has it. A kill frees it."""
        folder = self.home / "locks"
        lock = FileLock(folder / f"{name}.lock")
        with told_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                waiting()
                lock.acquire(poll_interval=_LOCK_POLL_SECONDS)
        try:
            yield
        finally:
            lock.release()

    def locked(self, name: str) -> bool:
        """Whether another process holds the lock called `name` now."""
        path = self.home / "locks" / f"{name}.lock"
        if not path.exists():
            return False
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def remember(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a small JSON object beside the store, at `.kdpipe/<name>`."""
        path = self.home / name
        with told_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)

    def recalled(self, name: str) -> dict[str, Any]:
        """What `remember` wrote, or an empty object when there is none or it cannot be read: what is remembered can always be found again."""
        try:
            value = json.loads((self.home / name).read_bytes())
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}


def _intact(path: Path, file: FileRecord, *, thorough: bool) -> bool:
    try:
        facts = path.stat()
        if facts.st_size != file.size_bytes:
            return False
        if not thorough and facts.st_mtime_ns == file.mtime_ns:
            return True
        return sha256_of(path) == file.sha256
    except OSError:
        return False


def _flush(path: Path) -> None:
    """Force a file's or a folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
