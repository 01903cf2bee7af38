"""What `data = "…"` names: a built-in set, a user's callable, or a file or folder whose format is recognised."""

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path

from kdpipe.foundation.errors import ConfigError
from kdpipe.tasks.data import callable as user_callable
from kdpipe.tasks.data import cifar10, digits, fashion_mnist, image_folder, npz
from kdpipe.tasks.data.checks import Layout
from kdpipe.tasks.data.source import Source
from kdpipe.tasks.data.splits import DataSplits

BUILT_IN = (digits.NAME, fashion_mnist.NAME, cifar10.NAME)
DATA_VARIABLE = "KDPIPE_DATA"
"""The environment variable with the folder where the files of built-in sets lie."""

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_FORMATS = "an .npz of images and labels, a folder of class folders, a folder of idx files, an .npz of JPEG files; see docs/data.md"


def found(
    data: str, *, path: Path | None, project: Path, classes: tuple[str, ...] | None = None, layout: Layout | None = None, lenient: bool = False
) -> Source | DataSplits:
    """The source that `data` names. A built-in name wins over a file of that name: `./digits` is the file.

    `path`: where the files of `fashion-mnist` or `cifar10` lie. Relative paths start at `project`. `lenient`: single images that
    cannot be used do not raise until they are read; for `kdpipe data`, and where a manifest leaves them out.
    """
    if path is not None and data not in (fashion_mnist.NAME, cifar10.NAME):
        raise ConfigError(
            f'path = \'{path}\' goes with data = "fashion-mnist" or "cifar10", not with {data!r}', at="[task] path", do="write the path as data = …"
        )
    if data == digits.NAME:
        return digits.load(classes)
    if data == fashion_mnist.NAME:
        folder = _place(data, path, project, ("fashion-mnist", "."), fashion_mnist.recognises)
        return fashion_mnist.load(folder, classes=classes or fashion_mnist.CLASSES)
    if data == cifar10.NAME:
        return cifar10.load(_place(data, path, project, ("cifar10", "."), cifar10.recognises), name=data, classes=classes)
    if _REFERENCE.fullmatch(data):
        return user_callable.load(data, classes=classes, layout=layout, lenient=lenient)
    return _of_path(project / data, data, classes, layout, lenient=lenient)


def _place(data: str, path: Path | None, project: Path, below: tuple[str, ...], recognises: Callable[[Path], bool]) -> Path:
    """Where the files of the built-in set `data` lie: at `path`, or `below` the environment's folder."""
    if path is not None:
        if not (project / path).exists():
            raise ConfigError("no such file or folder", at=project / path, do="check [task] path; relative paths start at the project's folder")
        return project / path
    root = os.environ.get(DATA_VARIABLE)
    if root is None:
        raise ConfigError(
            f"where the files of {data!r} lie is not known", at=f'data = "{data}"', do=f"set path = … in [task], or the environment variable {DATA_VARIABLE}"
        )
    for name in below:
        if recognises(Path(root) / name):
            return Path(root) / name
    raise ConfigError(f"the files of {data!r} are not there", at=f"{DATA_VARIABLE}={root}", do="set path = … in [task], or correct the environment variable")


def _of_path(path: Path, data: str, classes: tuple[str, ...] | None, layout: Layout | None, *, lenient: bool) -> Source:
    if not path.exists():
        near = difflib.get_close_matches(data, BUILT_IN, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"no data called {data!r}: neither a built-in set ({', '.join(BUILT_IN)}) nor a file or folder",
            at=path,
            do=f"{hint}check [task] data; relative paths start at the project's folder",
        )
    if path.is_dir() and not any(path.iterdir()):
        raise ConfigError("the folder is empty", at=path, do=f"name {_FORMATS}")
    if cifar10.recognises(path):
        return cifar10.load(path, classes=classes)
    if fashion_mnist.recognises(path):
        return fashion_mnist.load(path, name=path.resolve().name, classes=classes)
    if image_folder.recognises(path):
        return image_folder.load(path, classes=classes, lenient=lenient)
    if path.suffix == ".npz":
        return npz.load(path, classes=classes, layout=layout, lenient=lenient)
    raise ConfigError("the format of this data is not known", at=path, do=f"name {_FORMATS}; or your own package.module:callable")
