import colorsys

import numpy as np
import pytest

from kdpipe.robustness.corruptions.colour import brightened, grey, resaturated, tinted


def images(channels=3):
    x = np.random.default_rng(0).random((2, channels, 5, 6), dtype=np.float32)
    x[0, :, 0, 0], x[0, :, 0, 1], x[0, :, 0, 2] = 0, 0.4, 1
    return x


def pixel_by_pixel(x, change):
    y = np.empty_like(x)
    for index in np.ndindex(x.shape[0], x.shape[2], x.shape[3]):
        place = (index[0], slice(None), *index[1:])
        y[place] = colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*x[place].tolist())))
    return y


def test_brightness_adds_to_value():
    expected = pixel_by_pixel(images(), lambda h, s, v: (h, s, min(v + 0.15, 1)))
    np.testing.assert_allclose(brightened(images(), 0.15), expected, atol=1e-6)


@pytest.mark.parametrize(("factor", "added"), [(0.3, 0.0), (2.0, 0.1), (20.0, 0.2)])
def test_saturation_is_scaled_and_shifted(factor, added):
    expected = pixel_by_pixel(images(), lambda h, s, v: (h, min(s * factor + added, 1), v))
    np.testing.assert_allclose(resaturated(images(), factor, added), expected, atol=2e-6)


def test_grey_is_luma_of_colours_and_the_mean_of_anything_else():
    x = images()
    np.testing.assert_allclose(grey(x)[:, 0], 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2], atol=1e-6)
    np.testing.assert_allclose(grey(x[:, :2]), x[:, :2].mean(axis=1, keepdims=True), atol=1e-6)


def test_a_tint_is_its_luma_where_there_is_no_colour():
    assert tinted((0.1, 0.2, 0.3), 3).ravel().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert tinted((0.1, 0.2, 0.3), 1).ravel().tolist() == pytest.approx([0.299 * 0.1 + 0.587 * 0.2 + 0.114 * 0.3])
