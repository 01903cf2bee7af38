"""Loss of focus at the published strength: a Gaussian blur."""

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws
from kdpipe.robustness.corruptions.filters import gaussian
from kdpipe.robustness.corruptions.published import published

_CIFAR = ((0.4,), (0.6,), (0.7,), (0.8,), (1.0,))  # sigma in pixels
_IMAGENET = ((1.0,), (2.0,), (3.0,), (4.0,), (6.0,))


def gaussian_blur_c(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """The images blurred with a standard deviation of 0.4 to 1 pixels (at 224 pixels 1 to 6)."""
    (sigma,) = published(images, severity, _CIFAR, _IMAGENET)
    return gaussian(images, sigma)


plugin = gaussian_blur_c
