"""Snow, frost and fog, sample by sample from the sample's own draws."""

import math

import numpy as np
import pytest
from scipy.ndimage import zoom

from kdpipe.robustness.corruption import SEVERITIES, corrupt
from kdpipe.robustness.corruptions.filters import motion
from kdpipe.robustness.corruptions.frost import _ice
from kdpipe.robustness.corruptions.plasma import plasma

INDICES = np.array([9, 2, 4, 0])


@pytest.mark.parametrize("severity", SEVERITIES)
def test_fog_adds_a_cloud_and_keeps_the_brightest_value(severity, small, draws_of):
    density, smoothness = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[severity - 1]
    y = corrupt("fog", small, severity, seed=0, indices=INDICES)
    for image, foggy, index in zip(small, y, INDICES, strict=True):
        cloud = plasma([draws_of("fog", severity, index)], (32, 32), smoothness)[0]
        expected = (image + density * cloud) * image.max() / (image.max() + density)
        np.testing.assert_allclose(foggy, expected, atol=1e-6)
        assert foggy.max() <= image.max() + 1e-6


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_snow_whitens_and_adds_smeared_flakes(severity, channels, small, draws_of):
    constants = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )
    mean, sigma, factor, threshold, radius, smear, kept = constants[severity - 1]
    x = small[:, :channels]
    y = corrupt("snow", x, severity, seed=0, indices=INDICES)
    for image, snowy, index in zip(x, y, INDICES, strict=True):
        generator = draws_of("snow", severity, index)
        flakes = mean + sigma * generator.standard_normal((32, 32), dtype=np.float32)
        crop = math.ceil(32 / factor)
        first = (32 - crop) // 2
        flakes = zoom(flakes[first : first + crop, first : first + crop], factor, order=1)
        trimmed = (len(flakes) - 32) // 2
        flakes = np.clip(flakes[trimmed : trimmed + 32, trimmed : trimmed + 32], None, 1)
        flakes[flakes < threshold] = 0
        flakes = motion(flakes[None, None].astype(np.float32), radius, smear, [generator.uniform(-135, -45)])[0, 0]
        grey = image[0] if channels == 1 else 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
        white = kept * image + (1 - kept) * np.maximum(image, 1.5 * grey + 0.5)
        np.testing.assert_allclose(snowy, np.clip(white + flakes + np.rot90(flakes, 2), 0, 1), atol=1e-5)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_frost_dims_the_image_and_adds_ice(severity, small, draws_of):
    kept, added = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[severity - 1]
    y = corrupt("frost", small, severity, seed=0, indices=INDICES)
    for image, frosted, index in zip(small, y, INDICES, strict=True):
        ice = _ice([draws_of("frost", severity, index)], (32, 32))[0]
        for channel, tint in enumerate((0.89, 1.02, 1.09)):
            np.testing.assert_allclose(frosted[channel], np.clip(kept * image[channel] + added * np.clip(ice[0] * tint, 0, 1), 0, 1), atol=1e-6)


@pytest.mark.parametrize(("side", "gradient"), [(32, (0.05, 0.12)), (224, (0.02, 0.07))])
def test_ice_is_as_bright_rough_and_varied_as_in_the_published_photographs(side, gradient):
    """Their five pictures at that size: means 0.5 to 0.8, standard deviation in a crop about 0.1, difference of neighbours within these bounds."""
    ice = _ice([np.random.default_rng(seed) for seed in range(30)], (side, side))
    assert ice.mean(axis=(1, 2, 3)).min() >= 0.45
    assert ice.mean(axis=(1, 2, 3)).max() <= 0.85
    assert ice.std(axis=(1, 2, 3)).mean() == pytest.approx(0.1, abs=0.02)
    assert gradient[0] <= np.abs(np.diff(ice, axis=2)).mean() <= gradient[1]


def test_no_two_samples_get_the_same_ice(small):
    same = np.repeat(small[:1], 4, axis=0)
    y = corrupt("frost", same, 3, seed=0, indices=np.arange(4))
    assert all(np.abs(y[0] - other).mean() > 0.01 for other in y[1:])
