"""Defective pixels: single values turned black or white."""

import numpy as np

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws, uniform
from kdpipe.robustness.corruptions.published import published

_CIFAR = ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,))  # share of the values
_IMAGENET = ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,))


def impulse_noise(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """1 to 7 % of the values (at 224 pixels 3 to 27 %), in each channel by itself, half of them 0 and half of them 1."""
    (share,) = published(images, severity, _CIFAR, _IMAGENET)
    drawn = uniform(list(draws.generators()), images.shape[1:], 0, 1)
    result: Float32Array = np.where(drawn < share / 2, np.float32(0), np.where(drawn > 1 - share / 2, np.float32(1), images))
    return result


plugin = impulse_noise
