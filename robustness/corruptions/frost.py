"""Frost on the lens: ice crystals over a dimmed image.

The published one crops five photographs of ice. Ours is drawn anew for each sample, without any file: fern-like ridges of two rough clouds, with the
brightness, contrast and tint of those photographs. The weights of image and ice are the published ones.
"""

import numpy as np

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws, Generators, uniform
from kdpipe.robustness.corruptions.colour import tinted
from kdpipe.robustness.corruptions.plasma import plasma
from kdpipe.robustness.corruptions.published import published

_CIFAR = ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))  # weight of the image, weight of the ice
_IMAGENET = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
# of the photographs: means 0.5 to 0.8, standard deviations within a crop 0.06 to 0.14, red : green : blue of their mean
_BRIGHTNESS = (0.5, 0.8)
_SPREAD = 0.1
_TINT = (0.89, 1.02, 1.09)
_ROUGHNESS = 1.2  # decay of the clouds from scale to scale: small is rough


def frost(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """100 to 75 % of the images plus 20 to 45 % of an icy layer (at 224 pixels 100 to 60 and 40 to 75 %)."""
    kept, added = published(images, severity, _CIFAR, _IMAGENET)
    ice = _ice(list(draws.generators()), (images.shape[2], images.shape[3])) * tinted(_TINT, images.shape[1])
    result: Float32Array = np.float32(kept) * images + np.float32(added) * np.clip(ice, 0, 1)
    return result


def _ice(generators: Generators, shape: tuple[int, int]) -> Float32Array:
    """Grey ice (n, 1, *shape), about in [0.2, 1]."""
    one, other = (1 - np.abs(2 * plasma(generators, shape, _ROUGHNESS) - 1) for _ in range(2))
    ferns = np.maximum(one, other)
    ferns -= ferns.mean(axis=(2, 3), keepdims=True)
    ferns /= np.maximum(ferns.std(axis=(2, 3), keepdims=True), 1e-6)
    ice: Float32Array = uniform(generators, (1, 1, 1), *_BRIGHTNESS) + np.float32(_SPREAD) * ferns
    return ice


plugin = frost
