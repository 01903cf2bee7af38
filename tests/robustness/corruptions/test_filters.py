import numpy as np
import pytest
from scipy.ndimage import correlate, gaussian_filter

from kdpipe.robustness.corruptions.filters import correlated, gaussian, motion

SHAPES = [(2, 1, 9, 14), (1, 3, 32, 32)]


def images(shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


@pytest.mark.parametrize("sigma", [0.05, 0.4, 1.0, 3.7])
@pytest.mark.parametrize(("border", "scipys", "truncate"), [("edge", "nearest", 4.0), ("symmetric", "reflect", 3.0), ("reflect", "mirror", 4.0)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_gaussian_is_scipys(sigma, border, scipys, truncate, shape):
    x = images(shape)
    expected = gaussian_filter(x.astype(np.float64), (0, 0, sigma, sigma), mode=scipys, truncate=truncate)
    np.testing.assert_allclose(gaussian(x, sigma, border=border, truncate=truncate), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(3, 3), (5, 3), (21, 21)], ids=str)
def test_a_correlation_is_scipys(size):
    x = images((2, 3, 24, 30))
    kernel = np.random.default_rng(1).random(size)
    kernel /= kernel.sum()
    expected = correlate(x.astype(np.float64), kernel[None, None], mode="mirror")
    np.testing.assert_allclose(correlated(x, kernel), expected, atol=2e-6)


@pytest.mark.parametrize("angle", [0, 30, -45, 90, -120, 180])
def test_motion_is_a_half_gaussian_along_the_angle(angle):
    """Pixel by pixel as ImageMagick's MotionBlurImage has it."""
    x = images((1, 2, 11, 13))
    radius, sigma = 4, 1.7
    taps = np.exp(-0.5 * (np.arange(9) / sigma) ** 2)
    taps /= taps.sum()
    expected = np.zeros(x.shape)
    for row in range(11):
        for column in range(13):
            for tap, weight in enumerate(taps):
                y = row + int(np.ceil(tap * np.sin(np.radians(angle)) - 0.5))
                z = column + int(np.ceil(tap * np.cos(np.radians(angle)) - 0.5))
                expected[:, :, row, column] += weight * x[:, :, min(max(y, 0), 10), min(max(z, 0), 12)]
    np.testing.assert_allclose(motion(x, radius, sigma, [angle]), expected, atol=1e-6)


def test_each_image_is_smeared_along_its_own_angle():
    x = np.repeat(images((1, 1, 9, 9)), 3, axis=0)
    y = motion(x, 3, 2, [0, 90, 0])
    assert np.array_equal(y[0], y[2])
    assert not np.allclose(y[0], y[1])
