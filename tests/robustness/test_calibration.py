import numpy as np
import pytest
from sklearn.metrics import log_loss

from kdpipe.robustness.calibration import BINS, Confidences, confidences, ece_figure, nll_figure, reliability


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


def test_a_calibrated_stream_has_nearly_none():
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.1, 1, 10_000)
    answers = Confidences(generator.random(10_000) < confidence, confidence, -np.log(confidence))
    figure = ece_figure(answers, seed=0)
    assert figure.value < 2
    assert figure.low < 0.5  # the interval knows that what is seen is mostly the bias of few samples
    assert figure.low <= figure.value <= figure.high


def test_a_stream_that_is_always_sure_errs_by_its_error_rate():
    answers = Confidences(np.arange(1000) % 10 > 0, np.ones(1000), np.zeros(1000))
    figure = ece_figure(answers, seed=0)
    assert figure.value == pytest.approx(10)
    assert figure.low < 10 < figure.high


def test_logits_of_any_size_stay_finite():
    logits = np.array([[1e30, 0, -1e30], [0, 1e4, 0]], dtype=np.float32)
    answers = confidences(logits, np.array([0, 0]))
    assert answers.nll.tolist() == [0, 1e4]
    assert answers.confidence.tolist() == [1, 1]
    assert answers.correct.tolist() == [True, False]


def test_the_bins_hold_every_answer_and_add_up_to_the_error():
    logits, labels = random_answers()
    bins = reliability(confidences(logits, labels))
    assert len(bins) == BINS
    assert sum(part.n for part in bins) == 500
    assert all((part.confidence is None) == (part.accuracy is None) == (part.n == 0) for part in bins)
    assert all(part.low - 1e-9 <= part.confidence <= part.high + 1e-9 for part in bins if part.n)
    assert sum(part.n / 5 * abs(part.accuracy - part.confidence) for part in bins if part.n) == pytest.approx(slow_ece(logits, labels))
