import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from kdpipe.robustness.corruption import SEVERITIES, corrupt


def blurred(x, severity):
    return corrupt("gaussian-blur", x, severity, seed=0, indices=np.arange(len(x)))


def test_a_flat_image_stays_flat_and_no_light_is_lost():
    flat = np.full((1, 1, 9, 12), 0.3, dtype=np.float32)
    np.testing.assert_allclose(blurred(flat, 5), flat, rtol=1e-6)
    spot = np.zeros((1, 1, 33, 33), dtype=np.float32)
    spot[0, 0, 16, 16] = 1
    assert blurred(spot, 3).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("severity", [4, 5])
def test_it_agrees_with_scipy_where_the_blur_is_wide(severity):
    x = np.random.default_rng(0).random((2, 1, 128, 128), dtype=np.float32)
    sigma = {4: 1.0, 5: 1.3}[severity] * math.sqrt(128 / 32)
    # a pixel's mass is the Gaussian averaged over it, which widens it by the variance of a pixel: 1/12
    expected = gaussian_filter(x[:, 0].astype(np.float64), (0, *(math.sqrt(sigma**2 + 1 / 12),) * 2), mode="mirror")
    np.testing.assert_allclose(blurred(x, severity)[:, 0], expected, atol=2e-3)  # values are in [0, 1]


def test_an_image_of_8_pixels_is_blurred_at_every_severity():
    edge = np.zeros((1, 1, 8, 8), dtype=np.float32)
    edge[..., 4:] = 1
    leaked = [blurred(edge, severity)[0, 0, 0, 3] for severity in SEVERITIES]
    assert leaked[0] > 0.02
    assert leaked == sorted(leaked)
