"""Sensor noise at the published strength: independent Gaussian noise on every value."""

import numpy as np

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws, normal
from kdpipe.robustness.corruptions.published import published

_CIFAR = ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,))  # sigma
_IMAGENET = ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,))


def gaussian_noise_c(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """The images plus noise of standard deviation 0.04 to 0.1 (at 224 pixels 0.08 to 0.38)."""
    (sigma,) = published(images, severity, _CIFAR, _IMAGENET)
    result: Float32Array = images + np.float32(sigma) * normal(list(draws.generators()), images.shape[1:])
    return result


plugin = gaussian_noise_c
