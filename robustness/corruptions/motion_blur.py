"""A moving camera: the image smeared along a line."""

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws
from kdpipe.robustness.corruptions.filters import motion
from kdpipe.robustness.corruptions.published import published

_CIFAR = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))  # radius and sigma in pixels
_IMAGENET = ((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0))
_STEEPEST = 45  # degrees


def motion_blur(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """The images smeared by a half Gaussian of 1 to 2.5 pixels (at 224 pixels 3 to 15), within 45 degrees of the horizontal."""
    radius, sigma = published(images, severity, _CIFAR, _IMAGENET)
    return motion(images, round(radius), sigma, (generator.uniform(-_STEEPEST, _STEEPEST) for generator in draws.generators()))


plugin = motion_blur
