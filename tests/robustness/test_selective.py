from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.robustness.calibration import Confidences
from kdpipe.robustness.intervals import resampled
from kdpipe.robustness.selective import COVERAGES, aurc_of, ordered, selective_figures


def answers_of(correct, confidence):
    unknown = np.full(len(correct), np.nan)
    return Confidences(np.asarray(correct, dtype=bool), np.asarray(confidence, dtype=float), unknown, unknown, unknown)


def aurc(correct, confidence):
    answers = answers_of(correct, confidence)
    return float(aurc_of(ordered(answers), np.ones((1, len(correct))))[0])


def slow_aurc(correct, confidence):
    """The mean over all samples of the error rate among those that are at least as confident, word for word."""
    correct, confidence = np.asarray(correct, dtype=bool), np.asarray(confidence)
    return float(np.mean([1 - correct[confidence >= threshold].mean() for threshold in confidence]))


def test_a_curve_worked_by_hand():
    assert aurc([True, True, False, True], [0.9, 0.8, 0.7, 0.6]) == pytest.approx((0 + 0 + 1 / 3 + 1 / 4) / 4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.3, 0.5, 0.75, 0.9, 1.0])), min_size=1, max_size=40))
def test_it_is_the_plain_definition_and_no_order_of_equals_changes_it(pairs):
    correct, confidence = zip(*pairs, strict=True)
    assert aurc(correct, confidence) == pytest.approx(slow_aurc(correct, confidence), abs=1e-12)
    assert aurc(correct[::-1], confidence[::-1]) == pytest.approx(aurc(correct, confidence), abs=1e-12)


def test_a_resample_is_the_curve_of_the_samples_drawn():
    generator = np.random.default_rng(0)
    correct, confidence = generator.random(60) < 0.8, generator.choice([0.4, 0.6, 0.8, 0.99], 60)
    drawn = generator.integers(60, size=60)
    weights = np.bincount(drawn, minlength=60).astype(float)[None]
    found = float(aurc_of(ordered(answers_of(correct, confidence)), weights)[0])
    assert found == pytest.approx(slow_aurc(correct[drawn], confidence[drawn]), abs=1e-12)


def test_the_best_order_is_below_the_error_rate_and_a_random_one_at_it():
    correct = np.arange(1000) >= 100
    confident_when_right = np.linspace(0.1, 1, 1000)
    figure, _ = selective_figures(answers_of(correct, confident_when_right), seed=0)
    assert figure.value == pytest.approx(100 * (0.1 + 0.9 * np.log(0.9)), abs=0.02)  # the integral of max(0, 1 - 0.9 / c) over c
    shuffled = np.random.default_rng(0).permutation(confident_when_right)
    figure, _ = selective_figures(answers_of(correct, shuffled), seed=0)
    assert figure.low < 10 < figure.high


def test_the_curve_ends_at_the_error_rate_and_each_point_knows_its_samples():
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.5, 1, 400)
    figure, points = selective_figures(answers_of(generator.random(400) < confidence, confidence), seed=0)
    correct = np.random.default_rng(0)
    assert figure.low < figure.value < figure.high
    assert [point.coverage for point in points] == list(COVERAGES)
    assert [point.risk.n for point in points] == [20 * number for number in range(1, 21)]
    order = np.argsort(-confidence)
    correct.uniform(0.5, 1, 400)
    right = (correct.random(400) < confidence)[order]
    assert [point.risk.value for point in points] == pytest.approx([100 * (1 - right[: 20 * number].mean()) for number in range(1, 21)])
    assert all(point.risk.low <= point.risk.value <= point.risk.high for point in points)


def test_equal_confidences_are_answered_in_equal_parts():
    _, points = selective_figures(answers_of([True, False] * 50, np.ones(100)), seed=0)
    assert [point.risk.value for point in points] == pytest.approx([50.0] * 20)


def test_the_interval_holds_the_truth_in_about_95_of_100_experiments():
    generator = np.random.default_rng(5)

    def world(n):
        confidence = generator.beta(4, 1, n)
        return generator.random(n) < confidence, confidence

    correct, confidence = world(100_000)
    truth = aurc(correct, confidence)
    held = 0
    for seed in range(120):
        answers = ordered(answers_of(*world(150)))
        low, high = np.quantile(resampled(partial(aurc_of, answers), 150, seed=seed, name="test"), [0.025, 0.975])
        held += low <= truth <= high
    assert held / 120 > 0.89  # 95 % less three standard errors of 120 experiments
