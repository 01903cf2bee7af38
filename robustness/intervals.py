"""Uncertainty: 95 % intervals for accuracies, means and paired differences.

Rates go in as [0, 1] or bool arrays; figures for people come out in per cent, differences in percentage points.
Why these intervals: docs/decisions/intervals.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.randomness import numpy_stream
from kdpipe.robustness.scorecard import Figure

BoolArray = npt.NDArray[np.bool_]
Float64Array = npt.NDArray[np.float64]

_Z = 1.959963984540054  # the normal's 97.5 % quantile
_RESAMPLES = 2000
_DRAWN_AT_ONCE = 1_000_000  # index draws in memory


@dataclass(frozen=True)
class Difference:
    """How much better a is than b on the same n samples: `value` = a - b in percentage points, its 95 % interval, McNemar's exact p."""

    value: float
    low: float
    high: float
    n: int
    p: float


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a rate, within [0, 1]; n >= 1. Source: Wilson 1927, without continuity correction."""
    rate, z2 = successes / n, _Z**2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n**2))
    return (0.0 if successes == 0 else max(0.0, centre - half)), (1.0 if successes == n else min(1.0, centre + half))


def accuracy(correct: BoolArray) -> Figure:
    """The share of True in per cent, with Wilson's interval; a reason in place of a value where there is no sample."""
    n = len(correct)
    if n == 0:
        return Figure(value=None, reason="not measured: no samples")
    hits = int(correct.sum())
    low, high = wilson(hits, n)
    return Figure(value=100 * hits / n, low=100 * low, high=100 * high, n=n)


def mean_accuracy(shares: Float64Array, *, seed: int) -> Figure:
    """The mean over samples of each one's share of right answers, (n,) in [0, 1], in per cent; bootstrap over samples.

    For figures that ask each sample several times (all corruptions): the answers for one sample are not independent, samples are.
    """
    if len(shares) == 0:
        return Figure(value=None, reason="not measured: no samples")
    low, high = bootstrap(shares, seed=seed, name="mean-accuracy")
    return Figure(value=100 * float(shares.mean()), low=100 * low, high=100 * high, n=len(shares))


def bootstrap(values: Float64Array, *, seed: int, name: str) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of `values` (n,), 2,000 resamples of samples; equal seed and name, equal interval."""
    low, high = np.quantile(resampled(lambda weights: weights @ values / len(values), len(values), seed=seed, name=name), [0.025, 0.975])
    return float(low), float(high)


def resampled(statistic: Callable[[Float64Array], Float64Array], n: int, *, seed: int, name: str) -> Float64Array:
    """`statistic` of 2,000 bootstrap resamples, (2000, ...): it gets how often each sample was drawn, (resamples, n), some resamples at a time."""
    generator = numpy_stream(seed, f"bootstrap/{name}")
    at_once = max(1, min(_RESAMPLES, _DRAWN_AT_ONCE // n))
    parts = []
    for begin in range(0, _RESAMPLES, at_once):
        rows = min(at_once, _RESAMPLES - begin)
        drawn = generator.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        parts.append(statistic(np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)))
    return np.concatenate(parts)


def paired_difference(a: BoolArray, b: BoolArray) -> Difference:
    """Accuracy of `a` less that of `b` on the same samples, (n,) each, with a 95 % interval and McNemar's exact two-sided p.

    Interval: Bonett & Price 2012 (adjusted Wald: one more discordant pair on either side). Raises ConfigError when the lengths differ or are 0.
    """
    if len(a) != len(b) or len(a) == 0:
        raise ConfigError(f"{len(a)} and {len(b)} samples cannot be paired", at="the two sets of answers", do="judge both models on the same samples")
    n, only_a, only_b = len(a), int((a & ~b).sum()), int((b & ~a).sum())
    more, less = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = _Z * math.sqrt((more + less - (more - less) ** 2) / (n + 2))
    value = (only_a - only_b) / n
    low, high = min(value, max(-1.0, more - less - half)), max(value, min(1.0, more - less + half))
    return Difference(100 * value, 100 * low, 100 * high, n, mcnemar(only_a, only_b))


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p of equal accuracies, from the samples that only one of two models gets right; 1 where there are none."""
    discordant = only_a + only_b
    if discordant == 0:
        return 1.0
    tail = sum(math.comb(discordant, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / (1 << discordant))
