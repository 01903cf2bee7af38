"""An `.npz` file: `images` and `labels`, or one pair for each set as in MedMNIST: `train_images`, `train_labels`, `val_…`, `test_…`.

Optional `classes`: the classes' names. Never reads pickled objects.
"""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdpipe.foundation.errors import ConfigError
from kdpipe.tasks.data.checks import Layout
from kdpipe.tasks.data.source import PartName, Source, source_of_arrays

_ZIP_SIGNATURE = b"PK"
_PREFIXES: dict[PartName, tuple[str, ...]] = {"train": ("train_", ""), "validation": ("val_", "validation_"), "test": ("test_",)}


def load(path: Path, *, classes: tuple[str, ...] | None = None, layout: Layout | None = None, lenient: bool = False) -> Source:
    """The sets in the file at `path`; `classes` names them where the file does not, or differently. `lenient`: see `found`."""
    arrays = read_npz(path)
    pairs = {part: _pair(arrays, prefixes, path) for part, prefixes in _PREFIXES.items()}
    sets = {part: pair for part, pair in pairs.items() if pair is not None}
    if "train" not in sets:
        found = ", ".join(sorted(arrays)) or "nothing"
        raise ConfigError(f"no training images: the file holds {found}", at=path, do="store 'images' and 'labels', or 'train_images' and 'train_labels'")
    at = {part: f"{path}, {part}" for part in sets}
    return source_of_arrays(path.stem, sets, at=at, classes=classes or class_names(arrays, path), layout=layout, lenient=lenient)


def read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """All arrays of the file, by name. ConfigError when it is missing, damaged, cut short or holds pickled objects."""
    try:
        # Opened here: numpy leaves a file open when it cannot read it (2.4).
        with path.open("rb") as file:
            if file.read(2) != _ZIP_SIGNATURE:
                raise ConfigError("this is not an .npz file of named arrays", at=path, do="write it with numpy.savez(path, images=…, labels=…)")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: _array(arrays, name, path) for name in arrays.files}
    except FileNotFoundError as error:
        raise ConfigError("no such file", at=path, do="check [task] data; relative paths start at the project's folder") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError) as error:
        raise ConfigError(f"the file is damaged or cut short: {error}", at=path, do="copy or make the file again") from error
    except ValueError as error:
        if "pickle" in str(error):
            raise ConfigError(
                "the file holds pickled objects, which are never read", at=path, do="store plain arrays: images of one size, labels as integers"
            ) from error
        raise ConfigError(f"the file is damaged or cut short: {error}", at=path, do="copy or make the file again") from error


def _array(arrays: Mapping[str, npt.NDArray[Any]], name: str, path: Path) -> npt.NDArray[Any]:
    try:
        return arrays[name]
    except (MemoryError, OverflowError) as error:  # what the array's header says is believed first
        raise ConfigError(
            f"the array {name!r} does not fit into memory",
            at=path,
            do="check that the file is whole; a set larger than memory: a folder of class folders, whose images stay on disk",
        ) from error


def class_names(arrays: Mapping[str, npt.NDArray[Any]], path: Path) -> tuple[str, ...] | None:
    """The array `classes` as names; None where there is none."""
    if "classes" not in arrays:
        return None
    names = arrays["classes"]
    if names.dtype.kind != "U" or names.ndim != 1:
        raise ConfigError(f"'classes' is {names.dtype} of the shape {names.shape}", at=path, do="store one text for each class")
    return tuple(str(name) for name in names)


def _pair(arrays: Mapping[str, npt.NDArray[Any]], prefixes: tuple[str, ...], path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
    for prefix in prefixes:
        images, labels = arrays.get(f"{prefix}images"), arrays.get(f"{prefix}labels")
        if images is not None and labels is not None:
            return images, labels
        if images is not None or labels is not None:
            present, absent = ("images", "labels") if labels is None else ("labels", "images")
            raise ConfigError(f"there is '{prefix}{present}' and no '{prefix}{absent}'", at=path, do=f"store '{prefix}{absent}' as well")
    return None
