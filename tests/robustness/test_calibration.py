import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from kdpipe.robustness.calibration import (
    BINS,
    Confidences,
    brier_figure,
    confidences,
    ece_figure,
    ece_mass_figure,
    ece_of,
    equal_mass_bins,
    gaps_by_bin,
    nll_figure,
    reliability,
)


def random_answers(n=500, classes=5, seed=0, sharpness=2.0):
    generator = np.random.default_rng(seed)
    logits = (generator.standard_normal((n, classes)) * sharpness).astype(np.float32)
    return logits, generator.integers(classes, size=n)


def softmax(logits):
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def slow_ece(logits, labels):
    """Guo et al. 2017, equation 3, word for word."""
    probabilities = softmax(logits.astype(np.float64))
    total = 0.0
    for number in range(1, 16):
        inside = [i for i, p in enumerate(probabilities) if (number - 1) / 15 < p.max() <= number / 15]
        if inside:
            hits = np.mean([probabilities[i].argmax() == labels[i] for i in inside])
            total += len(inside) / len(labels) * abs(hits - np.mean([probabilities[i].max() for i in inside]))
    return 100 * total


def stream_of(correct, confidence):
    """Answers of which only these two are known."""
    unknown = np.full(len(correct), np.nan)
    return Confidences(correct, confidence, unknown, unknown, unknown)


def test_nll_is_scikit_learns_log_loss():
    logits, labels = random_answers()
    figure = nll_figure(confidences(logits, labels), seed=0)
    assert figure.value == pytest.approx(log_loss(labels, softmax(logits.astype(np.float64)), labels=range(5)), rel=1e-9)
    assert figure.low < figure.value < figure.high
    assert figure.n == 500


@pytest.mark.parametrize("seed", range(5))
def test_ece_is_the_papers_formula(seed):
    logits, labels = random_answers(seed=seed)
    assert ece_figure(confidences(logits, labels), seed=0).value == pytest.approx(slow_ece(logits, labels), abs=1e-9)


@pytest.mark.parametrize("classes", [2, 5], ids=["two classes", "five classes"])
def test_brier_is_scikit_learns(classes):
    logits, labels = random_answers(classes=classes)
    figure = brier_figure(confidences(logits, labels), seed=0)
    expected = brier_score_loss(labels, softmax(logits.astype(np.float64)), labels=range(classes), scale_by_half=False)
    assert figure.value == pytest.approx(expected, rel=1e-9)
    assert figure.low < figure.value < figure.high


