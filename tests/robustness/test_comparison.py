import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from kdpipe.foundation.errors import ConfigError
from kdpipe.robustness.calibration import confidences, nll_figure
from kdpipe.robustness.comparison import holm, paired_aurc, paired_means
from kdpipe.robustness.selective import selective_figures


def logits_of(n=400, classes=5, seed=0, sharpness=2.0):
    """Logits whose softmax is how the labels were drawn, times what a second model makes of them."""
    generator = np.random.default_rng(seed)
    logits = (generator.standard_normal((n, classes)) * sharpness).astype(np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return logits, (probabilities.cumsum(axis=1) > generator.random((n, 1))).argmax(axis=1)


def test_equal_models_differ_by_nothing():
    logits, labels = logits_of()
    answers = confidences(logits, labels)
    for difference in (paired_aurc(answers, answers, seed=0), paired_means(answers.nll, answers.nll, seed=0, name="nll")):
        assert (difference.value, difference.low, difference.high, difference.p, difference.n) == (0, 0, 0, 1, 400)


def test_a_difference_is_that_of_the_two_figures_and_an_overconfident_model_is_found():
    logits, labels = logits_of()
    sure, honest = confidences(3 * logits, labels), confidences(logits, labels)
    nll = paired_means(sure.nll, honest.nll, seed=0, name="nll")
    assert nll.value == pytest.approx(nll_figure(sure, seed=0).value - nll_figure(honest, seed=0).value)
    assert 0 < nll.low <= nll.value <= nll.high
    assert nll.p < 0.01
    aurc = paired_aurc(sure, honest, seed=0)
    assert aurc.value == pytest.approx(selective_figures(sure, seed=0)[0].value - selective_figures(honest, seed=0)[0].value)


def test_swapping_the_models_turns_the_difference_round():
    logits, labels = logits_of()
    a, b = confidences(1.5 * logits, labels), confidences(logits, labels)
    pairs = [
        (paired_aurc(a, b, seed=0), paired_aurc(b, a, seed=0)),
        (paired_means(a.nll, b.nll, seed=0, name="nll"), paired_means(b.nll, a.nll, seed=0, name="nll")),
    ]
    for there, back in pairs:
        assert (there.value, there.low, there.high, there.p) == pytest.approx((-back.value, -back.high, -back.low, back.p))


def test_pairing_narrows_the_interval_and_agrees_with_the_t_test():
    generator = np.random.default_rng(0)
    hard = generator.exponential(1.0, 500)
    a, b = hard + generator.normal(0.03, 0.1, 500), hard + generator.normal(0, 0.1, 500)
    difference = paired_means(a, b, seed=0, name="test")
    expected = ttest_rel(a, b).confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high), abs=0.002)
    unpaired = 1.96 * np.sqrt(a.var() / 500 + b.var() / 500)
    assert difference.high - difference.low < unpaired / 2


def test_the_paired_interval_holds_the_truth_in_about_95_of_100_experiments():
    logits, labels = logits_of(n=100_000)
    truth = confidences(1.3 * logits, labels).nll.mean() - confidences(logits, labels).nll.mean()
    held = 0
    for seed in range(1, 121):
        drawn, own = logits_of(n=250, seed=seed)
        difference = paired_means(confidences(1.3 * drawn, own).nll, confidences(drawn, own).nll, seed=seed, name="nll")
        held += difference.low <= truth <= difference.high
    assert held / 120 > 0.89  # 95 % less three standard errors of 120 experiments


def test_p_is_small_as_often_as_it_says_where_nothing_differs():
    generator = np.random.default_rng(3)
    small = sum(paired_means(generator.normal(size=100), generator.normal(size=100), seed=seed, name="null").p <= 0.1 for seed in range(200))
    assert 0.04 <= small / 200 <= 0.17  # 10 %, three standard errors of 200 experiments


def test_holm_worked_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([]) == ()
    assert holm([0.6, 0.9]) == (1.0, 1.0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_never_lowers_a_p(p_values):
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    assert all((p < q) <= (a <= b) for p, a in zip(p_values, adjusted, strict=True) for q, b in zip(p_values, adjusted, strict=True))
    # Holm rejects at 5 % exactly where the step-down procedure does
    rejected = set()
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if (len(p_values) - rank) * p_values[index] > 0.05:
            break
        rejected.add(index)
    assert {index for index, p in enumerate(adjusted) if p <= 0.05} == rejected


def test_holm_keeps_the_chance_of_any_false_alarm():
    generator = np.random.default_rng(0)
    alarms = sum(min(holm(generator.random(8))) <= 0.05 for _ in range(1000))
    assert alarms / 1000 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(ConfigError) as caught:
        paired_means(np.zeros(3), np.zeros(4), seed=0, name="test")
    problem = caught.value.problems[0]
    assert (problem.message, problem.at, problem.do) == (
        "3 and 4 samples cannot be paired",
        "the two sets of answers",
        "judge both models on the same samples",
    )
