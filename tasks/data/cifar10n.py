"""CIFAR-10N: the labels that people gave to CIFAR-10's training images, mistakes included.

Source: Wei et al. 2022 (arXiv:2110.12088). `random1` to `random3` are one person's each (17 to 18 % wrong), `aggre` is the majority of the three
(9 %), `worse` one of the wrong ones where any was wrong (40 %). `cifar10n-labels.npz` holds them as int arrays of 50,000 in CIFAR-10's own
order, beside `clean`, CIFAR-10's labels: these must be those of the images, or every label would be of another image.
"""

import os
from pathlib import Path
from typing import Literal

import numpy as np

from kdpipe.foundation.errors import ConfigError
from kdpipe.tasks.data.checks import checked_labels
from kdpipe.tasks.data.label_noise import GivenLabels
from kdpipe.tasks.data.npz import read_npz
from kdpipe.tasks.data.source import Part

LabelSet = Literal["clean", "aggre", "random1", "random2", "random3", "worse"]
FILE = "cifar10n-labels.npz"


def human_labels(name: LabelSet, train: Part, *, beside: Path | None, variable: str) -> GivenLabels:
    """The labels called `name` for CIFAR-10's training images. The file lies in `beside`, or in the folder that the environment's `variable` names.

    ConfigError where it is missing or damaged, or its `clean` labels are not those of `train`.
    """
    path = _file(beside, variable)
    arrays = read_npz(path)
    missing = [wanted for wanted in ("clean", name) if wanted not in arrays]
    if missing:
        raise ConfigError(f"the file has no {missing[0]!r}", at=path, do=f"it has {', '.join(sorted(arrays)) or 'nothing'}; store CIFAR-10N's labels by name")
    clean, labels = (checked_labels(arrays[wanted], len(train.labels), at=f"{path}, {wanted}") for wanted in ("clean", name))
    different = np.flatnonzero(clean != train.labels)
    if len(different):
        first = int(different[0])
        raise ConfigError(
            f"its 'clean' labels are not those of the images: {len(different)} of {len(clean)} differ, first at index {first}",
            at=path,
            do="use CIFAR-10's training set in its original order, which is that of CIFAR-10N",
        )
    if labels.max() > clean.max():
        raise ConfigError(f"label {labels.max()} is no class of CIFAR-10", at=f"{path}, {name}", do="store class indices 0 to 9")
    return GivenLabels(f"CIFAR-10N's human labels {name!r}", labels)


def _file(beside: Path | None, variable: str) -> Path:
    root = os.environ.get(variable)
    folders = [folder for folder in (beside, Path(root) if root else None) if folder is not None]
    found = next((folder / FILE for folder in folders if (folder / FILE).is_file()), None)
    if found is None:
        places = " and ".join(str(folder) for folder in folders) or "nowhere"
        raise ConfigError(f"{FILE} is not there: looked in {places}", at="[task] labels", do=f"put it beside CIFAR-10's files, or where {variable} points")
    return found
