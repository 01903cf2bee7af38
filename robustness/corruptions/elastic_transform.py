"""A bent image: an affine map near identity, then displacements that are smooth from pixel to pixel."""

import numpy as np
import numpy.typing as npt

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws, Generators, uniform
from kdpipe.robustness.corruptions.filters import gaussian
from kdpipe.robustness.corruptions.published import nearer
from kdpipe.robustness.corruptions.sampling import sampled

# strength of the displacements, sigma that smooths them, largest shift of a corner; all of the shorter side
_CIFAR = ((0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
_IMAGENET = tuple(
    (244 / 224 * a, 244 / 224 * b, 244 / 224 * c) for a, b, c in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
)
_TRUNCATE = 3.0  # deviations at which the smoothing is cut


def elastic_transform(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """The images bent; positions outside are mirrored. At low severities as wholes, at high ones pixel against pixel."""
    strength, smooth, shift = (min(images.shape[2:]) * share for share in nearer(images, severity, _CIFAR, _IMAGENET))
    height, width = images.shape[2:]
    generators = list(draws.generators())
    rows, columns = _affine(generators, height, width, shift)
    moved = sampled(images, rows, columns, repeat_edge=False)
    if strength == 0:
        return moved
    across, down = (
        np.float32(strength) * gaussian(uniform(generators, (1, height, width), -1, 1), smooth, border="symmetric", truncate=_TRUNCATE)[:, 0] for _ in range(2)
    )
    return sampled(moved, np.arange(height, dtype=np.float32)[:, None] + down, np.arange(width, dtype=np.float32) + across, repeat_edge=True)


def _affine(generators: Generators, height: int, width: int, shift: float) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Rows and columns (n, height, width) to look at: the map that brings three corners of a square around the middle back from where they were shifted to."""
    middle, half = np.array([width // 2, height // 2]), max(min(height, width) // 3, 1)
    corners = middle + half * np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])  # (column, row)
    shifted = corners + uniform(generators, (3, 2), -shift, shift)
    unknown = np.concatenate([shifted, np.ones((len(shifted), 3, 1))], axis=2)
    linear = np.linalg.solve(unknown, np.broadcast_to(corners, shifted.shape))[:, :, :, None, None]  # (n, column row one, column row)
    row, column = np.arange(height)[:, None], np.arange(width)[None, :]
    looked_at = linear[:, 0] * column + linear[:, 1] * row + linear[:, 2]
    return looked_at[:, 1].astype(np.float32), looked_at[:, 0].astype(np.float32)


plugin = elastic_transform
