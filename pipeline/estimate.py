"""What a proposed build costs, from the steps of a trial: for each part the seconds by the fastest, the median and the slowest step.

Training is counted step by step. Judging is counted in forward passes of the student, roughly. What pruning and fake quantization change in a step, and
what export and bench take, comes from measured builds (`evidence.toml`), whose spread goes into the bounds.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from kdpipe.pipeline.advice_objective import asks_teacher
from kdpipe.pipeline.evidence import Evidence
from kdpipe.pipeline.proposal import Proposal
from kdpipe.pipeline.trial import Timed, Trial
from kdpipe.stages.training import batching

TARGETS, BENCHED = 2, 1
"""targets of a proposed file; those of them whose latency is measured on an x86 host"""

JUDGED = {"attacked": 1000, "curve": 250, "curve points": 3, "square": 200 * 100, "corrupted": 1000 * 6 * 5}
"""samples, points and queries of the default [evaluate]"""

PASSES_OF_A_STEP = 3
"""an attack step in forward passes: one forward, one backward to the input, and what lies around them"""

JUDGING_IS_ROUGH = 2.0
"""bounds of judging are the estimate divided and multiplied by this: it was counted, not timed"""

NOT_INCLUDED = (
    "loading and checking the data",
    "what other processes on this machine will take",
    "slower steps as memory fills or the processor heats up",
    "devices of your own",
)


@dataclass(frozen=True)
class Sizes:
    """Samples of each split."""

    train: int
    validation: int
    test: int


@dataclass(frozen=True)
class Part:
    """One part of the build, in seconds. `how`: counted from what."""

    name: str
    low: float
    likely: float
    high: float
    how: str


@dataclass(frozen=True)
class Cost:
    """The parts, and the trial behind them. `step_seconds`: the teacher's and the student's median step; `share`: see `Trial`."""

    parts: tuple[Part, ...]
    trial_seconds: float
    step_seconds: tuple[float, float]
    share: float
    not_included: tuple[str, ...] = NOT_INCLUDED

    @property
    def low(self) -> float:
        """Seconds if every step were as fast as the fastest."""
        return sum(part.low for part in self.parts)

    @property
    def likely(self) -> float:
        """Seconds by the median step."""
        return sum(part.likely for part in self.parts)

    @property
    def alone(self) -> float:
        """Seconds by the median step, were nothing else running on the machine: what its threads took of the processor."""
        return self.likely * self.share

    @property
    def high(self) -> float:
        """Seconds if every step were as slow as the slowest."""
        return sum(part.high for part in self.parts)


def estimated(proposal: Proposal, trial: Trial, sizes: Sizes, known: Evidence) -> Cost:
    """The cost of the whole proposed build."""
    return Cost(tuple(_parts(proposal, trial, sizes, known)), trial.seconds, (trial.teacher.step[1], trial.student.step[1]), trial.share)


def _parts(proposal: Proposal, trial: Trial, sizes: Sizes, known: Evidence) -> Iterator[Part]:
    schedule = proposal.schedule
    yield _training("teacher", trial.teacher, schedule.teacher_epochs, sizes, (1, 1, 1), "its own steps")
    targets = trial.teacher.forward * sizes.train if asks_teacher(proposal.objective) else 0.0
    student = _training("distill", trial.student, schedule.epochs, sizes, (1, 1, 1), "its own steps")
    yield Part(student.name, student.low, student.likely + targets, student.high + targets, student.how)
    prune, qat = ([getattr(chain, f"{name}_to_distill") for chain in known.chains.values()] for name in ("prune", "qat"))
    yield _training("prune", trial.student, max(3, schedule.few), sizes, _spread(prune), _told("the pruned network's epoch", prune))
    fine = _training("qat", trial.student, schedule.few, sizes, _spread(qat), _told("the twin's epoch", qat))
    yield Part("qat, two targets", TARGETS * fine.low, TARGETS * fine.likely, TARGETS * fine.high, fine.how)
    judged = _judging(trial, sizes)
    yield Part("scores", judged / JUDGING_IS_ROUGH, judged, judged * JUDGING_IS_ROUGH, "counted in forward passes, not timed")
    exports, benches = ([getattr(chain, f"{name}_seconds") for chain in known.chains.values()] for name in ("export", "bench"))
    low, likely, high = (TARGETS * export + BENCHED * bench for export, bench in zip(_spread(exports), _spread(benches), strict=True))
    yield Part("export and bench", low, likely, high, "as measured in builds of docs/results.md, on their machine")


def _training(name: str, timed: Timed, epochs: int, sizes: Sizes, factors: tuple[float, float, float], how: str) -> Part:
    steps = _steps(sizes.train, timed.batch_size)
    low, likely, high = (factor * epochs * (steps * step + timed.after_epoch) for factor, step in zip(factors, timed.step, strict=True))
    return Part(name, low, likely, high, f"{epochs} epochs of {steps} steps, {how}")


def _steps(samples: int, batch_size: int) -> int:
    size, drop_last = batching(samples, batch_size)
    return samples // size if drop_last or samples % size == 0 else samples // size + 1


def _judging(trial: Trial, sizes: Sizes) -> float:
    """Seconds of all scores: teacher, student, pruned network and each target's twin and files."""
    share = min(1.0, sizes.test / JUDGED["attacked"])
    attacks = JUDGED["attacked"] * (1 + 20) * PASSES_OF_A_STEP * 2 + JUDGED["curve"] * JUDGED["curve points"] * 20 * PASSES_OF_A_STEP  # twice: rescaled logits
    network = sizes.test + share * (attacks + JUDGED["corrupted"])
    files = 2 * (sizes.test + share * (JUDGED["corrupted"] + JUDGED["square"]))
    return trial.teacher.forward * network + trial.student.forward * ((2 + TARGETS) * network + TARGETS * files)


def _spread(values: list[float]) -> tuple[float, float, float]:
    """The least, the mean and the greatest; 1 where nothing was measured."""
    return (min(values), sum(values) / len(values), max(values)) if values else (1.0, 1.0, 1.0)


def _told(what: str, ratios: list[float]) -> str:
    return f"{what} {min(ratios):.2g} to {max(ratios):.2g} times the student's in measured builds" if ratios else f"{what} taken as the student's"
