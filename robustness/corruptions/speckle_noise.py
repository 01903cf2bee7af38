"""Coherent light (radar, ultrasound): noise in proportion to the value."""

import numpy as np

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws, normal
from kdpipe.robustness.corruptions.published import published

_CIFAR = ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,))  # sigma, of the value
_IMAGENET = ((0.15,), (0.2,), (0.35,), (0.45,), (0.6,))


def speckle_noise(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """Each value times 1 plus noise of standard deviation 0.06 to 0.2 (at 224 pixels 0.15 to 0.6)."""
    (sigma,) = published(images, severity, _CIFAR, _IMAGENET)
    noise = normal(list(draws.generators()), images.shape[1:])
    result: Float32Array = images + np.float32(sigma) * images * noise
    return result


plugin = speckle_noise
