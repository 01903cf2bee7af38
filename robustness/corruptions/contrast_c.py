"""Fog and glare at the published strength: less contrast around the image's mean."""

import numpy as np

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws
from kdpipe.robustness.corruptions.published import published

_CIFAR = ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,))  # share kept
_IMAGENET = ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,))


def contrast_c(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """The images with 75 % to 15 % (at 224 pixels 40 % to 5 %) of their contrast, channel by channel around its mean."""
    (kept,) = published(images, severity, _CIFAR, _IMAGENET)
    mean = images.mean(axis=(2, 3), keepdims=True)
    result: Float32Array = (images - mean) * np.float32(kept) + mean
    return result


plugin = contrast_c
