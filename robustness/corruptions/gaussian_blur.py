"""Loss of focus: a Gaussian blur, edges mirrored."""

import math

import numpy as np
import numpy.typing as npt

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws, separable

# Pixels at side 32, growing with the root of the side: 0.25 to 0.65 at 8, 1.3 to 3.4 at 224. (CIFAR-10-C: 0.4 to 1, ImageNet-C: 1 to 6.)
_SIGMA = (0.5, 0.65, 0.8, 1.0, 1.3)
_REFERENCE_SIDE = 32


def gaussian_blur(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """The images blurred with a standard deviation of 0.5 to 1.3 pixels times sqrt(shorter side / 32)."""
    height, width = images.shape[2:]
    sigma = _SIGMA[severity - 1] * math.sqrt(min(height, width) / _REFERENCE_SIDE)
    return separable(images, _blur_matrix(height, sigma), _blur_matrix(width, sigma))


def _blur_matrix(side: int, sigma: float) -> npt.NDArray[np.float64]:
    """(side, side): each row holds the Gaussian's mass over each pixel. Not its density at the centre: below half a pixel that is no blur at all."""
    reach = max(1, math.ceil(4 * sigma))
    edges = [math.erf((offset - 0.5) / (sigma * math.sqrt(2))) for offset in range(-reach, reach + 2)]
    kernel = np.diff(edges)
    kernel /= kernel.sum()
    matrix = np.zeros((side, side))
    for offset, weight in zip(range(-reach, reach + 1), kernel, strict=True):
        positions = np.arange(side) + offset
        mirrored = side - 1 - np.abs(side - 1 - positions % (2 * side - 2)) if side > 1 else np.zeros(side, dtype=np.int64)
        np.add.at(matrix, (np.arange(side), mirrored), weight)
    return matrix


plugin = gaussian_blur
