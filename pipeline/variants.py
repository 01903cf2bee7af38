"""The variants of a target in one bundle, and which of them a machine takes: what the loader is told, and bundles on disk; without torch or a runtime."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdpipe.foundation.errors import VerificationError
from kdpipe.pipeline import predict
from kdpipe.pipeline.manifest import MANIFEST_FILE
from kdpipe.targets.instruction_sets import ARCHITECTURES, flag_table
from kdpipe.targets.profile import DEFAULT_VARIANT, Profile, load_profile, profile_names
from kdpipe.targets.saturation import ANSWER, SHAPE

AUTO = "auto"
"""the variant that follows the target's device"""

VARIANTS_FILE = "variants.json"
ARITHMETIC_FILE = "arithmetic.onnx"
FORMAT = 1


@dataclass(frozen=True)
class Member:
    """One variant of a bundle on disk."""

    variant: str
    folder: Path


def implied_by(name: str) -> tuple[str, str | None] | None:
    """The profile that ships, and its variant, for which a target's name stands: `cpu`, `cpu-vnni`; None: neither."""
    if name in profile_names():
        return name, None
    for profile in profile_names():
        variant = name.removeprefix(f"{profile}-")
        if variant != name and variant in load_profile(profile, at=name).variant_names:
            return profile, variant
    return None


def loader_table(name: str, profiles: Mapping[str, Profile]) -> dict[str, Any]:
    """`variants.json`: all that `predict.choose` has to know, the most demanding variant first. `profiles`: of one profile, by variant, its default too."""
    by_demand = sorted(profiles, key=lambda variant: -len(profiles[variant].needed_sets))
    some = profiles[by_demand[0]]
    default = next(variant for variant, profile in profiles.items() if profile.variant == DEFAULT_VARIANT)
    return {
        "format": FORMAT,
        "target": name,
        "default": default,
        "architecture": some.architecture,
        "variants": [
            {
                "name": variant,
                "folder": variant,
                "scheme": profiles[variant].chosen_scheme.model_dump(mode="json"),
                "needs": list(profiles[variant].needed_sets),
                "exact_on": list(profiles[variant].exact_sets),
            }
            for variant in by_demand
        ],
        "arithmetic": {"file": ARITHMETIC_FILE, "shape": list(SHAPE), "answer": ANSWER},
        "architectures": ARCHITECTURES,
        "flags": flag_table(),
    }


def members_of(folder: Path) -> tuple[Member, ...]:
    """The variants of the bundle in `folder`, the most demanding first; empty where it has one model, or is none. VerificationError where it is damaged."""
    path = folder / VARIANTS_FILE
    if not path.is_file():
        return ()
    try:
        entries = json.loads(path.read_bytes())["variants"]
        found = tuple(Member(str(entry["name"]), folder / str(entry["folder"])) for entry in entries)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise VerificationError(f"the variants cannot be read: {error}", at=path, do="copy the bundle again, or run kdpipe build") from error
    strays = [member.variant for member in found if member.folder.parent != folder or not (member.folder / MANIFEST_FILE).is_file()]
    if strays or not found:
        raise VerificationError(
            f"there is no bundle of the variant {strays[0]!r}" if strays else "it names no variant", at=path, do="copy the bundle again, or run kdpipe build"
        )
    return found


def expanded(folder: Path) -> tuple[Path, ...]:
    """The folders of the bundle's variants; the folder itself where it has none."""
    return tuple(member.folder for member in members_of(folder)) or (folder,)


def for_this_machine(folder: Path) -> tuple[Path, str | None]:
    """The bundle that the loader in `folder` takes here, and its words for it; the folder itself and None where it has no variants."""
    if not members_of(folder):
        return folder, None
    try:
        choice = predict.chosen_in(folder, None)
    except predict.PredictError as error:
        raise VerificationError(str(error).splitlines()[0].removeprefix("error: "), at=folder, do="copy the bundle again, or run kdpipe build") from error
    assert choice is not None  # it has variants
    return folder / choice.folder, f"{predict.told(choice)}; another: name its folder in {folder}"
