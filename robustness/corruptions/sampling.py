"""Images looked at elsewhere than at whole pixels: zoomed from the middle, and bent."""

import math
from typing import cast

import numpy as np
import numpy.typing as npt

from kdpipe.foundation.predictor import Float32Array


def zoom_matrix(side: int, factor: float) -> npt.NDArray[np.float64]:
    """(side, side): the middle of a line of pixels enlarged `factor` >= 1 times, linearly: the published `clipped_zoom` along one axis.

    The middle ceil(side / factor) pixels become round(that · factor), the outermost on the outermost, of which again the middle is taken.
    """
    kept = math.ceil(side / factor)
    enlarged = max(round(kept * factor), side)
    first, trimmed = (side - kept) // 2, (enlarged - side) // 2
    position = (np.arange(side) + trimmed) * ((kept - 1) / max(enlarged - 1, 1))
    below = np.minimum(position.astype(np.int64), kept - 1)
    fraction = position - below
    matrix = np.zeros((side, side))
    rows = np.arange(side)
    np.add.at(matrix, (rows, first + below), 1 - fraction)
    np.add.at(matrix, (rows, first + np.minimum(below + 1, kept - 1)), fraction)
    return matrix


def sampled(images: Float32Array, rows: npt.NDArray[np.float32], columns: npt.NDArray[np.float32], *, repeat_edge: bool) -> Float32Array:
    """Each image at its own positions (n, height, width), in pixels, bilinear; mirrored at the border, which is repeated (scipy's reflect) or not."""
    samples, channels, height, width = images.shape
    top, left = np.floor(rows), np.floor(columns)
    down, right = (rows - top)[:, None], (columns - left)[:, None]
    above, below = _mirrored(top, height, repeat_edge), _mirrored(top + 1, height, repeat_edge)
    before, after = _mirrored(left, width, repeat_edge), _mirrored(left + 1, width, repeat_edge)
    flat = images.reshape(samples, channels, height * width)

    def corner(row: npt.NDArray[np.int32], column: npt.NDArray[np.int32]) -> Float32Array:
        places = (row * width + column).reshape(samples, 1, -1)
        return np.take_along_axis(flat, places, axis=2).reshape(images.shape)

    upper = corner(above, before) * (1 - right) + corner(above, after) * right
    lower = corner(below, before) * (1 - right) + corner(below, after) * right
    return cast(Float32Array, upper * (1 - down) + lower * down)


def _mirrored(positions: npt.NDArray[np.float32], side: int, repeat_edge: bool) -> npt.NDArray[np.int32]:
    """Whole positions brought into [0, side)."""
    period = 2 * side if repeat_edge else max(2 * side - 2, 1)
    within = positions.astype(np.int32) % period
    return np.minimum(within, period - (1 if repeat_edge else 0) - within) if side > 1 else np.zeros_like(within)
