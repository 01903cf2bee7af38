"""What a build will do and why: the graph of steps, their fingerprints, and how each differs from the nearest earlier run.

teacher ─► distill ─► prune ─► qat@T ─► export@T ─► bench@T        and a score- step for each network and file
teacher-NAME ─► distill, prune, qat@T                              for each further teacher
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import BaseModel

from kdpipe.foundation.errors import ConfigError
from kdpipe.pipeline.config import STAGE_SECTIONS, Config, Target
from kdpipe.pipeline.device_records import Seen, record_of, seen_now
from kdpipe.pipeline.device_runtimes import require_runtimes_there
from kdpipe.pipeline.fingerprint import code_digests, differences, fingerprint, present, tool_versions, with_contents
from kdpipe.pipeline.mixed_budget import with_limits
from kdpipe.pipeline.pruning_target import require_measurable_here
from kdpipe.pipeline.stages import StageModule
from kdpipe.pipeline.steps import Step
from kdpipe.pipeline.store import Artifact, Store
from kdpipe.pipeline.variant_choice import VariantChoice, settled
from kdpipe.stages.distill import DistillConfig
from kdpipe.stages.latency_pruning import VERSION as LATENCY_PRUNING
from kdpipe.stages.prune import PruneConfig
from kdpipe.stages.stage import Inputs
from kdpipe.stages.teachers import FurtherTeacher, step_name
from kdpipe.targets.devices.device import Machine, identity_of
from kdpipe.targets.devices.local import Local, LocalDevice
from kdpipe.targets.instruction_sets import probe
from kdpipe.tasks.data.splits import DataSplits

STAGES = ("teacher", "distill", "prune", "qat", "export", "bench")

_SUBJECTS = {"teacher": "teacher", "distill": "student", "prune": "pruned", "qat": "twin"}
"""scored stage to the model's name on its scorecard"""
_SECTION_OF = {stage: section for section, stage in STAGE_SECTIONS.items()} | {"score-export": "evaluate"}


@dataclass(frozen=True)
class PlannedStep:
    """A step, its stage's configuration, and whether it runs. `why`: the reasons, empty where it is kept."""

    step: Step
    config: BaseModel
    target: Target | None
    state: Literal["run", "keep"]
    why: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The steps in the order in which they run; `threads`: torch threads of the build; `seen`: the devices that were reached for it."""

    config: Config
    data: DataSplits
    threads: int
    steps: tuple[PlannedStep, ...]
    seen: Mapping[str, Seen] = field(default_factory=dict)
    variants: tuple[VariantChoice, ...] = ()
    """the targets whose variant followed their device"""


@dataclass(frozen=True)
class _Node:
    """A step before it is fingerprinted. `needs`: input name to step name."""

    stage: str
    name: str
    target: Target | None
    needs: Mapping[str, str]
    subject: str | None = None


def make_plan(config: Config, stages: Mapping[str, StageModule], store: Store, *, until: str | None = None) -> Plan:
    """The plan of a build of `config`; loads the data for its digest, runs nothing, writes nothing.

    `until`: the last stage (its score included). Raises ConfigError for an unknown stage, for data that cannot be used, and for
    what a stage that will run says of its settings (`check`): a student that cannot be built, or not be quantized.
    Devices that have to measure are reached for what they are now; UnavailableError where one is not there.
    """
    if until is not None and until not in STAGES:
        raise ConfigError(f"unknown stage {until!r}", at=f"--until {until}", do=f"stages, in order: {', '.join(STAGES)}")
    data = config.task.load(config.project, config.seed)
    threads = config.threads or physical_cores()
    seen: dict[str, Seen] = {}
    now, variants = settled(config, seen)
    planned = _planned(now, stages, store, until, data, threads, seen)
    while (again := settled(config, seen))[1] != variants:  # a device that had to measure was reached, and is not what it was
        now, variants = again
        planned = _planned(now, stages, store, until, data, threads, seen)
    _require_usable(planned, now, stages, data, seen)
    return Plan(now, data, threads, tuple(planned), seen, variants)


def _planned(
    config: Config, stages: Mapping[str, StageModule], store: Store, until: str | None, data: DataSplits, threads: int, seen: dict[str, Seen]
) -> list[PlannedStep]:
    made: dict[str, Step] = {}
    planned = []
    for node in _nodes(config, until):
        for machines in _known_machines(config, node, seen):
            settings = _settings(config, node, machines)
            identity = _identity(config, node, settings, machines, stages[node.stage], made, data, threads)
            step = Step(node.name, node.stage, node.target.name if node.target else None, fingerprint(identity), identity, dict(node.needs))
            why = _reasons(step, store)
            if not why:
                break  # what the devices were when they were last reached is enough to find it
        made[node.name] = step
        planned.append(PlannedStep(step, settings, node.target, "run" if why else "keep", why))
    return planned


def physical_cores() -> int:
    """The physical cores that this process may use, at least 1."""
    allowed = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def _nodes(config: Config, until: str | None) -> Iterator[_Node]:
    """The graph in running order: what all targets share, then each target's tail. Without `[prune]` its consumers take the student."""
    last = STAGES.index(until or STAGES[-1])
    pruned = "prune" if config.prunes else "distill"
    further = [step_name(teacher) for teacher in _further_teachers(config)]
    teachers = {"teacher": "teacher", **{name: name for name in further}}
    shared = [("teacher", {}), ("distill", teachers)]
    if config.prunes:
        shared.append(("prune", {"distill": "distill", **teachers}))
    shared = [(stage, needs) for stage, needs in shared if STAGES.index(stage) <= last]
    for stage, needs in shared:
        yield _Node(stage, stage, None, needs)
        yield _Node("score", f"score-{stage}", None, {stage: stage}, _SUBJECTS[stage])
        if stage == "teacher":
            yield from (_Node("teacher", name, None, {}) for name in further)
    scores = {f"score-{stage}": f"score-{stage}" for stage, _ in shared}
    for target in config.targets.values():
        qat, export = f"qat@{target.name}", f"export@{target.name}"
        if last >= STAGES.index("qat"):
            yield _Node("qat", qat, target, {"prune": pruned, **teachers})
            yield _Node("score", f"score-{qat}", target, {"qat": qat}, _SUBJECTS["qat"])
        if last >= STAGES.index("export"):
            yield _Node("export", export, target, {"qat": qat, "prune": pruned, "teacher": "teacher"})
            yield _Node("score-export", f"score-{export}", target, {"export": export, "qat": qat, **scores, "score-qat": f"score-{qat}"})
        if last >= STAGES.index("bench"):
            yield _Node("bench", f"bench@{target.name}", target, {"export": export})


