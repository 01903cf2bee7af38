"""Which target a pruning by latency is measured on, and what can be told wrong of it before anything is trained.

There is one pruned network in a build, whatever its targets: it is cut for the one that `[prune] measured_on` names, and the others share it. So the
prefix that targets share stays shared, and a user who wants a network for each of them builds one after the other (docs/decisions/latency-pruning.md).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from kdpipe.foundation.errors import Problem, UnavailableError
from kdpipe.pipeline.budgets import Budgets
from kdpipe.pipeline.target_sections import Target, targets_of
from kdpipe.pipeline.toml_source import TomlSource
from kdpipe.stages.prune import PruneConfig
from kdpipe.targets.devices.device import Settings as DeviceSettings

ONLY = "target"
"""`measured_on = "target"`: the one target of the build"""


def pruning_target(
    prune: object, project: Path, source: TomlSource, devices: Mapping[str, DeviceSettings], targets: Mapping[str, Target]
) -> tuple[Target | None, list[Problem]]:
    """The target whose device measures, None where pruning measures nothing, and what is wrong with it.

    It need not be one of `targets`, those of this build: `kdpipe build --target arm` prunes for the same one as a build of all.
    """
    if not isinstance(prune, PruneConfig) or not prune.measured:
        return None, []
    key = "measured_on" if prune.measured_on is not None else "latency_ms"
    place = source.at(("prune", key))
    name = prune.measured_on or ONLY
    if name == ONLY and ONLY not in targets:
        if len(targets) != 1:
            what = f"measured_on = '{ONLY}'" if prune.measured_on is not None else "latency_ms without measured_on"
            example = next(iter(targets), "cpu")
            advice = f"name the one that the network is cut for, e.g. measured_on = '{example}': the others share it; or build one of them by --target"
            return None, [Problem(f"{what}, and the build has {len(targets)} targets: {', '.join(targets)}", place, advice)] if targets else []
        target = next(iter(targets.values()))
    else:
        found, problems = ({name: targets[name]}, []) if name in targets else targets_of(project, source, devices, Budgets(), [name])
        unknown = [replace(problem, at=place) for problem in problems if problem.at == f"--target {name}"]
        if not found:
            return None, _with_devices(unknown, name, devices)
        if len(found) > 1:
            return None, [Problem(f"measured_on = {name!r} stands for {len(found)} variants", place, f"name one: {', '.join(found)}")]
        target = next(iter(found.values()))
    reason = _no_latency(target, project, devices)
    if reason is not None:
        advice = "name a target whose device is a real machine, or prune by speedup alone, which counts multiply-accumulates"
        return None, [Problem(f"target {target.name!r} gives no latency to prune by: {reason}", place, advice)]
    return target, []


def require_measurable_here(prune: PruneConfig) -> None:
    """UnavailableError where this host is to measure the latency and cannot; told before anything is trained."""
    if prune.profile is None or prune.machine is not None or prune.profile.measurable_here():
        return
    from kdpipe.targets.instruction_sets import probe

    raise UnavailableError(
        f"[prune] is measured on target {prune.measured_on!r}, which has no device: {prune.profile.why_not_measurable(probe())}",
        at="[prune] measured_on",
        do=f"give the target a device (kdpipe devices add, then [targets.{prune.measured_on}] device), or prune by speedup alone",
    )


def _with_devices(problems: list[Problem], name: str, devices: Mapping[str, DeviceSettings]) -> list[Problem]:
    if name not in devices:
        return problems
    advice = f"it is a device: name the target that has it ([targets.NAME] device = {name!r})"
    return [replace(problem, do=advice) for problem in problems]


def _no_latency(target: Target, project: Path, devices: Mapping[str, DeviceSettings]) -> str | None:
    settings = devices.get(target.device or "")
    return None if settings is None or target.device is None else settings.device(target.device, project).no_latency
