"""The difference of two models' accuracies on the same samples, with its 95 % interval.

Pairing takes out what is common to both (the hardness of the samples), so that a drop of a point can be told on a few thousand samples.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Z_95 = 1.959964
"""The two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy of the second model minus that of the first, in percentage points, and its 95 % bounds; `n` samples in common."""

    value: float
    low: float
    high: float
    n: int


def paired_difference(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> PairedDifference:
    """`second` minus `first`, both per-sample correctness over the same samples in the same order, (n,), n >= 1.

    Source: Newcombe 1998 (Statistics in Medicine 17:2635), method 10: the score intervals of both, joined with their correlation
    (continuity-corrected). Unlike Wald's interval it does not shrink to nothing where both models are right everywhere.
    """
    n = len(first)
    both, only_first = int(np.sum(first & second)), int(np.sum(first & ~second))
    only_second, neither = int(np.sum(~first & second)), int(np.sum(~first & ~second))
    p1, p2 = (both + only_first) / n, (both + only_second) / n
    (low1, high1), (low2, high2) = wilson(both + only_first, n), wilson(both + only_second, n)
    correlation = _correlation(both, only_first, only_second, neither)
    below = _joined(p2 - low2, high1 - p1, correlation)
    above = _joined(high2 - p2, p1 - low1, correlation)
    difference = p2 - p1
    return PairedDifference(100 * difference, 100 * max(-1.0, difference - below), 100 * min(1.0, difference + above), n)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share, in [0, 1]; n >= 1. Source: Wilson 1927 (JASA 22:209)."""
    share, z2 = hits / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def _correlation(both: int, only_first: int, only_second: int, neither: int) -> float:
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    if margins == 0:
        return 0.0
    determinant: float = both * neither - only_first * only_second
    if determinant > 0:
        determinant = max(0.0, determinant - (both + only_first + only_second + neither) / 2)
    return determinant / math.sqrt(margins)


def _joined(a: float, b: float, correlation: float) -> float:
    return math.sqrt(max(0.0, a * a - 2 * correlation * a * b + b * b))
