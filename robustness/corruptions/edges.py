"""Edges of grey 8-bit images and the distance to them, as OpenCV finds them: what the published droplets are made of.

Source: OpenCV 4, `Canny` (aperture 3, L1 gradient), `distanceTransform`, `equalizeHist`. The distance is exact here; OpenCV's is within 2 % of it.
"""

import numpy as np
import numpy.typing as npt

from kdpipe.foundation.predictor import Float32Array

BoolArray = npt.NDArray[np.bool_]
Int32Array = npt.NDArray[np.int32]

_TAN_22 = np.tan(np.pi / 8)
_TAN_67 = np.tan(3 * np.pi / 8)


def canny(images: Int32Array, low: int, high: int) -> BoolArray:
    """Where edges are, (n, height, width): ridges of the gradient above `high`, and those above `low` that touch them."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="edge")
    smooth_y = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    smooth_x = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    across, down = smooth_y[:, :, 2:] - smooth_y[:, :, :-2], smooth_x[:, 2:] - smooth_x[:, :-2]
    size = np.abs(across) + np.abs(down)
    ridge = (size > low) & _thin(size, across, down)
    strong = ridge & (size > high)
    while True:
        touched = ridge & _neighbourhood(strong)
        if np.array_equal(touched, strong):
            return strong
        strong = touched


def distance(edges: BoolArray, furthest: int) -> Float32Array:
    """Pixels from each place to the nearest edge of its image, at most `furthest`; (n, height, width)."""
    height, width = edges.shape[1:]
    far = np.int32(furthest * furthest)
    squared = np.where(edges, np.int32(0), far)
    for axis, side in ((1, height), (2, width)):
        nearest = squared.copy()
        for step in range(1, min(furthest, side - 1) + 1):
            later, earlier = _from(axis, step, side), _from(axis, 0, side - step)
            nearest[later] = np.minimum(nearest[later], squared[earlier] + step * step)
            nearest[earlier] = np.minimum(nearest[earlier], squared[later] + step * step)
        squared = nearest
    return np.sqrt(np.minimum(squared, far)).astype(np.float32)


def equalized(images: Int32Array) -> Int32Array:
    """8-bit images (n, height, width) with their tones made equally frequent; one of a single tone stays."""
    samples, pixels = len(images), images[0].size
    counts = np.zeros((samples, 256), dtype=np.int64)
    np.add.at(counts, (np.repeat(np.arange(samples), pixels), images.reshape(-1)), 1)
    darkest = counts[np.arange(samples), images.reshape(samples, -1).min(axis=1)][:, None]
    scale = 255 / np.maximum(pixels - darkest, 1)
    table = np.rint((counts.cumsum(axis=1) - darkest) * scale).clip(0, 255).astype(np.int32)
    table = np.where(pixels == darkest, np.arange(256, dtype=np.int32), table)
    result: Int32Array = np.take_along_axis(table, images.reshape(samples, -1), axis=1).reshape(images.shape)
    return result


def _thin(size: Int32Array, across: Int32Array, down: Int32Array) -> BoolArray:
    """Where the gradient is largest along its own direction, of four."""
    around = np.pad(size, ((0, 0), (1, 1), (1, 1)))
    height, width = size.shape[1:]

    def beside(dy: int, dx: int) -> Int32Array:
        return around[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    flat, steep = np.abs(down) < _TAN_22 * np.abs(across), np.abs(down) > _TAN_67 * np.abs(across)
    falling = (across < 0) == (down < 0)
    diagonal = np.where(falling, (size > beside(-1, -1)) & (size > beside(1, 1)), (size > beside(-1, 1)) & (size > beside(1, -1)))
    upright = (size > beside(-1, 0)) & (size >= beside(1, 0))
    level = (size > beside(0, -1)) & (size >= beside(0, 1))
    result: BoolArray = np.where(flat, level, np.where(steep, upright, diagonal))
    return result


def _neighbourhood(marked: BoolArray) -> BoolArray:
    """The marked pixels and their eight neighbours."""
    padded = np.pad(marked, ((0, 0), (1, 1), (0, 0)))
    tall = padded[:, :-2] | padded[:, 1:-1] | padded[:, 2:]
    padded = np.pad(tall, ((0, 0), (0, 0), (1, 1)))
    result: BoolArray = padded[:, :, :-2] | padded[:, :, 1:-1] | padded[:, :, 2:]
    return result


def _from(axis: int, start: int, end: int) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, slice(start, end))
