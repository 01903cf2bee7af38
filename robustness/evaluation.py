"""A model judged: the scorecard of any `Predictor` on given questions, and for every question which samples it got right.

Robust means right on the clean sample and on every adversarial version of it that was tried: the per-sample worst case, so that
no figure for robustness can exceed the clean one. What is counted how: docs/robust-numbers.md.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kdpipe.foundation.errors import VerificationError
from kdpipe.foundation.predictor import Float32Array, Predictor
from kdpipe.robustness.calibration import Confidences, brier_figure, confidences, ece_figure, ece_mass_figure, nll_figure, reliability
from kdpipe.robustness.corruption import SEVERITIES, corrupt
from kdpipe.robustness.corruption_error import type_figures
from kdpipe.robustness.corruption_files import CorruptionFiles
from kdpipe.robustness.crafting import CurvePoint, Replay
from kdpipe.robustness.intervals import BoolArray, accuracy, mean_accuracy
from kdpipe.robustness.samples import Int64Array, Samples
from kdpipe.robustness.scorecard import AttackFigure, CorruptionFigure, EpsilonPoint, Figure, Scorecard
from kdpipe.robustness.selective import selective_figures


@dataclass(frozen=True)
class Subject:
    """Who is judged: what the scorecard says of the model itself."""

    model: str
    form: Literal["network", "twin", "file"]
    size_bytes: int
    runtime: str | None = None
    parameters: int | None = None
    macs: int | None = None


@dataclass(frozen=True)
class Questions:
    """What every model of a build is asked. All indices are sorted, of the judged split.

    `attacked` holds `curve` and `black_box`. `seed`: of noise and of bootstraps. `files`: where the corrupted images come from
    instead of being made.
    """

    attacked: Int64Array
    curve: Int64Array
    black_box: Int64Array
    corrupted: Int64Array
    corruptions: tuple[str, ...]
    batch_size: int
    seed: int
    files: CorruptionFiles | None = None

    def corrupted_images(self, name: str, severity: int, images: Float32Array, indices: Int64Array) -> Float32Array:
        """The samples at `indices`, whose clean `images` are given, corrupted: from the files where there are any."""
        if self.files is not None:
            return self.files.read(name, severity, indices)
        return corrupt(name, images, severity, seed=self.seed, indices=indices)


@dataclass(frozen=True)
class Judgement:
    """The scorecard, and per-sample answers.

    `correct`: bool arrays by question: `clean` over the split; `robust` and `attack/<name>` over the attacked samples, each including the
    clean answer; `corruption/<name>-<severity>` over the corrupted ones. `survived`: (attack, crafted on) to the bare answers under that replay.
    """

    scorecard: Scorecard
    correct: Mapping[str, BoolArray]
    survived: Mapping[tuple[str, str], BoolArray]


def judge(
    predictor: Predictor, samples: Samples, questions: Questions, subject: Subject, *, replays: Sequence[Replay] = (), curve: Sequence[CurvePoint] = ()
) -> Judgement:
    """Everything about `predictor` that needs no gradient. Memory does not grow with the split but for the replays.

    Raises VerificationError when the model's answers are not finite logits, one row for each sample.
    """
    answers = _clean_answers(predictor, samples, questions.batch_size)
    survived = {(replay.name, replay.crafted_on): stands(predictor, replay.x_adv, samples.labels[replay.indices], questions.batch_size) for replay in replays}
    robust, per_attack = _worst(answers.correct, questions, replays, survived)
    corrupted = _corrupted_answers(predictor, samples, questions)
    correct = {"clean": answers.correct, **({"robust": robust} if replays else {}), **{f"attack/{name}": right for name, (right, _) in per_attack.items()}}
    correct |= {f"corruption/{name}-{severity}": right for (name, severity), right in corrupted.items()}
    aurc, risk_coverage = selective_figures(answers, seed=questions.seed)
    scorecard = Scorecard(
        model=subject.model,
        form=subject.form,
        runtime=subject.runtime,
        size_bytes=subject.size_bytes,
        parameters=subject.parameters,
        macs=subject.macs,
        clean=accuracy(answers.correct),
        nll=nll_figure(answers, seed=questions.seed),
        ece=ece_figure(answers, seed=questions.seed),
        attacks=tuple(_attack_figure(name, replays, right) for name, (right, _) in per_attack.items()),
        robust=accuracy(robust) if replays else Figure(value=None, reason="not measured: no attacks were asked for"),
        epsilon_curve=_curve_points(predictor, samples, questions, answers.correct, robust, replays, curve),
        corruptions=tuple(CorruptionFigure(name=name, severity=severity, accuracy=accuracy(right)) for (name, severity), right in corrupted.items()),
        corruption_mean=_corruption_mean(list(corrupted.values()), questions.seed),
        corruption_types=type_figures(corrupted, seed=questions.seed),
        reliability=reliability(answers),
        ece_mass=ece_mass_figure(answers, seed=questions.seed),
        brier=brier_figure(answers, seed=questions.seed),
        aurc=aurc,
        risk_coverage=risk_coverage,
    )
    return Judgement(scorecard, correct, survived)


def stands(predictor: Predictor, x_adv: Float32Array, labels: Int64Array, batch_size: int) -> BoolArray:
    """Where the label's logit alone is the largest, (n,): a tie counts as an error, and so does NaN."""
    parts = [np.zeros(0, dtype=np.bool_)]
    for begin in range(0, len(x_adv), batch_size):
        logits = predictor(x_adv[begin : begin + batch_size]).copy()
        rows, own = np.arange(len(logits)), labels[begin : begin + batch_size]
        right = logits[rows, own]
        logits[rows, own] = -np.inf
        parts.append(right > logits.max(axis=1))
    return np.concatenate(parts)


