"""What a check of the data found: each finding says what, where, how serious it is, and what to do."""

from collections import Counter
from typing import Literal

from pydantic import BaseModel, Field

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")

Severity = Literal["serious", "warning", "note"]
"""serious: figures or a training would be wrong; warning: it costs quality; note: worth a look, often right as it is."""

Kind = Literal[
    "unreadable",
    "not-finite",
    "out-of-range",
    "constant",
    "leak",
    "contradiction",
    "duplicate",
    "near-leak",
    "near-contradiction",
    "near-duplicate",
    "suspected-label",
    "outlier",
    "imbalance",
    "shift",
]


class Sample(BaseModel, extra="forbid", frozen=True):
    """One sample: `index` counts in the split's order, `at` says where the source keeps it (a file, `image 17 of …`)."""

    split: SplitName
    index: int = Field(ge=0)
    at: str
    label: int = Field(ge=0, description="the given label, a class index")


class Finding(BaseModel, extra="forbid", frozen=True):
    """One thing that was found; `samples` belong together (the copies of one image), and are empty where a split as a whole is meant.

    `score`: correlation of near duplicates, robust deviations of an outlier, margin of a suspected label. `suggested`, `confidence`: of a suspected
    label, the likelier class and its out-of-sample probability.
    """

    kind: Kind
    severity: Severity
    what: str
    do: str
    samples: tuple[Sample, ...] = ()
    score: float | None = None
    suggested: int | None = None
    confidence: float | None = Field(None, ge=0, le=1)


class LabelModel(BaseModel, extra="forbid", frozen=True):
    """What the suspicion against labels rests on: `accuracy`, the out-of-fold agreement with the given training labels, in [0, 1]."""

    what: str
    folds: int
    features: int
    accuracy: float
    noise_rate: float = Field(description="estimated share of wrong training labels, in [0, 1]")


class Inspection(BaseModel, extra="forbid", frozen=True):
    """A whole check. `digest`: of the data that was checked. `counts`: samples of each class by split. `skipped`: what was not checked, and why.

    It holds no times: equal data give an equal file.
    """

    version: Literal[1] = 1
    name: str
    digest: str
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    counts: dict[SplitName, tuple[int, ...]]
    label_model: LabelModel | None = None
    skipped: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def serious(self) -> bool:
        """Whether something is so wrong that figures or a training would be, too."""
        return any(finding.severity == "serious" for finding in self.findings)

    def of(self, *kinds: Kind) -> tuple[Finding, ...]:
        """The findings of these kinds, in their order."""
        return tuple(finding for finding in self.findings if finding.kind in kinds)

    def tally(self) -> dict[Kind, int]:
        """How many findings of each kind there are, in the order of the kinds."""
        counted = Counter(finding.kind for finding in self.findings)
        return {kind: counted[kind] for kind in counted}
