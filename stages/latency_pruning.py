"""Pruning by measured latency: a table of layers says what a cut will save, the whole int8 file says what it saved, validation says what it cost.

In each step the channels to go are chosen in several ways that all meet the step's goal by the table (`latency_ways`); each is exported as the target's
file (calibrated, not trained: weights do not change the time) and measured in turn with the unpruned network's; the table is scaled by what came out, and
the choice made again, until the file meets the goal. Of the ways, the one stays that is best on validation after a short training (`trial`).
Source of the loop: Yang et al. 2018 (arXiv:1804.03230), Algorithm 1; ours cuts all layers at once and trains candidates, not layers.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import BaseModel, Field, ValidationError

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.files import write_text
from kdpipe.foundation.networks import Network
from kdpipe.stages.channel_choice import Choice, Limits
from kdpipe.stages.channel_groups import ChannelGroup
from kdpipe.stages.file_latency import START, Measured, Stopwatch, int8_file, stopwatch
from kdpipe.stages.latency_search import Removed, lowest, steps_of
from kdpipe.stages.latency_table import LatencyTable
from kdpipe.stages.latency_timing import Timing
from kdpipe.stages.latency_ways import WAYS, Cut, Way
from kdpipe.stages.layer_calls import layer_calls, prunable_calls
from kdpipe.stages.layer_files import empty_file
from kdpipe.stages.stage import Context, Inputs
from kdpipe.stages.trial import Trial
from kdpipe.targets.devices.device import Machine
from kdpipe.targets.measurements import DeviceFacts
from kdpipe.targets.profile import Profile

VERSION = 2
"""of the way to a choice; in the fingerprint of prunings by latency alone (2: five ways instead of three, judged on the same batches)"""

DECISIONS_FILE = "latency_decisions.json"
"""in the stage's work folder, removed at its end"""

_EMPTY = "empty"
_TOLERANCE = 0.03  # a file this far below its goal is not cut less
_ROUNDS = 5  # of choosing and measuring in the last step


class Attempt(BaseModel, extra="forbid", frozen=True):
    """One choice whose file was measured. `predicted_ms`: by the table, as scaled then; `error`: measured over predicted, less 1."""

    way: Way
    predicted_ms: float
    measured: Measured
    error: float
    validation: float | None = Field(None, description="accuracy after the short training that chose between the ways; None where there was none")
    removed: dict[str, int] | None = Field(None, description="channels that go, by group; of groups that lose some")


class LatencyStep(BaseModel, extra="forbid", frozen=True):
    """One cut. `goal_ms`: what it had to reach; `scale`: of the table, after it; `way`: the one that was taken."""

    goal_ms: float
    way: Way
    attempts: tuple[Attempt, ...]
    measured: Measured
    scale: float

    @property
    def predicted_ms(self) -> float:
        """What the table had said of the file that was taken."""
        return next(attempt.predicted_ms for attempt in self.attempts if attempt.measured == self.measured)


class LatencyReport(BaseModel, extra="forbid", frozen=True):
    """What was measured, where, and how well the table foretold it. `before`: the unpruned network's int8 file."""

    target: str
    device: DeviceFacts
    runtime: str
    batch: int
    threads: int
    goal: str
    before: Measured
    after: Measured
    steps: tuple[LatencyStep, ...]
    table: str = Field(description="the table's file in .kdpipe/latency")
    table_entries: int


@dataclass(frozen=True)
class Goal:
    """`latency_ms`, or `speedup` of the file; one of them. `target`: whose file it is."""

    latency_ms: float | None
    speedup: float | None
    target: str

    @property
    def told(self) -> str:
        """As it is written in `[prune]`."""
        return f"latency_ms = {self.latency_ms:g}" if self.latency_ms is not None else f"speedup = {self.speedup:g}"

    @property
    def key(self) -> str:
        """Its name there."""
        return "latency_ms" if self.latency_ms is not None else "speedup"

    def ms(self, before: Measured) -> float:
        """The time that is allowed, in ms, when the unpruned network takes `before`."""
        if self.latency_ms is not None:
            return self.latency_ms
        assert self.speedup is not None
        return before.ms / self.speedup


class Candidate(BaseModel, extra="forbid", frozen=True):
    """A cut that meets the step's goal as measured. `scale`: with which the table foretells it."""

    way: Way
    removed: Removed
    measured: Measured
    scale: float


