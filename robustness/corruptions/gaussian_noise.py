"""Sensor noise: independent Gaussian noise on every value."""

import numpy as np

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws

_SIGMA = (0.05, 0.10, 0.15, 0.20, 0.30)  # of the value range; CIFAR-10-C: 0.04 to 0.10, ImageNet-C: 0.08 to 0.38


def gaussian_noise(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """The images plus noise of standard deviation 0.05 to 0.3."""
    noise = np.empty(images.shape, dtype=np.float32)  # contiguous, whatever the layout of the images
    for sample, generator in zip(noise, draws.generators(), strict=True):
        generator.standard_normal(dtype=np.float32, out=sample)
    noise *= _SIGMA[severity - 1]
    noise += images
    return noise


plugin = gaussian_noise
