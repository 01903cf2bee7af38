"""Lossy transmission: the image written and read back as JPEG."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from PIL import Image

from kdpipe.foundation.predictor import Float32Array
from kdpipe.robustness.corruption import Draws

_QUALITY = (60, 40, 25, 15, 7)  # of 100; CIFAR-10-C: 80 to 40, ImageNet-C: 25 to 7
_BLOCK = 8
_TALLEST = 65_000  # JPEG's limit is 65,535 rows
_THREADS = 2  # Pillow encodes and decodes outside the interpreter's lock

Uint8Array = npt.NDArray[np.uint8]


def jpeg(images: Float32Array, severity: int, draws: Draws) -> Float32Array:
    """The images at quality 60 to 7."""
    return compressed(images, _QUALITY[severity - 1])


def compressed(images: Float32Array, quality: int) -> Float32Array:
    """The images rounded to 8 bits and compressed; colour with halved chroma resolution (4:2:0), other than 3 channels each as grey."""
    pixels = np.rint(images * 255).astype(np.uint8)
    if images.shape[1] == 3:
        with ThreadPoolExecutor(_THREADS) as pool:
            colour = list(pool.map(lambda image: _through_jpeg(image, quality), pixels.transpose(0, 2, 3, 1)))
        result = np.stack(colour).transpose(0, 3, 1, 2)
    else:
        height, width = images.shape[2:]
        result = _grey(pixels.reshape(-1, height, width), quality).reshape(images.shape)
    return np.ascontiguousarray(result, dtype=np.float32) / np.float32(255)


def _grey(pixels: Uint8Array, quality: int) -> Uint8Array:
    """Many grey images through few files: stacked, because JPEG codes grey blocks of 8x8 independently, and one file for each costs ten times as much.

    Edges are repeated up to the block, as libjpeg does. The tests compare with one file for each image, bit by bit.
    """
    _, height, width = pixels.shape
    padded = np.pad(pixels, ((0, 0), (0, -height % _BLOCK), (0, -width % _BLOCK)), mode="edge")
    per_file = max(1, _TALLEST // padded.shape[1])
    parts = [padded[at : at + per_file] for at in range(0, len(padded), per_file)]
    restored = [_through_jpeg(part.reshape(-1, padded.shape[2]), quality).reshape(part.shape) for part in parts]
    return np.concatenate(restored)[:, :height, :width]


def _through_jpeg(pixels: Uint8Array, quality: int) -> Uint8Array:
    """(height, width) or (height, width, 3)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=quality)
    with Image.open(file) as image:
        return np.asarray(image)


plugin = jpeg
