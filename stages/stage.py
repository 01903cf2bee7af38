"""What every stage is: a function `run(inputs, config, context) -> folder` that knows neither store nor terminal."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from kdpipe.stages.target_cache import TargetCache
from kdpipe.targets.profile import Profile
from kdpipe.tasks.data.splits import DataSplits
from kdpipe.tasks.task import Task

Item = TypeVar("Item")


class Progress(Protocol):
    """Where a stage reports to; the terminal, a log or nobody listens."""

    def __call__(self, items: Iterable[Item], label: str, *, total: int | None = None, unit: str = "batch") -> Iterable[Item]:
        """`items`, counted while they are taken."""
        ...

    def say(self, message: str) -> None:
        """One line for the user: a result (`epoch 3: validation 91.2 %`) or a decision that changes a result."""
        ...


@dataclass(frozen=True)
class Inputs:
    """`artifacts`: the finished folders of earlier steps by step name without target (`teacher`, `prune`, `qat`, `score-qat`, …).

    `profile` is None in the steps that all targets share.
    """

    artifacts: Mapping[str, Path]
    data: DataSplits
    task: Task
    profile: Profile | None = None


@dataclass(frozen=True)
class Context:
    """`folder`: the step's own work folder; what it holds at the end is the artifact.

    After a kill the same folder is handed in again, with all it held: a training finds its checkpoint there, and
    removes it when it ends. `project`: what relative paths of the configuration are relative to. `threads`: torch threads in use.
    `target_cache`: how teachers' logits are kept between trainings; None where they are not.
    """

    folder: Path
    project: Path
    seed: int
    threads: int
    progress: Progress
    target_cache: TargetCache | None = None
