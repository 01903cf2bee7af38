"""Encoded images (PNG, JPEG, BMP) to pixels, with Pillow; a damaged one is named."""

import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from kdpipe.foundation.errors import ConfigError

Colour = Literal["L", "RGB"]
"""Pillow's names for one grey channel and for red, green, blue."""

_FORMATS = ("PNG", "JPEG", "BMP")
_GREY_MODES = frozenset({"1", "L", "LA"})
_COLOUR_MODES = frozenset({"P", "RGB", "RGBA", "PA", "CMYK", "YCbCr"})


@dataclass(frozen=True)
class Header:
    """What an image says of itself before it is decoded; sizes in pixels."""

    height: int
    width: int
    colour: Colour


def header(content: Any, *, at: str) -> Header:
    """The header of an encoded image: bytes, or a binary file. ConfigError when it is none of PNG, JPEG, BMP, or not 8 bits a channel."""
    with _opened(content, at=at) as image:
        if image.mode not in _GREY_MODES | _COLOUR_MODES:
            raise ConfigError(f"image mode {image.mode!r} is not 8 bits a channel", at=at, do="convert the images to 8-bit grey or RGB")
        return Header(image.height, image.width, "L" if image.mode in _GREY_MODES else "RGB")


def decoded(content: bytes | memoryview, colour: Colour, shape: tuple[int, int, int], *, at: str) -> npt.NDArray[np.uint8]:
    """The image's pixels, uint8 `shape` (channels, height, width); transparency is dropped.

    ConfigError when it is damaged or cut short, or of another size.
    """
    with _opened(content, at=at) as image:
        try:
            pixels = np.asarray(image.convert(colour))
        except (OSError, SyntaxError, ValueError) as error:  # Pillow's words for damage; a broken PNG chunk is a SyntaxError
            raise ConfigError(f"the image is damaged or cut short: {error}", at=at, do="replace or remove the image") from error
    if pixels.shape[:2] != shape[1:]:
        found, expected = pixels.shape[:2], shape[1:]
        raise ConfigError(
            f"images of unequal size: {found[1]}x{found[0]} here, {expected[1]}x{expected[0]} before", at=at, do="scale or crop all images to one size"
        )
    return pixels[None] if colour == "L" else pixels.transpose(2, 0, 1)


def _opened(content: Any, *, at: str) -> Image.Image:
    file = io.BytesIO(content) if isinstance(content, bytes | memoryview) else content
    try:
        return Image.open(file, formats=_FORMATS)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # UnidentifiedImageError is an OSError
        raise ConfigError("not a readable PNG, JPEG or BMP image", at=at, do="replace or remove the file") from error
