"""Confident learning, held against a count by hand and against cleanlab."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.tasks.data.inspection.confident_learning import class_thresholds, confident_joint, find_label_errors, joint_of


def noisy_stream(n, classes=4, wrong=0.15, seed=0):
    """Given labels, true labels, and probabilities that mostly believe the true one."""
    draws = np.random.default_rng(seed)
    true = draws.integers(0, classes, n)
    labels = np.where(draws.random(n) < wrong, (true + draws.integers(1, classes, n)) % classes, true)
    scores = draws.normal(0, 1, (n, classes)) + 3.0 * np.eye(classes)[true]
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return labels.astype(np.int64), true, probabilities


def test_the_joint_of_six_samples_is_the_one_counted_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.1, 0.9], [0.4, 0.6]])

    thresholds = class_thresholds(labels, probabilities)  # 0: (0.9 + 0.8 + 0.1) / 3 = 0.6; 1: (0.8 + 0.9 + 0.6) / 3 = 0.7667
    counted = confident_joint(labels, probabilities, thresholds)  # the last sample reaches neither threshold

    assert thresholds == pytest.approx([0.6, 0.76667], abs=1e-5)
    assert counted.tolist() == [[2, 1], [0, 2]]
    assert joint_of(labels, counted) == pytest.approx(np.array([[2 / 6, 1 / 6], [0, 3 / 6]]))
    errors = find_label_errors(labels, probabilities)
    assert errors.suspects.tolist() == [2]
    assert errors.suggested.tolist() == [1]
    assert errors.confidence == pytest.approx([0.9])
    assert errors.margin == pytest.approx([0.8])
    assert errors.noise_rate == pytest.approx(1 / 6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_joint_and_suspects_are_those_of_cleanlab(seed):
    from cleanlab.count import compute_confident_joint, estimate_joint
    from cleanlab.filter import find_label_issues

    labels, _, probabilities = noisy_stream(600, seed=seed)

    counted = confident_joint(labels, probabilities, class_thresholds(labels, probabilities))
    theirs = find_label_issues(labels, probabilities, filter_by="prune_by_noise_rate", n_jobs=1)
    ours = np.zeros(len(labels), bool)
    ours[find_label_errors(labels, probabilities).suspects] = True

    assert counted.tolist() == compute_confident_joint(labels, probabilities, calibrate=False).tolist()
    assert joint_of(labels, counted) == pytest.approx(estimate_joint(labels, probabilities), abs=2 / 600)  # theirs is rounded to whole samples
    assert theirs.sum() > 50
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.97  # of ties and rounded counts


def test_planted_errors_are_found_and_their_labels_restored():
    labels, true, probabilities = noisy_stream(2000, wrong=0.1)

    errors = find_label_errors(labels, probabilities)

    wrong = np.flatnonzero(labels != true)
    hits = np.isin(errors.suspects, wrong)
    assert hits.mean() > 0.8
    assert hits.sum() / len(wrong) > 0.8
    assert (errors.suggested[hits] == true[errors.suspects[hits]]).mean() > 0.95
    assert errors.noise_rate == pytest.approx(0.1, abs=0.04)


def test_the_least_believable_label_comes_first():
    labels, _, probabilities = noisy_stream(500)

    errors = find_label_errors(labels, probabilities)

    assert (np.diff(errors.margin) <= 0).all()
    assert (errors.margin > 0).all()


def test_right_labels_of_a_sure_model_are_not_suspected():
    labels = np.arange(90) % 3
    probabilities = np.full((90, 3), 0.05)
    probabilities[np.arange(90), labels] = 0.9

    errors = find_label_errors(labels, probabilities)

    assert errors.suspects.tolist() == []
    assert errors.noise_rate == pytest.approx(0)


def test_a_class_without_samples_attracts_nothing():
    labels, _, probabilities = noisy_stream(300, classes=3)
    wider = np.concatenate([probabilities * 0.5, np.full((300, 1), 0.5)], axis=1)

    errors = find_label_errors(labels, wider)

    assert 3 not in errors.suggested[:0].tolist()
    assert confident_joint(labels, wider, class_thresholds(labels, wider))[:, 3].sum() == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(20, 120))
def test_suspects_do_not_depend_on_the_order_of_the_samples(seed, n):
    labels, _, probabilities = noisy_stream(n, classes=3, seed=seed)
    shuffled = np.random.default_rng(seed).permutation(n)

    straight = find_label_errors(labels, probabilities)
    mixed = find_label_errors(labels[shuffled], probabilities[shuffled])

    assert sorted(shuffled[mixed.suspects].tolist()) == sorted(straight.suspects.tolist())
