"""What a source of data hands over: its sets as it has them, before any split is made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kdpipe.foundation.errors import ConfigError
from kdpipe.tasks.data.checks import Layout, checked_images, checked_labels
from kdpipe.tasks.data.samples import ArraySamples, Samples
from kdpipe.tasks.data.splits import Int64Array

PartName = Literal["train", "validation", "test"]


@dataclass(frozen=True, eq=False)
class Part:
    """One set of a source; `labels` are class indices, (n,). `at` says where it lies, for errors."""

    samples: Samples
    labels: Int64Array
    at: str


@dataclass(frozen=True, eq=False)
class Source:
    """A source's sets. Those that it does not have are None: they are drawn from `train`."""

    name: str
    classes: tuple[str, ...]
    train: Part
    validation: Part | None = None
    test: Part | None = None

    @property
    def parts(self) -> dict[str, Part]:
        """The sets that there are, by name."""
        found = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in found.items() if part is not None}


def source_of_arrays(
    name: str,
    sets: Mapping[PartName, tuple[Any, Any]],
    *,
    at: Mapping[PartName, str],
    classes: tuple[str, ...] | None = None,
    layout: Layout | None = None,
    lenient: bool = False,
) -> Source:
    """The source made of (images, labels) for each set; `sets` has "train". Images: uint8, or float in [0, 1]; `layout`, `lenient` as in `checked_images`.

    Labels are class indices, or the classes' names. Without `classes` they are named by their index.
    """
    images = {part: checked_images(np.asarray(pair[0]), at=at[part], layout=layout, lenient=lenient) for part, pair in sets.items()}
    labels = {part: checked_labels(np.asarray(pair[1]), len(images[part]), at=at[part]) for part, pair in sets.items()}
    indices, names = _as_indices(labels, classes, at=at)
    parts = {part: Part(ArraySamples(images[part]), indices[part], at[part]) for part in sets}
    return Source(name, names, parts["train"], parts.get("validation"), parts.get("test"))


def _as_indices(
    labels: Mapping[PartName, Any], classes: tuple[str, ...] | None, *, at: Mapping[PartName, str]
) -> tuple[dict[PartName, Int64Array], tuple[str, ...]]:
    named = [part for part, values in labels.items() if values.dtype.kind == "U"]
    if not named:
        count = 1 + max(int(values.max()) for values in labels.values())
        return dict(labels), classes or tuple(str(index) for index in range(count))
    if len(named) < len(labels):
        raise ConfigError("labels are names in one set and numbers in another", at=at[named[0]], do="use one kind in all sets")
    names = classes or tuple(str(name) for name in np.unique(np.concatenate(list(labels.values()))))
    place = {name: index for index, name in enumerate(names)}
    for part, values in labels.items():
        unknown = sorted(set(values.tolist()) - place.keys())
        if unknown:
            raise ConfigError(f"label {unknown[0]!r} is not one of the classes {', '.join(names)}", at=at[part], do="name all classes in [task] classes")
    return {part: np.array([place[str(name)] for name in values], np.int64) for part, values in labels.items()}, names
