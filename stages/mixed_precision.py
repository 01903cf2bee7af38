"""Mixed precision: the fewest layers that must stay in float for the file to keep to its budget.

The search takes layers in the order of the damage that they do alone (`sensitivity`), doubles their number until a file keeps to the limit, halves the
interval, and gives back each layer that turns out not to be needed. Every decision rests on an exported file in the target's runtimes, on validation: on its
clean answers, and, where there is a limit for it, on what it stands under attack (`search_attack`).
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from kdpipe.foundation.errors import UnavailableError
from kdpipe.foundation.networks import InputContract
from kdpipe.foundation.predictor import Float32Array, Predictor, TorchPredictor
from kdpipe.robustness.intervals import paired_difference
from kdpipe.robustness.sample_size import samples_to_stay_above
from kdpipe.robustness.scorecard import Figure
from kdpipe.stages.search_attack import UnderAttack
from kdpipe.stages.sensitivity import Sensitivities, Sensitivity, Twin
from kdpipe.stages.stage import Progress
from kdpipe.stages.twin_file import twin_file
from kdpipe.targets.profile import Profile
from kdpipe.targets.runtimes.runtime import Session, open_session

GIVEN_BACK = 8
"""Layers that are tried to be given back to integers at the end, at most: the least sensitive first."""

_BATCH = 256

BoolArray = npt.NDArray[np.bool_]


class Drop(BaseModel, extra="forbid", frozen=True):
    """Points of clean accuracy below the teacher, with the 95 % interval, paired on the same samples."""

    value: float
    low: float
    high: float


class Trial(BaseModel, extra="forbid", frozen=True):
    """One exported file, measured. `drops`, `accuracy`, `robust`: by runtime."""

    float_layers: tuple[str, ...]
    size_bytes: int
    drops: dict[str, Drop]
    accuracy: dict[str, float]
    robust: dict[str, Figure] | None = Field(None, description="per cent right under attack; None where not asked for, or where the drop alone was too large")
    kept_to: bool = Field(description="whether the file is within every limit in every runtime: the drop's upper bound, the lower one under attack")


class MixedPrecision(BaseModel, extra="forbid", frozen=True):
    """How the layers that stay in float were found. `outcome` "out of reach": not even the float network keeps to the limit, so none stays in float."""

    limit: float | None = Field(description="points below the teacher, upper 95 % bound, on validation; None: under attack alone")
    n: int = Field(description="validation samples")
    outcome: Literal["not needed", "found", "out of reach"]
    float_layers: tuple[str, ...]
    float_network: Drop = Field(description="of the network without any rounding: what no precision can mend")
    reference_accuracy: float | None = Field(None, description="of the network without any rounding, on the samples of the sensitivities")
    all_distance: float | None = Field(None, description="as in the sensitivities, every layer quantized")
    all_accuracy: float | None = None
    sensitivity_samples: int = 0
    sensitivities: tuple[Sensitivity, ...] = Field((), description="the most sensitive first; empty where no layer had to stay in float")
    trials: tuple[Trial, ...] = Field(description="every file that was exported and measured, in order")
    unavailable: dict[str, str] = Field(default_factory=dict, description="runtimes that are not here, and why")
    robust_limit: float | None = Field(None, description="per cent right under attack, lower 95 % bound, on validation; None: not asked for")
    attack: str | None = Field(None, description="that attack; on the file's twin and on the network without any rounding, replayed on the file")
    float_robust: Figure | None = Field(None, description="of the network without any rounding, under the attack on it")

    @property
    def told(self) -> str:
        """One line for the user."""
        made = f"{len(self.trials)} file{'s' if len(self.trials) > 1 else ''} measured"
        if self.outcome == "not needed":
            return f"no layer has to stay in float for {self._limits} on validation ({made})"
        if self.outcome == "out of reach":
            reach = f"{self.float_network.value:.2f} points below the teacher, up to {self.float_network.high:.2f}"
            if self.limit is not None and (self.robust_limit is None or self.float_network.high > self.limit):
                return f"no layer stays in float: even without rounding the network is {reach}, the limit is {self.limit:g}; train longer, or raise the limit"
            return f"no layer stays in float: even without rounding the network is {self._stands}; {self._remedy}"
        return f"{len(self.float_layers)} layer{'s' if len(self.float_layers) > 1 else ''} must stay in float: {', '.join(self.float_layers)} ({made})"

    @property
    def _limits(self) -> str:
        clean = None if self.limit is None else f"{self.limit:g} points below the teacher"
        robust = None if self.robust_limit is None else f"{self.robust_limit:g} % under attack"
        return " and ".join(it for it in (clean, robust) if it is not None)

    @property
    def _stands(self) -> str:
        stood = self.float_robust
        if stood is None or stood.value is None:
            return "no further"
        return f"{stood.value:.1f} % right under attack, at least {stood.low:.1f} (n = {stood.n}), the limit is {self.robust_limit:g}"

    @property
    def _remedy(self) -> str:
        stood = self.float_robust
        if stood is None or stood.value is None or self.robust_limit is None:
            return "train longer, or lower the limit"
        needed = samples_to_stay_above(self.robust_limit / 100, stood.value / 100)
        if needed is None:
            return "train more robustly, or lower the limit"
        return f"about {float(f'{needed:.2g}'):,.0f} attacked samples would show that it is kept: [qat] validation_attack_samples"


@dataclass(frozen=True)
class Samples:
    """Validation samples (n, *shape) with their labels (n,), and which of them the teacher gets right (n,)."""

    x: Float32Array
    labels: npt.NDArray[np.int64]
    teacher_right: BoolArray


def right(predictor: Predictor, x: Float32Array, labels: npt.NDArray[np.int64]) -> BoolArray:
    """Which of the samples `x`, (n, *shape), the predictor gives their `labels`, (n,)."""
    answers = [predictor(x[begin : begin + _BATCH]).argmax(1) for begin in range(0, len(x), _BATCH)]
    found: BoolArray = np.concatenate(answers) == labels
    return found


@dataclass(frozen=True)
class Limits:
    """What a file must keep to in every runtime; at least one is set. `drop`: points below the teacher, upper 95 % bound."""

    drop: float | None
    under_attack: UnderAttack | None = None

    def kept(self, drop: Drop) -> bool:
        """Whether the drop is within its limit."""
        return self.drop is None or drop.high <= self.drop

    def stood(self, robust: Figure) -> bool:
        """Whether enough stands under attack, lower 95 % bound."""
        return self.under_attack is None or (robust.low is not None and robust.low >= self.under_attack.limit)


@dataclass(frozen=True)
class Question:
    """What is asked of files: which of `layers` must stay in float for them to keep to `limits` on `samples`, in the runtimes of `profile`.

    `few`: indices of the samples on which sensitivities are measured.
    """

    layers: Sequence[str]
    samples: Samples
    few: npt.NDArray[np.int64]
    limits: Limits
    contract: InputContract
    profile: Profile
    progress: Progress


def search(twin: Twin, question: Question) -> MixedPrecision:
    """The fewest layers that must stay in float for the file to keep to the limits in the worst runtime.

    Bounded: about 2 log2(layers) + `GIVEN_BACK` exports. Raises UnavailableError where none of the target's runtimes is here.
    """
    files, limits, samples, layers = _Files(twin, question), question.limits, question.samples, question.layers
    floating = _drop(samples, TorchPredictor(twin(layers)))
    none = files.measured(())
    reachable = limits.kept(floating) and (limits.under_attack is None or limits.stood(limits.under_attack.floating))
    if none.kept_to or not reachable:
        outcome: Literal["not needed", "out of reach"] = "not needed" if none.kept_to else "out of reach"
        return _record(files, (), floating, limits, outcome)
    table = Sensitivities(twin, layers, samples.x[question.few], samples.labels[question.few])
    order = [each.layer for each in table.measured(question.progress)]
    fewest = order[: _fewest(files, order)]
    if not files.measured(fewest).kept_to:  # the file of the float network differs from it by the last bits of its sums
        return _record(files, (), floating, limits, "out of reach", table)
    return _record(files, _given_back(files, fewest), floating, limits, "found", table)


class _Files:
    """Exported files by the layers that they keep in float; each is made and measured once."""

    def __init__(self, twin: Twin, question: Question) -> None:
        self._twin, self._layers, self._samples, self._limits = twin, question.layers, question.samples, question.limits
        self._contract, self._profile, self._progress = question.contract, question.profile, question.progress
        self.n = len(question.samples.labels)
        self.trials: dict[frozenset[str], Trial] = {}
        self.unavailable: dict[str, UnavailableError] = {}

    def measured(self, float_layers: Iterable[str]) -> Trial:
        """The file that keeps these layers in float, in every runtime of the target that is here."""
        asked = frozenset(float_layers)
        if asked not in self.trials:
            names = tuple(name for name in self._layers if name in asked)
            trial = self.trials[asked] = self._measure(names)
            self._progress.say(f"{len(names)} of {len(self._layers)} layers in float: {self._told(trial)}, {trial.size_bytes / 1000:.1f} kB")
        return self.trials[asked]

    def _told(self, trial: Trial) -> str:
        limits, worst = self._limits, max(trial.drops.values(), key=lambda drop: drop.high)
        limit = "" if limits.drop is None else f" (limit {limits.drop:g})"
        told = f"{worst.value:.2f} points below the teacher on validation, up to {worst.high:.2f}{limit}"
        if limits.under_attack is None:
            return told
        if trial.robust is None:
            return f"{told}, not attacked"
        least = min(trial.robust.values(), key=lambda figure: figure.low or 0.0)
        return f"{told}, {least.value:.1f} % right under attack, at least {least.low:.1f} (limit {limits.under_attack.limit:g})"

    def _measure(self, names: tuple[str, ...]) -> Trial:
        twin = self._twin(names)
        content = twin_file(twin, self._contract, self._profile)
        drops, accuracy, robust = {}, {}, {}
        with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
            path = Path(folder) / "model.onnx"
            path.write_bytes(content)
            sessions = [opened.enter_context(session) for session in self._sessions(path)]
            for session in sessions:
                drops[session.name] = _drop(self._samples, session)
                accuracy[session.name] = float(right(session, self._samples.x, self._samples.labels).mean())
            if not drops:
                raise UnavailableError.gather([problem for error in self.unavailable.values() for problem in error.problems])
            kept_to = all(map(self._limits.kept, drops.values()))
            if kept_to and self._limits.under_attack is not None:  # a file that misses the one limit need not be attacked
                replayed = self._limits.under_attack.against(twin)
                robust = {session.name: replayed.stood(session) for session in sessions}
                kept_to = all(map(self._limits.stood, robust.values()))
        return Trial(float_layers=names, size_bytes=len(content), drops=drops, accuracy=accuracy, robust=robust or None, kept_to=kept_to)

    def _sessions(self, path: Path) -> Iterator[Session]:
        for need in self._profile.runtimes:
            try:
                yield open_session(need.name, path, versions=need.versions)
            except UnavailableError as error:
                self.unavailable[need.name] = error


def _fewest(files: _Files, order: Sequence[str]) -> int:
    """The smallest number of the first layers of `order` whose file keeps to the limit, as far as more layers in float never harm."""
    tried = 1
    while tried < len(order) and not files.measured(order[:tried]).kept_to:
        tried *= 2
    misses, keeps = tried // 2, min(tried, len(order))
    while keeps - misses > 1:
        middle = (misses + keeps) // 2
        if files.measured(order[:middle]).kept_to:
            keeps = middle
        else:
            misses = middle
    return keeps


def _given_back(files: _Files, chosen: Sequence[str]) -> tuple[str, ...]:
    """`chosen` without the layers that the file keeps to the limit without; the last one was needed, the search has shown that."""
    kept = list(chosen)
    for layer in list(reversed(chosen))[1 : 1 + GIVEN_BACK]:
        fewer = [name for name in kept if name != layer]
        if files.measured(fewer).kept_to:
            kept = fewer
    return tuple(kept)


def _record(
    files: _Files,
    chosen: Sequence[str],
    floating: Drop,
    limits: Limits,
    outcome: Literal["not needed", "found", "out of reach"],
    table: Sensitivities | None = None,
) -> MixedPrecision:
    names = next(trial.float_layers for asked, trial in files.trials.items() if asked == frozenset(chosen))
    under_attack = limits.under_attack
    found = MixedPrecision(
        limit=limits.drop,
        n=files.n,
        outcome=outcome,
        float_layers=names,
        float_network=floating,
        trials=tuple(files.trials.values()),
        unavailable={name: error.problems[0].message for name, error in files.unavailable.items()},
        robust_limit=None if under_attack is None else under_attack.limit,
        attack=None if under_attack is None else under_attack.attack.told,
        float_robust=None if under_attack is None else under_attack.floating,
    )
    if table is None:
        return found
    return found.model_copy(
        update={
            "reference_accuracy": table.reference_accuracy,
            "all_distance": table.all_distance,
            "all_accuracy": table.all_accuracy,
            "sensitivity_samples": table.n,
            "sensitivities": table.table,
        }
    )


def _drop(samples: Samples, predictor: Predictor) -> Drop:
    lost = paired_difference(samples.teacher_right, right(predictor, samples.x, samples.labels))
    return Drop(value=lost.value, low=lost.low, high=lost.high)
