"""Hue, saturation and value of images of any number of channels, and their grey."""

from typing import cast

import numpy as np

from kdpipe.foundation.predictor import Float32Array

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601-2, as OpenCV and Pillow have it


def brightened(images: Float32Array, added: float) -> Float32Array:
    """The largest channel raised by `added` (to at most 1), the others in proportion: V of HSV; black turns grey."""
    value = images.max(axis=1, keepdims=True)
    brighter = np.minimum(value + np.float32(added), 1)
    saturation = np.divide(images, value, out=np.ones_like(images), where=value > 0)
    result: Float32Array = saturation * brighter
    return result


def resaturated(images: Float32Array, factor: float, added: float) -> Float32Array:
    """Saturation (S of HSV) times `factor` plus `added`, in [0, 1]; hue and value kept. Grey pixels have hue 0: what is added makes them red."""
    value, low = images.max(axis=1, keepdims=True), images.min(axis=1, keepdims=True)
    spread = value - low
    saturation = np.divide(spread, value, out=np.zeros_like(value), where=value > 0)
    saturation = np.clip(saturation * np.float32(factor) + np.float32(added), 0, 1)
    share = np.divide(value - images, spread, out=np.ones_like(images), where=spread > 0)  # how far from the largest channel to the smallest
    share[:, :1][spread == 0] = 0
    result: Float32Array = value * (1 - saturation * share)
    return result


def grey(images: Float32Array) -> Float32Array:
    """(n, 1, height, width): luma of three channels, else the channels' mean."""
    if images.shape[1] != 3:
        return cast(Float32Array, images.mean(axis=1, keepdims=True))
    red, green, blue = _LUMA
    result: Float32Array = red * images[:, :1] + green * images[:, 1:2] + blue * images[:, 2:]
    return result


def tinted(colour: tuple[float, float, float], channels: int) -> Float32Array:
    """A colour (red, green, blue) as (1, channels, 1, 1): as it is for three channels, else its luma in each."""
    values = np.array(colour, dtype=np.float32)
    return (values if channels == 3 else np.full(channels, values @ _LUMA, dtype=np.float32)).reshape(1, channels, 1, 1)
