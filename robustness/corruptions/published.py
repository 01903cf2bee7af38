"""The published strengths of a corruption, for images of any size.

Hendrycks & Dietterich 2019 (arXiv:1903.12261) publish two sets of constants with their code (hendrycks/robustness): CIFAR-10-C's for 32
pixels, ImageNet-C's for 224. At these sides ours are theirs; between them each constant moves geometrically with the side; below 32 and above 224
the nearer set holds. What that means for small images: docs/decisions/corruption-severities.md.
"""

import math
from collections.abc import Sequence

from kdpipe.foundation.predictor import Float32Array

_CIFAR_SIDE, _IMAGENET_SIDE = 32, 224


def published(images: Float32Array, severity: int, cifar: Sequence[Sequence[float]], imagenet: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The constants at `severity` (1 to 5) for the shorter side of `images`; `cifar`, `imagenet`: the published ones, a row for each severity."""
    share = _share(images)
    pairs = zip(cifar[severity - 1], imagenet[severity - 1], strict=True)
    return tuple(small if small == large or share == 0 else large if share == 1 else small * (large / small) ** share for small, large in pairs)


def nearer(images: Float32Array, severity: int, cifar: Sequence[Sequence[float]], imagenet: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The row at `severity` of the set that is nearer to the images' side (the border is at 85): for constants that have no middle."""
    return tuple((cifar if _share(images) < 0.5 else imagenet)[severity - 1])


def _share(images: Float32Array) -> float:
    """How far the shorter side is from 32 (0) to 224 (1), on a logarithmic scale."""
    side = min(images.shape[2:])
    return min(max(math.log(side / _CIFAR_SIDE) / math.log(_IMAGENET_SIDE / _CIFAR_SIDE), 0.0), 1.0)
