import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from scipy.ndimage import affine_transform

from kdpipe.foundation.randomness import stream
from kdpipe.tasks.augmentations.operations import OVERLAPPING, OVERLAPS, PLAIN, vary

ALL = {**PLAIN, **OVERLAPPING}


def bytes_of(shape=(4, 3, 32, 32), seed=0):
    """Images of whole 8-bit values, with structure: each channel a part of the range."""
    x = torch.randint(0, 256, shape, generator=stream(seed, "bytes"))
    low = torch.randint(0, 100, (*shape[:2], 1, 1), generator=stream(seed, "low"))
    return (low + x * (255 - low) // 400).float() / 255


def with_pillow(x, change):
    """`change` on each image in Pillow, back as (n, channels, height, width) in [0, 1]."""
    rows = (x * 255).round().byte().permute(0, 2, 3, 1).numpy()
    changed = [np.asarray(change(Image.fromarray(row[..., 0] if row.shape[2] == 1 else row))) for row in rows]
    stacked = np.stack(changed).reshape(rows.shape)
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(ALL)),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    level=st.floats(-1, 1),
    seed=st.integers(0, 100),
)
def test_shape_and_range_stay_and_the_argument_is_not_changed(name, channels, height, width, level, seed):
    x = torch.rand(3, channels, height, width, generator=stream(seed, "images"))
    before = x.clone()
    varied = vary(x, [ALL[name]], torch.zeros(3, dtype=torch.long), torch.full((3,), level))
    assert varied.shape == x.shape
    assert varied.dtype == torch.float32
    assert torch.isfinite(varied).all()
    assert varied.min() >= 0
    assert varied.max() <= 1
    assert torch.equal(x, before)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "level", "change", "tones"),
    [
        pytest.param("equalize", 0.5, ImageOps.equalize, 0, id="equalize"),
        pytest.param("autocontrast", 0.5, ImageOps.autocontrast, 1, id="autocontrast"),  # Pillow rounds down through a table
        pytest.param("posterize", 0.3, lambda image: ImageOps.posterize(image, 3), 0, id="posterize-3"),
        pytest.param("posterize", 0.1, lambda image: ImageOps.posterize(image, 4), 0, id="posterize-4"),
        pytest.param("solarize", 0.75, lambda image: ImageOps.solarize(image, 64), 0, id="solarize"),
        pytest.param("contrast", -0.5, lambda image: ImageEnhance.Contrast(image).enhance(0.55), 2, id="contrast"),  # Pillow's mean is a whole tone
        pytest.param("brightness", 0.5, lambda image: ImageEnhance.Brightness(image).enhance(1.45), 1, id="brightness"),
        pytest.param(
            "sharpness", -0.8, lambda image: ImageEnhance.Sharpness(image).enhance(0.28), 2, id="sharpness"
        ),  # Pillow rounds the smoothed image, then the result
    ],
)
def test_tones_and_light_agree_with_pillow(name, level, change, tones, channels):
    x = bytes_of((4, channels, 32, 32))
    varied = vary(x, [ALL[name]], torch.zeros(4, dtype=torch.long), torch.full((4,), level))
    assert (varied - with_pillow(x, change)).abs().max() <= tones / 255 + 1e-5


def test_colour_agrees_with_pillow_and_leaves_grey_images():
    x = bytes_of()
    varied = vary(x, [ALL["color"]], torch.zeros(4, dtype=torch.long), torch.full((4,), -0.7))
    expected = with_pillow(x, lambda image: ImageEnhance.Color(image).enhance(0.37))
    assert (varied - expected).abs().max() <= 2 / 255  # Pillow rounds the grey image, then the result
    grey = bytes_of((2, 1, 8, 8))
    torch.testing.assert_close(vary(grey, [ALL["color"]], torch.zeros(2, dtype=torch.long), torch.ones(2)), grey)


@pytest.mark.parametrize("shape", [(9, 9), (8, 12)], ids=str)
@pytest.mark.parametrize(
    ("name", "matrix", "offset"),
    [
        (
            "rotate",
            lambda level: [[math.cos(level * math.pi / 6), math.sin(level * math.pi / 6)], [-math.sin(level * math.pi / 6), math.cos(level * math.pi / 6)]],
            None,
        ),
        ("shear-x", lambda level: [[1, 0], [0.3 * level, 1]], None),
        ("shear-y", lambda level: [[1, 0.3 * level], [0, 1]], None),
        ("translate-x", None, lambda level, height, width: (0, level * width / 3)),
        ("translate-y", None, lambda level, height, width: (level * height / 3, 0)),
    ],
    ids=["rotate", "shear-x", "shear-y", "translate-x", "translate-y"],
)
def test_geometry_agrees_with_scipy_about_the_centre(name, matrix, offset, shape):
    """scipy in (row, column), black outside, on the image with a black border: torch blends the last half pixel with black, too."""
    level = 0.6
    x = torch.rand(1, 1, *shape, generator=stream(1, "image"))
    varied = vary(x, [ALL[name]], torch.zeros(1, dtype=torch.long), torch.tensor([level]))[0, 0]
    border = 6
    padded = np.pad(x[0, 0].double().numpy(), border)
    linear = np.array(matrix(level) if matrix else np.eye(2))
    centre = (np.array(padded.shape) - 1) / 2
    moved = np.array(offset(level, *shape) if offset else (0, 0))
    expected = affine_transform(padded, linear, offset=centre - linear @ centre + moved, order=1)[border:-border, border:-border]
    np.testing.assert_allclose(varied.numpy(), expected, atol=1e-5)


def test_each_sample_takes_its_own_operation_and_level():
    x = bytes_of((3, 1, 16, 16))
    operations = [ALL["solarize"], ALL["rotate"]]
    varied = vary(x, operations, torch.tensor([1, -1, 0]), torch.tensor([0.5, 0.5, 0.25]))
    assert torch.equal(varied[1], x[1])
    torch.testing.assert_close(varied[:1], ALL["rotate"](x[:1], torch.tensor([0.5])))
    torch.testing.assert_close(varied[2:], ALL["solarize"](x[2:], torch.tensor([0.25])))


@pytest.mark.parametrize("name", ["rotate", "shear-x", "shear-y", "translate-x", "translate-y", "contrast", "brightness", "sharpness"])
def test_level_zero_changes_nothing(name):
    x = bytes_of((2, 3, 9, 11))
    varied = vary(x, [ALL[name]], torch.zeros(2, dtype=torch.long), torch.zeros(2))
    torch.testing.assert_close(varied, x, atol=1e-5, rtol=0)


def test_a_flat_image_stays_flat_under_the_tones():
    x = torch.full((1, 1, 40, 40), 0.4)
    for name in ("autocontrast", "equalize"):
        torch.testing.assert_close(ALL[name](x, torch.ones(1)), x)


def test_the_overlapping_operations_are_apart():
    assert not set(PLAIN) & set(OVERLAPPING)
    assert {"contrast", "brightness", "saturate"} <= set(OVERLAPS)
