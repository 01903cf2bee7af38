"""Whether confidence means what it says: proper scores (NLL, Brier), expected calibration error, the reliability diagram.

Sources: Guo et al. 2017 (arXiv:1706.04599), section 2: equal-width bins (low, high] of the largest probability; Brier 1950 in its original form
for several classes; bins of equal mass as in Nguyen & O'Connor 2015 (arXiv:1508.05154).
"""

import math
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.intervals import BoolArray, Float64Array, bootstrap, resampled
from kdpipe.robustness.scorecard import Figure, ReliabilityBin

BINS = 15


@dataclass(frozen=True)
class Confidences:
    """What calibration needs of each answer, (n,) each.

    `correct`: was it right; `confidence`: the largest probability; `nll`: the label's negative log-probability in nats; `brier`: squared distance of the
    probabilities from the label's one-hot vector, in [0, 2]; `energy`: log of the sum of exponentiated logits.
    """

    correct: BoolArray
    confidence: Float64Array
    nll: Float64Array
    brier: Float64Array
    energy: Float64Array

    @classmethod
    def joined(cls, parts: "list[Confidences]") -> "Confidences":
        """The answers of several batches (at least one), in order."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def confidences(logits: Float32Array, labels: npt.NDArray[np.int64]) -> Confidences:
    """From logits (n, classes) and labels (n,); softmax in float64."""
    wide = logits.astype(np.float64)
    highest = wide.max(axis=1)
    shifted = wide - highest[:, None]
    powers = np.exp(shifted)
    normaliser = powers.sum(axis=1)
    rows = np.arange(len(labels))
    log_normaliser = np.log(normaliser)
    probabilities = powers / normaliser[:, None]
    probabilities[rows, labels] -= 1
    return Confidences(
        correct=wide.argmax(axis=1) == labels,
        confidence=np.exp(-log_normaliser),
        nll=log_normaliser - shifted[rows, labels],
        brier=(probabilities**2).sum(axis=1),
        energy=highest + log_normaliser,
    )


def nll_figure(answers: Confidences, *, seed: int) -> Figure:
    """The mean negative log-likelihood in nats, with a bootstrap interval."""
    return _mean_figure(answers.nll, seed=seed, name="nll")


def brier_figure(answers: Confidences, *, seed: int) -> Figure:
    """The mean Brier score over all classes, in [0, 2] (twice scikit-learn's for two classes), with a bootstrap interval."""
    return _mean_figure(answers.brier, seed=seed, name="brier")


def ece_figure(answers: Confidences, *, seed: int) -> Figure:
    """The expected calibration error in per cent: sum over bins of n_b / n |accuracy - confidence|, with a bootstrap interval.

    On few samples ECE is biased upwards, most where the model is calibrated, and resamples are biased once more. The interval therefore holds both the basic
    one (twice the value less the quantiles) and the same spread around the value less its estimated bias; what that gains: docs/decisions/intervals.md.
    """
    return _ece_figure(gaps_by_bin(answers), seed=seed, name="ece")


def ece_mass_figure(answers: Confidences, *, seed: int) -> Figure:
    """The same over bins that hold equally many samples each: no bin is nearly empty, and none holds almost all of a confident model's answers.

    The bins are those of the samples at hand and are kept for the resamples.
    """
    return _ece_figure(_gaps(answers, equal_mass_bins(answers.confidence)), seed=seed, name="ece-mass")


def gaps_by_bin(answers: Confidences) -> Float64Array:
    """(n, 15): each answer's correctness less its confidence, in the column of its equal-width bin. ECE is the sum of |column sums| over n."""
    return _gaps(answers, equal_width_bins(answers.confidence))


def ece_of(gaps: Float64Array, weights: Float64Array) -> Float64Array:
    """ECE in [0, 1] of each resample: `weights` (resamples, n) says how often each answer was drawn."""
    result: Float64Array = np.abs(weights @ gaps).sum(axis=1) / len(gaps)
    return result


def reliability(answers: Confidences) -> tuple[ReliabilityBin, ...]:
    """The 15 bins of the reliability diagram, empty ones included."""
    bins = equal_width_bins(answers.confidence)
    found = []
    for number in range(BINS):
        inside = bins == number
        n = int(inside.sum())
        found.append(
            ReliabilityBin(
                low=number / BINS,
                high=(number + 1) / BINS,
                n=n,
                confidence=min(1.0, float(answers.confidence[inside].mean())) if n else None,
                accuracy=float(answers.correct[inside].mean()) if n else None,
            )
        )
    return tuple(found)


def equal_width_bins(confidence: Float64Array) -> npt.NDArray[np.int64]:
    """The bin of each confidence, 0 to 14, by its value."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def equal_mass_bins(confidence: Float64Array) -> npt.NDArray[np.int64]:
    """The bin of each confidence, 0 to 14, by its rank. Equal confidences share a bin: int8 files have many, and their order is an accident."""
    inner = np.quantile(confidence, np.linspace(0, 1, BINS + 1))[1:-1]
    return np.searchsorted(inner, confidence).astype(np.int64)


def _gaps(answers: Confidences, bins: npt.NDArray[np.int64]) -> Float64Array:
    n = len(answers.correct)
    gaps = np.zeros((n, BINS))
    gaps[np.arange(n), bins] = answers.correct - answers.confidence
    return gaps


def _ece_figure(gaps: Float64Array, *, seed: int, name: str) -> Figure:
    n = len(gaps)
    value = float(np.abs(gaps.sum(axis=0)).sum() / n)
    resamples = resampled(lambda weights: ece_of(gaps, weights), n, seed=seed, name=name)
    (low, high), centre, unbiased = np.quantile(resamples, [0.025, 0.975]), resamples.mean(), value - _ece_bias(gaps)
    lowest = min(value, 2 * value - float(high), unbiased - float(high - centre))
    highest = max(value, 2 * value - float(low), unbiased + float(centre - low))
    return Figure(value=100 * value, low=100 * max(0.0, lowest), high=100 * highest, n=n)


def _ece_bias(gaps: Float64Array) -> float:
    """By how much ECE is expected to exceed its value on endless samples, in [0, 1].

    A bin's gap is about normal around the true one with standard error s. Its magnitude has the mean of a folded normal; the true gap is taken
    as the root of (gap² - s²), or 0.
    """
    inside = gaps != 0  # an answer lies in one bin, where its gap is 0 only when it is right and wholly sure: no bias either
    counts = np.maximum(inside.sum(axis=0), 1)
    means = gaps.sum(axis=0) / counts
    variances = np.maximum((gaps**2).sum(axis=0) / counts - means**2, 0) / np.maximum(counts - 1, 1)
    true = np.sqrt(np.maximum(means**2 - variances, 0))
    error = np.sqrt(np.maximum(variances, np.finfo(np.float64).tiny))
    inner = np.array([math.erf(t / (e * math.sqrt(2))) for t, e in zip(true, error, strict=True)])
    folded = error * math.sqrt(2 / math.pi) * np.exp(-(true**2) / (2 * error**2)) + true * inner
    return float((counts * np.maximum(folded - true, 0) * inside.any(axis=0)).sum() / len(gaps))


def _mean_figure(values: Float64Array, *, seed: int, name: str) -> Figure:
    low, high = bootstrap(values, seed=seed, name=name)
    return Figure(value=float(values.mean()), low=low, high=high, n=len(values))
