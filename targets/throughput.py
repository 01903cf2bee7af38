"""Samples a second of models that several callers ask at the same time, with intervals, from interleaved windows.

A window's rate is the sum of its callers' rates, each over its own time: a caller that is through with its last run earlier does not count as idle.
Intervals come from a bootstrap that draws windows, the same ones for every model (as in `latency.py`, for the same reason).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kdpipe.targets.latency import INTERVAL, RESAMPLES, Float64Array
from kdpipe.targets.measurements import Percentile, Rate

CallerWindows = tuple[tuple[tuple[int, int], ...], ...]
"""One model: window by window, of each caller (runs, nanoseconds)."""


@dataclass(frozen=True)
class Throughputs:
    """One model of a comparison. `rates`: runs a second of each window; `resampled`: their mean in each resample."""

    rates: Float64Array
    resampled: Float64Array


def measured(windows: Mapping[str, CallerWindows], generator: np.random.Generator) -> dict[str, Throughputs]:
    """The rates of each model of one comparison, with their bootstrap; all have equally many windows."""
    count = len(next(iter(windows.values())))
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count
    rates = {name: np.array([sum(1e9 * runs / ns for runs, ns in window) for window in own]) for name, own in windows.items()}
    return {name: Throughputs(own, drawn @ own) for name, own in rates.items()}


def rate_of(model: Throughputs, batch: int) -> Rate:
    """Samples a second, with their 95 % interval."""
    return _rate(float(model.rates.mean()) * batch, model.resampled * batch)


def ratio_of(model: Throughputs, baseline: Throughputs) -> Rate:
    """The rate over the baseline's, with its 95 % interval from paired windows; above 1 is more."""
    return _rate(float(model.rates.mean() / baseline.rates.mean()), model.resampled / baseline.resampled)


def noise_of(again: Throughputs, baseline: Throughputs) -> Percentile:
    """The A/A ratio in the form in which conditions are judged."""
    ratio = ratio_of(again, baseline)
    return Percentile(value_ms=ratio.value, low_ms=ratio.low, high_ms=ratio.high)


def drift_of(model: Throughputs) -> float | None:
    """How much slower (a share) the last third of the windows was than the first; None with fewer than three."""
    third = len(model.rates) // 3
    return float(np.median(model.rates[:third]) / np.median(model.rates[-third:]) - 1) if third else None


def _rate(value: float, resampled: Float64Array) -> Rate:
    low, high = np.quantile(resampled, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return Rate(value=value, low=min(value, float(low)), high=max(value, float(high)))
