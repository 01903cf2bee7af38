"""Fog: a cloud between camera and scene."""

import numpy as np

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws
from kdpipe.robustness.corruptions.plasma import plasma
from kdpipe.robustness.corruptions.published import published

_CIFAR = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))  # density, smoothness
_IMAGENET = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))


def fog(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """The images plus 0.2 to 1.5 (at 224 pixels 1.5 to 3) times a cloud, brought back to the brightness of their brightest value."""
    density, smoothness = published(images, severity, _CIFAR, _IMAGENET)
    cloud = plasma(list(draws.generators()), (images.shape[2], images.shape[3]), smoothness)
    brightest = images.max(axis=(1, 2, 3), keepdims=True)
    result: Float32Array = (images + np.float32(density) * cloud) * (brightest / (brightest + np.float32(density)))
    return result


plugin = fog
