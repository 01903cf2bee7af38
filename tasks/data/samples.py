"""Where pixels come from: an array in memory, encoded images in memory, or image files; read by row, decoded when read.

`Samples` is one source's pile of images in their own order. `RowsSplit` is a `Split`: some rows of a pile, and their labels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kdpipe.foundation.errors import ConfigError
from kdpipe.tasks.data.decoding import Colour, decoded
from kdpipe.tasks.data.splits import Float32Array, Int64Array

CHUNK_ROWS = 1024
"""Rows that are read, hashed or counted at a time, so that memory stays flat."""

Pixels = npt.NDArray[Any]
"""uint8 in 0 to 255, or float32 in [0, 1]; (rows, channels, height, width)."""


class Samples(Protocol):
    """The images of one source, by row."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """One image: channels, height, width."""
        ...

    @property
    def storage(self) -> str:
        """What `stored` yields: 'uint8', 'float32' (little-endian pixels) or 'file' (encoded images)."""
        ...

    def __len__(self) -> int: ...

    def pixels(self, rows: Int64Array) -> Pixels:
        """The images at `rows`, decoded. ConfigError names the one that cannot be."""
        ...

    def stored(self, rows: Int64Array) -> Iterator[bytes | memoryview]:
        """The content of `rows` as it is kept, in order, for the digest; nothing is decoded."""
        ...


@dataclass(frozen=True, eq=False)
class ArraySamples:
    """Images in memory: `images` is uint8 or float32, (n, channels, height, width), checked."""

    images: Pixels

    @property
    def shape(self) -> tuple[int, int, int]:
        """See `Samples`."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def storage(self) -> str:
        """See `Samples`."""
        return str(self.images.dtype)

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, rows: Int64Array) -> Pixels:
        """See `Samples`."""
        return self.images[rows]

    def stored(self, rows: Int64Array) -> Iterator[bytes | memoryview]:
        """See `Samples`."""
        little_endian = self.images.dtype.newbyteorder("<")
        for chunk in chunks(rows):
            yield np.ascontiguousarray(self.images[chunk], dtype=little_endian).data


@dataclass(frozen=True, eq=False)
class EncodedSamples:
    """Encoded images one after the other: the one at row i is `content[offsets[i]:offsets[i + 1]]`. `at` is told in errors."""

    content: memoryview
    offsets: Int64Array
    shape: tuple[int, int, int]
    colour: Colour
    at: str
    storage: str = "file"

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def pixels(self, rows: Int64Array) -> Pixels:
        """See `Samples`."""
        result = np.empty((len(rows), *self.shape), np.uint8)
        for place, row in enumerate(rows):
            result[place] = decoded(self._bytes(row), self.colour, self.shape, at=f"{self.at}, image {row}")
        return result

    def stored(self, rows: Int64Array) -> Iterator[bytes | memoryview]:
        """See `Samples`."""
        return (self._bytes(row) for row in rows)

    def _bytes(self, row: np.int64) -> memoryview:
        return self.content[self.offsets[row] : self.offsets[row + 1]]


@dataclass(frozen=True, eq=False)
class FileSamples:
    """Image files below `folder`, opened when read. `lenient`: one that cannot be opened counts as empty in the digest, and is refused when read."""

    folder: Path
    names: tuple[str, ...]
    shape: tuple[int, int, int]
    colour: Colour
    storage: str = "file"
    lenient: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def pixels(self, rows: Int64Array) -> Pixels:
        """See `Samples`."""
        result = np.empty((len(rows), *self.shape), np.uint8)
        for place, row in enumerate(rows):
            result[place] = decoded(self._bytes(row), self.colour, self.shape, at=str(self.folder / self.names[row]))
        return result

    def stored(self, rows: Int64Array) -> Iterator[bytes | memoryview]:
        """See `Samples`."""
        return (self._stored(row) for row in rows)

    def _stored(self, row: np.int64) -> bytes:
        try:
            return self._bytes(row)
        except ConfigError:
            if self.lenient:
                return b""
            raise

    def _bytes(self, row: np.int64) -> bytes:
        path = self.folder / self.names[row]
        try:
            return path.read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read the image: {error.strerror or error}", at=path, do="put the file back, or make it readable") from error


@dataclass(frozen=True, eq=False)
class RowsSplit:
    """A split: `rows` of `samples` and their `labels`, (n,). Reading converts to float32 in [0, 1]."""

    samples: Samples
    rows: Int64Array
    labels: Int64Array

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: Int64Array) -> Float32Array:
        """See `Split`."""
        return as_float32(self.samples.pixels(self.rows[indices]))


def as_float32(pixels: Pixels) -> Float32Array:
    """`pixels` in [0, 1]: uint8 divided by 255, float32 as it is."""
    if pixels.dtype == np.uint8:
        return np.divide(pixels, np.float32(255), dtype=np.float32)
    return np.ascontiguousarray(pixels, dtype=np.float32)


def chunks(rows: Int64Array, size: int = CHUNK_ROWS) -> Iterator[Int64Array]:
    """`rows` in pieces of at most `size`."""
    return (rows[start : start + size] for start in range(0, len(rows), size))
