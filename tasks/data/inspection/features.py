"""What the quick label model sees of an image: how much of each common patch is in each quarter of it. Learnt from patches alone, never from labels.

Source: Coates, Ng, Lee 2011, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning" (AISTATS): patches are normalised and whitened,
clustered by k-means, encoded and sum-pooled over quadrants. Ours deviates in three things: spherical k-means (Coates, Ng 2012), so that the encoding
is `max(0, s_k - mean(s))` of the similarities s; averages instead of sums; the square root of the result.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.foundation.randomness import numpy_stream
from kdpipe.tasks.data.splits import Int64Array

_PATCHES = 40_000
_ROUNDS = 10  # of k-means
_CONTRAST_FLOOR = 10 / 255**2  # added to a patch's variance; the paper's 10 for values up to 255
_WHITENING_FLOOR = 0.1  # added to the eigenvalues of normalised patches, as in the paper


@dataclass(frozen=True, eq=False)
class Encoder:
    """`weights`: (patch values, filters), whitening and clusters in one; `offset`: (filters,); `side`, `stride`: of the patches, in pixels."""

    weights: Tensor
    offset: Tensor
    side: int
    stride: int

    @property
    def features(self) -> int:
        """How many values `encode` gives for an image."""
        return 4 * self.weights.shape[1]

    def encode(self, thumbnails: npt.NDArray[np.uint8]) -> Tensor:
        """The features of a batch, float32 (batch, features), each >= 0."""
        x = torch.from_numpy(thumbnails).float() / 255
        height, width = ((side - self.side) // self.stride + 1 for side in x.shape[2:])
        patches = _normalised(F.unfold(x, self.side, stride=self.stride).transpose(1, 2))
        similar = patches @ self.weights - self.offset
        encoded = F.relu(similar - similar.mean(dim=2, keepdim=True))
        maps = encoded.transpose(1, 2).reshape(len(x), -1, height, width)
        return F.adaptive_avg_pool2d(maps, 2).flatten(1).sqrt()


def learnt_encoder(thumbnails: npt.NDArray[np.uint8], positions: Int64Array, *, seed: int = 0) -> Encoder:
    """The encoder for thumbnails of this size, from those at `positions` (in canonical order, so that equal data give equal filters)."""
    channels, height, width = thumbnails.shape[1:]
    smaller = min(height, width)
    side = 3 if smaller < 16 else 5 if channels == 1 else 6
    side = min(side, smaller)
    filters = 100 if smaller < 16 else 200 if channels == 1 else 400
    patches = _normalised(torch.from_numpy(_drawn_patches(thumbnails, positions, side, seed)))
    mean = patches.mean(dim=0)
    whitening = _whitening(patches - mean)
    clusters = _clusters((patches - mean) @ whitening, filters)
    weights = whitening @ clusters.T
    return Encoder(weights, mean @ weights, side, 1 if smaller < 24 else 2)


def _drawn_patches(thumbnails: npt.NDArray[np.uint8], positions: Int64Array, side: int, seed: int) -> npt.NDArray[np.float32]:
    """Patches at random places of random images, (patches, values), in [0, 1]."""
    draws = numpy_stream(seed, "data-check/patches")
    _, height, width = thumbnails.shape[1:]
    images = positions[draws.integers(0, len(positions), _PATCHES)]
    tops, lefts = draws.integers(0, height - side + 1, _PATCHES), draws.integers(0, width - side + 1, _PATCHES)
    taken = [thumbnails[i, :, t : t + side, left : left + side].reshape(-1) for i, t, left in zip(images, tops, lefts, strict=True)]
    return np.asarray(np.stack(taken), np.float32) / np.float32(255)


def _normalised(patches: Tensor) -> Tensor:
    """Each patch (last axis) with mean 0 and about unit variance; a flat one stays near 0."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=0)
    return (patches - mean) / (variance + _CONTRAST_FLOOR).sqrt()


def _whitening(centred: Tensor) -> Tensor:
    covariance = centred.double().T @ centred.double() / len(centred)
    variances, directions = torch.linalg.eigh(covariance)
    whitening: Tensor = directions @ torch.diag((variances.clamp(min=0) + _WHITENING_FLOOR).rsqrt()) @ directions.T
    return whitening.float()


def _clusters(x: Tensor, count: int) -> Tensor:
    """Unit centroids, (count, values), of spherical k-means that starts from the first patches: they are drawn at random already."""
    centroids = F.normalize(x[: min(count, len(x))], dim=1)
    for _ in range(_ROUNDS):
        similar, nearest = (x @ centroids.T).max(dim=1)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, x * similar[:, None])
        empty = sums.norm(dim=1) < 1e-6
        centroids = torch.where(empty[:, None], centroids, F.normalize(sums, dim=1))
    return centroids
