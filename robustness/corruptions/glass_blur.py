"""Frosted glass: pixels displaced by a few places at random, between two blurs."""

import numpy as np
import numpy.typing as npt

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws
from kdpipe.robustness.corruptions.filters import gaussian
from kdpipe.robustness.corruptions.published import published

_CIFAR = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))  # sigma in pixels, largest displacement in pixels, passes
_IMAGENET = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))


def glass_blur(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """Blurred by 0.05 to 0.4 pixels, displaced by one pixel in one or two passes, and blurred again (at 224 pixels 0.7 to 1.5, 1 to 4, 1 to 3)."""
    sigma, reach, passes = published(images, severity, _CIFAR, _IMAGENET)
    samples, channels, height, width = images.shape
    sources = _displaced(draws, height, width, round(reach), round(passes))
    blurred = gaussian(images, sigma).reshape(samples, channels, height * width)
    return gaussian(np.take_along_axis(blurred, sources[:, None], axis=2).reshape(images.shape), sigma)


def _displaced(draws: Draws, height: int, width: int, reach: int, passes: int) -> npt.NDArray[np.intp]:
    """(n, height · width): from which pixel each one comes.

    Pixel by pixel from the last to the first, each is overwritten by one that lies -reach to reach - 1 rows and columns from it, as it is by
    then. The authors meant to swap the two, but `x[h, w], x[i, j] = x[i, j], x[h, w]` on the views of a colour image copies; the published sets are made so.
    """
    rows, columns = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    visited = (rows[:, None] * width + columns[None, :]).ravel()
    shape = (passes, len(visited), 2)
    moves = np.stack([generator.integers(-reach, reach, shape, dtype=np.int32) for generator in draws.generators()])
    offsets = (moves[..., 0] * width + moves[..., 1]).transpose(1, 2, 0)  # (pass, visited, n): a step reads one row
    samples = len(moves)
    came_from = np.repeat(np.arange(height * width), samples).reshape(height * width, samples)
    flat, own = came_from.reshape(-1), np.arange(samples)
    for one_pass in (offsets + visited[None, :, None]) * samples + own:
        for pixel, places in zip(visited, one_pass, strict=True):
            flat.take(places, out=came_from[pixel])
    return np.ascontiguousarray(came_from.T)


plugin = glass_blur
