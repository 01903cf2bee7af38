"""`kdpipe targets check`: a file or a bundle against profiles, as a function."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdpipe.foundation.errors import BudgetError, ConfigError
from kdpipe.pipeline.foreign_files import of_the_user
from kdpipe.pipeline.manifest import MANIFEST_FILE
from kdpipe.targets.lint import LintFinding, lint
from kdpipe.targets.lint.asking import Answer, ask, refusals
from kdpipe.targets.lint.rules import RULES
from kdpipe.targets.profile import Profile, load_profile

_MODELS = ("model.onnx", "model.xml")


@dataclass(frozen=True)
class Checked:
    """One file against one profile. `open_claims`: what only a device can answer."""

    file: Path
    profile: Profile
    findings: tuple[LintFinding, ...]
    answers: tuple[Answer, ...]

    @property
    def errors(self) -> tuple[LintFinding, ...]:
        """The findings that make the file unusable there."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def open_claims(self) -> str:
        """What these checks do not prove."""
        if self.profile.accelerator == "CPU":
            return "accuracy and speed: kdpipe eval and kdpipe bench measure them"
        return f"that {self.profile.accelerator} compiles it, its accuracy and its speed there: kdpipe bench BUNDLE --device NAME"

    @property
    def exit_code(self) -> int:
        """3 where the file is unusable, else 0."""
        return BudgetError.exit_code if self.errors else 0

    def as_json_value(self) -> dict[str, Any]:
        """For `--json`: everything, and of each broken rule what it says and where that is written."""
        broken = dict.fromkeys(finding.rule for finding in self.findings if finding.rule in RULES)
        return {
            "file": str(self.file),
            "profile": self.profile.name,
            "variant": self.profile.variant_name,
            "errors": len(self.errors),
            "warnings": len(self.findings) - len(self.errors),
            "findings": [finding.model_dump(mode="json") for finding in self.findings],
            "rules": {name: {"says": RULES[name].says, "source": RULES[name].source} for name in broken},
            "asked": [answer.model_dump(mode="json") for answer in self.answers],
            "open": self.open_claims,
        }


def check(subject: Path, profiles: Sequence[str], *, variant: str | None = None) -> tuple[Checked, ...]:
    """Each model file of `subject` (.onnx, .xml, or a bundle's folder) against each profile; a bundle's own where none is named.

    Raises ConfigError: no such file, a file or bundle that cannot be read, no profile named, an unknown profile or variant.
    """
    named = [load_profile(name, at="--profile", variant=variant) for name in profiles]
    if variant is not None and not profiles:
        raise ConfigError(f"--variant {variant} belongs to a profile", at="kdpipe targets check", do="name it: --profile cpu")
    return tuple(_checked(file, profile) for file, own in _files(subject) for profile in (named or _own(own, file)))


def _checked(file: Path, profile: Profile) -> Checked:
    with of_the_user():
        findings = lint(file, profile)
    answers = () if any(finding.rule == "format" for finding in findings) else ask(file, profile)
    return Checked(file, profile, (*findings, *refusals(answers)), answers)


def _files(subject: Path) -> Iterator[tuple[Path, Profile | None]]:
    """The model files, each with the profile of its bundle."""
    if not subject.exists():
        raise ConfigError("no such file and no such bundle", at=subject, do="give the path of a model file, or of a bundle that kdpipe build wrote")
    if not subject.is_dir():
        yield subject, None
        return
    manifest = _manifest(subject)
    for folder in [subject / variant for variant in manifest.get("variants", {})] or [subject]:
        models = [folder / name for name in _MODELS if (folder / name).is_file()]
        if not models:
            raise ConfigError(
                "this folder holds no model.onnx and no model.xml", at=folder, do="give the path of a model file, or of a bundle that kdpipe build wrote"
            )
        profile = _of_bundle(folder)
        yield from ((model, profile) for model in models)


def _of_bundle(folder: Path) -> Profile | None:
    """The profile that the bundle in this folder was built for; None for a folder without a manifest."""
    manifest = _manifest(folder)
    if not manifest:
        return None
    try:
        return Profile.model_validate(manifest["configuration"]["values"]["targets"][manifest["target"]]["profile"])
    except (KeyError, TypeError, ValidationError) as error:
        raise _unreadable(folder, error) from error


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return {}
    try:
        told = json.loads(path.read_bytes())
    except ValueError as error:
        raise _unreadable(folder, error) from error
    if not isinstance(told, dict) or not isinstance(told.get("variants", {}), dict):
        raise _unreadable(folder, TypeError("not an object"))
    return told


def _unreadable(folder: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"the manifest cannot be read: {type(error).__name__}", at=folder / MANIFEST_FILE, do="name the profile: --profile npu; or build the bundle again"
    )


def _own(profile: Profile | None, file: Path) -> list[Profile]:
    if profile is None:
        raise ConfigError("no profile is named", at=file, do="name what the file is for: --profile npu; kdpipe targets lists them")
    return [profile]
