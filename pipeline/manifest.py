"""manifest.json: what a bundle is made of and from, so that a stranger can check both. No path of the machine, no time of day."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdpipe.foundation.files import sha256_of
from kdpipe.pipeline.fingerprint import fingerprint
from kdpipe.pipeline.steps import BuildResult, Step

MANIFEST_FILE = "manifest.json"
FORMAT = 1


def manifest(build: BuildResult, target: str, folder: Path) -> dict[str, Any]:
    """The manifest of the bundle in `folder`, every file of which is there by now but the manifest itself.

    `files`: path in the bundle to sha256 and size; `data`, `code`, `configuration`, `profile`: digests, the configuration
    also whole; `labels`: how many were made wrong on purpose, where any were; `tools`: every distribution that could change
    a step's output; `steps`: fingerprints; `command`: what makes it again.
    """
    steps = [result.step for result in build.results.values() if result.step.target in (None, target)]
    profile = next((step.identity["profile"] for step in steps if "profile" in step.identity), None)
    own = {"profile": None if profile is None else {"name": profile["name"], "sha256": fingerprint(profile)}}
    return {**shared_manifest(build, target, (target,), folder), **own}


def shared_manifest(build: BuildResult, name: str, targets: Sequence[str], folder: Path) -> dict[str, Any]:
    """The manifest of a bundle of several targets, without what is one target's alone."""
    steps = [result.step for result in build.results.values() if result.step.target in (None, *targets)]
    return {
        "format": FORMAT,
        "kdpipe": importlib.metadata.version("kdpipe"),
        "project": build.name,
        "target": name,
        "command": build.command,
        "files": _files(folder),
        "data": _one(steps, "data"),
        **({} if (labels := _one(steps, "labels")) is None else {"labels": labels}),
        "code": _merged(steps, "code"),
        "configuration": {"sha256": fingerprint(build.config), "values": dict(build.config)},
        "tools": {"python": platform.python_version(), **_merged(steps, "tools")},
        "machine": {"architecture": platform.machine(), "system": platform.system(), "threads": _one(steps, "threads")},
        "steps": {step.name: step.fingerprint for step in steps},
    }


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_FILE)
    return {path.relative_to(folder).as_posix(): {"sha256": sha256_of(path), "size_bytes": path.stat().st_size} for path in paths}


def _one(steps: list[Step], field: str) -> Any:
    """The field that all steps of a build share."""
    return next((step.identity[field] for step in steps if field in step.identity), None)


def _merged(steps: list[Step], field: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for step in steps:
        values: Mapping[str, Any] = step.identity.get(field, {})
        merged |= values
    return dict(sorted(merged.items()))
