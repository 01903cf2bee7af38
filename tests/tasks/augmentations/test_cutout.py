import pytest
import torch

from kdpipe.foundation.randomness import stream
from kdpipe.tasks.augmentations.cutout import Cutout, cutout


def images(shape=(200, 3, 8, 10)):
    return torch.rand(shape, generator=stream(0, "images"))


@pytest.mark.parametrize("size", [1, 3, 4])
def test_a_square_around_a_random_pixel_takes_the_channels_mean(size):
    x = images()
    y = cutout(x, size, stream(0, "augment"))
    draws = stream(0, "augment")
    rows, columns = torch.randint(8, (200, 1, 1, 1), generator=draws).flatten(), torch.randint(10, (200, 1, 1, 1), generator=draws).flatten()
    for sample, cut, row, column in zip(x, y, rows.tolist(), columns.tolist(), strict=True):
        expected = sample.clone()
        top, left = row - size // 2, column - size // 2
        expected[:, max(top, 0) : top + size, max(left, 0) : left + size] = sample.mean(dim=(1, 2), keepdim=True)
        torch.testing.assert_close(cut, expected)
    assert len(set(zip(rows.tolist(), columns.tolist(), strict=True))) > 70  # of 80 places


def test_the_default_square_is_half_of_the_shorter_side():
    x = images()
    torch.testing.assert_close(Cutout()(x, stream(0, "augment")), cutout(x, 4, stream(0, "augment")))
