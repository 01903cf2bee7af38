import numpy as np

from kdpipe.robustness.corruption import corrupt


def test_whole_blocks_are_replaced_by_their_mean():
    x = np.random.default_rng(0).random((1, 1, 8, 16), dtype=np.float32)
    y = corrupt("pixelate", x, 4, seed=0, indices=np.arange(1))[0, 0]  # blocks of 2
    means = x[0, 0].reshape(4, 2, 8, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(y, means.repeat(2, axis=0).repeat(2, axis=1), atol=1e-6)


def test_blocks_that_are_not_whole_pixels_are_weighed_by_overlap():
    x = np.random.default_rng(0).random((1, 1, 8, 8), dtype=np.float32)
    y = corrupt("pixelate", x, 5, seed=0, indices=np.arange(1))[0, 0]  # 3 blocks of 8/3 pixels
    assert abs(y.mean() - x.mean()) < 1e-6
    assert np.linalg.matrix_rank(y.astype(np.float64), tol=1e-5) == 3
    overlap = np.array([1, 1, 2 / 3])
    corner = (x[0, 0, :3, :3] * np.outer(overlap, overlap)).sum() / (8 / 3) ** 2
    np.testing.assert_allclose(y[:2, :2], corner, rtol=1e-5)
