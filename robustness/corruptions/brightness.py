"""Too much light: a higher value (V of HSV), hue and saturation kept."""

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws
from kdpipe.robustness.corruptions.colour import brightened

_ADDED = (0.1, 0.2, 0.3, 0.4, 0.5)  # as in ImageNet-C


def brightness(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """The images with 0.1 to 0.5 added to the largest channel (at most 1), the others in proportion; black turns grey."""
    return brightened(images, _ADDED[severity - 1])


plugin = brightness
