"""What a model gains by staying silent where it is unsure: risk against coverage, and the area under it.

At a coverage c the model answers the c most confident samples; its risk is its error rate on those. A perfect order has all errors last.
Source: Geifman, Uziel & El-Yaniv 2019 (arXiv:1805.08206), section 3, with the largest probability as the confidence.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdpipe.robustness.calibration import Confidences
from kdpipe.robustness.intervals import Float64Array, resampled
from kdpipe.robustness.scorecard import CoveragePoint, Figure

COVERAGES = tuple(share / 20 for share in range(1, 21))
"""where the curve is written down; below 5 % few samples stand behind it"""


@dataclass(frozen=True)
class Ordered:
    """Answers by falling confidence. `wrong`: (n,) errors in that order; `last`: (n,) for each the position of the last one that is as confident.

    Equal confidences are told or kept together: int8 files have many, and which of them stands first is an accident.
    """

    order: npt.NDArray[np.int64]
    wrong: Float64Array
    last: npt.NDArray[np.int64]


def ordered(answers: Confidences) -> Ordered:
    """The answers in the order in which they are given as coverage grows."""
    order = np.argsort(-answers.confidence, kind="stable").astype(np.int64)
    falling = -answers.confidence[order]
    return Ordered(order, (~answers.correct[order]).astype(np.float64), np.searchsorted(falling, falling, side="right").astype(np.int64) - 1)


def aurc_of(answers: Ordered, weights: Float64Array) -> Float64Array:
    """The area under risk against coverage, in [0, 1], of each resample; `weights` (resamples, n): how often each answer was drawn.

    The mean over answers of the error rate among those that are at least as confident.
    """
    risks, drawn = _risks(answers, weights)
    result: Float64Array = (risks * drawn).sum(axis=1) / drawn.sum(axis=1)
    return result


def selective_figures(answers: Confidences, *, seed: int) -> tuple[Figure, tuple[CoveragePoint, ...]]:
    """AURC in per cent, and the curve at `COVERAGES`; percentile bootstrap intervals over samples, from the same resamples."""
    sorted_answers, n = ordered(answers), len(answers.correct)

    def both(weights: Float64Array) -> Float64Array:
        return np.column_stack([aurc_of(sorted_answers, weights), _risk_at(sorted_answers, weights)])

    values = 100 * both(np.ones((1, n)))[0]
    low, high = 100 * np.quantile(resampled(both, n, seed=seed, name="selective"), [0.025, 0.975], axis=0)
    figures = [
        Figure(value=float(v), low=min(float(v), float(a)), high=max(float(v), float(b)), n=max(1, round(n * share)))
        for v, a, b, share in zip(values, low, high, (1.0, *COVERAGES), strict=True)
    ]
    return figures[0], tuple(CoveragePoint(coverage=share, risk=risk) for share, risk in zip(COVERAGES, figures[1:], strict=True))


def _risks(answers: Ordered, weights: Float64Array) -> tuple[Float64Array, Float64Array]:
    """For each answer (columns) the error rate among those at least as confident, and how often it was drawn; rows are resamples."""
    drawn = weights[:, answers.order]
    answered, errors = np.cumsum(drawn, axis=1), np.cumsum(drawn * answers.wrong, axis=1)
    risks = errors[:, answers.last] / np.maximum(answered[:, answers.last], 1.0)
    return risks, drawn


def _risk_at(answers: Ordered, weights: Float64Array) -> Float64Array:
    """(resamples, coverages): the error rate among the most confident share, a group of equals taken in part by its mean."""
    drawn = weights[:, answers.order]
    ends = np.flatnonzero(answers.last == np.arange(len(answers.last)))
    answered = np.cumsum(drawn, axis=1)[:, ends]
    errors = np.cumsum(drawn * answers.wrong, axis=1)[:, ends]
    wanted = np.array(COVERAGES) * weights.shape[1]
    result = np.empty((len(weights), len(wanted)))
    for row, (x, y) in enumerate(zip(answered, errors, strict=True)):
        result[row] = np.interp(wanted, np.concatenate([[0.0], x]), np.concatenate([[0.0], y])) / wanted
    return result
