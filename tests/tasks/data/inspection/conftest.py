"""The real digits with faults planted in them, and a check of arrays without files."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from kdpipe.tasks.data import digits
from kdpipe.tasks.data.inspection.inspection import Checked, inspected
from kdpipe.tasks.data.samples import ArraySamples, RowsSplit


@cache
def _digits():
    source = digits.load()
    return source.train.samples.images, source.train.labels


@pytest.fixture
def digit_arrays():
    """`digit_arrays()`: train and test as {split: [images, labels]}, 900 and 300 real digits, copies to plant faults in."""

    def made():
        images, labels = _digits()
        return {"train": [images[:900].copy(), labels[:900].copy()], "test": [images[900:1200].copy(), labels[900:1200].copy()]}

    return made


@pytest.fixture
def checked():
    """`checked({"train": (images, labels)}, classes=…)`: what `inspected` takes; images float32 or uint8 (n, channels, height, width)."""

    def made(sets, classes=tuple("0123456789")):
        splits = {
            name: RowsSplit(ArraySamples(images), np.arange(len(labels), dtype=np.int64), np.asarray(labels, np.int64))
            for name, (images, labels) in sets.items()
        }
        shape = next(iter(sets.values()))[0].shape[1:]
        return Checked("planted", "0" * 64, tuple(classes), tuple(shape), splits, lambda split, index: f"{split}/{index:05}")

    return made


@pytest.fixture
def inspect(checked, tmp_path):
    """`inspect(sets, labels=True)`: the Inspection of such arrays."""

    def made(sets, *, labels=True, **arguments):
        return inspected(checked(sets, **arguments), Path(tmp_path), lambda items, label, total: items, labels=labels)

    return made