def test_energy_is_the_log_of_the_sum_of_exponentiated_logits():
    logits, labels = random_answers()
    assert confidences(logits, labels).energy == pytest.approx(np.log(np.exp(logits.astype(np.float64)).sum(axis=1)), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_reliability_diagram_is_scikit_learns_calibration_curve(seed):
    answers = confidences(*random_answers(seed=seed))
    accuracy, confidence = calibration_curve(answers.correct, answers.confidence, n_bins=BINS, strategy="uniform")
    filled = [part for part in reliability(answers) if part.n]
    assert [part.accuracy for part in filled] == pytest.approx(accuracy, abs=1e-12)
    assert [part.confidence for part in filled] == pytest.approx(confidence, abs=1e-12)


@pytest.mark.parametrize("step", [None, 1 / 16], ids=["all different", "many equal"])
def test_ece_of_equal_mass_follows_scikit_learns_quantile_bins(step):
    answers = confidences(*random_answers(n=600))
    if step is not None:
        answers = stream_of(answers.correct, np.ceil(answers.confidence / step) * step)
    accuracy, confidence = calibration_curve(answers.correct, answers.confidence, n_bins=BINS, strategy="quantile")
    sizes = np.bincount(equal_mass_bins(answers.confidence), minlength=BINS)
    expected = 100 * (sizes[sizes > 0] / 600 * np.abs(accuracy - confidence)).sum()
    assert ece_mass_figure(answers, seed=0).value == pytest.approx(expected, abs=1e-9)


def test_bins_of_equal_mass_hold_equally_many_and_never_part_equals():
    confidence = np.random.default_rng(0).permutation(np.linspace(0.2, 1, 1500))
    assert np.bincount(equal_mass_bins(confidence)).tolist() == [100] * BINS
    equal = np.repeat([0.5, 0.9, 1.0], 500)
    bins = equal_mass_bins(equal)
    assert [len(set(bins[equal == value])) for value in (0.5, 0.9, 1.0)] == [1, 1, 1]


def test_the_order_of_the_samples_changes_no_value():
    logits, labels = random_answers()
    order = np.random.default_rng(1).permutation(len(labels))
    for figure in (nll_figure, brier_figure, ece_figure, ece_mass_figure):
        there, back = figure(confidences(logits, labels), seed=0), figure(confidences(logits[order], labels[order]), seed=0)
        assert there.value == pytest.approx(back.value, rel=1e-12)


def test_batches_joined_are_the_whole():
    logits, labels = random_answers()
    parts = [confidences(logits[begin : begin + 64], labels[begin : begin + 64]) for begin in range(0, 500, 64)]
    whole, joined = confidences(logits, labels), Confidences.joined(parts)
    for name in ("correct", "confidence", "nll", "brier", "energy"):
        assert np.array_equal(getattr(joined, name), getattr(whole, name))


def test_a_calibrated_stream_has_nearly_none():
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.1, 1, 10_000)
    answers = stream_of(generator.random(10_000) < confidence, confidence)
    figure = ece_figure(answers, seed=0)
    assert figure.value < 2
    assert figure.low < 0.5  # the interval knows that what is seen is mostly the bias of few samples
    assert figure.low <= figure.value <= figure.high


def test_a_stream_that_is_always_sure_errs_by_its_error_rate():
    answers = stream_of(np.arange(1000) % 10 > 0, np.ones(1000))
    for figure in (ece_figure(answers, seed=0), ece_mass_figure(answers, seed=0)):
        assert figure.value == pytest.approx(10)
        assert figure.low < 10 < figure.high


def test_logits_of_any_size_stay_finite():
    logits = np.array([[1e30, 0, -1e30], [0, 1e4, 0]], dtype=np.float32)
    answers = confidences(logits, np.array([0, 0]))
    assert answers.nll.tolist() == [0, 1e4]
    assert answers.confidence.tolist() == [1, 1]
    assert answers.correct.tolist() == [True, False]
    assert answers.brier.tolist() == [0, 2]
    assert answers.energy.tolist() == pytest.approx([1e30, 1e4], rel=1e-6)


def test_the_bins_hold_every_answer_and_add_up_to_the_error():
    logits, labels = random_answers()
    bins = reliability(confidences(logits, labels))
    assert len(bins) == BINS
    assert sum(part.n for part in bins) == 500
    assert all((part.confidence is None) == (part.accuracy is None) == (part.n == 0) for part in bins)
    assert all(part.low - 1e-9 <= part.confidence <= part.high + 1e-9 for part in bins if part.n)
    assert sum(part.n / 5 * abs(part.accuracy - part.confidence) for part in bins if part.n) == pytest.approx(slow_ece(logits, labels))


@pytest.mark.parametrize(("sharper", "n"), [(1.0, 250), (1.5, 250)], ids=["calibrated", "too sure"])
def test_the_interval_of_ece_holds_the_truth_in_most_experiments(sharper, n):
    def world(size, seed):
        logits, _ = random_answers(size, seed=seed)
        return sharper * logits, (softmax(logits).cumsum(axis=1) > np.random.default_rng(seed + 1).random((size, 1))).argmax(axis=1)

    answers = confidences(*world(100_000, 10_000))
    truth = 100 * float(ece_of(gaps_by_bin(answers), np.ones((1, 100_000)))[0])
    held = 0
    for seed in range(50):
        figure = ece_figure(confidences(*world(n, seed)), seed=seed)
        held += figure.low <= truth <= figure.high
    assert held / 50 >= 0.75  # the plain basic interval holds a calibrated model's in half of them
