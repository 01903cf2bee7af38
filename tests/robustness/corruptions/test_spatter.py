import numpy as np
import pytest
from scipy.ndimage import correlate, distance_transform_edt, gaussian_filter

from kdpipe.robustness.corruption import SEVERITIES, corrupt
from kdpipe.robustness.corruptions.edges import canny, equalized

INDICES = np.array([9, 2, 4, 0])
SMALL = ((0.62, 0.1, 0.7, 0.7, 0.5), (0.65, 0.1, 0.8, 0.7, 0.5), (0.65, 0.3, 1.0, 0.69, 0.5), (0.65, 0.1, 0.7, 0.69, 0.6), (0.65, 0.1, 0.5, 0.68, 0.6))
RELIEF = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_lit_water_or_opaque_mud_where_smoothed_noise_is_high(severity, channels, small, draws_of):
    mean, sigma, smooth, threshold, last = SMALL[severity - 1]
    x = small[:, :channels]
    y = corrupt("spatter", x, severity, seed=0, indices=INDICES)
    for image, splashed, index in zip(x, y, INDICES, strict=True):
        noise = mean + sigma * draws_of("spatter", severity, index).standard_normal((32, 32), dtype=np.float32)
        liquid = gaussian_filter(noise.astype(np.float64), smooth, mode="nearest")
        liquid[liquid < threshold] = 0
        colour = np.array((175, 238, 238) if severity <= 3 else (63, 42, 20)) / 255
        colour = (colour if channels == 3 else np.array([colour @ [0.299, 0.587, 0.114]]))[:, None, None]
        if severity <= 3:
            tones = (liquid * 255).astype(np.uint8).astype(np.int32)
            away = np.minimum(distance_transform_edt(~canny(tones[None], 50, 150)[0]), 20) if tones.any() else np.full((32, 32), 20.0)
            away = correlate(away, np.full((3, 3), 1 / 9), mode="mirror")
            relief = np.rint(correlate(equalized(np.floor(away + 1e-6).astype(np.int32)[None])[0].astype(float), RELIEF, mode="mirror")).clip(0, 255)
            bright = tones * np.rint(correlate(relief, np.full((3, 3), 1 / 9), mode="mirror"))
            expected = image + last * bright / max(bright.max(), 1) * colour
        else:
            mud = gaussian_filter((liquid > threshold).astype(float), last, mode="nearest")
            mud[mud < 0.8] = 0
            expected = image * (1 - mud) + mud * colour
        different = np.abs(splashed - np.clip(expected, 0, 1)) > 2e-3
        assert different.mean() < 0.01  # a tone that rounds to the other side


def test_water_brightens_and_mud_darkens_white(small):
    white = np.ones_like(small) * 0.9
    assert (corrupt("spatter", white, 3, seed=0, indices=INDICES) >= white - 1e-6).all()
    assert (corrupt("spatter", white, 5, seed=0, indices=INDICES) <= white + 1e-6).all()


def test_an_image_without_a_drop_stays():
    x = np.full((1, 3, 2, 2), 0.5, dtype=np.float32)
    y = corrupt("spatter", x, 1, seed=3, indices=np.arange(1))
    assert np.isfinite(y).all()
