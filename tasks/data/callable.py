"""A user's own source, `package.module:name`: called without arguments, it returns the data.

It may return `(images, labels)`; a mapping of sets, `{"train": (images, labels), "test": …}`, also "validation" or "val"; or a
`DataSplits` of its own, for data that is larger than memory.
"""

from collections.abc import Mapping
from typing import Any

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.plugins import imported
from kdpipe.tasks.data.checks import Layout, require_every_class, require_known_classes
from kdpipe.tasks.data.source import PartName, Source, source_of_arrays
from kdpipe.tasks.data.splits import DataSplits

_SETS: dict[str, PartName] = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_FORMS = "return (images, labels), a mapping with 'train' and optionally 'validation' and 'test' of such pairs, or a DataSplits"


def load(reference: str, *, classes: tuple[str, ...] | None = None, layout: Layout | None = None, lenient: bool = False) -> Source | DataSplits:
    """What the callable returns, checked; `lenient`: see `found`. ConfigError when it cannot be imported, raises, or returns something else."""
    at = f'data = "{reference}"'
    function = imported(reference, at=at)
    if not callable(function):
        raise ConfigError(f"{reference!r} is {type(function).__name__}, not a callable", at=at, do="name a function without arguments that returns the data")
    try:
        result = function()
    except ConfigError:
        raise
    except Exception as error:  # a user's function may raise anything
        raise ConfigError(f"{reference!r} failed: {type(error).__name__}: {error}", at=at, do="call it without arguments yourself and mend it") from error
    if isinstance(result, DataSplits):
        return _checked(result, at=at)
    sets = _sets(result, at=at)
    places = {part: f"{at}, {part}" for part in sets}
    return source_of_arrays(reference.rpartition(":")[2], sets, at=places, classes=classes, layout=layout, lenient=lenient)


def _sets(result: Any, *, at: str) -> dict[PartName, tuple[Any, Any]]:
    pairs: Mapping[Any, Any] = result if isinstance(result, Mapping) else {"train": result}
    unknown = [name for name in pairs if name not in _SETS]
    if unknown:
        raise ConfigError(f"unknown set {unknown[0]!r}; known: {', '.join(_SETS)}", at=at, do=_FORMS)
    for name, pair in pairs.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ConfigError(f"{name!r} is {type(pair).__name__}, not a pair (images, labels)", at=at, do=_FORMS)
    if "train" not in pairs:
        raise ConfigError(f"there is no 'train' among {', '.join(pairs) or 'nothing'}", at=at, do=_FORMS)
    return {_SETS[name]: (pair[0], pair[1]) for name, pair in pairs.items()}


def _checked(data: DataSplits, *, at: str) -> DataSplits:
    for name, split in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        if len(split) == 0 or len(split.labels) != len(split):
            raise ConfigError(
                f"the {name} split has {len(split)} samples and {len(split.labels)} labels", at=at, do="give each split samples, and each sample a label"
            )
        require_known_classes(split.labels, data.classes, at=at)
        require_every_class(split.labels, data.classes, name, at=at)
    return data
