"""Clouds: height maps by the diamond-square algorithm, as the published fog is made of. Source: hendrycks/robustness, `plasma_fractal`."""

import math

import numpy as np

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Generators, uniform

_ROUGHNESS = 100.0


def plasma(generators: Generators, shape: tuple[int, int], decay: float) -> Float32Array:
    """A map (n, 1, *shape) in [0, 1] for each generator; the larger `decay`, the smoother. On the next power of two, of which a corner is taken.

    Both ends of the range are reached on the whole map, which wraps around.
    """
    side = 2 ** math.ceil(math.log2(max(*shape, 2)))
    draws = uniform(generators, (side * side - 1,), -1, 1)
    field = np.zeros((len(generators), side, side), dtype=np.float32)
    used, step, roughness = 0, side, _ROUGHNESS
    while step >= 2:
        half, cells = step // 2, side // step

        def shaken(total: Float32Array, wibble: float = roughness, at: int = used, count: int = cells) -> Float32Array:
            noise = draws[:, at : at + count * count].reshape(total.shape)
            result: Float32Array = total / 4 + np.float32(wibble * wibble) * noise
            return result

        corners = field[:, ::step, ::step]
        across = corners + np.roll(corners, -1, axis=1)
        field[:, half::step, half::step] = shaken(across + np.roll(across, -1, axis=2))
        centres, corners = field[:, half::step, half::step], field[:, ::step, ::step]
        field[:, ::step, half::step] = shaken(centres + np.roll(centres, 1, axis=1) + corners + np.roll(corners, -1, axis=2), at=used + cells * cells)
        field[:, half::step, ::step] = shaken(centres + np.roll(centres, 1, axis=2) + corners + np.roll(corners, -1, axis=1), at=used + 2 * cells * cells)
        used, step, roughness = used + 3 * cells * cells, half, roughness / decay
    field -= field.min(axis=(1, 2), keepdims=True)
    field /= np.maximum(field.max(axis=(1, 2), keepdims=True), 1e-12)
    return field[:, None, : shape[0], : shape[1]]
