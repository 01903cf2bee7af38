"""The three distances by which an image is unlike the rest."""

import numpy as np
import pytest

from kdpipe.tasks.data.inspection.outliers import LIMIT, outlier_scores


def plane(n=500, seed=0):
    """Grey images that are mixtures of two patterns, with a little noise."""
    draws = np.random.default_rng(seed)
    patterns = draws.normal(0, 1, (2, 64))
    images = 128 + draws.normal(0, 10, (n, 2)) @ patterns + draws.normal(0, 2, (n, 64))
    return np.clip(images, 0, 255).astype(np.uint8).reshape(n, 1, 8, 8), patterns


def test_far_along_the_plane_and_off_the_plane_both_stand_out():
    images, patterns = plane()
    images[3] = np.clip(128 + 70 * patterns[0], 0, 255).reshape(1, 8, 8)
    images[4, 0, 0] = 255

    scores = outlier_scores(images, np.arange(500, dtype=np.int64))

    assert scores[3] > LIMIT
    assert scores[4] > LIMIT
    assert (np.delete(scores, [3, 4]) > LIMIT).sum() <= 1


def test_noise_among_smooth_images_stands_out_by_its_detail():
    draws = np.random.default_rng(0)
    smooth = np.repeat(np.repeat(draws.integers(0, 256, (300, 1, 7, 7)), 4, axis=2), 4, axis=3)
    images = np.clip(smooth + draws.normal(0, 3, smooth.shape), 0, 255).astype(np.uint8)
    images[9] = draws.integers(0, 256, (1, 28, 28))

    scores = outlier_scores(images, np.arange(300, dtype=np.int64))

    assert np.flatnonzero(scores > LIMIT).tolist() == [9]


@pytest.mark.parametrize("count", [0, 1, 19])
def test_few_images_have_no_outliers(count):
    assert outlier_scores(plane(20)[0], np.arange(count, dtype=np.int64)).tolist() == [0.0] * count