def batches_of(indices: Int64Array, batch_size: int) -> Iterator[Int64Array]:
    """`indices` in pieces of `batch_size`, the last one shorter."""
    return (indices[begin : begin + batch_size] for begin in range(0, len(indices), batch_size))


def _clean_answers(predictor: Predictor, samples: Samples, batch_size: int) -> Confidences:
    parts = []
    for chosen in batches_of(np.arange(len(samples)), batch_size):
        logits = predictor(samples.read(chosen))
        if logits.ndim != 2 or len(logits) != len(chosen):
            raise _not_logits(f"of shape {logits.shape} for {len(chosen)} samples", chosen)
        if not np.isfinite(logits).all():
            raise _not_logits("not finite", chosen)
        parts.append(confidences(logits, samples.labels[chosen]))
    return Confidences.joined(parts)


def _not_logits(kind: str, chosen: Int64Array) -> VerificationError:
    return VerificationError(
        f"the model's logits are {kind}", at=f"test samples {chosen[0]} to {chosen[-1]}", do="check its weights and calibration, then build it again"
    )


def _worst(
    clean: BoolArray, questions: Questions, replays: Sequence[Replay], survived: Mapping[tuple[str, str], BoolArray]
) -> tuple[BoolArray, dict[str, tuple[BoolArray, Int64Array]]]:
    """Per attacked sample right everywhere; and for each attack its own worst over the models it was crafted on, with the indices it ran on."""
    robust = clean[questions.attacked].copy()
    per_attack: dict[str, tuple[BoolArray, Int64Array]] = {}
    for replay in replays:
        own = survived[replay.name, replay.crafted_on]
        robust[np.searchsorted(questions.attacked, replay.indices)] &= own
        before = per_attack.get(replay.name, (clean[replay.indices], replay.indices))[0]
        per_attack[replay.name] = (before & own, replay.indices)
    return robust, per_attack


def _attack_figure(name: str, replays: Sequence[Replay], right: BoolArray) -> AttackFigure:
    same = [replay for replay in replays if replay.name == name]
    method = same[0].method
    return AttackFigure(
        name=name,
        norm=method.norm,
        epsilon=method.epsilon,
        steps=method.steps,
        restarts=method.restarts,
        crafted_on=tuple(dict.fromkeys(replay.crafted_on for replay in same)),
        accuracy=accuracy(right),
        note=next((replay.note for replay in same if replay.note), None),
    )


def _curve_points(
    predictor: Predictor, samples: Samples, questions: Questions, clean: BoolArray, robust: BoolArray, replays: Sequence[Replay], curve: Sequence[CurvePoint]
) -> tuple[EpsilonPoint, ...]:
    """From epsilon 0 on; falling by construction, and from the attacks' own epsilon on including what they found."""
    if not curve:
        return ()
    standing = clean[questions.curve].copy()
    worst = robust[np.searchsorted(questions.attacked, questions.curve)]
    epsilon = max((replay.method.epsilon for replay in replays), default=np.inf)
    points = [EpsilonPoint(epsilon=0.0, accuracy=accuracy(standing))]
    for point in curve:
        standing &= stands(predictor, point.x_adv, samples.labels[point.indices], questions.batch_size)
        if point.epsilon >= epsilon:
            standing &= worst
        points.append(EpsilonPoint(epsilon=point.epsilon, accuracy=accuracy(standing)))
    return tuple(points)


def _corrupted_answers(predictor: Predictor, samples: Samples, questions: Questions) -> dict[tuple[str, int], BoolArray]:
    parts: dict[tuple[str, int], list[npt.NDArray[np.bool_]]] = {(name, severity): [] for name in questions.corruptions for severity in SEVERITIES}
    for chosen in batches_of(questions.corrupted, questions.batch_size):
        images = samples.read(chosen)
        for (name, severity), found in parts.items():
            logits = predictor(questions.corrupted_images(name, severity, images, chosen))
            found.append(logits.argmax(axis=1) == samples.labels[chosen])
    return {cell: np.concatenate(found) for cell, found in parts.items()}


def _corruption_mean(cells: Sequence[BoolArray], seed: int) -> Figure:
    if not cells:
        return Figure(value=None, reason="not measured: no corruptions were asked for")
    return mean_accuracy(np.mean(cells, axis=0, dtype=np.float64), seed=seed)
