"""The published blurs, restated with scipy and loops."""

import numpy as np
import pytest
from scipy.ndimage import correlate, gaussian_filter

from kdpipe.robustness.corruption import SEVERITIES, corrupt
from kdpipe.robustness.corruptions.defocus_blur import disc

INDICES = np.array([9, 2, 4, 0])


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", ["small", "large"])
def test_the_gaussian_blur_is_scipys(severity, size, request):
    sigma = {"small": (0.4, 0.6, 0.7, 0.8, 1.0), "large": (1, 2, 3, 4, 6)}[size][severity - 1]
    x = request.getfixturevalue(size)
    expected = gaussian_filter(x.astype(np.float64), (0, 0, sigma, sigma), mode="nearest", truncate=4)
    np.testing.assert_allclose(corrupt("gaussian-blur-c", x, severity, seed=0, indices=INDICES), expected, atol=2e-6)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_is_a_correlation_with_a_smoothed_disc(severity, small):
    radius, sigma = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[severity - 1]
    flat = np.array([[float(x**2 + y**2 <= radius**2) for x in range(-8, 9)] for y in range(-8, 9)])
    edge = np.exp(-0.5 * (np.arange(-1, 2) / sigma) ** 2)
    kernel = correlate(flat / flat.sum(), np.outer(edge, edge) / edge.sum() ** 2, mode="constant")
    expected = np.stack([[correlate(channel.astype(np.float64), kernel, mode="mirror") for channel in image] for image in small])
    np.testing.assert_allclose(corrupt("defocus-blur", small, severity, seed=0, indices=INDICES), expected, atol=1e-6)


@pytest.mark.parametrize(("radius", "sigma", "side"), [(0.3, 0.4, 3), (1.5, 0.1, 5), (8, 0.5, 19), (10, 0.5, 25)])
def test_a_disc_is_round_and_dims_nothing(radius, sigma, side):
    kernel = disc(radius, sigma)
    assert kernel.shape == (side, side)
    assert kernel.sum() == pytest.approx(1)
    np.testing.assert_allclose(kernel, kernel.T)
    np.testing.assert_allclose(kernel, kernel[::-1])


@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("size", ["small", "grey"])
def test_glass_overwrites_pixels_one_by_one_between_two_blurs(severity, size, small, draws_of):
    sigma, reach, passes = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))[severity - 1]
    x = small if size == "small" else small[:, :1, :20]  # grey, and not square
    y = corrupt("glass-blur", x, severity, seed=0, indices=INDICES)
    height, width = x.shape[2:]
    for image, broken, index in zip(x, y, INDICES, strict=True):
        now = gaussian_filter(image.astype(np.float64), (0, sigma, sigma), mode="nearest")
        moves = iter(
            draws_of("glass-blur", severity, index)
            .integers(-reach, reach, (passes, (height - 2 * reach) * (width - 2 * reach), 2), dtype=np.int32)
            .reshape(-1, 2)
        )
        for _ in range(passes):
            for row in range(height - reach, reach, -1):
                for column in range(width - reach, reach, -1):
                    down, right = next(moves)
                    now[:, row, column] = now[:, row + down, column + right]
        np.testing.assert_allclose(broken, gaussian_filter(now, (0, sigma, sigma), mode="nearest"), atol=1e-6)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_motion_blur_keeps_within_45_degrees_of_the_horizontal(severity):
    """A white dot becomes a line to its left: how steep it is shows the angle."""
    x = np.zeros((40, 1, 41, 41), dtype=np.float32)
    x[:, 0, 20, 20] = 1
    y = corrupt("motion-blur", x, severity, seed=0, indices=np.arange(40))
    np.testing.assert_allclose(y.sum(axis=(1, 2, 3)), 1, atol=1e-5)
    rows, columns = np.mgrid[:41, :41] - 20
    steepness = (y[:, 0] * np.abs(rows)).sum(axis=(1, 2)) / (y[:, 0] * np.abs(columns)).sum(axis=(1, 2))
    assert steepness.max() <= 1.01
    assert len(np.unique(steepness.round(3))) > 5
    assert y[:, 0, :, 21:].max() == 0


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", ["small", "large"])
def test_zoom_blur_averages_enlarged_copies(severity, size, request):
    from scipy.ndimage import zoom

    factors = {
        "small": [np.arange(1, end, 0.01) for end in (1.06, 1.11, 1.16, 1.21, 1.26)],
        "large": [np.arange(1, 1.11, 0.01), np.arange(1, 1.16, 0.01), np.arange(1, 1.21, 0.02), np.arange(1, 1.26, 0.02), np.arange(1, 1.31, 0.03)],
    }[size][severity - 1]
    x = request.getfixturevalue(size)[:1]
    side = x.shape[2]
    total = x[0].astype(np.float64)
    for factor in factors:
        kept = int(np.ceil(side / factor))
        first = (side - kept) // 2
        enlarged = zoom(x[0, :, first : first + kept, first : first + kept].astype(np.float64), (1, factor, factor), order=1)
        trimmed = (enlarged.shape[1] - side) // 2
        total += enlarged[:, trimmed : trimmed + side, trimmed : trimmed + side]
    np.testing.assert_allclose(corrupt("zoom-blur", x, severity, seed=0, indices=INDICES[:1])[0], total / (len(factors) + 1), atol=1e-5)
