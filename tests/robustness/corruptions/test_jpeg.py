import io

import numpy as np
import pytest
from PIL import Image

from kdpipe.robustness.corruption import SEVERITIES, corrupt

QUALITY = {1: 60, 2: 40, 3: 25, 4: 15, 5: 7}


def through_pillow(image, quality):
    """One file for one image, as anybody would write it."""
    file = io.BytesIO()
    pixels = np.rint(image * 255).astype(np.uint8)
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(file, format="JPEG", quality=quality)
    restored = np.asarray(Image.open(file))
    return (restored[None] if len(pixels) == 1 else restored.transpose(2, 0, 1)).astype(np.float32) / 255


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (1, 13, 30), (3, 8, 8), (3, 33, 20)], ids=str)
def test_it_is_what_pillow_makes_of_each_image_bit_by_bit(shape, severity):
    x = np.random.default_rng(0).random((5, *shape), dtype=np.float32)
    x[:, :, :3] = 0.9  # structure beside the noise
    y = corrupt("jpeg", x, severity, seed=0, indices=np.arange(5))
    assert np.array_equal(y, np.stack([through_pillow(image, QUALITY[severity]) for image in x]))


def test_more_images_than_one_file_may_be_tall_are_split():
    x = np.random.default_rng(1).random((5000, 1, 16, 8), dtype=np.float32)
    y = corrupt("jpeg", x, 3, seed=0, indices=np.arange(5000))
    for index in (0, 4061, 4062, 4063, 4999):  # around the border of the first file
        assert np.array_equal(y[index], through_pillow(x[index], 25))
