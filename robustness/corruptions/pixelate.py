"""Low resolution: the image shrunk by area and enlarged again in blocks."""

import math

import numpy as np
import numpy.typing as npt

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws, separable

# Block edge in pixels up to side 32 (8 -> 7, 6, 5, 4, 3 blocks), growing with the root of the side above. (CIFAR-10-C: 1.05 to 1.5, ImageNet-C: 1.7 to 4.)
_BLOCK = (1.18, 1.4, 1.65, 2.0, 2.6)
_REFERENCE_SIDE = 32


def pixelate(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """The images at 1/1.18 to 1/2.6 of their resolution, the factor times sqrt(shorter side / 32) above 32 pixels."""
    height, width = images.shape[2:]
    block = _BLOCK[severity - 1] * max(1.0, math.sqrt(min(height, width) / _REFERENCE_SIDE))
    return separable(images, _block_matrix(height, block), _block_matrix(width, block))


def _block_matrix(side: int, block: float) -> npt.NDArray[np.float64]:
    """(side, side): down to round(side / block) blocks and up again, by area both ways: a pixel on the edge of two blocks is their mean by overlap.

    With the block at the pixel's centre instead, 8 pixels on 7 blocks would err more than on 5.
    """
    blocks = max(1, round(side / block))
    edge = side / blocks
    pixels, starts = np.arange(side), np.arange(blocks)[:, None] * edge
    overlap = np.clip(np.minimum(pixels + 1, starts + edge) - np.maximum(pixels, starts), 0, None)
    matrix: npt.NDArray[np.float64] = overlap.T @ overlap / edge
    return matrix


plugin = pixelate
