"""A folder of class folders with PNG, JPEG or BMP images, or `train/`, `val/`, `test/` of such; decoded when read.

A class is called as its folder; classes and files come in the order of their names.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdpipe.foundation.errors import ConfigError
from kdpipe.tasks.data.decoding import Header, header
from kdpipe.tasks.data.samples import FileSamples
from kdpipe.tasks.data.source import Part, PartName, Source

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp"})
_SET_FOLDERS: dict[PartName, tuple[str, ...]] = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class _Found:
    """One set's folder: its images below it (`class/file`), each with its class."""

    folder: Path
    names: tuple[str, ...]
    labels: tuple[int, ...]


def recognises(folder: Path) -> bool:
    """Whether there are folders in `folder` that could be classes."""
    return folder.is_dir() and any(True for _ in _subfolders(folder))


def load(folder: Path, *, classes: tuple[str, ...] | None = None, lenient: bool = False) -> Source:
    """The sets in `folder`; `classes` gives the class folders another order.

    All images are opened, not decoded. ConfigError names the first that is no image or of another size. Grey if all are grey, else RGB.
    `lenient` keeps those images, the size is then the most frequent one; whoever reads them is told.
    """
    folders = _set_folders(folder)
    own = _class_names(folders["train"], classes)
    found = {part: _listed(path, own) for part, path in folders.items()}
    first = _usual_header(tuple(found.values())) if lenient else _common_header(tuple(found.values()))
    shape = (1 if first.colour == "L" else 3, first.height, first.width)
    parts = {
        part: Part(FileSamples(one.folder, one.names, shape, first.colour, lenient=lenient), np.array(one.labels, np.int64), str(one.folder))
        for part, one in found.items()
    }
    return Source(folder.resolve().name, own, parts["train"], parts.get("validation"), parts.get("test"))


def _set_folders(folder: Path) -> dict[PartName, Path]:
    """The folder of each set; `folder` alone where it holds the classes itself."""
    found: dict[PartName, Path] = {}
    for part, names in _SET_FOLDERS.items():
        path = next((folder / name for name in names if (folder / name).is_dir()), None)
        if path is not None and any(True for _ in _subfolders(path)):
            found[part] = path
    return found if "train" in found else {"train": folder}


def _class_names(folder: Path, classes: tuple[str, ...] | None) -> tuple[str, ...]:
    found = tuple(path.name for path in _subfolders(folder))
    if classes is None:
        return found
    if sorted(classes) != sorted(found):
        raise ConfigError(
            f"classes = {list(classes)} are not the class folders: {', '.join(found)}", at=folder, do="name each class folder once, or leave [task] classes out"
        )
    return classes


def _listed(folder: Path, classes: tuple[str, ...]) -> _Found:
    for path in _subfolders(folder):
        if path.name not in classes:
            raise ConfigError(
                f"class {path.name!r} is not one of the training set's: {', '.join(classes)}", at=path, do="use the same class folders in all sets"
            )
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        path = folder / name
        images = sorted(file.name for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")) if path.is_dir() else []
        if path.is_dir() and not images:
            raise ConfigError("no image in this class folder", at=path, do="put PNG, JPEG or BMP images into it, or remove it")
        names += [f"{name}/{image}" for image in images]
        labels += [label] * len(images)
    return _Found(folder, tuple(names), tuple(labels))


def _common_header(sets: tuple[_Found, ...]) -> Header:
    """The size of all images, and RGB if one of them is coloured."""
    paths = (one.folder / name for one in sets for name in one.names)
    first_path = next(paths)
    first = _header(first_path)
    coloured = first.colour == "RGB"
    for path in paths:
        other = _header(path)
        if (other.height, other.width) != (first.height, first.width):
            raise ConfigError(
                f"images of unequal size: {other.width}x{other.height} here, {first.width}x{first.height} in {first_path}",
                at=path,
                do="scale or crop all images to one size",
            )
        coloured = coloured or other.colour == "RGB"
    return Header(first.height, first.width, "RGB" if coloured else "L")


def _usual_header(sets: tuple[_Found, ...]) -> Header:
    """The most frequent size of those that can be opened (of equally frequent ones the smallest), and RGB if one of that size is coloured."""
    seen: Counter[tuple[int, int]] = Counter()
    coloured: set[tuple[int, int]] = set()
    for path in (one.folder / name for one in sets for name in one.names):
        try:
            found = _header(path)
        except ConfigError:
            continue  # told when it is read
        seen[found.height, found.width] += 1
        if found.colour == "RGB":
            coloured.add((found.height, found.width))
    if not seen:
        raise ConfigError("none of the images can be read", at=sets[0].folder, do="put PNG, JPEG or BMP images into the class folders")
    size = max(sorted(seen), key=lambda it: seen[it])
    return Header(*size, "RGB" if size in coloured else "L")


def _header(path: Path) -> Header:
    try:
        with path.open("rb") as file:
            return header(file, at=str(path))
    except OSError as error:
        raise ConfigError(f"cannot read the image: {error.strerror or error}", at=path, do="make it readable, or remove it") from error


def _subfolders(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith("."))
