import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from kdpipe.foundation.errors import ConfigError
from kdpipe.robustness.intervals import accuracy, bootstrap, mcnemar, mean_accuracy, paired_difference, wilson


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(counts):
    successes, n = counts
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_an_accuracy_is_told_in_per_cent_with_n():
    figure = accuracy(np.array([True] * 90 + [False] * 10))
    assert (figure.value, figure.n) == (90.0, 100)
    assert figure.low == pytest.approx(82.56, abs=0.01)  # worked by hand
    assert figure.high == pytest.approx(94.48, abs=0.01)


@pytest.mark.parametrize("figure", [accuracy(np.zeros(0, dtype=bool)), mean_accuracy(np.zeros(0), seed=0)], ids=["accuracy", "mean"])
def test_no_samples_are_not_zero_per_cent(figure):
    assert figure.value is None
    assert figure.reason == "not measured: no samples"


@pytest.mark.parametrize("rate", [0.5, 0.85])
def test_wilson_and_bootstrap_agree_at_a_thousand_samples(rate):
    correct = np.arange(1000) < 1000 * rate
    low, high = bootstrap(correct.astype(np.float64), seed=0, name="test")
    assert (100 * low, 100 * high) == pytest.approx((accuracy(correct).low, accuracy(correct).high), abs=0.3)  # 2,000 resamples: quantiles to 0.1 point


def test_the_bootstrap_is_repeatable_and_respects_the_samples():
    shares = np.random.default_rng(0).random(200)
    first, second = mean_accuracy(shares, seed=3), mean_accuracy(shares, seed=3)
    assert first == second
    assert first != mean_accuracy(shares, seed=4)
    standard_error = 100 * shares.std() / np.sqrt(200)
    assert first.high - first.low == pytest.approx(2 * 1.96 * standard_error, rel=0.1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b):
    expected = 1.0 if only_a + only_b == 0 else binomtest(only_a, only_a + only_b, 0.5).pvalue
    assert mcnemar(only_a, only_b) == pytest.approx(expected, abs=1e-12)


def test_equal_answers_differ_by_nothing_and_yet_with_an_interval():
    a = np.arange(500) % 3 > 0
    difference = paired_difference(a, a)
    assert (difference.value, difference.p, difference.n) == (0, 1, 500)
    assert difference.low == pytest.approx(-difference.high)
    assert 0 < difference.high < 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_the_difference_is_antisymmetric_and_inside_its_interval(pairs):
    a, b = np.array(pairs).T
    forward, backward = paired_difference(a, b), paired_difference(b, a)
    assert forward.value == pytest.approx(100 * (a.mean() - b.mean()))
    assert forward.low <= forward.value <= forward.high
    assert forward.low >= -100
    assert forward.high <= 100
    assert (forward.value, forward.low, forward.high) == pytest.approx((-backward.value, -backward.high, -backward.low))


@pytest.mark.parametrize(("n", "only_a", "only_b"), [(100, 0.05, 0.05), (500, 0.01, 0.02), (500, 0.10, 0.08), (1000, 0.005, 0.0), (1000, 0.03, 0.01)], ids=str)
def test_the_paired_interval_holds_the_truth_in_about_95_of_100_experiments(n, only_a, only_b):
    generator = np.random.default_rng(7)
    truth = 100 * (only_a - only_b)
    held = 0
    for _ in range(1000):
        drawn = generator.random(n)
        first, second = drawn < only_a, (drawn >= only_a) & (drawn < only_a + only_b)
        difference = paired_difference(first, second)
        held += difference.low <= truth <= difference.high
    assert held / 1000 > 0.93  # 95 % less three standard errors of 1,000 experiments; it may be cautious where hardly anything differs


@pytest.mark.parametrize(("first", "second"), [(3, 4), (0, 0)], ids=["unequal", "empty"])
def test_what_cannot_be_paired_is_refused(first, second):
    with pytest.raises(ConfigError) as caught:
        paired_difference(np.ones(first, dtype=bool), np.ones(second, dtype=bool))
    problem = caught.value.problems[0]
    assert problem.message == f"{first} and {second} samples cannot be paired"
    assert problem.at == "the two sets of answers"
    assert problem.do == "judge both models on the same samples"


@pytest.mark.parametrize(("n", "points"), [(540, 4.2), (1000, 3.1), (10_000, 1.0)], ids=str)
def test_half_the_width_at_fifty_per_cent_is_what_the_documentation_says(n, points):
    low, high = wilson(n // 2, n)
    assert round(100 * (high - low) / 2, 1) == points
