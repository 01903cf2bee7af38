"""A camera that nears quickly: the mean of the image and of enlarged ones."""

import numpy as np

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws, separable
from kdpipe.robustness.corruptions.published import nearer
from kdpipe.robustness.corruptions.sampling import zoom_matrix

_CIFAR = ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01))  # largest factor and step of numpy's arange from 1 on
_IMAGENET = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))


def zoom_blur(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """The mean of the images and of them enlarged up to 1.06 to 1.26 times in steps of 0.01 (at 224 pixels up to 1.11 to 1.31)."""
    end, step = nearer(images, severity, _CIFAR, _IMAGENET)
    factors = np.arange(1, end, step)
    height, width = images.shape[2:]
    total = images.copy()
    for factor in factors:
        total += separable(images, zoom_matrix(height, factor), zoom_matrix(width, factor))
    total /= np.float32(len(factors) + 1)
    return total


plugin = zoom_blur
