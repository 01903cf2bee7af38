"""`kdpipe advise`: a look at data, machine and time budget, a proposal by the rules of `advice_rules.py`, and what it will cost by a trial on this machine."""

import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdpipe.foundation.errors import ConfigError
from kdpipe.pipeline.advice_facts import Choice, Facts, Noise, goal_named
from kdpipe.pipeline.advice_objective import Candidate, asks_teacher, candidates
from kdpipe.pipeline.advice_rules import EPOCHS, TRUSTED_AGREEMENT, remarks, teacher_epochs
from kdpipe.pipeline.config import DEFAULT_TASK, FILE, Config, assemble, read_config
from kdpipe.pipeline.estimate import Cost, Sizes, estimated
from kdpipe.pipeline.evidence import Evidence, evidence
from kdpipe.pipeline.init import facts_of, loaded_data, proposed, require_no_file, write_proposal
from kdpipe.pipeline.kept_check import known_check
from kdpipe.pipeline.planning import physical_cores
from kdpipe.pipeline.progress import SilentProgress
from kdpipe.pipeline.proposal import Proposal, text_of
from kdpipe.pipeline.stages import load_stages
from kdpipe.pipeline.toml_source import parse_toml
from kdpipe.pipeline.trial import First, Trial, run_trial
from kdpipe.pipeline.user_code import importable
from kdpipe.targets.instruction_sets import probe
from kdpipe.tasks.data.splits import DataSplits

if TYPE_CHECKING:
    from kdpipe.stages.stage import Progress

CHECKED_SAMPLES = 3_000
"""training samples that the quick look at the labels takes: as many as its figures in docs/data.md are of"""


@dataclass(frozen=True)
class Machine:
    """`load`: the mean number of busy processes in the last minute; None where the system does not tell."""

    cores: int
    threads: int
    instruction_sets: tuple[str, ...]
    load: float | None


@dataclass(frozen=True)
class Advice:
    """The proposal, each choice with reason and evidence, and what it costs. `toml`: the proposal as a file; `written`: where, None where it was not."""

    facts: Facts
    machine: Machine
    proposal: Proposal
    choices: tuple[Choice, ...]
    cost: Cost
    minutes: float | None
    toml: str
    written: Path | None


def advise(
    project: Path | str = ".",
    *,
    data: str | None = None,
    goal: str = "attacks",
    minutes: float | None = None,
    write: bool = False,
    progress: "Progress | None" = None,
) -> Advice:
    """What kdpipe proposes for these data on this machine within `minutes` (None: whatever it takes), after a trial of some training steps.

    The data are `data`, as a user types it, else those of the project's `kdpipe.toml`, else the digits. `goal`: attacks, corruptions or clean. `write`: into
    `kdpipe.toml`, where there is none yet. Nothing else is changed. Raises ConfigError for a budget that nothing fits.
    """
    wanted = goal_named(goal)
    if minutes is not None and not (math.isfinite(minutes) and minutes > 0):
        raise ConfigError(
            f"{minutes:g} minutes are no time for anything", at="--minutes", do="give a number above 0, or leave it out: the advice then says what it takes"
        )
    folder = Path(project).resolve()
    say = progress or SilentProgress()
    if write:
        require_no_file(folder)
    task, named, splits = _data(folder, data, write=write)
    facts = replace(facts_of(named, splits), noise=_noise(folder, splits, say))
    known = evidence()
    ranked, _ = candidates(facts, known, wanted)
    refused: list[str] = []
    for candidate in ranked:
        proposal, choices = proposed(task, facts, known, wanted, candidate)
        machine = _machine(proposal)
        say.say(f"trial: a few steps of teacher {proposal.teacher} and student {proposal.student}, objective {proposal.objective}")
        trial = run_trial(_config(folder, proposal), splits, machine.threads)
        fitted, cost, told = _fitted(proposal, trial, facts, known, minutes)
        if fitted is None:
            refused.append(f"{proposal.objective} takes at least {_minutes(cost.high)}")
            continue
        if told is not None:  # it takes the place of the schedule without a budget
            choices = [*(choice for choice in choices if choice.rule != "schedule"), told]
        if refused:
            choices.append(_conceded(candidate, refused))
        toml = text_of(fitted)
        path = write_proposal(folder, fitted) if write else None
        return Advice(facts, machine, fitted, (*choices, *remarks(facts, known, wanted, candidate)), cost, minutes, toml, path)
    raise ConfigError(
        f"{minutes:g} minutes are too few on this machine: {'; '.join(refused)}",
        at="--minutes",
        do="give more time, a faster or less busy machine, or smaller images; less training than that no figure speaks of",
    )


def _data(folder: Path, data: str | None, *, write: bool) -> tuple[str, str, DataSplits]:
    """The kind of task, the data's name and the splits."""
    if data is None and (folder / FILE).is_file():
        with importable(folder):
            config = read_config(folder, load_stages())
            return config.task_kind, str(getattr(config.task, "data", config.name)), config.task.load(folder, config.seed)
    if write:
        return DEFAULT_TASK, *loaded_data(folder, DEFAULT_TASK, data)
    if not folder.is_dir() and data is None:
        raise ConfigError("no such folder", at=folder, do="give the project's folder, or --write to make it")
    with tempfile.TemporaryDirectory() as aside:  # what loading keeps of data without a project is not left behind
        return DEFAULT_TASK, *loaded_data(Path(aside), DEFAULT_TASK, data)


