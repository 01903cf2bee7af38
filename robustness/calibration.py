"""Whether confidence means what it says: negative log-likelihood, expected calibration error, the reliability diagram.

Source: Guo et al. 2017 (arXiv:1706.04599), section 2: equal-width bins (low, high] of the largest probability.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.intervals import BoolArray, Float64Array, bootstrap, resampled
from kdpipe.robustness.scorecard import Figure, ReliabilityBin

BINS = 15


@dataclass(frozen=True)
class Confidences:
    """What calibration needs of each answer, (n,) each: was it right, how sure (largest probability), the label's negative log-probability in nats."""

    correct: BoolArray
    confidence: Float64Array
    nll: Float64Array


def confidences(logits: Float32Array, labels: npt.NDArray[np.int64]) -> Confidences:
    """From logits (n, classes) and labels (n,); softmax in float64."""
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(axis=1, keepdims=True)
    log_normaliser = np.log(np.exp(shifted).sum(axis=1))
    nll = log_normaliser - shifted[np.arange(len(labels)), labels]
    return Confidences(wide.argmax(axis=1) == labels, np.exp(-log_normaliser), nll)


def nll_figure(answers: Confidences, *, seed: int) -> Figure:
    """The mean negative log-likelihood in nats, with a bootstrap interval."""
    low, high = bootstrap(answers.nll, seed=seed, name="nll")
    return Figure(value=float(answers.nll.mean()), low=low, high=high, n=len(answers.nll))


def ece_figure(answers: Confidences, *, seed: int) -> Figure:
    """The expected calibration error in per cent: sum over bins of n_b / n |accuracy - confidence|, with a bootstrap interval.

    ECE is biased upwards on few samples, and a resample doubles that bias. The interval is therefore the basic one (twice the value less
    the quantiles), cut at 0 and widened where needed to hold the value itself.
    """
    n = len(answers.correct)
    bins = _bin_of(answers.confidence)
    gaps = np.zeros((n, BINS))
    gaps[np.arange(n), bins] = answers.correct - answers.confidence
    value = float(np.abs(gaps.sum(axis=0)).sum() / n)
    low, high = np.quantile(resampled(lambda weights: np.abs(weights @ gaps).sum(axis=1) / n, n, seed=seed, name="ece"), [0.025, 0.975])
    return Figure(value=100 * value, low=100 * max(0.0, min(value, 2 * value - float(high))), high=100 * max(value, 2 * value - float(low)), n=n)


def reliability(answers: Confidences) -> tuple[ReliabilityBin, ...]:
    """The 15 bins of the reliability diagram, empty ones included."""
    bins = _bin_of(answers.confidence)
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


def _bin_of(confidence: Float64Array) -> npt.NDArray[np.int64]:
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
