"""Two models on the same samples: how much one figure differs, with a 95 % interval and a p that stand for the pairing.

Rates are compared by `intervals.paired_difference`, means (NLL, Brier, accuracy under corruption) and AURC by a bootstrap that draws the same samples for both.
There is none for ECE: its bias depends on how calibrated each model is, and no interval tried for its difference held (docs/decisions/intervals.md).
Where many figures are compared, some differ by luck: Holm's p says how many would be needed for that.
"""

from collections.abc import Callable, Sequence

import numpy as np

from kdpipe.foundation.errors import ConfigError
from kdpipe.robustness.calibration import Confidences
from kdpipe.robustness.intervals import Difference, Float64Array, resampled
from kdpipe.robustness.selective import aurc_of, ordered

Statistic = Callable[[Float64Array], Float64Array]
"""A figure of each resample, (resamples,): it gets how often each sample was drawn, (resamples, n)."""


def paired_means(a: Float64Array, b: Float64Array, *, seed: int, name: str) -> Difference:
    """The mean of `a` less that of `b`, (n,) each by sample, in their own unit; percentile bootstrap over samples."""
    _require_pairs(len(a), len(b))
    gained = a - b
    return paired_bootstrap(lambda weights: weights @ gained / len(gained), len(gained), seed=seed, name=name)


def paired_aurc(a: Confidences, b: Confidences, *, seed: int) -> Difference:
    """Area under risk against coverage of `a` less that of `b`, in percentage points."""
    _require_pairs(len(a.correct), len(b.correct))
    first, second = ordered(a), ordered(b)
    return paired_bootstrap(lambda weights: 100 * (aurc_of(first, weights) - aurc_of(second, weights)), len(a.correct), seed=seed, name="aurc")


def paired_bootstrap(difference: Statistic, n: int, *, seed: int, name: str) -> Difference:
    """A difference of two figures on the same `n` samples, its 95 % interval from 2,000 resamples of samples, and a two-sided p.

    p: twice the smaller share of resamples on one side of 0, counted with one more, so that it is never 0.
    """
    value = float(difference(np.ones((1, n)))[0])
    drawn = resampled(difference, n, seed=seed, name=f"paired/{name}")
    low, high = (float(bound) for bound in np.quantile(drawn, [0.025, 0.975]))
    below, above = int((drawn <= 0).sum()), int((drawn >= 0).sum())
    return Difference(value, min(value, low), max(value, high), n, min(1.0, 2 * (1 + min(below, above)) / (1 + len(drawn))))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """The p-values adjusted so that the chance of any false alarm among them stays at the level that each is compared with, in their order.

    Holds whatever the dependence between them. Source: Holm 1979, Scandinavian Journal of Statistics 6.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    so_far = 0.0
    for rank, index in enumerate(order):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = so_far
    return tuple(adjusted)


def _require_pairs(first: int, second: int) -> None:
    if first != second or first == 0:
        raise ConfigError(f"{first} and {second} samples cannot be paired", at="the two sets of answers", do="judge both models on the same samples")
