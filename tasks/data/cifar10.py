"""CIFAR-10 as JPEG files inside an `.npz`, and any set in that format; decoded when read.

Arrays: `jpeg` (uint8, all files one after the other), `offsets` (int64, n + 1: where each begins), `labels`, optional `classes`.
The pair `<name>-train.npz` and `<name>-test.npz` is a training and a test set.
"""

import zipfile
from pathlib import Path

import numpy as np

from kdpipe.foundation.errors import ConfigError
from kdpipe.tasks.data.checks import checked_labels
from kdpipe.tasks.data.decoding import header
from kdpipe.tasks.data.npz import class_names, read_npz
from kdpipe.tasks.data.samples import EncodedSamples
from kdpipe.tasks.data.source import Part, Source

NAME = "cifar10"
_FILE = "cifar10-jpeg-train.npz"
_MEMBERS = {"jpeg.npy", "offsets.npy", "labels.npy"}


def recognises(path: Path) -> bool:
    """Whether `path` is such a file, or a folder that holds CIFAR-10's."""
    if path.is_dir():
        return (path / _FILE).is_file()
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return set(file.namelist()) >= _MEMBERS


def load(path: Path, *, name: str | None = None, classes: tuple[str, ...] | None = None) -> Source:
    """The sets at `path`: a file, or a folder that holds CIFAR-10's two. ConfigError says what is missing or damaged."""
    train = path / _FILE if path.is_dir() else path
    part, own = _part(train, classes)
    test_file = train.with_name(train.name.replace("-train.npz", "-test.npz"))
    test = _part(test_file, own)[0] if test_file != train and test_file.is_file() else None
    if test is not None and test.samples.shape != part.samples.shape:
        raise ConfigError(
            f"images of unequal size: {test.samples.shape} in the test set, {part.samples.shape} in the training set",
            at=test_file,
            do="scale all images to one size",
        )
    return Source(name or train.stem.removesuffix("-train"), own, part, test=test)


def _part(path: Path, classes: tuple[str, ...] | None) -> tuple[Part, tuple[str, ...]]:
    arrays = read_npz(path)
    missing = sorted(member.removesuffix(".npy") for member in _MEMBERS if member.removesuffix(".npy") not in arrays)
    if missing:
        raise ConfigError(f"the file has no {', '.join(missing)}", at=path, do="store 'jpeg', 'offsets' and 'labels'; the format: docs/data.md")
    jpeg, offsets = arrays["jpeg"], arrays["offsets"]
    if offsets.ndim != 1 or len(offsets) < 2 or offsets.dtype.kind not in "iu":
        raise ConfigError(f"'offsets' is {offsets.dtype} of the shape {offsets.shape}", at=path, do="store n + 1 integers for n images")
    if jpeg.dtype != np.uint8 or jpeg.ndim != 1 or offsets[0] != 0 or offsets[-1] != len(jpeg) or (np.diff(offsets.astype(np.int64)) <= 0).any():
        raise ConfigError(
            "'offsets' does not cut 'jpeg' into images", at=path, do="let offsets rise from 0 to the length of jpeg, with one step for each image"
        )
    labels = checked_labels(arrays["labels"], len(offsets) - 1, at=str(path))
    if labels.dtype.kind == "U":
        raise ConfigError("labels are names", at=path, do="store class indices, and the names in 'classes'")
    content = np.ascontiguousarray(jpeg).data
    first = header(content[: offsets[1]], at=f"{path}, image 0")
    shape = (1 if first.colour == "L" else 3, first.height, first.width)
    samples = EncodedSamples(content, offsets.astype(np.int64), shape, first.colour, str(path))
    names = classes or class_names(arrays, path) or tuple(str(index) for index in range(int(labels.max()) + 1))
    return Part(samples, labels, str(path)), names
