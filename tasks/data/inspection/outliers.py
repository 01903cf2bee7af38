"""Images that are unlike the rest: far out along the principal components, far off the plane that they span, or full of detail as no other.

The first two are the distances of the outlier map of Hubert, Rousseeuw, Vanden Branden 2005 (ROBPCA), with plain components, which few outliers hardly turn,
and robust limits: the median and the median absolute deviation of the logarithm of each distance, as distances are skewed. The components are those of
images averaged down; what the averaging takes away, the detail, is the third distance: noise has little else.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from kdpipe.tasks.data.splits import Float32Array, Int64Array

LIMIT = 4.0
"""robust deviations from the median: of 15,000 images of CIFAR-10, Fashion-MNIST and digits none lies beyond, most that are not of their kind do"""

_EXPLAINED = 0.9  # of the variance, by the components that make the plane
_MOST_COMPONENTS = 50
_MAD_TO_STD = 1.4826
_GRID = 16  # pixels a side at most: the components of 3 x 32 x 32 values take 8 s
_ROWS = 2048


def outlier_scores(thumbnails: npt.NDArray[np.uint8], positions: Int64Array) -> npt.NDArray[np.float64]:
    """How far out each thumbnail at `positions` is, in robust deviations, by the largest of the three distances: (n,). Zeros for fewer than 20 images."""
    if len(positions) < 20:
        return np.zeros(len(positions))
    mean, components = _principal_components(thumbnails, positions)
    scores = np.empty((len(positions), components.shape[1]))
    off_plane, detail = np.empty(len(positions)), np.empty(len(positions))
    for start in range(0, len(positions), _ROWS):
        rows, detail[start : start + _ROWS] = _rows(thumbnails, positions[start : start + _ROWS])
        x = rows - mean
        inside = x @ components
        scores[start : start + len(x)] = inside
        off_plane[start : start + len(x)] = np.sqrt(np.maximum(0.0, (x**2).sum(axis=1) - (inside**2).sum(axis=1)))
    centre = np.median(scores, axis=0)
    spread = np.maximum(_MAD_TO_STD * np.median(np.abs(scores - centre), axis=0), 1e-6)
    along = np.sqrt((((scores - centre) / spread) ** 2).mean(axis=1))
    return np.asarray(np.max([_robust_deviations(distances) for distances in (along, off_plane, detail)], axis=0))


def _principal_components(thumbnails: npt.NDArray[np.uint8], positions: Int64Array) -> tuple[Float32Array, Float32Array]:
    """The mean, (values,), and the leading directions, (values, components)."""
    values = _rows(thumbnails, positions[:1])[0].shape[1]
    total, products = np.zeros(values), np.zeros((values, values))
    for start in range(0, len(positions), _ROWS):
        x, _ = _rows(thumbnails, positions[start : start + _ROWS])
        total += x.sum(axis=0)
        products += x.T @ x
    mean = total / len(positions)
    variances, directions = np.linalg.eigh(products / len(positions) - np.outer(mean, mean))
    variances, directions = np.maximum(variances[::-1], 0), directions[:, ::-1]
    enough = int(np.searchsorted(np.cumsum(variances) / max(variances.sum(), 1e-12), _EXPLAINED)) + 1
    return mean.astype(np.float32), directions[:, : min(enough, _MOST_COMPONENTS)].astype(np.float32)


def _rows(thumbnails: npt.NDArray[np.uint8], positions: Int64Array) -> tuple[Float32Array, Float32Array]:
    """The images averaged down by a whole factor, (n, values), and the length of what that took away, (n,)."""
    x = torch.from_numpy(np.asarray(thumbnails[positions])).float() / 255
    height, width = (math.ceil(side / _GRID) for side in x.shape[2:])
    averaged = F.avg_pool2d(x, (height, width), ceil_mode=True)
    detail = x - averaged.repeat_interleave(height, 2).repeat_interleave(width, 3)[:, :, : x.shape[2], : x.shape[3]]
    return averaged.flatten(1).numpy(), detail.flatten(1).norm(dim=1).numpy()


def _robust_deviations(distances: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    logs = np.log(np.maximum(distances, 1e-6))
    centre = np.median(logs)
    spread = _MAD_TO_STD * np.median(np.abs(logs - centre))
    return np.asarray((logs - centre) / max(float(spread), 1e-3))
