"""The memory of builds that ended, so that one with nothing to do neither imports torch nor loads the data.

A memo holds only while nothing that it depends on has changed: the bytes of `kdpipe.toml`, the command, every installed
tool's version, size and modification time of kdpipe's own files, of the data, of the user's code, of each artifact and of what the build
wrote, and the machine. Whatever cannot be watched, or was written while the build looked at it, makes no memo. Any doubt
leads to the full plan, which costs seconds and is always right.
"""

import hashlib
import importlib.metadata
import os
import platform
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdpipe.foundation.errors import KdpipeError
from kdpipe.foundation.files import canonical_json
from kdpipe.pipeline.steps import BuildResult, Step, StepResult, Verdict
from kdpipe.pipeline.store import HOME, Store

MEMO_FILE = "memo.json"

_DISTRIBUTION = "kdpipe"
_FRESH_NS = 2_000_000_000  # a file this young may be written again without its modification time changing
_MOST_FILES = 50_000  # looking at more would take longer than the memo saves
_MOST_MEMOS = 8
_SKIPPED = {HOME, ".git", "__pycache__"}
_WRITTEN = "dist"  # where a kdpipe.toml stands: what the build itself writes; elsewhere it may be a class of images

Stamps = dict[str, list[int]]
"""path to [size, modification time in ns]"""


@dataclass(frozen=True)
class Watch:
    """What a build depends on outside kdpipe: files and folders, the digest of their stamps, and each user's profile as (path, variant, digest)."""

    roots: tuple[str, ...]
    digest: str
    profiles: tuple[tuple[str, str | None, str], ...]


def memo_key(project: Path, command: str, toml: bytes) -> str:
    """What must be equal before anything else is looked at: command, configuration, tools, kdpipe's files, environment, machine."""
    facts = {
        "command": command,
        "toml": hashlib.sha256(toml).hexdigest(),
        "devices": _digest(_stamps([project / HOME / "devices"])),
        "project": str(project),
        "tools": _installed(),
        "kdpipe": _digest(_stamps([Path(__file__).parents[1] / part for part in _own_folders()])),
        "environment": {name: value for name, value in os.environ.items() if name.startswith("KDPIPE_")},
        "python": [sys.version, sys.prefix],
        "machine": [platform.node(), platform.machine(), _cpu(), _allowed_cores()],
    }
    return hashlib.sha256(canonical_json(facts)).hexdigest()


def watch(project: Path, resolved: Mapping[str, Any], code: Iterable[Path], profiles: Mapping[str, tuple[str, str | None, str]]) -> Watch | None:
    """What to watch for a build of the configuration `resolved`, looked at now, before the data is read; None where it cannot be watched.

    `code`: the user's source files; `profiles`: user's profile files with variant and digest by target.
    """
    if any(":" in text for text in _texts(resolved.get("task", {}))):
        return None  # a callable may read anything
    roots = {text for text in _texts(resolved) if _is_there(project, text)}
    roots |= {str(path) for path in code}
    if os.environ.get("KDPIPE_DATA"):
        roots.add(os.environ["KDPIPE_DATA"])
    if code:
        roots |= {str(path) for path in project.glob("*.py")}
    stamps = _stamps([project / root for root in roots])
    if len(stamps) > _MOST_FILES or any(time.time_ns() - modified < _FRESH_NS for _, modified in stamps.values()):
        return None
    return Watch(tuple(sorted(roots)), _digest(stamps), tuple(profiles.values()))


def remember(store: Store, key: str, watched: Watch, build: BuildResult, written: Iterable[Path]) -> None:
    """Keep the finished `build` under `key`; `written`: the bundles' folders and the report."""
    memos = {known: memo for known, memo in store.recalled(MEMO_FILE).items() if known != key}
    while len(memos) >= _MOST_MEMOS:
        del memos[next(iter(memos))]
    places = [str(path) for path in written]
    memos[key] = {
        "watch": asdict(watched),
        "written": {"roots": places, "digest": _digest(_stamps(map(Path, places)))},
        "name": build.name,
        "config": dict(build.config),
        "command": build.command,
        "targets": list(build.targets),
        "steps": [
            {
                "name": result.step.name,
                "stage": result.step.stage,
                "target": result.step.target,
                "fingerprint": result.step.fingerprint,
                "needs": dict(result.step.needs),
            }
            for result in build.results.values()
        ],
        "bundles": {target: str(path) for target, path in build.bundles.items()},
        "report": str(build.report) if build.report else None,
        "rows": [dict(row) for row in build.rows],
        "verdicts": [asdict(verdict) for verdict in build.verdicts],
        "exit_code": build.exit_code,
        "expectations": [dict(each) for each in build.expectations],
    }
    store.remember(MEMO_FILE, memos)


