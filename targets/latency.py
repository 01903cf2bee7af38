"""Latency that stands up: which percentile enough runs support, its interval, and ratios of models measured in turn.

Protocol (DESIGN §7.5): all models of a comparison, the float baseline and the baseline once more (A/A) are loaded in one
process, warmed up until the medians of three windows in a row agree within 5 %, then measured in interleaved windows
whose order rotates. Real inputs; integer nanoseconds; no sample is dropped.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdpipe.targets.measurements import Percentile

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
Windows = tuple[Int64Array, ...]  # one model's samples in nanoseconds, window by window, in the order of time

PERCENTILES = (50, 90, 95, 99)
CONFIDENCE = 0.99  # that a percentile is bracketed by the samples
INTERVAL = 0.95
RESAMPLES = 1000
NOISE_FLOOR = 0.02  # an A/A difference below this is not worth a warning
DRIFTED = 0.05  # the first third against the last: more is said
_NS_PER_MS = 1e6


@dataclass(frozen=True)
class Measured:
    """One model of a comparison. `samples`: all of it, sorted, in ns.

    `resampled`: (RESAMPLES, len(PERCENTILES)), in ns; `rates`: runs a second in each resample.
    """

    windows: Windows
    samples: Int64Array
    resampled: Float64Array
    rates: Float64Array

    def column(self, percentile: int) -> Float64Array:
        """The percentile in each resample."""
        column: Float64Array = self.resampled[:, PERCENTILES.index(percentile)]
        return column


@dataclass(frozen=True)
class Histogram:
    """Counts of samples between edges in ms; every sample is in one bin."""

    edges_ms: tuple[float, ...]
    counts: tuple[int, ...]


def runs_needed(percentile: float) -> int:
    """The fewest independent runs that support the percentile: with 99 % confidence at least two of them lie above it.

    Then its upper bound is the second largest sample or a smaller one, and does not hang on a single outlier:
    P(Binomial(n, 1 - p) <= 1) <= 0.01. Gives 11, 64, 130 and 662 for p50, p90, p95 and p99.
    """
    below, above = percentile / 100, 1 - percentile / 100
    n = 2
    while below**n + n * above * below ** (n - 1) > 1 - CONFIDENCE:
        n += 1
    return n


def nearest_rank(samples: Int64Array, percentile: float) -> int:
    """The smallest sample that at least `percentile` per cent of the samples do not exceed: a latency that occurred."""
    return int(np.sort(samples)[_rank(len(samples), percentile) - 1])


def order_interval(samples: Int64Array, percentile: float, confidence: float = INTERVAL) -> tuple[int, int]:
    """The distribution-free interval of the percentile from order statistics of independent samples.

    The binomial's tails outside are at most (1 - confidence) / 2 each; where there are too few samples for that, the
    interval ends at the smallest or largest sample. Source: David & Nagaraja, Order Statistics, 3rd ed., section 7.1.
    """
    n = len(samples)
    tail = (1 - confidence) / 2
    below = _binomial_cdf(n, percentile / 100)  # below[k] = P(at most k samples lie below the percentile)
    low = max(1, int(np.searchsorted(below, tail, side="right")))  # P(K <= low - 1) <= tail
    high = min(n, int(np.searchsorted(below, 1 - tail, side="left")) + 1)  # P(K >= high) <= tail
    ordered = np.sort(samples)
    return int(ordered[low - 1]), int(ordered[high - 1])


def measured(windows: Mapping[str, Windows], generator: np.random.Generator) -> dict[str, Measured]:
    """The samples of each model of one comparison with the bootstrap of its percentiles; all have equally many windows.

    Windows, not samples, are drawn with replacement, because neighbours in time are alike; the same windows for every
    model, because the windows of one turn are neighbours too.
    """
    count = len(next(iter(windows.values())))
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return {name: Measured(own, np.sort(np.concatenate(own)), _resampled(own, drawn), _rates(own, drawn)) for name, own in windows.items()}


def percentile_of(model: Measured, percentile: int) -> Percentile:
    """The nearest-rank percentile (one of PERCENTILES) in ms with its 95 % interval, or the reason why it is not claimable.

    The interval is the hull of two: the order statistics' (right for independent runs, also in the far tail) and the
    window bootstrap's (right when the machine drifts), so that it is too narrow in neither case.
    """
    runs, needed = len(model.samples), runs_needed(percentile)
    if runs < needed:
        return Percentile(value_ms=None, reason=f"not claimable: {runs} runs, {needed} are needed")
    low, high = order_interval(model.samples, percentile)
    resampled_low, resampled_high = _bounds(model.column(percentile))
    return Percentile(
        value_ms=nearest_rank(model.samples, percentile) / _NS_PER_MS,
        low_ms=min(low, resampled_low) / _NS_PER_MS,
        high_ms=max(high, resampled_high) / _NS_PER_MS,
    )


def median_inside(windows: Windows | None, generator: np.random.Generator) -> Percentile | None:
    """The p50 of the same runs by the runtime's own clock; None where it has none."""
    return None if windows is None else percentile_of(measured({"inside": windows}, generator)["inside"], 50)


