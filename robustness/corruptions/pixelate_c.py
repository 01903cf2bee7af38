"""Low resolution at the published strength: the image shrunk to whole pixels and enlarged again, by Pillow's box filter."""

import numpy as np
import numpy.typing as npt

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws, separable
from kdpipe.robustness.corruptions.published import published

_CIFAR = ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,))  # of the side
_IMAGENET = ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,))


def pixelate_c(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """The images at 95 % to 65 % (at 224 pixels 60 % to 25 %) of their resolution."""
    (share,) = published(images, severity, _CIFAR, _IMAGENET)
    height, width = images.shape[2:]
    return separable(images, _there_and_back(height, share), _there_and_back(width, share))


def _there_and_back(side: int, share: float) -> npt.NDArray[np.float64]:
    fewer = max(1, int(side * share))
    return _box(fewer, side) @ _box(side, fewer)


def _box(side: int, new_side: int) -> npt.NDArray[np.float64]:
    """(new_side, side): each new pixel is the mean of those whose centres its area covers (its left border counts, the right one does not)."""
    scale = side / new_side
    support = max(scale, 1.0) / 2
    centre = (np.arange(new_side) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + support + 0.5).astype(np.int64), side)
    pixel = np.arange(side)
    position = (pixel - centre[:, None] + 0.5) / max(scale, 1.0)
    covered = (pixel >= first[:, None]) & (pixel < end[:, None]) & (position > -0.5) & (position <= 0.5)
    weights: npt.NDArray[np.float64] = covered / covered.sum(axis=1, keepdims=True)
    return weights


plugin = pixelate_c
