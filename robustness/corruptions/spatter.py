"""Splashes on the lens: drops of water at severities 1 to 3, mud at 4 and 5."""

import numpy as np

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws, normal
from kdpipe.robustness.corruptions.colour import tinted
from kdpipe.robustness.corruptions.edges import canny, distance, equalized
from kdpipe.robustness.corruptions.filters import correlated, gaussian
from kdpipe.robustness.corruptions.published import published

# of the liquid: mean and sigma of the noise it is cut from, sigma of its smoothing, threshold; opacity of the water, or smoothing of the mud
_CIFAR = ((0.62, 0.1, 0.7, 0.7, 0.5), (0.65, 0.1, 0.8, 0.7, 0.5), (0.65, 0.3, 1.0, 0.69, 0.5), (0.65, 0.1, 0.7, 0.69, 0.6), (0.65, 0.1, 0.5, 0.68, 0.6))
_IMAGENET = ((0.65, 0.3, 4.0, 0.69, 0.6), (0.65, 0.3, 3.0, 0.68, 0.6), (0.65, 0.3, 2.0, 0.68, 0.5), (0.65, 0.3, 1.0, 0.65, 1.5), (0.67, 0.4, 1.0, 0.65, 1.5))
_LAST_OF_WATER = 3
_WATER, _MUD = (175 / 255, 238 / 255, 238 / 255), (63 / 255, 42 / 255, 20 / 255)
_DENSE = 0.8  # below this, smoothed mud is none
_EDGE = (50, 150)  # thresholds of the drops' edges, of 255
_FURTHEST = 20  # pixels from an edge
_RELIEF = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], dtype=np.float64)  # lit from the lower right
_MEAN = np.full((3, 3), 1 / 9)


def spatter(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """The images with bluish drops added, or with brown mud over them."""
    mean, sigma, smooth, threshold, last = published(images, severity, _CIFAR, _IMAGENET)
    noise = np.float32(mean) + np.float32(sigma) * normal(list(draws.generators()), (1, *images.shape[2:]))
    liquid = gaussian(noise, smooth)
    liquid = np.where(liquid < threshold, np.float32(0), liquid)
    if severity <= _LAST_OF_WATER:
        return images + np.float32(last) * _drops(liquid) * tinted(_WATER, images.shape[1])
    mud = gaussian((liquid > threshold).astype(np.float32), last)
    mud = np.where(mud < _DENSE, np.float32(0), mud)
    result: Float32Array = images * (1 - mud) + mud * tinted(_MUD, images.shape[1])
    return result


def _drops(liquid: Float32Array) -> Float32Array:
    """How bright each place of the drops is, (n, 1, height, width), at most 1: by a relief of the distance to their edges."""
    tones = (liquid * 255).astype(np.int64).astype(np.uint8).astype(np.int32)  # wraps around above 255, as the published code does
    away = correlated(distance(canny(tones[:, 0], *_EDGE), _FURTHEST)[:, None], _MEAN)
    relief = np.rint(correlated(equalized(away[:, 0].astype(np.int32))[:, None].astype(np.float32), _RELIEF)).clip(0, 255)
    bright = tones * np.rint(correlated(relief, _MEAN))
    largest = bright.max(axis=(2, 3), keepdims=True)
    drops: Float32Array = (bright / np.maximum(largest, 1)).astype(np.float32)
    return drops


plugin = spatter
