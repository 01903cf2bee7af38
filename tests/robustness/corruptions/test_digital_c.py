"""Brightness, contrast, elastic transform, pixelation, JPEG and saturation at their published strengths."""

import colorsys
import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from kdpipe.robustness.corruption import SEVERITIES, corrupt

INDICES = np.array([9, 2, 4, 0])
JPEG = {"small": (80, 65, 58, 50, 40), "large": (25, 18, 15, 10, 7)}
BRIGHTNESS = {"small": (0.05, 0.1, 0.15, 0.2, 0.3), "large": (0.1, 0.2, 0.3, 0.4, 0.5)}
CONTRAST = {"small": (0.75, 0.5, 0.4, 0.3, 0.15), "large": (0.4, 0.3, 0.2, 0.1, 0.05)}
PIXELATE = {"small": (0.95, 0.9, 0.85, 0.75, 0.65), "large": (0.6, 0.5, 0.4, 0.3, 0.25)}
SATURATE = {"small": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)), "large": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))}
ELASTIC = ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", ["small", "large"])
def test_contrast_shrinks_around_each_channels_mean(severity, size, request):
    x = request.getfixturevalue(size)
    mean = x.mean(axis=(2, 3), keepdims=True)
    expected = (x - mean) * CONTRAST[size][severity - 1] + mean
    np.testing.assert_allclose(corrupt("contrast-c", x, severity, seed=0, indices=INDICES), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["brightness-c", "saturate"])
@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", ["small", "large"])
def test_brightness_and_saturation_change_v_and_s_of_hsv(name, severity, size, request):
    x = request.getfixturevalue(size)[:, :, 5:9, 5:9].copy()  # a few pixels; strengths go by the whole image's side
    whole = request.getfixturevalue(size).copy()
    y = corrupt(name, whole, severity, seed=0, indices=INDICES)[:, :, 5:9, 5:9]
    factor, added = SATURATE[size][severity - 1]
    for index in np.ndindex(4, 4, 4):
        place = (index[0], slice(None), *index[1:])
        h, s, v = colorsys.rgb_to_hsv(*x[place].tolist())
        changed = (h, s, min(v + BRIGHTNESS[size][severity - 1], 1)) if name == "brightness-c" else (h, min(s * factor + added, 1), v)
        np.testing.assert_allclose(y[place], colorsys.hsv_to_rgb(*changed), atol=1e-5)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", ["small", "large"])
def test_pixelation_is_pillows_box_filter_there_and_back(severity, size, request):
    x = request.getfixturevalue(size)[:1]
    side = x.shape[2]
    fewer = int(side * PIXELATE[size][severity - 1])
    y = corrupt("pixelate-c", x, severity, seed=0, indices=INDICES[:1])
    for channel, mine in zip(x[0], y[0], strict=True):
        picture = Image.fromarray(channel).resize((fewer, fewer), Image.Resampling.BOX).resize((side, side), Image.Resampling.BOX)
        np.testing.assert_allclose(mine, np.asarray(picture), atol=1e-6)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", ["small", "large"])
def test_jpeg_is_pillows_at_the_published_quality(severity, size, request):
    x = request.getfixturevalue(size)[:2]
    y = corrupt("jpeg-compression", x, severity, seed=0, indices=INDICES[:2])
    for image, mine in zip(x, y, strict=True):
        file = io.BytesIO()
        Image.fromarray(np.rint(image * 255).astype(np.uint8).transpose(1, 2, 0)).save(file, format="JPEG", quality=JPEG[size][severity - 1])
        np.testing.assert_allclose(mine * 255, np.asarray(Image.open(file)).transpose(2, 0, 1), atol=1e-3)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_the_elastic_transform_is_an_affine_map_and_smooth_displacements(severity, small, draws_of):
    strength, smooth, shift = (32 * share for share in ELASTIC[severity - 1])
    y = corrupt("elastic-transform", small, severity, seed=0, indices=INDICES)
    for image, bent, index in zip(small.astype(np.float64), y, INDICES, strict=True):
        generator = draws_of("elastic-transform", severity, index)
        corners = np.array([[26.0, 26.0], [26.0, 6.0], [6.0, 6.0]])  # (x, y): 16 ± 10
        moved = corners + (generator.random((3, 2), dtype=np.float32) * 2 - 1) * shift
        # x' = a x + b y + c brings `moved` to `corners`: solved as one system of six unknowns
        system, wanted = np.zeros((6, 6)), corners.ravel()
        for k, (x, y_) in enumerate(moved):
            system[2 * k, :3], system[2 * k + 1, 3:] = (x, y_, 1), (x, y_, 1)
        solved = np.linalg.solve(system, wanted)
        rows, columns = np.mgrid[:32, :32]
        looked = [solved[3] * columns + solved[4] * rows + solved[5], solved[0] * columns + solved[1] * rows + solved[2]]
        expected = np.stack([map_coordinates(channel, looked, order=1, mode="mirror") for channel in image])
        if strength:
            across, down = (
                strength * gaussian_filter((generator.random((32, 32), dtype=np.float32) * 2 - 1).astype(np.float64), smooth, mode="reflect", truncate=3)
                for _ in range(2)
            )
            expected = np.stack([map_coordinates(channel, [rows + down, columns + across], order=1, mode="reflect") for channel in expected])
        np.testing.assert_allclose(bent, expected, atol=2e-4)  # positions in float32


def test_grey_images_have_no_saturation_to_change(small):
    grey = small[:, :1]
    for severity in SEVERITIES:
        assert np.array_equal(corrupt("saturate", grey, severity, seed=0, indices=INDICES), grey)