class _Decision(BaseModel, extra="forbid", frozen=True):
    """A step as it was decided: channels by group."""

    removed: dict[str, tuple[int, ...]]
    step: LatencyStep


class _Open(BaseModel, extra="forbid", frozen=True):
    """A step whose candidates are measured and not judged yet."""

    goal_ms: float
    candidates: tuple[Candidate, ...]
    attempts: tuple[Attempt, ...]


class _Decisions(BaseModel, extra="forbid", frozen=True):
    """What a stage that was stopped finds of its measurements: they would come out differently, and so would the cuts. `open`: of the step after `steps`."""

    before: Measured
    overhead_ms: float
    steps: tuple[_Decision, ...] = ()
    open: _Open | None = None


class LatencyPruning:
    """One pruning by latency: its table and scale, and what was decided so far. Made by `measuring`."""

    def __init__(self, start: Network, goal: Goal, inputs: Inputs, profile: Profile, watch: Stopwatch, context: Context) -> None:
        self._start, self._goal, self._inputs, self._profile, self._watch, self._context = start, goal, inputs, profile, watch, context
        self._file = context.folder / DECISIONS_FILE
        self._start_file = int8_file(start, inputs.data.train, profile)
        self._table = LatencyTable.opened(watch.setting, context.project, context.progress.say)
        self._decisions = self._resumed() or self._begun()
        if self._goal.ms(self.before) >= self.before.ms:
            raise self._nothing_to_do()
        self._scale = self._decisions.steps[-1].step.scale if self._decisions.steps else self._first_scale()

    @property
    def before(self) -> Measured:
        """The unpruned network's file."""
        return self._decisions.before

    def decided(self, number: int, groups: Sequence[ChannelGroup]) -> Choice | None:
        """What a run that was stopped had decided for step `number` (from 0); None where it did not get there."""
        if number >= len(self._decisions.steps):
            return None
        removed = self._decisions.steps[number].removed
        return [(group, list(removed.get(group.name, ()))) for group in groups]

    def choose(self, trial: Trial, groups: Sequence[ChannelGroup], limits: Limits, step: tuple[int, int], note: str) -> Choice:
        """What goes in `step` (number from 1, of how many); each step removes the same factor of the time.

        `note`: what could be done beside for a goal that cannot be reached, for the ConfigError that is raised then.
        """
        if self._decisions.open is None:
            found = self._found(trial, groups, limits, step, note)
            self._decisions = self._decisions.model_copy(update={"open": found})
            self._keep()
        else:
            found = self._decisions.open
        best, attempts = _best(found, trial, groups)
        self._scale = best.scale
        decided = LatencyStep(goal_ms=found.goal_ms, way=best.way, attempts=attempts, measured=best.measured, scale=best.scale)
        choice = lowest(groups, best.removed)
        removed = {group.name: tuple(channels) for group, channels in choice if channels}
        steps = (*self._decisions.steps, _Decision(removed=removed, step=decided))
        self._decisions = self._decisions.model_copy(update={"steps": steps, "open": None})
        self._keep()
        return choice

    def report(self) -> LatencyReport:
        """All that was measured; `after` is the last step's file."""
        steps = tuple(decision.step for decision in self._decisions.steps)
        setting = self._watch.setting
        return LatencyReport(
            target=self._goal.target,
            device=self._watch.facts,
            runtime=f"{setting.runtime} {setting.runtime_version}",
            batch=setting.batch,
            threads=setting.threads,
            goal=self._goal.told,
            before=self.before,
            after=steps[-1].measured,
            steps=steps,
            table=self._table.path.name,
            table_entries=len(self._table.entries),
        )

    def finish(self) -> None:
        """Remove what only a stopped run would need."""
        self._file.unlink(missing_ok=True)

    def told(self, number: int) -> str:
        """Of step `number` (from 0), for the user."""
        step = self._decisions.steps[number].step
        return (
            f"the int8 file takes {step.measured.told} on {self._watch.device.name} ({step.predicted_ms:.4g} ms by the table), unpruned {self.before.told}: "
            f"{1 / step.measured.share:.2f}x as fast; chosen by {step.way}"
        )

    def _found(self, trial: Trial, groups: Sequence[ChannelGroup], limits: Limits, step: tuple[int, int], note: str) -> _Open:
        """The step's candidates, measured; ConfigError where none is fast enough."""
        number, of = step
        module, shape = trial.network.module, trial.network.spec.contract.shape
        timing = Timing(prunable_calls(layer_calls(module, shape), groups, module), self._table, self._decisions.overhead_ms)
        steps = [steps_of(group, limits) for group in groups]
        fresh = self._table.measure(timing.shapes(steps), self._watch.device, self._context.progress)
        if fresh:
            self._context.progress.say(f"latency table of {self._watch.device.name}: {fresh} shapes measured, {len(self._table.entries)} known")
        goal_ms = self.before.ms * (self._goal.ms(self.before) / self.before.ms) ** (number / of)
        asked = Cut(trial, groups, limits, steps, timing, goal_ms, exact=number == of)
        found, attempts = self._candidates(asked)
        found = found or [self._fastest(asked, attempts, note)]
        return _Open(goal_ms=goal_ms, candidates=tuple(found), attempts=tuple(attempts))

    def _candidates(self, asked: Cut) -> tuple[list[Candidate], list[Attempt]]:
        """For each way the slowest choice whose file meets the goal, none where none does; where the step need not be exact, its first choice."""
        scales: dict[Way, float] = dict.fromkeys(WAYS, self._scale)
        aims: dict[Way, float] = dict.fromkeys(WAYS, asked.goal_ms)
        known: dict[Removed, Measured] = {}
        best: dict[Way, Candidate] = {}
        attempts: list[Attempt] = []
        searching = list(WAYS)
        for _ in range(_ROUNDS if asked.exact else 1):
            chosen = {way: asked.chosen(way, scales[way], aims[way]) for way in searching}
            proposed = {way: removed for way, removed in chosen.items() if removed is not None}
            new = list(dict.fromkeys(removed for removed in proposed.values() if removed not in known))
            known.update(self._measured({removed: asked.without(removed) for removed in new}))
            searching = []
            for way, removed in proposed.items():
                attempt, scale = self._attempt(asked, way, removed, scales[way], known[removed])
                if removed in new and all(other.removed != attempt.removed for other in attempts):
                    attempts.append(attempt)
                took = self._relative_ms(known[removed])
                if (took <= asked.goal_ms or not asked.exact) and (way not in best or took > self._relative_ms(best[way].measured)):
                    best[way] = Candidate(way=way, removed=removed, measured=known[removed], scale=scale)
                near = asked.goal_ms * (1 - _TOLERANCE) <= took <= asked.goal_ms
                if not near and (removed in new or way not in best):
                    searching.append(way)
                    aims[way] *= 1 if removed in new else 1 - _TOLERANCE  # the same choice again: ask for more
                scales[way] = scale
        return list(best.values()), attempts

    def _fastest(self, asked: Cut, attempts: list[Attempt], note: str) -> Candidate:
        """The cut that takes least time, where no choice was found by the table; ConfigError where that is too slow as well. Joins the attempts."""
        removed = asked.chosen("fastest", self._scale, asked.goal_ms)
        assert removed is not None
        measured = self._measured({removed: asked.without(removed)})[removed]
        attempt, scale = self._attempt(asked, "fastest", removed, self._scale, measured)
        attempts.append(attempt)
        if asked.exact and not self._relative_ms(measured) <= asked.goal_ms:
            raise self._unreachable(measured, note)
        return Candidate(way="fastest", removed=removed, measured=measured, scale=scale)

    def _attempt(self, asked: Cut, way: Way, removed: Removed, scale: float, measured: Measured) -> tuple[Attempt, float]:
        """What came of a choice, and the scale with which the table would have foretold it."""
        predicted, took = asked.timing.ms(removed, scale), self._relative_ms(measured)
        attempt = Attempt(way=way, predicted_ms=predicted, measured=measured, error=took / predicted - 1, removed=_named(asked.groups, removed))
        return attempt, asked.timing.scale(removed, took)

    def _relative_ms(self, measured: Measured) -> float:
        """The time as it would have been when the unpruned network was first measured: a machine that slowed down since does not count."""
        return measured.share * self.before.ms

    def _measured(self, networks: Mapping[Removed, Network]) -> dict[Removed, Measured]:
        """The files of `networks`, measured in turn with the unpruned one's."""
        if not networks:
            return {}
        files = {str(number): int8_file(network, self._inputs.data.train, self._profile) for number, network in enumerate(networks.values())}
        measured = self._compared(files)
        return {removed: measured[str(number)] for number, removed in enumerate(networks)}

    def _compared(self, files: Mapping[str, bytes]) -> dict[str, Measured]:
        return self._watch.compared({START: self._start_file, **files}, self._inputs.data.validation, self._context.seed)

    def _begun(self) -> _Decisions:
        setting = self._watch.setting
        empty = empty_file(self._start.spec.contract.shape, setting.scheme, opset=setting.opset, static_batch=setting.static_batch)
        measured = self._compared({_EMPTY: empty})
        self._context.progress.say(f"prune: unpruned the int8 file takes {measured[START].told} on {self._watch.told}")
        return _Decisions(before=measured[START], overhead_ms=measured[_EMPTY].ms)

    def _first_scale(self) -> float:
        """What makes the table right for the unpruned network."""
        module = self._start.module
        timing = Timing(prunable_calls(layer_calls(module, self._start.spec.contract.shape), (), module), self._table, self._decisions.overhead_ms)
        self._table.measure(timing.shapes([]), self._watch.device, self._context.progress)
        self._keep()
        return timing.scale((), self.before.ms)

    def _nothing_to_do(self) -> ConfigError:
        return ConfigError(
            f"{self._goal.told} asks for nothing: unpruned the int8 file takes {self.before.told} on {self._watch.told}",
            at=f"[prune] {self._goal.key}",
            do=f"lower latency_ms below {self.before.ms:.4g}, or remove [prune]",
        )

    def _unreachable(self, least: Measured, note: str) -> ConfigError:
        by_time = self._goal.latency_ms is not None
        possible = f"the least is {least.told}" if by_time else f"at most {1 / least.share:.2f} ({least.told})"
        return ConfigError(
            f"{self._goal.told} cannot be reached: {possible}; unpruned it is {self.before.told}, on {self._watch.told}",
            at=f"[prune] {self._goal.key}",
            do=f"{'raise latency_ms' if by_time else 'lower speedup'}, or {note}",
        )

    def _resumed(self) -> _Decisions | None:
        if not self._file.is_file():
            return None
        try:
            return _Decisions.model_validate_json(self._file.read_bytes())
        except (OSError, ValidationError):
            self._context.progress.say("prune: what was measured before the stop cannot be read, measuring again")
            return None

    def _keep(self) -> None:
        write_text(self._file, self._decisions.model_dump_json(indent=1) + "\n")


