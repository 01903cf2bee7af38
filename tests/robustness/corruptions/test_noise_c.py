"""The four published noises, value by value from each sample's own draws."""

import numpy as np
import pytest

from kdpipe.robustness.corruption import SEVERITIES, corrupt

INDICES = np.array([9, 2, 4, 0])


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", ["small", "large"])
def test_gaussian_noise_is_added(severity, size, request, draws_of):
    sigma = {"small": (0.04, 0.06, 0.08, 0.09, 0.10), "large": (0.08, 0.12, 0.18, 0.26, 0.38)}[size][severity - 1]
    x = request.getfixturevalue(size)
    y = corrupt("gaussian-noise-c", x, severity, seed=0, indices=INDICES)
    for image, noisy, index in zip(x, y, INDICES, strict=True):
        noise = draws_of("gaussian-noise-c", severity, index).standard_normal(image.shape, dtype=np.float32)
        np.testing.assert_allclose(noisy, np.clip(image + sigma * noise, 0, 1), atol=1e-6)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", ["small", "large"])
def test_speckle_noise_grows_with_the_value(severity, size, request, draws_of):
    sigma = {"small": (0.06, 0.1, 0.12, 0.16, 0.2), "large": (0.15, 0.2, 0.35, 0.45, 0.6)}[size][severity - 1]
    x = request.getfixturevalue(size)
    y = corrupt("speckle-noise", x, severity, seed=0, indices=INDICES)
    for image, noisy, index in zip(x, y, INDICES, strict=True):
        noise = draws_of("speckle-noise", severity, index).standard_normal(image.shape, dtype=np.float32)
        np.testing.assert_allclose(noisy, np.clip(image * (1 + sigma * noise), 0, 1), atol=1e-6)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", ["small", "large"])
def test_shot_noise_counts_photons(severity, size, request):
    """Mean and variance of a Poisson count over many samples of one grey; the value stays a whole number of photons."""
    photons = {"small": (500, 250, 100, 75, 50), "large": (60, 25, 12, 5, 3)}[size][severity - 1]
    x = np.full_like(request.getfixturevalue(size), 0.4)
    y = corrupt("shot-noise", x, severity, seed=0, indices=INDICES)
    counts = y.astype(np.float64) * photons
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-3)
    if photons >= 12:  # else white clips the tail
        assert y.mean() == pytest.approx(0.4, abs=0.01)
        assert y.var() == pytest.approx(0.4 / photons, rel=0.05)  # of 12,288 values: standard error 1.3 %
    assert corrupt("shot-noise", 0 * x, severity, seed=0, indices=INDICES).max() == 0


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", ["small", "large"])
def test_impulse_noise_is_salt_and_pepper_on_single_values(severity, size, request):
    share = {"small": (0.01, 0.02, 0.03, 0.05, 0.07), "large": (0.03, 0.06, 0.09, 0.17, 0.27)}[size][severity - 1]
    x = np.clip(request.getfixturevalue(size), 0.01, 0.99)
    y = corrupt("impulse-noise", x, severity, seed=0, indices=INDICES)
    error = 4 * np.sqrt(share / 2 / x.size)  # four standard errors
    assert (y == 0).mean() == pytest.approx(share / 2, abs=error)
    assert (y == 1).mean() == pytest.approx(share / 2, abs=error)
    untouched = (y != 0) & (y != 1)
    assert np.array_equal(y[untouched], x[untouched])
    hit = ~untouched.all(axis=1)
    assert (~untouched[hit.nonzero()[0], :, hit.nonzero()[1], hit.nonzero()[2]]).sum(axis=1).mean() < 1.4  # channels are hit one by one
