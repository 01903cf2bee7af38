"""The words that plan, runner, bundle and report share: one step of a build, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Step:
    """One node of the build: `name` is `teacher`, `score-teacher`, `distill`, …, or with its target `qat@arm`, `bench@arm`."""

    name: str
    stage: str
    target: str | None
    fingerprint: str
    identity: Mapping[str, Any]
    needs: Mapping[str, str] = field(default_factory=dict)
    """input name (without target) to step name"""


@dataclass(frozen=True)
class StepResult:
    """A step that is finished: `folder` is its artifact in the store; `seconds`, `peak_memory_bytes` from when it ran."""

    step: Step
    folder: Path
    state: Literal["built", "kept"]
    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Verdict:
    """One budget of one target. `bound`: the measured bound that was compared with `limit`, None where there is none; `reason` in words."""

    name: str
    target: str
    limit: float
    unit: str
    bound: float | None
    state: Literal["met", "missed", "not checkable"]
    reason: str


@dataclass(frozen=True)
class BuildResult:
    """A build that ran to its end. `results` by step name in order; `config`: the resolved configuration as JSON value.

    What follows from the results, once it is written: `rows` of the closing table (`table.Row`, JSON values), the budgets' `verdicts`,
    each target's bundle, the report, and the command's exit code.
    """

    project: Path
    name: str
    config: Mapping[str, Any]
    command: str
    targets: tuple[str, ...]
    results: Mapping[str, StepResult]
    rows: tuple[Mapping[str, Any], ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    bundles: Mapping[str, Path] = field(default_factory=dict)
    report: Path | None = None
    exit_code: int = 0
    expectations: tuple[Mapping[str, Any], ...] = ()
    """what was said before anything was trained of int8's speed, for each target (`targets.expectation.Expectation` as JSON values)"""
