"""Colours too weak or too strong: another saturation (S of HSV)."""

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws
from kdpipe.robustness.corruptions.colour import resaturated
from kdpipe.robustness.corruptions.published import published

_CIFAR = ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))  # factor, added
_IMAGENET = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))


def saturate(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """Saturation times 0.3, 0.1, 1.5, 2, 2.5 (at 224 pixels up to 20), plus up to 0.2. Images of one channel have no colour and stay."""
    if images.shape[1] == 1:
        return images.copy()
    factor, added = published(images, severity, _CIFAR, _IMAGENET)
    return resaturated(images, factor, added)


plugin = saturate
