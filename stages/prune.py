"""Structured pruning: whole channels go, a few at a time, and the network is fine-tuned after each time by the objective of `[distill]`.

What to remove is decided over all layers at once, by the Taylor score under that same objective, attack included: scores
under a clean loss keep other channels (Sehwag et al. 2020, arXiv:2002.10509). What stays is stored as a plan and replayed exactly.
"""

import copy
import difflib
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, Field, InstanceOf, model_validator
from torch import Tensor, nn

from kdpipe.foundation.errors import ConfigError, VerificationError
from kdpipe.foundation.files import write_text
from kdpipe.foundation.networks import Network, load_network, save_network
from kdpipe.foundation.pruning import CHANNELWISE, PruningPlan, replay_, widths
from kdpipe.stages.channel_choice import Choice, Limits, least_important
from kdpipe.stages.channel_groups import ChannelGroup, find_groups, plan_without
from kdpipe.stages.checkpoint import remove_checkpoints
from kdpipe.stages.gradients import objective_gradients
from kdpipe.stages.history import History, write_history
from kdpipe.stages.latency_pruning import Goal, LatencyPruning, LatencyReport, measuring
from kdpipe.stages.macs import count_macs, count_parameters
from kdpipe.stages.objectives.configured import ConfiguredObjective
from kdpipe.stages.objectives.mixture import Mixture, TeacherShare
from kdpipe.stages.stage import Context, Inputs
from kdpipe.stages.teachers import teaching
from kdpipe.stages.training import CHECKPOINTS, train
from kdpipe.stages.training_config import TrainingConfig
from kdpipe.stages.trial import Trial, cut
from kdpipe.targets.devices.device import Machine
from kdpipe.targets.profile import Profile

VERSION = 1
TOOLS = ("torch", "torch-pruning", "safetensors", "numpy")
REPORT_FILE = "pruning.json"

_AT = "[prune]"
_BODY = "body."  # what `Normalized` puts before the names of the factory's own network
_EXAMPLES = 8