def recalled(store: Store, key: str, project: Path) -> BuildResult | None:
    """The build remembered under `key`, if all that it depends on and all that it left is as it was; else None."""
    memo = store.recalled(MEMO_FILE).get(key)
    if not isinstance(memo, dict):
        return None
    try:
        if not _holds(memo, project):
            return None
        return _build(memo, store, project)
    except (KeyError, TypeError, ValueError, OSError, KdpipeError):
        return None  # a memo of another form, or something it names is gone: the full plan tells


def _holds(memo: Mapping[str, Any], project: Path) -> bool:
    watched = memo["watch"]
    if _digest(_stamps([project / root for root in watched["roots"]])) != watched["digest"]:
        return False
    if memo["written"]["digest"] != _digest(_stamps(map(Path, memo["written"]["roots"]))):
        return False
    return all(profile_digest(path, variant) == digest for path, variant, digest in watched["profiles"])


def _build(memo: Mapping[str, Any], store: Store, project: Path) -> BuildResult | None:
    results = {}
    for entry in memo["steps"]:
        if store.damage(entry["fingerprint"], thorough=False) is not None:
            return None
        artifact = store.find(entry["fingerprint"])
        if artifact is None:
            return None
        record = artifact.record
        step = Step(entry["name"], entry["stage"], entry["target"], entry["fingerprint"], record.identity, entry["needs"])
        results[step.name] = StepResult(step, artifact.folder, "kept", record.seconds, record.peak_memory_bytes)
    return BuildResult(
        project=project,
        name=memo["name"],
        config=memo["config"],
        command=memo["command"],
        targets=tuple(memo["targets"]),
        results=results,
        rows=tuple(memo["rows"]),
        verdicts=tuple(Verdict(**verdict) for verdict in memo["verdicts"]),
        bundles={target: Path(path) for target, path in memo["bundles"].items()},
        report=Path(memo["report"]) if memo["report"] else None,
        exit_code=memo["exit_code"],
        expectations=tuple(memo["expectations"]),
    )


def profile_digest(path: str, variant: str | None) -> str:
    """The digest of the user's profile as its file has it now, whatever scheme a target puts in its place."""
    from kdpipe.targets.profile import load_profile

    return load_profile(path, at=path, variant=variant).digest


def _stamps(roots: Iterable[Path]) -> Stamps:
    """Size and modification time of every file below `roots`; what is missing has none, and so differs."""
    stamps: Stamps = {}
    for root in roots:
        if root.is_dir():
            seen: set[tuple[int, int]] = set()
            _new(root, seen)
            for folder, folders, names in os.walk(root, followlinks=True):
                skipped = _SKIPPED | ({_WRITTEN} if "kdpipe.toml" in names else set())
                folders[:] = [name for name in folders if name not in skipped and _new(Path(folder, name), seen)]
                for name in names:
                    _stamp(Path(folder, name), stamps)
                if len(stamps) > _MOST_FILES:
                    return stamps
        else:
            _stamp(root, stamps)
    return stamps


def _new(folder: Path, seen: set[tuple[int, int]]) -> bool:
    """Whether the folder was not walked yet: links may lead in circles. It is then noted in `seen`."""
    try:
        facts = folder.stat()
    except OSError:
        return False
    place = facts.st_dev, facts.st_ino
    new = place not in seen
    seen.add(place)
    return new


def _stamp(path: Path, stamps: Stamps) -> None:
    try:
        facts = path.stat()
    except FileNotFoundError:
        return
    stamps[str(path)] = [facts.st_size, facts.st_mtime_ns]


def _digest(stamps: Stamps) -> str:
    return hashlib.sha256(canonical_json(stamps)).hexdigest()


def _is_there(project: Path, text: str) -> bool:
    try:
        return bool(text) and (project / text).exists()
    except (OSError, ValueError):  # too long, or with a zero byte: no path
        return False


def _texts(value: Any) -> Sequence[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, list | tuple):
        return [text for inner in value for text in _texts(inner)]
    return []


def _installed() -> dict[str, str | None]:
    """The versions of all that kdpipe requires, extras included."""
    required = [re.match(r"[A-Za-z0-9._-]+", line) for line in importlib.metadata.requires(_DISTRIBUTION) or ()]
    versions: dict[str, str | None] = {}
    for name in [_DISTRIBUTION, *(match[0] for match in required if match)]:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _own_folders() -> tuple[str, ...]:
    return ("pipeline", "stages", "targets", "tasks", "robustness", "foundation")


def _cpu() -> str:
    """The CPU's model and flags, without the clock, which changes by the minute."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return platform.processor()
    kept = [line for line in text.splitlines() if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()


def _allowed_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
