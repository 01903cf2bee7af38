"""Labels that are wrong on purpose: noise injected by seed, or people's mistakes, for experiments with methods that should withstand them.

Splits are drawn by the data's own labels before, so that experiments of different rates have the same samples in the same splits. The validation
split gets noise as well unless that is switched off: where labels are wrong, those that a user selects by are wrong too. The test split never does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, model_validator

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.randomness import numpy_stream
from kdpipe.tasks.data.inspection.findings import SplitName
from kdpipe.tasks.data.samples import RowsSplit
from kdpipe.tasks.data.splits import Int64Array, Relabelled

_AT = "[task.label_noise]"


class LabelSource(Protocol):
    """Where other labels come from."""

    @property
    def told(self) -> str:
        """What they are, for people: `symmetric noise, rate 0.4`."""
        ...

    def labels(self, split: RowsSplit, classes: tuple[str, ...], pile: str, seed: int) -> Int64Array:
        """The labels of the split's rows, (n,). `pile`: the name of the set that the rows count in; equal rows of one pile get equal labels' draws."""
        ...


class LabelNoise(BaseModel, extra="forbid", frozen=True):
    """`[task.label_noise]`: a share of the labels is replaced at random, by the project's seed. A higher rate replaces the same labels and more."""

    kind: Literal["symmetric", "asymmetric"] = Field("symmetric", description="symmetric: by any other class; asymmetric: by the class that it is taken for")
    rate: float = Field(
        gt=0, lt=1, description="share of the labels that become wrong (asymmetric: of the classes that are confused); below 1 - 1 / classes, or 0.5"
    )
    confusions: dict[str, str] | None = Field(None, min_length=1, description="asymmetric: class to the class that it is taken for; absent: each to the next")

    @model_validator(mode="after")
    def _confusions_are_for_asymmetric_noise(self) -> Self:
        if self.confusions is not None and self.kind == "symmetric":
            raise ValueError('confusions go with kind = "asymmetric"')
        same = next((name for name, other in (self.confusions or {}).items() if name == other), None)
        if same is not None:
            raise ValueError(f"class {same!r} is taken for itself in confusions")
        return self

    @property
    def told(self) -> str:
        """See `LabelSource`."""
        pairs = "" if self.confusions is None else " " + ", ".join(f"{name} as {other}" for name, other in self.confusions.items())
        return f"{self.kind} noise{pairs}, rate {self.rate:g}"

    def labels(self, split: RowsSplit, classes: tuple[str, ...], pile: str, seed: int) -> Int64Array:
        """See `LabelSource`; the number of wrong ones is exact: the rate, to the nearest whole label."""
        self._require_below_chance(len(classes))
        draws = numpy_stream(seed, f"data/label-noise/{pile}")
        fate = draws.random(len(split.samples))[split.rows]
        other = draws.integers(1, len(classes), len(split.samples))[split.rows]
        labels = split.labels.copy()
        if self.kind == "symmetric":
            chosen = self._chosen(fate, np.arange(len(labels)))
            labels[chosen] = (labels[chosen] + other[chosen]) % len(classes)
            return labels
        for name, taken_for in self._confused(classes).items():
            chosen = self._chosen(fate, np.flatnonzero(split.labels == name))
            labels[chosen] = taken_for
        return labels

    def _chosen(self, fate: npt.NDArray[np.float64], candidates: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """The share `rate` of the candidates whose fate is lowest."""
        return candidates[np.argsort(fate[candidates], kind="stable")[: round(self.rate * len(candidates))]]

    def _confused(self, classes: tuple[str, ...]) -> dict[int, int]:
        if self.confusions is None:
            return {label: (label + 1) % len(classes) for label in range(len(classes))}
        unknown = sorted({name for pair in self.confusions.items() for name in pair} - set(classes))
        if unknown:
            raise ConfigError(f"no class is called {unknown[0]!r}", at=f"{_AT} confusions", do=f"the classes are {', '.join(classes)}")
        return {classes.index(name): classes.index(other) for name, other in self.confusions.items()}

    def _require_below_chance(self, classes: int) -> None:
        limit = 1 - 1 / classes if self.kind == "symmetric" else 0.5
        if self.rate >= limit:
            raise ConfigError(
                f"rate = {self.rate:g} of {self.kind} noise: from {limit:.3g} on the right label of {classes} is no more frequent than a wrong one",
                at=f"{_AT} rate",
                do=f"set a rate below {limit:.3g}",
            )


@dataclass(frozen=True, eq=False)
class GivenLabels:
    """Other labels of the training set's pile, (its length,), by row; other piles keep theirs."""

    told: str
    values: Int64Array

    def labels(self, split: RowsSplit, classes: tuple[str, ...], pile: str, seed: int) -> Int64Array:
        """See `LabelSource`."""
        return self.values[split.rows] if pile == "train" else split.labels


def relabelled(
    splits: Mapping[SplitName, RowsSplit], source: LabelSource, noisy: tuple[SplitName, ...], classes: tuple[str, ...], seed: int
) -> tuple[dict[SplitName, RowsSplit], Relabelled]:
    """The splits, those called in `noisy` with labels from `source`, and what was done."""
    changed = dict(splits)
    wrong: dict[str, tuple[int, int]] = {}
    for name in noisy:
        split = splits[name]
        pile = "train" if split.samples is splits["train"].samples else name
        labels = source.labels(split, classes, pile, seed)
        changed[name] = replace(split, labels=labels)
        wrong[name] = (int((labels != split.labels).sum()), len(labels))
    return changed, Relabelled(source.told, wrong)
