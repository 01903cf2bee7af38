"""Fashion-MNIST, or any folder of four idx files as MNIST has them, gzipped or plain: 28x28 grey, a training and a test set.

Source: Xiao et al. 2017 (arXiv:1708.07747); the idx format: yann.lecun.com/exdb/mnist (big-endian: magic number, one length per axis, bytes).
"""

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.foundation.errors import ConfigError
from kdpipe.tasks.data.source import PartName, Source, source_of_arrays

NAME = "fashion-mnist"
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

_PREFIXES: dict[PartName, str] = {"train": "train", "test": "t10k"}
_IMAGES, _LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
_UNSIGNED_BYTES = 0x08
_AGAIN = "copy or download the file again"


def recognises(folder: Path) -> bool:
    """Whether the training images lie in `folder` under their usual name."""
    return any(path.is_file() for path in _candidates(folder, f"train-{_IMAGES}"))


def load(folder: Path, *, name: str = NAME, classes: tuple[str, ...] | None = None) -> Source:
    """The two sets; uint8. ConfigError names the file that is missing, damaged, cut short or of another format."""
    files = {part: (_file(folder, f"{prefix}-{_IMAGES}"), _file(folder, f"{prefix}-{_LABELS}")) for part, prefix in _PREFIXES.items()}
    sets = {part: (read_idx(images, axes=3), read_idx(labels, axes=1)) for part, (images, labels) in files.items()}
    return source_of_arrays(name, sets, at={part: str(images) for part, (images, _) in files.items()}, classes=classes)


def read_idx(path: Path, *, axes: int) -> npt.NDArray[Any]:
    """The array of unsigned bytes in an idx file of `axes` axes."""
    content = _content(path)
    size = 4 + 4 * axes
    if len(content) < size or content[:3] != bytes([0, 0, _UNSIGNED_BYTES]) or content[3] != axes:
        raise ConfigError(f"this is not an idx file of unsigned bytes with {axes} axes", at=path, do=_AGAIN)
    shape = tuple(int(length) for length in np.frombuffer(content, ">u4", axes, offset=4))
    expected = int(np.prod(shape, dtype=np.int64))
    if len(content) - size != expected:
        raise ConfigError(f"the file holds {len(content) - size} bytes of data, its header announces {expected}", at=path, do=_AGAIN)
    return np.frombuffer(content, np.uint8, offset=size).reshape(shape)


def _content(path: Path) -> bytes:
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:  # a file cut short raises EOFError, a wrong checksum BadGzipFile (an OSError)
        raise ConfigError(f"the file is damaged or cut short: {error}", at=path, do=_AGAIN) from error


def _candidates(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.gz", folder / name


def _file(folder: Path, name: str) -> Path:
    for path in _candidates(folder, name):
        if path.is_file():
            return path
    raise ConfigError(f"no file {name}.gz here", at=folder, do="put the four files of the data set into this folder, or name theirs by path = … in [task]")
