"""A model judged: the scorecard of any `Predictor` on given questions, and for every question which samples it got right.

Robust means right on the clean sample and on every adversarial version of it that was tried: the per-sample worst case, so that
no figure for robustness can exceed the clean one. What is counted how: docs/robustness.md.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kdpipe.foundation.errors import VerificationError
from kdpipe.foundation.predictor import Float32Array, Predictor
from kdpipe.robustness.calibration import Confidences, brier_figure, confidences, ece_figure, ece_mass_figure, nll_figure, reliability
from kdpipe.robustness.comparison import paired_means
from kdpipe.robustness.corruption import SEVERITIES, corrupt
from kdpipe.robustness.corruption_error import type_figures
from kdpipe.robustness.corruption_files import CorruptionFiles
from kdpipe.robustness.crafting import CurvePoint, Replay
from kdpipe.robustness.intervals import BoolArray, Float64Array, accuracy, mean_accuracy
from kdpipe.robustness.ood import Outside, ood_figures
from kdpipe.robustness.samples import Int64Array, Samples
from kdpipe.robustness.scorecard import AttackFigure, CorruptionFigure, EpsilonPoint, Figure, OodFigure, OodScore, Scorecard, TemperatureEffect
from kdpipe.robustness.selective import selective_figures


@dataclass(frozen=True)
class Subject:
    """Who is judged: what the scorecard says of the model itself. `temperature`: what its logits were divided by, where they were."""

    model: str
    form: Literal["network", "twin", "file"]
    size_bytes: int
    runtime: str | None = None
    parameters: int | None = None
    macs: int | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class Questions:
    """What every model of a build is asked. All indices are sorted, of the judged split.

    `attacked` holds `curve` and `black_box`. `seed`: of noise and of bootstraps. `files`: where the corrupted images come from
    instead of being made. `outside`: sets that are none of the task.
    """

    attacked: Int64Array
    curve: Int64Array
    black_box: Int64Array
    corrupted: Int64Array
    corruptions: tuple[str, ...]
    batch_size: int
    seed: int
    files: CorruptionFiles | None = None
    outside: tuple[Outside, ...] = ()

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
    `answers`: what calibration needs, over the split; `samples_digest`: sha256 of the split's samples and labels, in order.
    """

    scorecard: Scorecard
    correct: Mapping[str, BoolArray]
    survived: Mapping[tuple[str, str], BoolArray]
    answers: Confidences
    samples_digest: bytes


def judge(
    predictor: Predictor, samples: Samples, questions: Questions, subject: Subject, *, replays: Sequence[Replay] = (), curve: Sequence[CurvePoint] = ()
) -> Judgement:
    """Everything about `predictor` that needs no gradient. Memory does not grow with the split but for the replays.

    Raises VerificationError when the model's answers are not finite logits, one row for each sample.
    """
    answers, before, samples_digest = _clean_answers(predictor, samples, questions.batch_size, subject.temperature)
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
        ood=tuple(figure for each in questions.outside for figure in _outside_figures(predictor, each, answers, questions)),
        temperature=None if subject.temperature is None else _temperature_effect(subject.temperature, before, answers, questions.seed),
    )
    return Judgement(scorecard, correct, survived, answers, samples_digest)


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


def _clean_answers(predictor: Predictor, samples: Samples, batch_size: int, temperature: float | None) -> tuple[Confidences, Confidences, bytes]:
    """What calibration needs of the clean answers; the same as if the logits had not been divided by `temperature`; the samples' digest."""
    parts, before = [], []
    digest = hashlib.sha256(samples.labels.astype("<i8").tobytes())
    for chosen in batches_of(np.arange(len(samples)), batch_size):
        x = samples.read(chosen)
        digest.update(np.ascontiguousarray(x, dtype="<f4").tobytes())
        logits = predictor(x)
        if logits.ndim != 2 or len(logits) != len(chosen):
            raise _not_logits(f"of shape {logits.shape} for {len(chosen)} samples", chosen)
        if not np.isfinite(logits).all():
            raise _not_logits("not finite", chosen)
        parts.append(confidences(logits, samples.labels[chosen]))
        if temperature is not None:
            before.append(confidences(logits * np.float32(temperature), samples.labels[chosen]))
    answers = Confidences.joined(parts)
    return answers, Confidences.joined(before) if before else answers, digest.digest()


def _outside_figures(predictor: Predictor, outside: Outside, inside: Confidences, questions: Questions) -> tuple[OodFigure, ...]:
    """How the judged split's clean answers compare with those to the set from outside."""
    parts = []
    for chosen in batches_of(outside.indices, questions.batch_size):
        logits = predictor(outside.samples.read(chosen))
        if not np.isfinite(logits).all():
            raise VerificationError(
                f"the model's logits are not finite for {outside.name!r}", at="[evaluate] ood", do="check its weights and calibration, then build it again"
            )
        parts.append(confidences(logits, np.zeros(len(chosen), dtype=np.int64)))
    answers = Confidences.joined(parts)
    return ood_figures(outside.name, _ood_scores(inside), _ood_scores(answers), seed=questions.seed)


def _ood_scores(answers: Confidences) -> Mapping[OodScore, Float64Array]:
    return {"max-softmax": answers.confidence, "energy": answers.energy}


def _temperature_effect(temperature: float, before: Confidences, after: Confidences, seed: int) -> TemperatureEffect:
    def change(name: str) -> Figure:
        difference = paired_means(getattr(after, name), getattr(before, name), seed=seed, name=f"temperature/{name}")
        return Figure(value=difference.value, low=difference.low, high=difference.high, n=difference.n)

    return TemperatureEffect(
        value=temperature,
        nll_before=nll_figure(before, seed=seed),
        ece_before=ece_figure(before, seed=seed),
        brier_before=brier_figure(before, seed=seed),
        nll_change=change("nll"),
        brier_change=change("brier"),
    )


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
