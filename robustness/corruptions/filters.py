"""Filters that several corruptions share: Gaussian, any small kernel, motion. Each image by itself, whatever batch it stands in."""

import math
from collections.abc import Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import separable

Border = Literal["edge", "reflect", "symmetric"]
"""How an image goes on, in numpy's words: `symmetric` repeats the border pixel (scipy's reflect), `reflect` does not (OpenCV's default)."""


def gaussian(images: Float32Array, sigma: float, *, border: Border = "edge", truncate: float = 4.0) -> Float32Array:
    """Blurred with a standard deviation of `sigma` pixels: the density at whole pixels, cut at `truncate` deviations, as scipy and scikit-image do."""
    reach = int(truncate * sigma + 0.5)
    if reach == 0:
        return images
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    height, width = images.shape[2:]
    return separable(images, filter_matrix(height, kernel, border), filter_matrix(width, kernel, border))


def filter_matrix(side: int, kernel: npt.NDArray[np.float64], border: Border) -> npt.NDArray[np.float64]:
    """(side, side): the correlation of a line of pixels with `kernel`, of odd length, as a matrix."""
    reach = len(kernel) // 2
    positions = np.pad(np.arange(side), reach, mode="edge" if side == 1 else border)
    matrix = np.zeros((side, side))
    for tap, weight in enumerate(kernel):
        np.add.at(matrix, (np.arange(side), positions[tap : tap + side]), weight)
    return matrix


def correlated(images: Float32Array, kernel: npt.NDArray[np.float64]) -> Float32Array:
    """Each channel's correlation with `kernel` (odd, odd), mirrored at the border without repeating it (OpenCV's filter2D)."""
    reach_y, reach_x = kernel.shape[0] // 2, kernel.shape[1] // 2
    height, width = images.shape[2:]
    padded = np.take(images, np.pad(np.arange(height), reach_y, mode="reflect" if height > 1 else "edge"), axis=2)
    padded = np.take(padded, np.pad(np.arange(width), reach_x, mode="reflect" if width > 1 else "edge"), axis=3)
    total = np.zeros(images.shape, dtype=np.float32)
    term = np.empty_like(total)
    for row, column in np.argwhere(kernel != 0):
        np.multiply(padded[:, :, row : row + height, column : column + width], np.float32(kernel[row, column]), out=term)
        total += term
    return total


def motion(images: Float32Array, radius: float, sigma: float, angles: Iterable[float]) -> Float32Array:
    """Each image smeared along its own angle, in degrees: ImageMagick's MotionBlurImage, the edge repeated.

    A half Gaussian over 2 · ceil(radius) + 1 whole pixels in one direction, so the image also moves.
    """
    taps = 2 * math.ceil(radius) + 1
    weights = np.exp(-0.5 * (np.arange(taps) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    height, width = images.shape[2:]
    smeared = np.zeros(images.shape, dtype=np.float32)
    padded = np.pad(images, ((0, 0), (0, 0), (taps, taps), (taps, taps)), mode="edge")
    term = np.empty(images.shape[1:], dtype=np.float32)
    for image, total, angle in zip(padded, smeared, angles, strict=True):
        turned = math.radians(angle)
        for tap, weight in enumerate(weights):
            down, right = math.ceil(tap * math.sin(turned) - 0.5), math.ceil(tap * math.cos(turned) - 0.5)
            top, left = taps + down, taps + right
            np.multiply(image[:, top : top + height, left : left + width], weight, out=term)
            np.add(total, term, out=total)
    return smeared
