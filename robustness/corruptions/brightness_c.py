"""Too much light at the published strength: a higher value (V of HSV), hue and saturation kept."""

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws
from kdpipe.robustness.corruptions.colour import brightened
from kdpipe.robustness.corruptions.published import published

_CIFAR = ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,))
_IMAGENET = ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,))


def brightness_c(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """The images with 0.05 to 0.3 (at 224 pixels 0.1 to 0.5) added to the largest channel, the others in proportion; black turns grey."""
    (added,) = published(images, severity, _CIFAR, _IMAGENET)
    return brightened(images, added)


plugin = brightness_c
