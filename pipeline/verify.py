"""Is this bundle what was built, and does it run? And the same question to a project's store."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from kdpipe.foundation.errors import ConfigError, Problem, UnavailableError, VerificationError
from kdpipe.foundation.files import sha256_of
from kdpipe.pipeline.manifest import FORMAT, MANIFEST_FILE
from kdpipe.pipeline.store import Store
from kdpipe.pipeline.variants import ARITHMETIC_FILE, VARIANTS_FILE, members_of
from kdpipe.targets.profile import RuntimeNeed
from kdpipe.targets.runtimes.runtime import open_session, runtime_version

_AGAIN = "copy the bundle again, or run kdpipe build"
_SAMPLES = 2
_NEEDED = ("model.onnx", "contract.json")
_NEEDED_OF_VARIANTS = (VARIANTS_FILE, ARITHMETIC_FILE)


@dataclass(frozen=True)
class Verified:
    """A bundle that is whole. `files`: how many digests agree; `ran`: the runtimes, with version, in which the model answered; `variants`: those it has."""

    folder: Path
    project: str
    target: str
    files: int
    ran: tuple[str, ...]
    variants: tuple[str, ...] = ()


class _File(BaseModel, extra="forbid", frozen=True):
    sha256: str
    size_bytes: int


class _Profile(BaseModel, extra="ignore", frozen=True):
    runtimes: tuple[RuntimeNeed, ...]


class _Target(BaseModel, extra="ignore", frozen=True):
    profile: _Profile


class _Values(BaseModel, extra="ignore", frozen=True):
    targets: dict[str, _Target]


class _Configuration(BaseModel, extra="ignore", frozen=True):
    values: _Values


class Manifest(BaseModel, extra="ignore", frozen=True):
    """What is needed of a manifest here. `data`: the digest of the whole data set; `variants`: variant to target, of a bundle that has several."""

    project: str
    target: str
    data: str | None = None
    files: dict[str, _File]
    configuration: _Configuration
    variants: dict[str, str] = Field(default_factory=dict)

    @property
    def runtimes(self) -> list[str]:
        """The runtimes of the bundle's target."""
        target = self.configuration.values.targets.get(self.target)
        return [] if target is None else [need.name for need in target.profile.runtimes]


def verify_bundle(folder: Path) -> Verified:
    """Every file against its digest, then the model in each runtime of its target that is installed.

    Raises ConfigError where there is no bundle, VerificationError with all that does not agree, UnavailableError where
    no runtime is there to run it. Of a bundle of several variants each is verified as a bundle by itself.
    """
    members = members_of(folder)
    if members:
        whole = whole_manifest(folder)
        each = [verify_bundle(member.folder) for member in members]
        ran = tuple(dict.fromkeys(name for verified in each for name in verified.ran))
        return Verified(folder, whole.project, whole.target, len(whole.files), ran, tuple(member.variant for member in members))
    manifest = whole_manifest(folder)
    contract = _read(folder / "contract.json")
    runtimes = manifest.runtimes
    # A bundle may come from anybody: a runtime of its own, package.module:name, is code that is not imported on its word.
    installed = [name for name in runtimes if ":" not in name and runtime_version(name) is not None]
    if not installed:
        raise UnavailableError(
            f"none of the target's runtimes is installed: {', '.join(runtimes)}", at=folder, do=f"python -m pip install {' '.join(runtimes)}; the digests agree"
        )
    ran = tuple(_answers(name, folder, contract) for name in installed)
    return Verified(folder, manifest.project, manifest.target, len(manifest.files), ran)


def whole_manifest(folder: Path) -> Manifest:
    """The manifest of the bundle in `folder`, every file of which agrees with its digest; else as `verify_bundle`."""
    manifest = _manifest(folder)
    problems = [problem for name, file in manifest.files.items() if (problem := _damage(folder / name, file))]
    if problems:
        raise VerificationError.gather(problems)
    return manifest


def require_sound_store(store: Store) -> int:
    """The number of artifacts, every byte of which agrees with its digest; VerificationError names each that does not."""
    folders = sorted(path for path in store.folder.iterdir() if path.is_dir()) if store.folder.is_dir() else []
    damages = [(folder, store.damage(folder.name, thorough=True)) for folder in folders]
    problems = [Problem(damage, str(folder), "run kdpipe build: it sets the folder aside and builds the step again") for folder, damage in damages if damage]
    if problems:
        raise VerificationError.gather(problems)
    return len(folders)


def _manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise ConfigError("no bundle here", at=path, do="name a folder that kdpipe build wrote: dist/PROJECT/TARGET")
    written = _read(path)
    format_number = written.get("format") if isinstance(written, dict) else None
    if isinstance(format_number, int) and format_number != FORMAT:
        raise VerificationError(f"the manifest is of format {format_number}, this kdpipe reads {FORMAT}", at=path, do="use the kdpipe that wrote it")
    try:
        manifest = Manifest.model_validate(written)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise VerificationError(f"the manifest lacks what every manifest has{f', first {where}' if where else ''}", at=path, do=_AGAIN) from error
    several = bool(manifest.variants)
    missing = [name for name in (_NEEDED_OF_VARIANTS if several else _NEEDED) if name not in manifest.files]
    if missing:
        raise VerificationError(f"the manifest names no digest of {missing[0]}", at=path, do=_AGAIN)
    outside = [name for name in manifest.files if not (folder / name).resolve().is_relative_to(folder.resolve())]
    if outside:
        raise VerificationError(f"the manifest names a file outside the bundle: {outside[0]}", at=path, do=_AGAIN)
    if not several and not manifest.runtimes:
        raise VerificationError(f"the manifest names no runtime for its target {manifest.target!r}", at=path, do=_AGAIN)
    return manifest


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise VerificationError(f"cannot be read: {error}", at=path, do=_AGAIN) from error


def _damage(path: Path, file: _File) -> Problem | None:
    if not path.is_file():
        return Problem("the file is missing", str(path), _AGAIN)
    if sha256_of(path) != file.sha256:
        return Problem("the file is not the one that was built: its sha256 differs", str(path), _AGAIN)
    return None


def _answers(runtime: str, folder: Path, contract: Mapping[str, Any]) -> str:
    """The runtime's name, once the model gave finite logits of the right shape for samples within the contract."""
    try:
        entry = contract["inputs"][0]
        shape = tuple(int(side) for side in entry["shape"][1:])
        samples = np.linspace(float(entry["low"]), float(entry["high"]), _SAMPLES * int(np.prod(shape)), dtype=np.float32).reshape(_SAMPLES, *shape)
        expected = (_SAMPLES, len(contract["labels"]))
    except (LookupError, TypeError, ValueError, MemoryError) as error:
        raise VerificationError(f"the contract cannot be used: {type(error).__name__}: {error}", at=folder / "contract.json", do=_AGAIN) from error
    model = folder / "model.xml" if runtime == "openvino" and (folder / "model.xml").is_file() else folder / "model.onnx"
    with open_session(runtime, model) as session:
        logits = session(samples)
        name = session.name
    if logits.shape != expected or not np.isfinite(logits).all():
        raise VerificationError(f"{name} answers {logits.shape}, finite {expected} is expected", at=model, do=_AGAIN)
    return name
