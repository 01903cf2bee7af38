import colorsys

import numpy as np

from kdpipe.robustness.corruption import corrupt


def test_it_adds_to_the_value_of_hsv_pixel_by_pixel():
    x = np.random.default_rng(0).random((1, 3, 4, 4), dtype=np.float32)
    x[0, :, 0, 0] = 0
    y = corrupt("brightness", x, 2, seed=0, indices=np.arange(1))
    for row in range(4):
        for column in range(4):
            hue, saturation, value = colorsys.rgb_to_hsv(*x[0, :, row, column].tolist())
            np.testing.assert_allclose(y[0, :, row, column], colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1)), atol=1e-6)


def test_a_grey_image_is_shifted_and_clipped():
    x = np.array([0.0, 0.25, 0.9], dtype=np.float32).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(corrupt("brightness", x, 3, seed=0, indices=np.arange(1)).ravel(), [0.3, 0.55, 1.0], atol=1e-6)
