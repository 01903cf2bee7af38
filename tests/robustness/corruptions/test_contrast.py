import numpy as np

from kdpipe.robustness.corruption import corrupt


def test_the_mean_of_each_channel_stays_and_the_spread_shrinks():
    x = np.random.default_rng(0).random((2, 3, 6, 6), dtype=np.float32)
    y = corrupt("contrast", x, 4, seed=0, indices=np.arange(2))
    np.testing.assert_allclose(y.mean(axis=(2, 3)), x.mean(axis=(2, 3)), atol=1e-6)
    np.testing.assert_allclose(y.std(axis=(2, 3)), 0.3 * x.std(axis=(2, 3)), rtol=1e-5)
