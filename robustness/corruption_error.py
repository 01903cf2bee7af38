"""Corruption error: how often a model errs under each corruption, alone and against a reference model on the same samples.

Source: Hendrycks & Dietterich 2019 (arXiv:1903.12261), section 4.1. There the reference is AlexNet; for small images plain means over types and
severities are customary, and are what the scorecard holds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kdpipe.robustness.intervals import BoolArray, Float64Array, bootstrap, resampled
from kdpipe.robustness.scorecard import CorruptionTypeFigure, Figure

Cells = Mapping[tuple[str, int], BoolArray]
"""Corruption and severity to which of the corrupted samples were answered right, (n,)."""

_REFERENCE_IS_PERFECT = "not defined: the reference makes no error under {}"
_REFERENCE_LOSES_NOTHING = "not defined: {} costs the reference no accuracy"


@dataclass(frozen=True)
class CorruptionError:
    """Against a reference, in per cent: 100 is the reference's own. `by_type`: CE of each corruption; `mean`: mCE; `relative`: relative mCE."""

    by_type: Mapping[str, Figure]
    mean: Figure
    relative: Figure


def type_figures(cells: Cells, *, seed: int) -> tuple[CorruptionTypeFigure, ...]:
    """For each corruption its mean error over the severities, in per cent, with a bootstrap interval over samples."""
    return tuple(CorruptionTypeFigure(name=name, error=_mean_error(wrong, seed, name)) for name, wrong in _wrong_by_type(cells).items())


def corruption_error(cells: Cells, clean: BoolArray, reference: Cells, reference_clean: BoolArray, *, seed: int) -> CorruptionError:
    """CE_c = sum of errors over the severities of c, over the reference's; mCE their mean; relative mCE the same with each one's clean error taken off.

    All answers are of the same n samples, `clean` those to the images themselves. Intervals: paired bootstrap over samples. A type whose
    reference makes no error leaves its figure, and the mean, without a value.
    """
    own, other = _wrong_by_type(cells), _wrong_by_type(reference)
    if own.keys() != other.keys() or len(clean) != len(reference_clean):
        reason = "not comparable: the corruptions or the samples are not the same"
        return CorruptionError({}, Figure(value=None, reason=reason), Figure(value=None, reason=reason))
    names = list(own)
    ours, theirs = (np.stack([wrong[name] for name in names], axis=1) for wrong in (own, other)) if names else (np.zeros((len(clean), 0)),) * 2
    by_type = {name: _ratio(ours[:, [at]], theirs[:, [at]], [name], _REFERENCE_IS_PERFECT, seed) for at, name in enumerate(names)}
    mean = _ratio(ours, theirs, names, _REFERENCE_IS_PERFECT, seed)
    lost, reference_lost = (wrong - (~right)[:, None] for wrong, right in ((ours, clean), (theirs, reference_clean)))
    return CorruptionError(by_type, mean, _ratio(lost, reference_lost, names, _REFERENCE_LOSES_NOTHING, seed))


def _wrong_by_type(cells: Cells) -> dict[str, Float64Array]:
    """Corruption to each sample's share of wrong answers over the severities, (n,)."""
    found: dict[str, list[BoolArray]] = {}
    for (name, _), right in cells.items():
        found.setdefault(name, []).append(~right)
    return {name: np.mean(wrong, axis=0, dtype=np.float64) for name, wrong in found.items()}


def _mean_error(wrong: Float64Array, seed: int, name: str) -> Figure:
    if len(wrong) == 0:
        return Figure(value=None, reason="not measured: no samples")
    low, high = bootstrap(wrong, seed=seed, name=f"corruption-error/{name}")
    return Figure(value=100 * float(wrong.mean()), low=100 * low, high=100 * high, n=len(wrong))


def _ratio(ours: Float64Array, theirs: Float64Array, names: Sequence[str], reason: str, seed: int) -> Figure:
    """The mean over types of the ratio of sums over samples, (n, types) each."""
    if not names or len(ours) == 0:
        return Figure(value=None, reason="not measured: no corruptions were asked for")
    for name, total in zip(names, theirs.sum(axis=0), strict=True):
        if total <= 0:
            return Figure(value=None, reason=reason.format(name))

    def of(weights: Float64Array) -> Float64Array:
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample may hold none of the reference's errors
            ratios: Float64Array = ((weights @ ours) / (weights @ theirs)).mean(axis=1)
        return ratios

    drawn = resampled(of, len(ours), seed=seed, name="corruption-error")
    low, high = np.quantile(drawn[np.isfinite(drawn)], [0.025, 0.975])
    value = float(of(np.ones((1, len(ours))))[0])
    return Figure(value=100 * value, low=100 * float(low), high=100 * float(high), n=len(ours))