class PruneConfig(TrainingConfig, extra="forbid", frozen=True):
    """`[prune]`: how much goes, in how many steps, and the fine-tuning. Objective and teacher are those of `[distill]`."""

    objective: ConfiguredObjective | None = Field(None, description="filled in from [distill]")
    teachers: tuple[TeacherShare, ...] | None = Field(None, description="filled in from [distill]")
    mixture: Mixture | None = Field(None, description="filled in from [distill]")
    speedup: float | None = Field(None, gt=1, le=100, description="multiply-accumulates before / after, at least; with measured_on the int8 file's time")
    channels: float | None = Field(None, gt=0, lt=1, description="share of the prunable channels that goes, at least; instead of speedup")
    latency_ms: float | None = Field(None, gt=0, le=60_000, description="median time of the target's int8 file in ms, at most; instead of speedup")
    measured_on: str | None = Field(None, description="the target on whose device latency is measured; 'target' (as where latency_ms has none): the only one")
    steps: int = Field(3, ge=1, le=20, description="how often channels are removed, each time with a share of the epochs")
    importance: Literal["taylor", "magnitude"] = Field("taylor", description="taylor: |weight · gradient| of the objective's loss; magnitude: squared weights")
    importance_batches: int = Field(10, ge=1, description="training batches that taylor's gradient is taken over")
    round_to: int = Field(4, ge=1, description="a cut layer keeps a multiple of so many channels")
    max_ratio: float = Field(0.7, gt=0, lt=1, description="largest share of any layer's channels that may go")
    ignored_layers: tuple[str, ...] = Field((), description="names of layers whose outputs stay whole; the logits always do")
    epochs: int = Field(9, ge=1, description="passes of fine-tuning, shared between the steps (at least one each)")
    learning_rate: float = Field(0.05, gt=0, allow_inf_nan=False, description="highest learning rate of each step's schedule")
    profile: InstanceOf[Profile] | None = Field(
        None, exclude=True, description="filled by the build: that of the target that is measured; it is in the fingerprint"
    )
    machine: InstanceOf[Machine] | None = Field(None, exclude=True, description="filled by the build: the device that measures; None: this host")

    @property
    def measured(self) -> bool:
        """Whether the goal is a measured latency."""
        return self.latency_ms is not None or self.measured_on is not None

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        given = [goal for goal in (self.speedup, self.channels, self.latency_ms) if goal is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of speedup, channels and latency_ms")
        if self.channels is not None and self.measured_on is not None:
            raise ValueError("measured_on goes with speedup or latency_ms: a share of channels is counted, not measured")
        return self


class Cost(BaseModel, extra="forbid", frozen=True):
    """What a network costs: multiply-accumulates for one sample, parameters."""

    macs: int
    parameters: int


class PruningStep(BaseModel, extra="forbid", frozen=True):
    """One cut. `removed`: channels by the group's name."""

    after: Cost
    speedup: float
    removed: dict[str, int]


class PruningReport(BaseModel, extra="forbid", frozen=True):
    """`pruning.json`. `layers`: convolution or linear layer to (inputs, outputs) before and after; `whole`: groups that stay, with the reason.

    `speedup` is that of multiply-accumulates; `latency` is there where the goal was one.
    """

    before: Cost
    after: Cost
    speedup: float
    steps: tuple[PruningStep, ...]
    layers: dict[str, tuple[tuple[int, int], tuple[int, int]]]
    whole: dict[str, str]
    latency: LatencyReport | None = None


def run(inputs: Inputs, config: PruneConfig, context: Context) -> Path:
    """The artifact folder with the pruned and fine-tuned student, and what was removed."""
    assert config.objective is not None, "the pipeline fills it in"
    student = load_network(inputs.artifacts["distill"])
    objective, teachers = teaching(config.objective, config.teachers or (), config.mixture, inputs)
    ignored = _full_names(config.ignored_layers, student.module)
    example = torch.from_numpy(inputs.data.train.read(np.arange(min(_EXAMPLES, len(inputs.data.train)))))
    start = _Start(student, _cost(student), _prunable_channels(find_groups(student.module, example, ignored=ignored)[0]))
    network, steps, histories = student, list[PruningStep](), list[History]()
    whole: dict[str, str] = {}
    with _measuring(student, inputs, config, context) as timed:
        for number in range(config.steps):
            label = f"prune/step-{number + 1}"
            gradients = None
            if config.importance == "taylor":
                gradients = objective_gradients(network, objective, teachers, inputs, context, config.batch_size, config.importance_batches, label=label)
            groups, whole = find_groups(network.module, example, gradients, ignored)
            if timed is None:
                choice = _chosen(groups, whole, network, start, config, (number + 1) / config.steps)
            else:
                trial = Trial(network, objective, teachers, inputs, config, context, label)
                choice = timed.decided(number, groups) or timed.choose(
                    trial, groups, _limits(groups, start, config), (number + 1, config.steps), _note(config, whole)
                )
            network = cut(network, plan_without(choice, network.module))
            steps.append(_step(choice, _cost(network), start))
            context.progress.say(_told(label, steps[-1], start, whole if number == 0 else {}))
            if timed is not None:
                context.progress.say(f"{label}: {timed.told(number)}")
            histories.append(train(network, objective, teachers, inputs, _part_of_epochs(config, number), context, label=label))
        latency = None if timed is None else timed.report()
    save_network(network, context.folder)
    _require_exact_replay(network, context.folder, example)
    report = PruningReport(
        before=start.cost,
        after=steps[-1].after,
        speedup=steps[-1].speedup,
        steps=tuple(steps),
        layers=_changed_widths(student, network),
        whole=whole,
        latency=latency,
    )
    write_text(context.folder / REPORT_FILE, report.model_dump_json(indent=2, exclude={"latency"} if latency is None else None) + "\n")
    write_history(context.folder, *histories)
    remove_checkpoints(context.folder / CHECKPOINTS)
    if timed is not None:
        timed.finish()
    return context.folder


def _measuring(student: Network, inputs: Inputs, config: PruneConfig, context: Context) -> AbstractContextManager[LatencyPruning | None]:
    """The measurements, where the goal is a latency."""
    if not config.measured:
        return nullcontext()
    assert config.profile is not None, "the pipeline fills it in"
    goal = Goal(config.latency_ms, config.speedup, config.measured_on or config.profile.name)
    return measuring(student, goal, inputs, config.profile, config.machine, context)


@dataclass(frozen=True)
class _Start:
    """The network before the first cut, what it costs, and how many channels could be cut."""

    network: Network
    cost: Cost
    channels: int


def _chosen(groups: list[ChannelGroup], whole: Mapping[str, str], network: Network, start: _Start, config: PruneConfig, way: float) -> Choice:
    """What goes in the step after which the share `way` of the steps is done; each step removes the same factor."""

    def left(choice: Choice) -> float:
        if config.channels is not None:
            return (_prunable_channels(groups) - sum(len(channels) for _, channels in choice)) / start.channels
        module = copy.deepcopy(network.module)
        replay_(module, plan_without(choice, network.module))
        return count_macs(module, network.spec.contract.shape) / start.cost.macs

    final = 1 - config.channels if config.channels is not None else 1 / (config.speedup or 1)
    limits = _limits(groups, start, config)
    choice = least_important(groups, limits, lambda choice: left(choice) <= final**way)
    if choice is None:
        reachable = left([(group, list(range(limits.removable(group, group.width)))) for group in groups])
        raise _unreachable(config, reachable, whole)
    return choice


def _limits(groups: Sequence[ChannelGroup], start: _Start, config: PruneConfig) -> Limits:
    most = {}
    for group in groups:
        original = widths(start.network.module.get_submodule(group.name))[1]
        most[group.name] = max(0, group.width - math.ceil(original * (1 - config.max_ratio)))
    return Limits(config.round_to, most)


def _unreachable(config: PruneConfig, left: float, whole: Mapping[str, str]) -> ConfigError:
    key, wanted, possible = ("speedup", config.speedup, f"{1 / left:.2f}") if config.channels is None else ("channels", config.channels, f"{1 - left:.2f}")
    return ConfigError(
        f"{key} = {wanted:g} cannot be reached: at most {possible} with max_ratio = {config.max_ratio:g} and round_to = {config.round_to}",
        at=f"{_AT} {key}",
        do=f"lower {key}, raise max_ratio or lower round_to{_whole(whole)}",
    )


def _note(config: PruneConfig, whole: Mapping[str, str]) -> str:
    return f"raise max_ratio (now {config.max_ratio:g}){_whole(whole)}"


def _whole(whole: Mapping[str, str]) -> str:
    stay = "; ".join(f"{name}: {reason}" for name, reason in whole.items())
    return f"; layers that stay whole: {stay}" if stay else ""


def _part_of_epochs(config: PruneConfig, number: int) -> PruneConfig:
    """The configuration of one step's fine-tuning: the epochs evenly shared, the rest to the last steps."""
    shares = [(config.epochs + i) // config.steps for i in range(config.steps)]
    return config.model_copy(update={"epochs": max(1, shares[number])})


def _require_exact_replay(network: Network, folder: Path, example: Tensor) -> None:
    """What the folder holds, rebuilt from the unpruned factory and the plan, must be the network that was trained, bit for bit."""
    rebuilt = load_network(folder)
    network.module.eval()
    with torch.no_grad():
        if not torch.equal(rebuilt.module(example), network.module(example)):
            raise VerificationError(
                "the pruned network, rebuilt from its plan, gives other outputs",
                at=folder,
                do="report this with the network's factory: it is a defect of kdpipe",
            )


def _cost(network: Network) -> Cost:
    return Cost(macs=count_macs(network.module, network.spec.contract.shape), parameters=count_parameters(network.module))


def _prunable_channels(groups: Sequence[ChannelGroup]) -> int:
    return sum(group.width for group in groups)


def _step(choice: Choice, cost: Cost, start: _Start) -> PruningStep:
    return PruningStep(after=cost, speedup=start.cost.macs / cost.macs, removed={group.name: len(channels) for group, channels in choice if channels})


def _told(label: str, step: PruningStep, start: _Start, whole: Mapping[str, str]) -> str:
    said = f"{label}: {sum(step.removed.values())} channels go, {step.speedup:.2f}x fewer multiply-accumulates, "
    said += f"{step.after.parameters} of {start.cost.parameters} parameters stay"
    return said + (f"; whole: {', '.join(f'{name} ({reason})' for name, reason in whole.items())}" if whole else "")


def _changed_widths(before: Network, after: Network) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
    names = (after.spec.pruning or PruningPlan()).layers
    pairs = {name: (widths(before.module.get_submodule(name)), widths(after.module.get_submodule(name))) for name in names}
    return {name: pair for name, pair in pairs.items() if not isinstance(before.module.get_submodule(name), CHANNELWISE)}


def _full_names(names: Sequence[str], module: nn.Module) -> frozenset[str]:
    """The layers' names in the whole network; the user may leave out the leading `body.`, which is ours."""
    known = dict(module.named_modules())
    full = set()
    for name in names:
        found = next((candidate for candidate in (name, _BODY + name) if candidate in known), None)
        if found is None:
            plain = [candidate.removeprefix(_BODY) for candidate in known if candidate]
            near = difflib.get_close_matches(name, plain, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"layers: {', '.join(plain[:8])}, …"
            raise ConfigError(f"no layer {name!r} in the student", at=f"{_AT} ignored_layers", do=hint)
        full |= {candidate for candidate in known if candidate == found or candidate.startswith(f"{found}.")}
    return frozenset(full)
