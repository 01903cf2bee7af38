"""Corrupted images: what a cheap sensor, a bad light or a transmission does to them, at five severities.

Each corruption is one file in `robustness/corruptions`. The idea and most scales: Hendrycks & Dietterich 2019 (arXiv:1903.12261); the
strengths here grow with the image's side so that they mean something from 8x8 on, and are **not** those of CIFAR-10-C or ImageNet-C.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.plugins import find
from kdpipe.foundation.predictor import Float32Array
from kdpipe.foundation.randomness import numpy_stream

SEVERITIES = (1, 2, 3, 4, 5)
STANDARD = ("gaussian-noise", "gaussian-blur", "contrast", "brightness", "pixelate", "jpeg")
_PACKAGE = "kdpipe.robustness.corruptions"


@dataclass(frozen=True)
class Draws:
    """The randomness of one use, a stream for each sample by its index: what a sample gets does not depend on its batch."""

    seed: int
    name: str
    indices: npt.NDArray[np.int64]

    def generators(self) -> Iterator[np.random.Generator]:
        """One generator for each sample, in order."""
        return (numpy_stream(self.seed, f"{self.name}/sample-{index}") for index in self.indices)


class Corruption(Protocol):
    """The plug-in of a file: images (n, channels, height, width), float32 in [0, 1], to corrupted ones of the same kind; values outside are clipped for it."""

    def __call__(self, images: Float32Array, severity: int, draws: Draws) -> Float32Array:
        """The corrupted images; `severity` 1 to 5."""
        ...


def corrupt(name: str, images: Float32Array, severity: int, *, seed: int, indices: npt.NDArray[np.int64]) -> Float32Array:
    """The images corrupted by `name` at `severity` (1 weak to 5 strong): same shape, float32 in [0, 1]; the argument is not changed.

    `images`: (n, channels, height, width), float32 in [0, 1]. `indices`: (n,) of the samples in their split: equal (seed, name,
    severity, index) give the equal image. Raises ConfigError for an unknown name, and for samples that are not images.
    """
    if images.ndim != 4:
        raise ConfigError(
            f"corruptions need images (n, channels, height, width), these samples are {images.shape}", at="[evaluate] corruptions", do="set corruptions = []"
        )
    corruption = corruption_named(name)
    corrupted = corruption(images, severity, Draws(seed, f"corruption/{name}-{severity}", indices))
    return np.clip(corrupted, 0, 1).astype(np.float32, copy=False)


def corruption_named(name: str, *, at: str = "[evaluate] corruptions") -> Corruption:
    """The plug-in called `name` (`gaussian-noise`, or `package.module:function`); ConfigError with the nearest name where there is none."""
    return cast(Corruption, find(_PACKAGE, name, at=at))


def separable(images: Float32Array, rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]) -> Float32Array:
    """A linear map of rows (height, height) and one of columns (width, width) applied to every channel."""
    return cast(Float32Array, rows.astype(np.float32) @ images @ columns.astype(np.float32).T)
