"""Fog and glare: less contrast around the image's mean."""

import numpy as np

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws

_KEPT = (0.75, 0.5, 0.4, 0.3, 0.15)  # as in CIFAR-10-C


def contrast(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """The images with 75 % to 15 % of their contrast, channel by channel around its mean."""
    mean = images.mean(axis=(2, 3), keepdims=True)
    result: Float32Array = (images - mean) * np.float32(_KEPT[severity - 1]) + mean
    return result


plugin = contrast
