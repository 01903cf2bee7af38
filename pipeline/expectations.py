"""Will int8 be faster? Told for each target and the machine that will measure it, before anything is trained, from what the plan knows."""

import math

from kdpipe.pipeline.config import Config, Target
from kdpipe.pipeline.device_records import record_of
from kdpipe.pipeline.planning import Plan
from kdpipe.pipeline.user_code import importable
from kdpipe.stages.distill import DistillConfig, fresh_student
from kdpipe.stages.macs import macs_by_kind
from kdpipe.stages.prune import PruneConfig
from kdpipe.stages.stage import Inputs
from kdpipe.targets.devices.local import Local
from kdpipe.targets.expectation import Chip, Cost, Expectation, expected
from kdpipe.targets.instruction_sets import probe
from kdpipe.targets.profile import Profile


def expectations(plan: Plan) -> tuple[Expectation, ...]:
    """One for each target, on its device, else on this host where that is of the target's kind, else on its class of chips. Reaches no device."""
    cost = _cost(plan)
    return tuple(expected(name, target.profile, _chip(plan, target), cost) for name, target in plan.config.targets.items())


def _cost(plan: Plan) -> Cost | None:
    """What the network costs that will be quantized: the student, less what pruning is asked to take; None where the stages are others than kdpipe's own."""
    config = plan.config
    distill = config.sections["distill"]
    if not isinstance(distill, DistillConfig):
        return None
    with importable(config.project):
        student = fresh_student(distill, Inputs({}, plan.data, config.task, None), seed=0).module.eval()
    macs = macs_by_kind(student, plan.data.shape)
    speedup = _speedup(config)
    return Cost(math.ceil(macs.total / (speedup or 1)), macs.depthwise > 0, "" if speedup is not None or not config.prunes else " before pruning")


def _speedup(config: Config) -> float | None:
    """Of multiply-accumulates, where `[prune]` says it in advance."""
    prune = config.sections.get("prune")
    return prune.speedup if isinstance(prune, PruneConfig) and not prune.measured else None


def _chip(plan: Plan, target: Target) -> Chip:
    if target.device is None or isinstance(plan.config.devices[target.device], Local):
        sets = probe()
        return Chip("this host", sets) if _is_of_its_kind(target.profile, sets) else Chip("its class of chips", None)
    name, settings = target.device, plan.config.devices[target.device]
    record = None if name in plan.seen else record_of(plan.config.project, name, settings)
    facts = plan.seen[name].facts if name in plan.seen else record.facts if record is not None else None
    device = settings.device(name, plan.config.project)
    return Chip(f"device {name}", None if facts is None else frozenset(facts.instruction_sets), device.no_latency)


def _is_of_its_kind(profile: Profile, sets: frozenset[str]) -> bool:
    return profile.architecture is not None and profile.architecture in sets
