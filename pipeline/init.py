"""`kdpipe init`: a first `kdpipe.toml`, chosen from what the data looks like by the rules of `kdpipe advise`, each choice with its reason."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.files import told_disk_errors, write_text
from kdpipe.pipeline.advice_facts import Choice, Facts, Goal
from kdpipe.pipeline.advice_objective import Candidate, candidates, trains_with_attack
from kdpipe.pipeline.advice_rules import network_choice, schedule_rule, strength_rule, teacher_choice, threads_choice
from kdpipe.pipeline.config import DEFAULT_TASK, FILE, task_model
from kdpipe.pipeline.evidence import Evidence, evidence
from kdpipe.pipeline.proposal import Proposal, text_of
from kdpipe.pipeline.user_code import importable
from kdpipe.tasks.data.find import BUILT_IN
from kdpipe.tasks.data.splits import DataSplits
from kdpipe.tasks.networks.named import default_networks

DEFAULT_DATA = "digits"


@dataclass(frozen=True)
class Written:
    """What was written and why: `choices` are pairs of a choice and its reason, in words; `advice`: those that follow from rules, with their evidence."""

    path: Path
    choices: tuple[tuple[str, str], ...]
    advice: tuple[Choice, ...] = ()


def initialise(folder: Path, *, task: str = DEFAULT_TASK, data: str | None = None) -> Written:
    """Write `kdpipe.toml` into `folder` (made if missing) for this data; an existing one is never touched.

    `data`: as a user types it, a path relative to where they stand. Raises ConfigError for a file that exists and for data that cannot be used.
    """
    require_no_file(folder)
    named, loaded = loaded_data(folder, task, data)
    facts = facts_of(named, loaded)
    proposal, choices = proposed(task, facts, evidence(), "attacks")
    write_proposal(folder, proposal)
    told = [data_choice(facts, loaded, given=data is not None), *((choice.what, choice.because) for choice in choices)]
    told.insert(-1 if facts.small else len(told), ("targets cpu and arm", "both are built on this machine; a device of yours is named in [devices]"))
    return Written(folder / FILE, tuple(told), tuple(choices))


def require_no_file(folder: Path) -> None:
    """ConfigError where the folder has a `kdpipe.toml`."""
    if (folder / FILE).exists():
        raise ConfigError(f"{FILE} exists already; it is not overwritten", at=folder / FILE, do="edit it, or remove it first")


def loaded_data(folder: Path, task: str, data: str | None) -> tuple[str, DataSplits]:
    """The data's name as the file in `folder` (made if missing) will say it, and the splits."""
    model = task_model(task, at="--task")
    with told_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    named = _as_written(data or DEFAULT_DATA, folder)
    with importable(folder.resolve()):
        loaded: DataSplits = model.model_validate({"data": named}).load(folder, 0)  # type: ignore[attr-defined]  # every task has it
    return named, loaded


def write_proposal(folder: Path, proposal: Proposal) -> Path:
    """The proposal as `kdpipe.toml` in `folder`."""
    write_text(folder / FILE, text_of(proposal))
    return folder / FILE


def facts_of(named: str, data: DataSplits) -> Facts:
    """What the rules look at, without the labels' noise."""
    counts = tuple(np.bincount(data.train.labels, minlength=len(data.classes)).tolist())
    return Facts(named, data.shape, counts, len(data.train), len(data.validation), len(data.test))


def data_choice(facts: Facts, data: DataSplits, *, given: bool) -> tuple[str, str]:
    """The data, and what they look like."""
    splits = f"{facts.train} / {facts.validation} / {facts.test} train / validation / test"
    seen = f"{len(data.classes)} classes, {facts.size} {'colour' if facts.colour else 'grey'}, {splits}"
    return f"data {facts.data}", seen if given else f"none was named, and these come with kdpipe; {seen}"


def proposed(task: str, facts: Facts, known: Evidence, goal: Goal, candidate: Candidate | None = None) -> tuple[Proposal, list[Choice]]:
    """What the rules propose for the goal, and each choice in words; `candidate`: another objective than the first."""
    ranked, objective = candidates(facts, known, goal)
    chosen = candidate or ranked[0]
    strength, strengths = strength_rule(facts, known, goal)
    schedule, epochs = schedule_rule(facts, known, goal)
    teacher, student = default_networks(facts.shape)
    threads = threads_choice(facts)
    proposal = Proposal(
        task=task,
        data=facts.data,
        teacher=teacher,
        teacher_objective=chosen.teacher_objective,
        student=student,
        objective=chosen.objective,
        attacked_in_training=trains_with_attack(chosen.objective),
        strength=strength,
        schedule=schedule,
        one_thread=threads is not None,
    )
    strengths = strengths if trains_with_attack(chosen.objective) else strengths[:1]
    choices = [network_choice(facts), epochs, *strengths, objective, teacher_choice(facts, chosen)]
    return proposal, choices if threads is None else [*choices, threads]


def _as_written(data: str, folder: Path) -> str:
    """The data as the file names it: a name, a callable, or a path relative to the project where it lies inside, else absolute."""
    if data in BUILT_IN or ":" in data:
        return data
    found = Path(data).resolve()
    home = folder.resolve()
    if not found.is_relative_to(home):
        return str(found)
    inside = os.path.relpath(found, home)
    return f"./{inside}" if inside in BUILT_IN else inside  # else the built-in set of that name would be meant
