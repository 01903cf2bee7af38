"""A lens out of focus: each point becomes a disc."""

import numpy as np
import numpy.typing as npt

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws
from kdpipe.robustness.corruptions.filters import correlated
from kdpipe.robustness.corruptions.published import published

_CIFAR = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))  # radius of the disc, sigma that smooths its edge; in pixels
_IMAGENET = ((3.0, 0.1), (4.0, 0.5), (6.0, 0.5), (8.0, 0.5), (10.0, 0.5))
_LARGE = 8  # above this radius the edge is smoothed over 5 pixels instead of 3


def defocus_blur(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """The images seen through discs of radius 0.3 to 1.5 pixels (at 224 pixels 3 to 10), with a smoothed edge."""
    radius, sigma = published(images, severity, _CIFAR, _IMAGENET)
    return correlated(images, disc(radius, sigma))


def disc(radius: float, sigma: float) -> npt.NDArray[np.float64]:
    """The kernel, (odd, odd), of sum 1: the pixels within `radius`, smoothed by a Gaussian of 3 (above radius 8: 5) pixels."""
    reach = int(radius)
    offsets = np.arange(-reach, reach + 1)
    flat = (offsets[:, None] ** 2 + offsets[None, :] ** 2 <= radius**2).astype(np.float64)
    smoothing = 1 if radius <= _LARGE else 2
    edge = np.exp(-0.5 * (np.arange(-smoothing, smoothing + 1) / sigma) ** 2)
    edge /= edge.sum()
    kernel = np.apply_along_axis(np.convolve, 0, np.apply_along_axis(np.convolve, 1, flat / flat.sum(), edge), edge)
    result: npt.NDArray[np.float64] = kernel
    return result


plugin = defocus_blur