def ratio_of(model: Measured, baseline: Measured) -> Percentile:
    """The p50 over the baseline's p50 (no unit, below 1 is faster) of one comparison, with its 95 % interval from paired windows."""
    needed, runs = runs_needed(50), min(len(model.samples), len(baseline.samples))
    if runs < needed:
        return Percentile(value_ms=None, reason=f"not claimable: {runs} runs, {needed} are needed")
    value = nearest_rank(model.samples, 50) / nearest_rank(baseline.samples, 50)
    low, high = _bounds(model.column(50) / baseline.column(50))
    return Percentile(value_ms=value, low_ms=min(value, low), high_ms=max(value, high))


def noise_warning(ratio: Percentile, where: str) -> str | None:
    """What to say when the baseline measured against itself does not come out as 1; None: it does."""
    if ratio.value_ms is None or ratio.low_ms is None or ratio.high_ms is None:
        return f"{where}: noise check {ratio.reason}"
    off = abs(ratio.value_ms - 1)
    if ratio.low_ms <= 1 <= ratio.high_ms or off <= NOISE_FLOOR:
        return None
    return (
        f"{where}: the float model against itself came out {ratio.value_ms:.3f} [{ratio.low_ms:.3f}, {ratio.high_ms:.3f}] instead of 1; "
        f"differences below {100 * off:.0f} % are not claimable, measure on a quieter machine"
    )


def drift_of(windows: Windows) -> float | None:
    """How much slower (a share; negative: faster) the last third's p50 is than the first third's; None with fewer than three windows."""
    third = len(windows) // 3
    if third == 0:
        return None
    first, last = (nearest_rank(np.concatenate(part), 50) for part in (windows[:third], windows[-third:]))
    return last / first - 1


def drift_warning(windows: Windows, where: str) -> str | None:
    """What to say when the machine's speed changed while measuring: the first third's p50 against the last third's, over 5 %."""
    change = drift_of(windows)
    if change is None or abs(change) <= DRIFTED:
        return None
    direction = "slower (heat or load)" if change > 0 else "faster (it was not warm, or the load went)"
    return f"{where}: from the first to the last third the float model became {100 * abs(change):.0f} % {direction}"


def histogram_of(samples: Int64Array, bins: int = 40) -> Histogram:
    """The samples in bins of equal ratio, because latencies have a long tail to the right; the edges enclose all of them.

    Three quarters of the bins reach to the 99th percentile: one slow sample in thousands would leave all others in one bin.
    """
    low, high = float(samples.min()), max(float(samples.max()), float(samples.min()) * 1.001)
    knee = max(float(np.quantile(samples, 0.99)), low * 1.0005)
    body = bins if knee > high / 1.01 else 3 * bins // 4
    edges = np.geomspace(low, high if body == bins else knee, body + 1)
    if body < bins:
        edges = np.concatenate([edges, np.geomspace(knee, high, bins - body + 1)[1:]])
    edges[0], edges[-1] = low, high  # rounding must not leave a sample outside
    counts, _ = np.histogram(samples, edges)
    return Histogram(tuple(float(edge) / _NS_PER_MS for edge in edges), tuple(int(count) for count in counts))


def samples_per_second(samples: Int64Array, batch: int) -> float:
    """How many inputs one caller gets through: runs times batch over the measured time."""
    return len(samples) * batch / (float(samples.sum(dtype=np.float64)) / 1e9)


def rate_interval(model: Measured, batch: int) -> tuple[float, float]:
    """The 95 % interval of `samples_per_second`, from the bootstrap of windows."""
    low, high = _bounds(model.rates * batch)
    return low, high


def _rates(windows: Windows, drawn: Int64Array) -> Float64Array:
    runs, spent = (np.array([measure(window) for window in windows], dtype=np.float64) for measure in (len, np.sum))
    rates: Float64Array = 1e9 * (drawn @ runs) / (drawn @ spent)
    return rates


def _rank(n: int, percentile: float) -> int:
    return max(1, math.ceil(round(n * percentile / 100, 9)))  # rounded: 0.95 * 20 is 19, not 19.000000000000004


def _binomial_cdf(n: int, p: float) -> Float64Array:
    k = np.arange(n + 1, dtype=np.float64)
    steps = np.log(n - k[:-1]) - np.log(k[1:]) + math.log(p / (1 - p))
    log_pmf = n * math.log1p(-p) + np.concatenate([[0.0], np.cumsum(steps)])
    cdf: Float64Array = np.cumsum(np.exp(log_pmf))
    return cdf


def _resampled(windows: Windows, drawn: Int64Array) -> Float64Array:
    """Nearest-rank percentiles, (resamples, len(PERCENTILES)), where resample r holds window w `drawn[r, w]` times."""
    samples = np.concatenate(windows)
    order = np.argsort(samples, kind="stable")
    window_of = np.repeat(np.arange(len(windows)), [len(window) for window in windows])[order]
    ordered = samples[order]
    results = np.empty((len(drawn), len(PERCENTILES)))
    for index, times in enumerate(drawn):
        cumulative = np.cumsum(times[window_of])  # how many values of the resample lie at or below each sorted sample
        ranks = [_rank(int(cumulative[-1]), percentile) for percentile in PERCENTILES]
        results[index] = ordered[np.searchsorted(cumulative, ranks)]
    return results


def _bounds(values: Float64Array) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return float(low), float(high)
