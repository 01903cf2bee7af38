"""How many samples a claim needs: for an interval of a wanted width, and to tell two models apart.

A comparison on the same samples lives from those that only one of two models gets right, the discordant ones: the fewer there are, the fewer samples
it takes. A network and its int8 file differ on 2 to 5 % of the samples, two networks that were trained apart on 15 to 20 %.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

from kdpipe.foundation.errors import ConfigError

_Z = NormalDist().inv_cdf(0.975)  # of two-sided tests and intervals at 95 %
_MOST = 2**40


def samples_for_half_width(half_width: float, rate: float) -> int:
    """The fewest samples whose Wilson interval at `rate` in [0, 1] reaches at most `half_width` (a share, in (0, 0.5)) to either side of its centre."""
    _require(0 < half_width < 0.5, f"a half-width of {100 * half_width:g} points is not in (0, 50)", "the half-width", "give it in percentage points: 1.0")
    _require_rate(rate)
    return _first(lambda n: _wilson_half_width(rate, n) <= half_width)


def samples_to_stay_above(limit: float, rate: float) -> int | None:
    """The fewest samples with which a model that is right on the share `rate` has a lower Wilson bound of at least `limit`; None where rate <= limit."""
    _require_rate(rate)
    if rate <= limit:
        return None
    # Wilson's bound is where the score test turns: |rate - limit| = z √(limit (1 - limit) / n)
    return max(1, math.ceil(limit * (1 - limit) * (_Z / (rate - limit)) ** 2))


def samples_to_stay_within(limit: float, value: float, bound: float, n: int) -> int | None:
    """About how many samples move the bound of an interval around `value`, now at `bound` with `n` samples, to `limit`; None where value is not within it.

    All in one unit, value < bound. The width of an interval goes with the root of the number of samples.
    """
    return math.ceil(n * ((bound - value) / (limit - value)) ** 2) if value < limit else None


def samples_for_difference(difference: float, discordant: float, *, power: float = 0.8) -> int:
    """The samples on which McNemar's test at 5 %, two-sided, finds a difference of accuracies with a chance of `power`.

    `difference` > 0 and `discordant` >= difference: shares, the second of samples that only one model gets right.
    Source: Connor 1987, Biometrics 43 (the asymptotic test).
    """
    _require(0 < difference <= 1, f"a difference of {100 * difference:g} points is not in (0, 100]", "the difference", "give it in percentage points: 1.0")
    message = f"{100 * discordant:g} % of the samples that only one model gets right cannot differ by {100 * difference:g} points"
    _require(difference <= discordant <= 1, message, "the share of discordant samples", f"give a share in [{100 * difference:g}, 100] per cent")
    _require(0 < power < 1, f"a power of {power:g} is not in (0, 1)", "the power", "give a chance such as 0.8")
    wanted = _Z * math.sqrt(discordant) + NormalDist().inv_cdf(power) * math.sqrt(discordant - difference**2)
    return max(1, math.ceil((wanted / difference) ** 2)) if wanted > 0 else 1


def samples_for_unpaired_difference(difference: float, rate: float, *, power: float = 0.8) -> int:
    """The samples of **each** of two separate sets for the same, at accuracies around `rate`: what pairing saves."""
    _require(0 < difference <= 1, f"a difference of {100 * difference:g} points is not in (0, 100]", "the difference", "give it in percentage points: 1.0")
    _require_rate(rate)
    _require(0 < power < 1, f"a power of {power:g} is not in (0, 1)", "the power", "give a chance such as 0.8")
    return max(1, math.ceil(2 * rate * (1 - rate) * ((_Z + NormalDist().inv_cdf(power)) / difference) ** 2))


def _wilson_half_width(rate: float, n: int) -> float:
    """Wilson's formula for a rate that need not be a whole number of samples."""
    z2 = _Z**2
    return _Z / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n**2))


def _first(holds: Callable[[int], bool]) -> int:
    """The smallest n for which `holds`, which once true stays true (up to rounding of counts)."""
    high = 1
    while not holds(high):
        high *= 2
        if high > _MOST:
            raise ConfigError("no set of samples is large enough for this", at="the number of samples", do="allow a wider interval")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _require_rate(rate: float) -> None:
    _require(0 <= rate <= 1, f"a rate of {rate:g} is not in [0, 1]", "the rate", "give an accuracy as a share: 0.85")


def _require(holds: bool, message: str, at: str, do: str) -> None:
    if not holds:
        raise ConfigError(message, at=at, do=do)
