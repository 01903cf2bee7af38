import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt, gaussian_filter, label

from kdpipe.robustness.corruptions.edges import canny, distance, equalized


def blobs(seed=0, shape=(3, 40, 36)):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), (0, 2, 2))
    return np.where(noise > 0.1, 200, 20).astype(np.int32)


def test_a_step_has_an_edge_one_pixel_wide_and_a_flat_image_none():
    x = np.zeros((1, 12, 12), dtype=np.int32)
    x[:, :, 6:] = 255
    edges = canny(x, 50, 150)
    assert edges.sum(axis=2).tolist() == [[1] * 12]
    assert not canny(np.full((1, 12, 12), 77, dtype=np.int32), 50, 150).any()


def test_weak_edges_count_only_where_they_touch_strong_ones():
    x = np.zeros((1, 30, 12), dtype=np.int32)
    x[:, :10, 6:] = 100  # gradient 400: strong
    x[:, 10:14, 6:] = 25  # 100: weak, touches
    x[:, 20:, 6:] = 25  # weak, alone; 150 at its corner
    edges = canny(x, 50, 150)
    assert edges[0, 11:13].any(axis=1).all()
    assert not edges[0, 21:].any()


def test_edges_run_around_every_blob():
    x = blobs()
    edges = canny(x, 50, 150)
    for image, found in zip(x, edges, strict=True):
        inside, count = label(image == 200)
        for number in range(1, count + 1):
            around = np.pad(inside == number, 1)
            near = sum(np.roll(np.roll(around, dy, 0), dx, 1) for dy in (-1, 0, 1) for dx in (-1, 0, 1))[1:-1, 1:-1] > 0
            assert found[near].any()


@pytest.mark.parametrize("furthest", [5, 20])
def test_the_distance_is_scipys_cut_off(furthest):
    edges = canny(blobs(), 50, 150)
    expected = np.minimum(np.stack([distance_transform_edt(~image) for image in edges]), furthest)
    np.testing.assert_allclose(distance(edges, furthest), expected, atol=1e-5)


def test_without_an_edge_everything_is_far():
    assert np.array_equal(distance(np.zeros((1, 4, 6), dtype=bool), 20), np.full((1, 4, 6), 20))


def test_equalized_tones_are_the_share_of_darker_pixels_beyond_the_darkest_tone():
    x = (np.random.default_rng(0).random((2, 20, 30)) ** 3 * 255).astype(np.int32)
    for mine, image in zip(equalized(x), x, strict=True):
        brighter_than_darkest = (image > image.min()).sum()
        for tone in np.unique(image):
            expected = round(255 * int(((image <= tone) & (image > image.min())).sum()) / int(brighter_than_darkest))
            assert set(mine[image == tone].tolist()) == {expected}


def test_an_image_of_one_tone_is_not_equalized():
    flat = np.full((1, 5, 5), 9, dtype=np.int32)
    assert np.array_equal(equalized(flat), flat)
