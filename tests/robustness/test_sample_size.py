import math

import numpy as np
import pytest

from kdpipe.foundation.errors import ConfigError
from kdpipe.robustness.intervals import accuracy, mcnemar, wilson
from kdpipe.robustness.sample_size import (
    samples_for_difference,
    samples_for_half_width,
    samples_for_unpaired_difference,
    samples_to_stay_above,
    samples_to_stay_within,
)


@pytest.mark.parametrize(("rate", "half_width", "n"), [(0.5, 3.1, 1000), (0.85, 2.2, 1000), (0.5, 0.98, 10_000), (0.85, 0.70, 10_000)], ids=str)
def test_the_half_widths_of_the_customary_sizes(rate, half_width, n):
    assert samples_for_half_width(half_width / 100, rate) == pytest.approx(n, rel=0.02)  # the half-widths are rounded to two figures


@pytest.mark.parametrize("rate", [0.5, 0.85, 0.99, 1.0])
def test_it_is_the_smallest_n_whose_interval_is_narrow_enough(rate):
    n = samples_for_half_width(0.02, rate)

    def half(count):  # at a rate that this many samples can have, or the formula between two of them
        low, high = (np.interp(rate * count, [np.floor(rate * count), np.ceil(rate * count)], bounds) for bounds in _bounds(rate, count))
        return (high - low) / 2

    assert half(n) <= 0.02 + 1e-4
    assert half(n - 2) > 0.02 - 1e-4


def _bounds(rate, count):
    lower, upper = wilson(int(np.floor(rate * count)), count), wilson(int(np.ceil(rate * count)), count)
    return (lower[0], upper[0]), (lower[1], upper[1])


@pytest.mark.parametrize(("discordant", "n"), [(0.03, 2350), (0.05, 3920), (0.10, 7850), (0.15, 11_770)], ids=str)
def test_one_point_at_80_per_cent_power(discordant, n):
    assert samples_for_difference(0.01, discordant) == pytest.approx(n, abs=5)


def test_without_pairing_it_takes_many_more():
    assert samples_for_unpaired_difference(0.01, 0.5) == pytest.approx(39_200, abs=50)


def test_that_many_samples_find_the_difference_as_often_as_promised():
    n = samples_for_difference(0.03, 0.08)
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(1500):
        _, only_a, only_b = generator.multinomial(n, [0.92, 0.055, 0.025])
        found += mcnemar(int(only_a), int(only_b)) <= 0.05
    assert found / 1500 == pytest.approx(0.8, abs=0.045)  # three standard errors, and the exact test is a little cautious


def test_an_accuracy_just_above_a_limit_needs_this_many_samples_to_show_it():
    n = samples_to_stay_above(0.40, 0.42)
    assert wilson(round(0.42 * n), n)[0] == pytest.approx(0.40, abs=1 / n)  # a rate of whole samples
    assert wilson(round(0.42 * (n // 2)), n // 2)[0] < 0.40
    assert accuracy(np.arange(n) < math.ceil(0.42 * n)).low >= 40
    assert samples_to_stay_above(0.40, 0.40) is None


@pytest.mark.parametrize(
    ("asked", "message", "at", "do"),
    [
        (lambda: samples_for_half_width(0.5, 0.9), "a half-width of 50 points is not in (0, 50)", "the half-width", "give it in percentage points: 1.0"),
        (lambda: samples_for_half_width(0.01, 85), "a rate of 85 is not in [0, 1]", "the rate", "give an accuracy as a share: 0.85"),
        (
            lambda: samples_for_difference(0.05, 0.03),
            "3 % of the samples that only one model gets right cannot differ by 5 points",
            "the share of discordant samples",
            "give a share in [5, 100] per cent",
        ),
        (lambda: samples_for_difference(0, 0.03), "a difference of 0 points is not in (0, 100]", "the difference", "give it in percentage points: 1.0"),
        (lambda: samples_for_difference(0.01, 0.03, power=1), "a power of 1 is not in (0, 1)", "the power", "give a chance such as 0.8"),
        (lambda: samples_for_half_width(1e-12, 0.5), "no set of samples is large enough for this", "the number of samples", "allow a wider interval"),
    ],
    ids=["half-width", "rate in per cent", "fewer discordant", "no difference", "power", "too narrow"],
)
def test_what_cannot_be_asked_is_refused(asked, message, at, do):
    with pytest.raises(ConfigError) as caught:
        asked()
    problem = caught.value.problems[0]
    assert (problem.message, problem.at, problem.do) == (message, at, do)


def test_four_times_the_samples_halve_the_distance_to_the_bound():
    assert samples_to_stay_within(1.0, 0.5, 1.5, 540) == 4 * 540
    assert samples_to_stay_within(1.0, 1.2, 1.5, 540) is None