@contextmanager
def measuring(start: Network, goal: Goal, inputs: Inputs, profile: Profile, machine: Machine | None, context: Context) -> Iterator[LatencyPruning]:
    """A pruning of `start` by the latency of `profile`'s file on `machine` (None: this host), which stays reached meanwhile.

    Raises UnavailableError where it cannot be measured there, ConfigError where the goal asks for nothing.
    """
    with stopwatch(profile, machine, context.project) as watch:
        yield LatencyPruning(start, goal, inputs, profile, watch, context)


def _best(found: _Open, trial: Trial, groups: Sequence[ChannelGroup]) -> tuple[Candidate, tuple[Attempt, ...]]:
    """The candidate that validation prefers, of equal ones the first; and the attempts with what it said."""
    different = list({candidate.removed: candidate for candidate in found.candidates}.values())
    if len(different) == 1:
        return different[0], found.attempts
    say, started = trial.context.progress.say, time.monotonic()
    judged: list[tuple[Candidate, float]] = []
    for candidate in different:
        accuracy = trial.judge(trial.cut(lowest(groups, candidate.removed)), candidate.way)
        say(f"{trial.label}: by {candidate.way} {candidate.measured.told}, {accuracy:.1%} on validation after a short training")
        judged.append((candidate, accuracy))
    say(f"{trial.label}: {len(judged)} choices of channels judged in {time.monotonic() - started:.0f} s")
    told = tuple(
        attempt.model_copy(
            update={"validation": next((accuracy for candidate, accuracy in judged if _named(groups, candidate.removed) == attempt.removed), None)}
        )
        for attempt in found.attempts
    )
    return max(judged, key=lambda pair: pair[1])[0], told


def _named(groups: Sequence[ChannelGroup], removed: Removed) -> dict[str, int]:
    return {group.name: gone for group, gone in zip(groups, removed, strict=True) if gone}
