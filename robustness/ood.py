"""Does the model notice what it was never made for? Samples from outside its task, and how well its own confidence tells them from the task's.

Two scores that need nothing but logits: the largest probability (Hendrycks & Gimpel 2017, arXiv:1610.02136) and the energy, log sum exp of the logits
(Liu et al. 2020, arXiv:2010.03759, section 3, with their temperature 1). Both are higher inside. AUROC: the chance that a sample from inside scores
higher than one from outside, ties half; FPR95: the share from outside that passes a threshold which 95 % from inside pass.
Noise is easy to tell and other data is not: a figure holds for the set it was measured on.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.predictor import Float32Array
from kdpipe.foundation.randomness import numpy_stream
from kdpipe.robustness.intervals import Float64Array, resampled, wilson
from kdpipe.robustness.samples import Int64Array, Samples
from kdpipe.robustness.scorecard import Figure, OodFigure, OodScore

GENERATED = ("uniform-noise", "gaussian-noise", "inverted", "shuffled-pixels")
"""sets that are made here: two of noise, two of the judged samples themselves"""

PASSING = 0.95
"""share of the samples from inside that the threshold of FPR95 lets pass"""

_Z = 1.959963984540054  # the normal's 97.5 % quantile
_STEPS = 60


class Readable(Protocol):
    """Samples without labels."""

    def __len__(self) -> int: ...

    def read(self, indices: Int64Array) -> Float32Array:
        """The samples at `indices`, float32."""
        ...


@dataclass(frozen=True)
class Outside:
    """A set from outside the task: `samples` of the task's shape, those at `indices` are asked."""

    name: str
    samples: Readable
    indices: Int64Array


@dataclass(frozen=True)
class Generated:
    """A set of `GENERATED`, as many samples as `of`, in [0, 1]; each depends on its index and the seed alone."""

    name: str
    of: Samples
    seed: int

    def __len__(self) -> int:
        return len(self.of)

    def read(self, indices: Int64Array) -> Float32Array:
        """Noise of the samples' shape, or the samples themselves with values turned over or pixels in another order (the same for all channels)."""
        inside = self.of.read(indices)
        if self.name == "inverted":
            return (1 - inside).astype(np.float32)
        made = np.empty_like(inside)
        for x, sample, index in zip(made, inside, indices, strict=True):
            generator = numpy_stream(self.seed, f"ood/{self.name}/{index}")
            if self.name == "uniform-noise":
                x[...] = generator.random(x.shape, dtype=np.float32)
            elif self.name == "gaussian-noise":
                x[...] = np.clip(0.5 + 0.25 * generator.standard_normal(x.shape, dtype=np.float32), 0, 1)
            else:
                flat = sample.reshape(sample.shape[0], -1) if sample.ndim > 1 else sample[None]
                x[...] = flat[:, generator.permutation(flat.shape[1])].reshape(x.shape)
        return made


def generated(name: str, samples: Samples, indices: Int64Array, *, seed: int) -> Outside:
    """One of `GENERATED` for the samples at `indices`; ConfigError where there is no such set."""
    if name not in GENERATED:
        raise ConfigError(f"no set of samples from outside is called {name!r}", at="[evaluate] ood", do=f"sets that are made: {', '.join(GENERATED)}")
    return Outside(name, Generated(name, samples, seed), indices)


def ood_figures(name: str, inside: Mapping[OodScore, Float64Array], outside: Mapping[OodScore, Float64Array], *, seed: int) -> tuple[OodFigure, ...]:
    """A figure for each score, from the scores of the samples inside and outside, at least one each."""
    return tuple(
        OodFigure(name=name, score=score, auroc=auroc_figure(own, outside[score]), fpr95=fpr95_figure(own, outside[score], seed=seed))
        for score, own in inside.items()
    )


def auroc_figure(inside: Float64Array, outside: Float64Array) -> Figure:
    """AUROC in per cent with a 95 % interval; n counts the samples from outside.

    Interval: Newcombe 2006 (Statistics in Medicine 25, 559-573), method 5: the values from which the one seen is at most 1.96 standard errors away, which
    keeps a width where all samples are told apart.
    """
    below = np.sort(inside)
    less, at_most = (np.searchsorted(below, outside, side=side) for side in ("left", "right"))
    value = float((len(inside) - (less + at_most) / 2).mean() / len(inside))
    low, high = _newcombe(value, len(inside), len(outside))
    return Figure(value=100 * value, low=100 * low, high=100 * high, n=len(outside))


def fpr95_figure(inside: Float64Array, outside: Float64Array, *, seed: int) -> Figure:
    """FPR95 in per cent; n counts the samples from outside.

    Interval: the wider one, bound by bound, of a bootstrap that draws both sets anew (the threshold varies too) and Wilson's at the threshold found.
    """
    from_low, others = np.sort(inside), np.sort(outside)
    passing = len(others) - np.searchsorted(others, from_low, side="left")  # by the position of the threshold
    hits = int(passing[int(_threshold(np.ones((1, len(from_low))))[0])])
    positions = resampled(_threshold, len(inside), seed=seed, name="fpr95/inside").astype(np.int64)
    chosen = iter(len(others) - passing[positions])  # the first of `others` that passes, for each resample

    def share(weights: Float64Array) -> Float64Array:
        return _passing(weights, chosen)

    low, high = np.quantile(resampled(share, len(others), seed=seed, name="fpr95/outside"), [0.025, 0.975])
    wilson_low, wilson_high = wilson(hits, len(others))
    return Figure(value=100 * hits / len(others), low=100 * min(float(low), wilson_low), high=100 * max(float(high), wilson_high), n=len(others))


def _threshold(weights: Float64Array) -> Float64Array:
    """Of each resample of sorted scores (columns) the position of the highest one that 95 % reach."""
    kept = np.cumsum(weights[:, ::-1], axis=1) >= PASSING * weights.sum(axis=1, keepdims=True) - 1e-9
    positions: Float64Array = (weights.shape[1] - 1 - kept.argmax(axis=1)).astype(np.float64)
    return positions


def _passing(weights: Float64Array, first: Iterator[np.int64]) -> Float64Array:
    total = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(weights, axis=1)], axis=1)
    begin = np.array([next(first) for _ in range(len(weights))])
    result: Float64Array = 1 - total[np.arange(len(weights)), begin] / total[:, -1]
    return result


def _newcombe(value: float, n: int, m: int) -> tuple[float, float]:
    """The two AUROCs from which `value` is 1.96 standard errors away, by bisection; the variance is Hanley & McNeil's with equal sizes (n + m) / 2."""
    middle = (n + m) / 2 - 1

    def beyond(theta: float) -> bool:
        variance = theta * (1 - theta) * (1 + middle * ((1 - theta) / (2 - theta) + theta / (1 + theta))) / (n * m)
        return abs(theta - value) > _Z * math.sqrt(variance)

    return _edge(beyond, value, 0.0), _edge(beyond, value, 1.0)


def _edge(beyond: Callable[[float], bool], inside: float, outside: float) -> float:
    for _ in range(_STEPS):
        theta = (inside + outside) / 2
        inside, outside = (inside, theta) if beyond(theta) else (theta, outside)
    return (inside + outside) / 2
