"""Corrupted images: what a cheap sensor, a bad light or a transmission does to them, at five severities.

Each corruption is one file in `robustness/corruptions`. The idea: Hendrycks & Dietterich 2019 (arXiv:1903.12261). The six of `standard` have strengths of
our own, which grow with the image's side so that they mean something from 8x8 on; those of `common` and `extra` have the published ones.
"""

from collections.abc import Iterator, Mapping, Sequence
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
"""Six that need nothing but the image, at strengths of our own that mean something from 8 pixels on."""

COMMON = (
    "gaussian-noise-c",
    "shot-noise",
    "impulse-noise",
    "defocus-blur",
    "glass-blur",
    "motion-blur",
    "zoom-blur",
    "snow",
    "frost",
    "fog",
    "brightness-c",
    "contrast-c",
    "elastic-transform",
    "pixelate-c",
    "jpeg-compression",
)
"""The 15 of CIFAR-10-C and ImageNet-C at their published strengths (`-c`: those that we have at other strengths, too)."""

EXTRA = ("speckle-noise", "gaussian-blur-c", "spatter", "saturate")
"""Their four more, meant for choosing (augmentations, thresholds), so that the 15 stay unseen."""

SETS: Mapping[str, tuple[str, ...]] = {"standard": STANDARD, "common": COMMON, "extra": EXTRA}
"""What `[evaluate] corruptions` calls them."""

_OF_COLOURS = ("saturate",)

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


Generators = Sequence[np.random.Generator]
"""One generator for each sample, from which all is drawn that the sample needs, in the order of the calls."""


def normal(generators: Generators, shape: tuple[int, ...]) -> Float32Array:
    """Standard normal draws (n, *shape), each sample's from its own generator."""
    drawn = np.empty((len(generators), *shape), dtype=np.float32)
    for sample, generator in zip(drawn, generators, strict=True):
        generator.standard_normal(dtype=np.float32, out=sample)
    return drawn


def uniform(generators: Generators, shape: tuple[int, ...], low: float, high: float) -> Float32Array:
    """Uniform draws (n, *shape) in [low, high), each sample's from its own generator."""
    drawn = np.empty((len(generators), *shape), dtype=np.float32)
    for sample, generator in zip(drawn, generators, strict=True):
        generator.random(dtype=np.float32, out=sample)
    drawn *= np.float32(high - low)
    drawn += np.float32(low)
    return drawn


class Corruption(Protocol):
    """The plug-in of a file: images (n, channels, height, width), float32 in [0, 1], to corrupted ones of the same kind; values outside are clipped for it."""

    def __call__(self, images: Float32Array, severity: int, draws: Draws) -> Float32Array:
        """The corrupted images; `severity` 1 to 5."""
        ...


def corrupt(name: str, images: Float32Array, severity: int, *, seed: int, indices: npt.NDArray[np.int64]) -> Float32Array:
    """The images corrupted by `name` at `severity` (1 weak to 5 strong): same shape, float32 in [0, 1]; the argument is not changed.

    `images`: (n, channels, height, width), float32 in [0, 1]. `indices`: (n,) of the samples in their split: equal (seed, name,
    severity, index) give the equal image. Raises ConfigError for an unknown name, another severity, and samples that are not images.
    """
    if severity not in SEVERITIES:
        raise ConfigError(
            f"severity {severity} is not one of 1 to 5", at="[evaluate] corruptions", do="1 is weak, 5 strong; the image itself is the clean figure"
        )
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


def suiting(corruptions: tuple[str, ...], channels: int) -> tuple[str, ...]:
    """Those of a set that change images of so many channels: `saturate` leaves grey ones as they are, and clean accuracy would count as accuracy under it."""
    return tuple(name for name in corruptions if channels != 1 or name not in _OF_COLOURS)


def separable(images: Float32Array, rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]) -> Float32Array:
    """A linear map of rows (height, height) and one of columns (width, width) applied to every channel."""
    return cast(Float32Array, rows.astype(np.float32) @ images @ columns.astype(np.float32).T)
