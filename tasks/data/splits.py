"""What a data set is to the rest of kdpipe: three splits that are read by index, and a digest of their content."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

_SPOKEN = {"train": "training"}


class Split(Protocol):
    """One split. Labels are in memory; samples are read when asked for, so that a set may be larger than memory."""

    @property
    def labels(self) -> Int64Array:
        """The class indices, (n,), each in [0, classes)."""
        ...

    def __len__(self) -> int: ...

    def read(self, indices: Int64Array) -> Float32Array:
        """The samples at `indices`, (len(indices), *shape), contiguous, in the value range of the data."""
        ...


@dataclass(frozen=True)
class Relabelled:
    """What was done to labels on purpose. `how`: `symmetric noise, rate 0.4`; `wrong`: split to (labels that are not the data's own, samples)."""

    how: str
    wrong: Mapping[str, tuple[int, int]]

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads again."""
        return {"how": self.how, "wrong": {name: list(counts) for name, counts in self.wrong.items()}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """From what `as_json` gave."""
        return cls(value["how"], {name: (int(wrong), int(count)) for name, (wrong, count) in value["wrong"].items()})

    @property
    def told(self) -> str:
        """One sentence for people."""
        counts = ", ".join(f"{wrong:,} of {count:,} {_SPOKEN.get(name, name)} labels" for name, (wrong, count) in self.wrong.items())
        return f"labels were made noisy on purpose ({self.how}): {counts} are not the data's own; test labels are as they were"


@dataclass(frozen=True)
class DataSplits:
    """A loaded data set. Images: shape (channels, height, width), values in [0, 1].

    `digest`: sha256 over the content of all splits (samples, labels, classes, order), so that it does not depend on
    where the files lie. `mean`, `std`: per channel, of the training split. `relabelled`: None where the
    labels are the data's own.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    train: Split
    validation: Split
    test: Split
    digest: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    relabelled: Relabelled | None = None
