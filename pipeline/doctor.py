"""What this machine can do: what is installed, which targets can be built and measured here, whether the project's disk takes a build."""

import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

from kdpipe.pipeline.store import HOME
from kdpipe.targets.devices.agent import runtimes
from kdpipe.targets.instruction_sets import probe
from kdpipe.targets.profile import Profile, load_profile, profile_names
from kdpipe.targets.runtimes.runtime import runtime_version

_DISTRIBUTION = "kdpipe"
_ENOUGH_BYTES = 2_000_000_000


@dataclass(frozen=True)
class TargetState:
    """A profile on this host. `cannot_build`, `cannot_measure`: why not; None where it can."""

    name: str
    title: str
    cannot_build: str | None
    cannot_measure: str | None
    exact: bool
    """whether this host computes the int8 file as the target does"""


@dataclass(frozen=True)
class Diagnosis:
    """All that `kdpipe doctor` tells. `tools`: distribution to version, None where it is missing; `warnings`: what the user should act on."""

    kdpipe: str
    python: str
    system: str
    cpu: str
    cores: int
    memory_bytes: int
    instruction_sets: tuple[str, ...]
    tools: dict[str, str | None]
    targets: tuple[TargetState, ...]
    project: str
    free_bytes: int
    writable: bool
    warnings: tuple[str, ...]


def diagnose(project: Path) -> Diagnosis:
    """The state of this machine for builds in the folder `project`; writes nothing that stays."""
    sets = probe()
    tools, optional = _tools()
    targets = tuple(_target_state(load_profile(name, at="doctor"), sets) for name in profile_names())
    free, writable = shutil.disk_usage(project).free, _writable(project)
    warnings = [f"{name} is not installed: python -m pip install {name}" for name, version in tools.items() if version is None and name not in optional]
    if free < _ENOUGH_BYTES:
        warnings.append(f"{free / 1e9:.1f} GB free: a build's store may need more")
    if not writable:
        warnings.append(f"cannot write to {project / HOME}: a build would end with exit code 4")
    return Diagnosis(
        kdpipe=importlib.metadata.version(_DISTRIBUTION),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cpu=_cpu_name(),
        cores=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        instruction_sets=tuple(sorted(sets)),
        tools=tools,
        targets=targets,
        project=str(project),
        free_bytes=free,
        writable=writable,
        warnings=tuple(warnings),
    )


def _target_state(profile: Profile, sets: frozenset[str]) -> TargetState:
    missing = [runtime.name for runtime in profile.runtimes if runtime_version(runtime.name) is None]
    return TargetState(
        name=profile.name,
        title=profile.title,
        cannot_build=f"not installed: {', '.join(missing)}" if missing else None,
        cannot_measure=profile.why_not_measurable(sets, runtimes=runtimes()),
        exact=profile.exact_on(sets),
    )


def _tools() -> tuple[dict[str, str | None], set[str]]:
    """What kdpipe requires with its version, and the names that only an extra asks for; the developers' tools are left out."""
    versions: dict[str, str | None] = {}
    optional = set()
    for line in importlib.metadata.requires(_DISTRIBUTION) or ():
        name = re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]
        if "extra ==" in line:
            if "dev" in line.partition("extra ==")[2] or name in versions:
                continue
            optional.add(name)
        versions[name] = _version(name)
    return versions, optional


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _writable(project: Path) -> bool:
    """Whether a file can be made where the store is, or would be."""
    home = project / HOME
    try:
        with tempfile.TemporaryFile(dir=home if home.is_dir() else project) as file:
            file.write(b"kdpipe")
            return True
    except OSError:
        return False


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
        if match:
            return match[1]
    return platform.processor() or platform.machine()
