"""Folds that keep copies together; a closed form that is the explicit ridge regression."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpipe.tasks.data.inspection.features import Encoder, learnt_encoder
from kdpipe.tasks.data.inspection.probabilities import _models, _Sums, _with_one, folds_of, out_of_sample


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(20, 200))
def test_copies_share_a_fold_and_folds_are_even_in_each_class(seed, n):
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, 3, n)
    groups = np.arange(n)
    groups[n // 2 :: 4] = 0

    folds = folds_of(labels, groups)

    assert len(set(folds[groups == 0].tolist())) == 1
    alone = groups != 0
    for label in range(3):
        counts = np.bincount(folds[alone & (labels == label)], minlength=5)
        assert counts.max() - counts.min() <= 1 + (labels[0] == label)


def test_each_fold_s_model_is_the_ridge_regression_on_the_other_folds():
    draws = np.random.default_rng(0)
    x = draws.normal(1, 2, (90, 6)).astype(np.float32)
    labels, folds = draws.integers(0, 3, 90), np.arange(90) % 3
    sums = _Sums.empty(3, 7, 3)
    sums.add_(torch.from_numpy(x), labels, folds)

    models = _models(sums)

    for fold in range(3):
        own = folds != fold
        centred = x[own] - x[own].mean(axis=0)
        hot = np.eye(3)[labels[own]]
        covariance = centred.T @ centred / own.sum()
        ridge = covariance + 1e-2 * np.diag(covariance).mean() * np.eye(6)
        weights = np.linalg.solve(ridge, centred.T @ hot / own.sum())
        expected = x @ weights + hot.mean(axis=0) - x[own].mean(axis=0) @ weights
        assert (_with_one(torch.from_numpy(x)) @ models[fold, 2]).numpy() == pytest.approx(expected, abs=1e-4)  # of float32 sums


def test_probabilities_are_those_of_models_that_did_not_see_the_sample(digit_arrays, tmp_path):
    images, labels = digit_arrays()["train"]
    thumbnails = (images * 255).round().astype(np.uint8)
    rows = np.arange(600, dtype=np.int64)
    folds = folds_of(labels[:600], rows)
    folds[500:] = -1
    encoder = learnt_encoder(thumbnails, rows[:500])

    def probabilities(given):
        return out_of_sample(thumbnails, rows, given, folds, 10, encoder, Path(tmp_path), lambda items, label, total: items).probabilities

    straight = probabilities(labels[:600])
    flipped = labels[:600].copy()
    flipped[0] = (flipped[0] + 1) % 10
    flipped[500:] = 0
    moved = probabilities(flipped)

    assert straight.sum(axis=1) == pytest.approx(np.ones(600))
    assert (straight[:500].argmax(axis=1) == labels[:500]).mean() > 0.9
    assert (straight[500:].argmax(axis=1) == labels[500:600]).mean() > 0.9
    # Its own label moves nothing for sample 0 but the one temperature that all share.
    assert np.log(moved[0]) - np.log(moved[0]).mean() == pytest.approx(
        (np.log(straight[0]) - np.log(straight[0]).mean()) * _ratio(moved[0], straight[0]), rel=1e-3, abs=1e-3
    )


def _ratio(a, b):
    return (np.log(a).max() - np.log(a).min()) / (np.log(b).max() - np.log(b).min())


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (1, 2, 5)], ids=str)
def test_features_have_the_announced_number_and_no_sign(shape):
    draws = np.random.default_rng(0)
    thumbnails = draws.integers(0, 256, (40, *shape)).astype(np.uint8)

    encoder = learnt_encoder(thumbnails, np.arange(40, dtype=np.int64))
    features = encoder.encode(thumbnails)

    assert isinstance(encoder, Encoder)
    assert features.shape == (40, encoder.features)
    assert torch.isfinite(features).all()
    assert (features >= 0).all()


def test_equal_thumbnails_in_canonical_order_give_equal_filters():
    thumbnails = np.random.default_rng(0).integers(0, 256, (50, 1, 8, 8)).astype(np.uint8)
    rows = np.arange(50, dtype=np.int64)
    mixed = np.random.default_rng(1).permutation(50)

    a, b = learnt_encoder(thumbnails, rows), learnt_encoder(thumbnails[mixed], np.argsort(mixed))

    assert torch.equal(a.weights, b.weights)
