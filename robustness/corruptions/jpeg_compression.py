"""Lossy transmission at the published strength: the image written and read back as JPEG."""

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws
from kdpipe.robustness.corruptions.jpeg import compressed
from kdpipe.robustness.corruptions.published import published

_CIFAR = ((80,), (65,), (58,), (50,), (40,))  # quality, of 100
_IMAGENET = ((25,), (18,), (15,), (10,), (7,))


def jpeg_compression(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """The images at quality 80 to 40 (at 224 pixels 25 to 7)."""
    (quality,) = published(images, severity, _CIFAR, _IMAGENET)
    return compressed(images, round(quality))


plugin = jpeg_compression