def _further_teachers(config: Config) -> Sequence[FurtherTeacher]:
    """Those that the student asks, beside [teacher]."""
    distill = config.sections["distill"]
    return distill.further_teachers() if isinstance(distill, DistillConfig) else ()


def _require_usable(planned: Sequence[PlannedStep], config: Config, stages: Mapping[str, StageModule], data: DataSplits, seen: Mapping[str, Seen]) -> None:
    """What the stages that will run can tell of their settings now, and not after hours of the stages before them."""
    for it in planned:
        check = getattr(stages[it.step.stage], "check", None)
        if it.state == "run" and isinstance(it.config, PruneConfig):
            require_measurable_here(it.config)
        if it.state == "run" and it.step.stage == "bench" and it.target is not None:
            require_runtimes_there(it.target, seen)
        if it.state == "run" and check is not None:
            check(config.sections, Inputs({}, data, config.task, it.target.profile if it.target else None))


def _known_machines(config: Config, node: _Node, seen: dict[str, Seen]) -> Iterator[tuple[Machine, ...]]:
    """The devices of a step that measures: as they were recorded, where all were, then as they are now, noted in `seen`. For others one empty tuple."""
    target = _measuring(config, node)
    accuracy_on = target.accuracy_on if target and node.stage == "bench" else ()
    named = dict.fromkeys([*([target.device] if target and target.device else []), *accuracy_on])
    devices = {name: config.devices[name] for name in named if not isinstance(config.devices[name], Local)}  # this host is what it is without a name
    if not devices:
        yield ()
        return
    known = {name: seen[name].facts for name in devices if name in seen}
    for name, settings in devices.items():
        record = None if name in seen else record_of(config.project, name, settings)
        if record is not None:
            known[name] = record.facts
    if len(known) == len(devices):
        yield tuple(Machine(name, devices[name], identity_of(facts)) for name, facts in known.items())
    for name, settings in devices.items():
        if name not in seen:
            seen[name] = seen_now(config.project, name, settings)
    yield tuple(Machine(name, settings, identity_of(seen[name].facts)) for name, settings in devices.items())


def _measuring(config: Config, node: _Node) -> Target | None:
    """The target that the step measures on its device; None for a step that measures nothing."""
    if node.stage == "prune" and config.pruned_for is not None:
        return config.targets.get(config.pruned_for.name, config.pruned_for)  # there its variant has been settled
    return node.target if node.stage == "bench" else None


