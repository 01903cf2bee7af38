"""What was measured, as the rules of `kdpipe advise` read it: `evidence.toml`, written from the raw figures by `benchmarks/advice_evidence.py`.

A rule that rests on a figure finds it here and repeats it to the user; where there is no row, the rule says so. Rates are in per cent.
"""

import functools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

EVIDENCE_FILE = Path(__file__).with_name("evidence.toml")

SMALL = 16
"""pixels of the shorter side, up to which images count as small; the tables' have 28 and 32"""

Criterion = Literal["robust", "clean", "corrupted"]
CRITERIA: tuple[Criterion, ...] = ("robust", "clean", "corrupted")

Interval = tuple[float, float, float]
"""value, and the lower and upper bound of its 95 % interval"""


class Row(BaseModel, extra="forbid", frozen=True):
    """One objective's int8 file in ONNX Runtime: clean, `robust` (the per-sample worst of all attacks), `corrupted` (the mean over the corruptions).

    `student_pgd`, `student_autoattack`: the float student under PGD-20 and under AutoAttack. None: not measured yet.
    """

    clean: Interval | None = None
    robust: Interval | None = None
    corrupted: Interval | None = None
    student_pgd: float | None = None
    student_autoattack: float | None = None

    def of(self, criterion: Criterion) -> Interval | None:
        """The figure of that name."""
        found: Interval | None = getattr(self, criterion)
        return found


class Recipe(BaseModel, extra="forbid", frozen=True):
    """How the students of a table were trained: the figures are of this and nothing else."""

    train_samples: int
    epochs: int
    batch_size: int
    learning_rate: float
    prune_learning_rate: float
    qat_learning_rate: float
    epsilon: float
    attack_steps: int
    teacher_attack_steps: int


class Table(BaseModel, extra="forbid", frozen=True):
    """One data set, all objectives with the same networks, teacher and recipe, one seed. `attacked`: test samples behind `robust`.

    `ahead`: criterion, objective, other objective to how much better the first is on the same samples, with its paired interval.
    """

    colour: bool
    recipe: Recipe
    attacked: int
    rows: dict[str, Row] = Field(default_factory=dict)
    ahead: dict[Criterion, dict[str, dict[str, Interval]]] = Field(default_factory=dict)

    def measured(self, criterion: Criterion) -> dict[str, Interval]:
        """Objective to its figure, the best first; those without one are missing."""
        known = {name: figure for name, row in self.rows.items() if (figure := row.of(criterion)) is not None}
        return dict(sorted(known.items(), key=lambda item: -item[1][0]))

    def not_told_apart(self, criterion: Criterion, names: frozenset[str] | None = None) -> tuple[str, ...]:
        """The best of `names` (all) by this criterion, and those whose paired interval against it holds 0; the best first."""
        ranked = [name for name in self.measured(criterion) if names is None or name in names]
        if not ranked:
            return ()
        best = ranked[0]
        return tuple(name for name in ranked if name == best or self.ahead[criterion][best][name][1] <= 0)


class Chain(BaseModel, extra="forbid", frozen=True):
    """One whole build with its seconds: an epoch of fine-tuning the pruned network and the twin, relative to one of the student; one export, one bench."""

    epsilon: float
    objective: str
    qat_to_distill: float
    prune_to_distill: float
    export_seconds: float
    bench_seconds: float


class Foretold(BaseModel, extra="forbid", frozen=True):
    """A part of a proposed build, in seconds: as `kdpipe advise` foretold it, and what it took."""

    low: float
    likely: float
    high: float
    took: float


class NoisyLabels(BaseModel, extra="forbid", frozen=True):
    """Students trained on labels of which the share `wrong` is wrong: method to clean test accuracy, and to how much it is ahead of `plain` (paired)."""

    wrong: float
    clean: dict[str, Interval]
    ahead_of_plain: dict[str, Interval] = Field(default_factory=dict)


class Evidence(BaseModel, extra="forbid", frozen=True):
    """All of it, by data set, by whole build, by set of wrong labels; and by part of the one build that was advised first and then built."""

    tables: dict[str, Table] = Field(default_factory=dict)
    chains: dict[str, Chain] = Field(default_factory=dict)
    noisy: dict[str, NoisyLabels] = Field(default_factory=dict)
    foretold: dict[str, Foretold] = Field(default_factory=dict)

    def table_for(self, shape: tuple[int, ...], criterion: Criterion) -> tuple[str, Table] | None:
        """The table whose images are most like these, of those that measured `criterion`: the same kind of colour first. None where there is none, and
        for images of up to `SMALL` pixels, which no table is about.
        """
        usable: Mapping[str, Table] = {name: table for name, table in self.tables.items() if table.measured(criterion)}
        if not usable or min(shape[1:]) <= SMALL:
            return None
        name = min(usable, key=lambda each: usable[each].colour != (shape[0] > 1))
        return name, usable[name]


@functools.cache
def evidence() -> Evidence:
    """What this kdpipe ships with."""
    return Evidence.model_validate(tomllib.loads(EVIDENCE_FILE.read_text(encoding="utf-8")))