def _noise(folder: Path, data: DataSplits, say: "Progress") -> Noise:
    """What is known of wrong labels: those made on purpose, the kept check, else a quick look at some."""
    if data.relabelled is not None and "train" in data.relabelled.wrong:
        wrong, count = data.relabelled.wrong["train"]
        return Noise(100 * wrong / count, f"made so on purpose ({data.relabelled.how})")
    kept = known_check(folder, data.digest)
    if kept is not None and kept.label_model is not None:
        return _estimate(kept.label_model.accuracy, kept.label_model.noise_rate, "by kdpipe data check")
    from kdpipe.tasks.data.inspection.inspection import Checked, inspected

    train = First(data.train, CHECKED_SAMPLES)
    say.say(f"a quick look at {len(train)} labels")

    def uncounted(items: Iterator[object], label: str, total: int) -> Iterator[object]:
        return items

    checked = Checked(data.name, data.digest, data.classes, data.shape, {"train": train}, lambda split, index: f"sample {index} of {split}")
    with tempfile.TemporaryDirectory() as scratch:
        found = inspected(checked, Path(scratch), uncounted)  # type: ignore[arg-type]  # it takes what it gives
    if found.label_model is None:
        return Noise(None, "; ".join(found.skipped))
    return _estimate(found.label_model.accuracy, found.label_model.noise_rate, f"by a quick check of {len(train):,}")


def _estimate(accuracy: float, rate: float, how: str) -> Noise:
    agreement = 100 * accuracy
    if agreement >= TRUSTED_AGREEMENT:
        return Noise(100 * rate, f"estimated {how}, whose model agrees with {agreement:.0f} % of the labels")
    weak = f"{agreement:.0f} % of the labels agree with the model {how}: too weak to say how many are wrong"
    return Noise(None, f"{weak} (it suspects {100 * rate:.0f} %, its own mistakes among them)")


def _machine(proposal: Proposal) -> Machine:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    cores = physical_cores()
    return Machine(cores, 1 if proposal.one_thread else cores, tuple(sorted(probe())), load)


def _config(folder: Path, proposal: Proposal) -> Config:
    return assemble(folder, parse_toml(text_of(proposal), FILE), load_stages(), ())


def _fitted(proposal: Proposal, trial: Trial, facts: Facts, known: Evidence, minutes: float | None) -> tuple[Proposal | None, Cost, Choice | None]:
    """Rule `budget`: the proposal with the longest schedule that fits, its cost, and what was changed; None with the cost of the shortest where none fits."""

    def cost_of(schedule_epochs: int, samples: int) -> tuple[Proposal, Cost]:
        schedule = replace(
            proposal.schedule,
            epochs=schedule_epochs,
            teacher_epochs=teacher_epochs(schedule_epochs),
            train_samples=None if samples == facts.train else samples,
        )
        sizes = Sizes(samples, facts.validation, facts.test)
        return replace(proposal, schedule=schedule), estimated(replace(proposal, schedule=schedule), trial, sizes, known)

    first, cost = cost_of(proposal.schedule.epochs, facts.train)
    if minutes is None:
        return first, cost, None
    for epochs, samples in _shorter(proposal, facts, known):
        made, cost = cost_of(epochs, samples)
        if cost.high <= 60 * minutes:
            return made, cost, _budget_choice(made, proposal, minutes, facts)
    return None, cost, None


def _shorter(proposal: Proposal, facts: Facts, known: Evidence) -> Iterator[tuple[int, int]]:
    """Epochs and training samples, the longest first: all samples, then fewer, down to the measured recipe."""
    low, high = EPOCHS
    yield from ((epochs, facts.train) for epochs in range(high, low - 1, -1))
    found = known.table_for(facts.shape, "robust")
    recipe = None if found is None else found[1].recipe
    if recipe is not None and facts.train > recipe.train_samples:
        most = min(facts.train - 1, low * facts.train // recipe.epochs) // 1_000 * 1_000  # more would be seen than with all samples
        smaller = range(most, recipe.train_samples, -max(1_000, (most - recipe.train_samples) // 20 // 1_000 * 1_000))
        yield from ((recipe.epochs, samples) for samples in [*smaller, recipe.train_samples])


def _budget_choice(made: Proposal, proposal: Proposal, minutes: float, facts: Facts) -> Choice:
    schedule = made.schedule
    fewer = "all" if schedule.train_samples is None else f"{schedule.train_samples:,} of {facts.train:,}"
    what = f"{schedule.teacher_epochs} epochs for the teacher, {schedule.epochs} for the student, {fewer} training samples"
    longest = schedule.train_samples is None and schedule.epochs >= EPOCHS[1]
    because = (
        f"the most that fits {minutes:g} minutes by the upper end of the estimate"
        if not longest
        else f"as long as any schedule here, within {minutes:g} minutes"
    )
    return Choice("budget", what, because, "the trial on this machine; what fewer samples or epochs lose was not measured")


def _conceded(candidate: Candidate, refused: list[str]) -> Choice:
    figure = "" if candidate.figure is None else f"; it stands at {candidate.figure[0]:.1f} % [{candidate.figure[1]:.1f}, {candidate.figure[2]:.1f}]"
    reads = "" if asks_teacher(candidate.objective) else " without a teacher"
    return Choice("budget", f"objective {candidate.objective}{reads} instead", f"{'; '.join(refused)}{figure}", f"docs/results.md, {candidate.table}")


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds < 600 else f"{seconds / 60:.0f} minutes"