def _settings(config: Config, node: _Node, machines: tuple[Machine, ...]) -> BaseModel:
    """The stage's section with what the pipeline fills in: the objective of `[distill]`, its attack's strength, the model under judgement."""
    section: BaseModel = config.sections[_SECTION_OF[node.stage]]
    objective = config.sections["distill"].objective
    if node.stage == "teacher":
        return next((teacher.training() for teacher in _further_teachers(config) if step_name(teacher) == node.name), section)
    if node.stage in ("prune", "qat"):
        section = with_limits(section, node.target, judged_as_trained(config.sections["evaluate"], objective))
        measuring = _measuring(config, node)
        measured = {} if measuring is None else {"measured_on": measuring.name, "profile": measuring.profile, "machine": next(iter(machines), None)}
        return section.model_copy(update={"objective": objective, **_teaching(config), **measured})
    if node.stage in ("score", "score-export"):
        filled: dict[str, Any] = {} if node.subject is None else {"subject": node.subject}
        return judged_as_trained(section, objective).model_copy(update=filled)
    if node.target is not None and machines:
        own = next((machine for machine in machines if machine.name == node.target.device), None)
        others = tuple(machine for machine in machines if machine.name in node.target.accuracy_on and machine is not own)
        return section.model_copy(update={"device": own.name if own else None, "machine": own, "accuracy_on": others})
    return section


def _teaching(config: Config) -> dict[str, Any]:
    """What the stages after `[distill]` take over of its teachers; nothing where there is but one, so that it adds nothing to what they are."""
    distill = config.sections["distill"]
    if not isinstance(distill, DistillConfig):
        return {}
    told = {"teachers": distill.shares() or None, "mixture": distill.mixture}
    return {key: value for key, value in told.items() if value is not None}


def judged_as_trained(section: BaseModel, objective: BaseModel) -> BaseModel:
    """`[evaluate]` with the norm and the epsilon of the attack that the student was trained with, where it names none of its own."""
    attack = getattr(objective, "attack", None)
    if attack is None:
        return section
    return section.model_copy(update={name: getattr(attack, name) for name in ("norm", "epsilon") if name not in section.model_fields_set})


def _identity(
    config: Config,
    node: _Node,
    settings: BaseModel,
    machines: tuple[Machine, ...],
    module: StageModule,
    made: Mapping[str, Step],
    data: DataSplits,
    threads: int,
) -> dict[str, Any]:
    contents = settings.content(config.project) if hasattr(settings, "content") else {}
    identity = {
        "stage": node.stage,
        "version": module.VERSION,
        "config": present(with_contents(settings.identity() if isinstance(settings, DistillConfig) else settings.model_dump(mode="json"), contents)),
        "inputs": {name: made[step].fingerprint for name, step in node.needs.items()},
        "data": data.digest,
        "task": dict(config.task.identity()),
        "tools": tool_versions(module.TOOLS),
        "seed": config.seed,
        "threads": threads,
    }
    if data.relabelled is not None:  # the digest knows the labels; this tells people
        identity["labels"] = data.relabelled.as_json()
    measuring = _measuring(config, node)
    if (target := node.target or measuring) is not None:
        identity["profile"] = present(target.profile.model_dump(mode="json"))
        identity["instruction_sets"] = sorted(probe())  # the scheme may follow from them, and saturation does
    if measuring is not None:
        if node.stage == "prune":  # other prunings do not depend on how channels are chosen by latency
            identity["latency pruning"] = LATENCY_PRUNING
        there = {machine.name: dict(machine.identity) for machine in machines}
        identity["device"] = there.pop(measuring.device or "", None) or _host_identity(measuring)
        if there:
            identity["accuracy_on"] = there
    identity["code"] = code_digests([identity, config.task_kind], config.project)
    return identity


def _host_identity(target: Target) -> dict[str, Any] | None:
    """What tells this host from another, without what changes by the minute; None where it cannot measure the target."""
    return dict(LocalDevice().identity()) if target.profile.measurable_here() else None


def _reasons(step: Step, store: Store) -> tuple[str, ...]:
    """Why the step must run; empty where the store holds it undamaged."""
    if (store.folder / step.fingerprint).is_dir():
        damage = store.damage(step.fingerprint, thorough=False)
        return (damage,) if damage else ()
    resumed = ("goes on where it was interrupted",) if _begun(store.work_folder / step.fingerprint) else ()
    earlier = [artifact for artifact in store.artifacts() if artifact.record.step == step.name]
    return (*(_nearest(step, earlier) if earlier else ("first build",)), *resumed)


def _nearest(step: Step, earlier: Sequence[Artifact]) -> tuple[str, ...]:
    """The differences to the earlier artifact that has the fewest, the latest of those with as many."""
    further = step.stage == "teacher" and step.name != "teacher"
    section = f"distill.teachers.{step.name.removeprefix('teacher-')}" if further else _SECTION_OF[step.stage]
    told = [tuple(differences(artifact.record.identity, step.identity, section)) for artifact in reversed(earlier)]
    return min(told, key=len)


def _begun(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
