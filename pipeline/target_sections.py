"""`[targets.NAME]`: each section becomes a target, or with `variants` one target for each of them, which share a bundle.

A name that needs no section: a profile that ships (`cpu`), and a variant of one (`cpu-vnni`).
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from kdpipe.foundation.errors import ConfigError, Problem
from kdpipe.foundation.quantization.scheme import STATIC, Kind
from kdpipe.pipeline.budgets import Budgets
from kdpipe.pipeline.device_sections import DEFAULT_TARGET, FOLDER_NAME, FOLDER_NAME_RULE, HOST, LONGEST_NAME, tables_of
from kdpipe.pipeline.problems import Section, checked, placed
from kdpipe.pipeline.toml_source import KeyPath, TomlSource
from kdpipe.pipeline.variants import AUTO, implied_by
from kdpipe.targets.devices.device import Settings as DeviceSettings
from kdpipe.targets.profile import Profile, load_profile, profile_names

_TAKEN = "report.html"  # stands beside the targets' folders in dist/<project>/


class TargetConfig(BaseModel, extra="forbid", frozen=True):
    """`[targets.NAME]`."""

    profile: str | None = Field(None, description="a profile that ships, or the path of a .toml; default: the target's name")
    variant: str | None = Field(
        None, description="one of the profile's variants, or 'auto': the one for what the target's device can do; default: the profile's own choice"
    )
    variants: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="several variants, built as targets NAME-VARIANT, in one bundle that takes the one for its machine; the profile's default is one of them",
    )
    scheme: Kind | None = Field(
        None,
        description="another kind of numbers than the profile's: 'weights-only' (int8 weights, float activations) or 'float16', where static int8 loses too "
        "much; 'static-int8'",
    )
    device: str | None = Field(None, description="a name of [devices]: it measures the target; default: this host, where it is of the target's kind")
    accuracy_on: tuple[str, ...] = Field((), description="further names of [devices], on which the int8 file's accuracy alone is measured, e.g. emulated CPUs")
    budgets: Budgets = Field(default_factory=Budgets, description="budgets of this target alone; each replaces the one of [budgets]")


@dataclass(frozen=True)
class Target:
    """A target of the build, resolved. `profile_path`: the user's own profile; None for one that ships.

    `auto`: its variant follows the device, and is the default until that was asked (`variant_choice.settled`). `bundle`: the target of kdpipe.toml whose
    bundle it is one variant of; None: it has a bundle of its own.
    """

    name: str
    profile: Profile
    profile_path: Path | None
    variant: str | None
    device: str | None
    budgets: Budgets
    accuracy_on: tuple[str, ...] = ()
    auto: bool = False
    bundle: str | None = None

    @property
    def resolved(self) -> dict[str, Any]:
        """The target as one JSON value."""
        told = {"profile": self.profile.model_dump(mode="json"), "device": self.device, "budgets": self.budgets.model_dump()}
        return told if self.bundle is None else {**told, "bundle": self.bundle, "variant": self.profile.variant_name}


@dataclass(frozen=True)
class _Sections:
    """Where the sections stand, and what they may name."""

    project: Path
    source: TomlSource
    devices: Mapping[str, DeviceSettings]
    shared: Budgets


def targets_of(
    project: Path, source: TomlSource, devices: Mapping[str, DeviceSettings], shared: Budgets, wanted: Sequence[str]
) -> tuple[dict[str, Target], list[Problem]]:
    """The wanted targets by name, and every problem of the sections: those that are not wanted are checked all the same.

    Wanted may be a section's name, which with `variants` stands for all of them, or one of them alone; that one then has a bundle of its own.
    """
    sections = _Sections(project, source, devices, shared)
    tables, problems = tables_of(source.values.get("targets", {}), ("targets",), source)
    made: dict[str, dict[str, Target]] = {}
    for name, table in tables.items():
        made[name], found = _of_section(sections, name, table)
        problems += found
    problems += _same_names(made, source)
    targets: dict[str, Target] = {}
    for name in list(dict.fromkeys(wanted)) or list(tables) or [DEFAULT_TARGET]:
        if name in made:
            targets |= made[name]
            continue
        alone = next((own[name] for own in made.values() if name in own), None)
        if alone is not None:
            targets[name] = replace(alone, bundle=None)
        elif implied_by(name) is not None:
            own, found = _of_section(sections, name, {})
            targets |= own
            problems += found
        else:
            known = list(dict.fromkeys([*tables, *(variant for own in made.values() for variant in own), *profile_names()]))
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            problems.append(Problem(f"unknown target {name!r}", f"--target {name}", f"{hint}targets: {', '.join(known)}"))
    return targets, problems


def _of_section(sections: _Sections, name: str, table: Any) -> tuple[dict[str, Target], list[Problem]]:
    """The targets that the section makes: one, or one for each of its variants."""
    path: KeyPath = ("targets", name)
    source = sections.source
    if (problem := _bad_name(name, source.at(path))) is not None:
        return {}, [problem]
    section = Section(path, source)
    config, problems = checked(TargetConfig, table, section)
    if config is None:
        return {}, problems
    problems += _unknown_devices(config, path, sections)
    problems += _contradictions(config, path, source)
    if problems:
        return {}, problems
    profile_name, variant = implied_by(name) or (name, None)
    wanted = config.profile or profile_name
    variant = (None if config.variant == AUTO else config.variant) or (variant if config.profile is None else None)
    own_profile = sections.project / wanted if wanted.endswith(".toml") else None
    try:
        profile = load_profile(own_profile or wanted, at=source.at((*path, "profile")), variant=variant, scheme=config.scheme)
    except ConfigError as error:
        named = [Problem(it.message, source.at((*path, "variant")), it.do) if it.at == "variant" else it for it in error.problems]
        return {}, [placed(problem, section) for problem in named]
    own = {key: value for key, value in config.budgets.model_dump().items() if value is not None}
    budgets = sections.shared.model_copy(update=own)
    target = Target(name, profile, own_profile, variant, config.device, budgets, config.accuracy_on, auto=config.variant == AUTO)
    if target.auto and not profile.variants:
        advice = "leave variant out: there is one scheme for all of its devices"
        return {}, [Problem(f"variant = 'auto', and the profile {profile.name!r} has no variants", source.at((*path, "variant")), advice)]
    if config.variants is None:
        return {name: target}, []
    place = source.at((*path, "variants"))
    problems = list(_bad_variants(config.variants, profile, name, place))
    members = (replace(target, name=f"{name}-{each}", profile=profile.of_variant(each), variant=each, bundle=name) for each in config.variants)
    return ({}, problems) if problems else ({member.name: member for member in members}, [])


def _bad_name(name: str, place: str) -> Problem | None:
    if re.fullmatch(FOLDER_NAME, name) and len(name) <= LONGEST_NAME and name != _TAKEN:
        return None
    return Problem(f"a target cannot be called {name!r}", place, f"it becomes a folder in dist/: {FOLDER_NAME_RULE}, and not {_TAKEN}")


def _unknown_devices(config: TargetConfig, path: KeyPath, sections: _Sections) -> Iterator[Problem]:
    devices = sections.devices
    for key, named in (("device", [config.device] if config.device is not None else []), ("accuracy_on", config.accuracy_on)):
        for unknown in (device for device in named if device not in devices):
            near = difflib.get_close_matches(unknown, devices, n=1)
            missing = "this host needs no name: leave it out; other" if unknown == HOST else f"write [devices.{unknown}];"
            advice = f"did you mean {near[0]!r}?" if near else f"{missing} devices: {', '.join(devices) or 'none yet'}"
            yield Problem(f"unknown device {unknown!r}", sections.source.at((*path, key)), advice)


def _contradictions(config: TargetConfig, path: KeyPath, source: TomlSource) -> Iterator[Problem]:
    if config.variant is not None and config.variants is not None:
        yield Problem("both variant and variants are given", source.at((*path, "variants")), "keep one: variants builds each of them, variant builds one")
    for key in ("variant", "variants"):
        if config.scheme not in (None, STATIC) and getattr(config, key) is not None:
            advice = "keep one of the two: variants are schemes of static int8"
            yield Problem(f"{key} does not go with scheme = {config.scheme!r}", source.at((*path, key)), advice)
    if config.variants is None and config.variant == AUTO and config.device is None:
        yield Problem(
            "variant = 'auto' needs a device to ask: the machine that builds does not decide",
            source.at((*path, "variant")),
            "name a device, or write variants = […] for a bundle that looks at its machine itself",
        )


def _bad_variants(wanted: Sequence[str], profile: Profile, name: str, place: str) -> Iterator[Problem]:
    known, default = profile.variant_names, profile.variant_names[0]
    for variant in dict.fromkeys(wanted):
        if variant not in known:
            near = difflib.get_close_matches(variant, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            yield Problem(f"unknown variant {variant!r} of the profile {profile.name!r}", place, f"{hint}its variants: {', '.join(known)}")
        elif (problem := _bad_name(f"{name}-{variant}", place)) is not None:
            yield problem
    if len(set(wanted)) < len(wanted):
        yield Problem(f"variants = {list(wanted)} names one twice", place, "name each once")
    if default not in wanted:
        yield Problem(
            f"variants lacks {default!r}, the one that is right on every machine", place, f"add {default!r}: the bundle takes it where it must not guess"
        )


def _same_names(made: Mapping[str, Mapping[str, Target]], source: TomlSource) -> Iterator[Problem]:
    """A section that is called as another's variant."""
    for name, own in made.items():
        for target in own.values():
            if target.bundle == name and target.name in made:
                yield Problem(
                    f"[targets.{target.name}] is called as a variant of [targets.{name}]",
                    source.at(("targets", target.name)),
                    f"call it otherwise, or take it out of [targets.{name}] variants",
                )
