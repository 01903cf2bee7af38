"""What a training step costs on this machine: a few real steps of the proposed networks and objectives, in the loop that a build trains with.

The steps are of `stages.training` itself, on the first samples of the training split; whatever a build does in a step (reading, augmenting, the attack,
the teacher's answers) is in them. Nothing that was trained is kept.
"""

import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from kdpipe.foundation.networks import Network, build_network
from kdpipe.foundation.randomness import stream
from kdpipe.pipeline.config import Config
from kdpipe.pipeline.runner import torch_settings
from kdpipe.stages.distill import fresh_student
from kdpipe.stages.stage import Context, Inputs
from kdpipe.stages.training import batching, train
from kdpipe.stages.validation import validate
from kdpipe.tasks.data.splits import DataSplits, Float32Array, Int64Array, Split

TIMED_STEPS = 4
"""after one that is not timed: the first one allocates"""

_VALIDATED = 512

Item = TypeVar("Item")


@dataclass(frozen=True)
class Timed:
    """One training's costs in seconds. `steps`: each step that was timed; `after_epoch`: judging and saving an epoch; `forward`: one sample's forward pass."""

    batch_size: int
    steps: tuple[float, ...]
    after_epoch: float
    forward: float

    @property
    def step(self) -> tuple[float, float, float]:
        """The fastest step, the median, the slowest."""
        return min(self.steps), statistics.median(self.steps), max(self.steps)


@dataclass(frozen=True)
class Trial:
    """`seconds`: what the trial itself took; `share`: of it that its threads had a processor, in (0, 1]; 1 on a machine with nothing else to do."""

    teacher: Timed
    student: Timed
    seconds: float
    share: float


def run_trial(config: Config, data: DataSplits, threads: int) -> Trial:
    """The trial of this configuration's teacher and student, with `threads` torch threads; some seconds, or minutes for large images.

    Raises ConfigError as a build would where network or objective cannot be made.
    """
    begin, processor = time.perf_counter(), time.process_time()
    inputs = Inputs({}, data, config.task)
    with torch_settings(threads), tempfile.TemporaryDirectory(prefix="kdpipe-trial-") as folder:
        section = config.sections["teacher"]
        spec = config.task.network_spec(section.network or config.task.default_teacher, section.network_arguments, data, at="[teacher] network")
        teacher = build_network(spec, stream(config.seed, "trial/teacher"), at="[teacher] network")
        timed_teacher = _timed(teacher, None, section, inputs, Path(folder) / "teacher", config, threads)
        student = fresh_student(config.sections["distill"], inputs, seed=config.seed)
        asked = teacher if config.sections["distill"].objective.uses_teacher else None
        timed_student = _timed(student, asked, config.sections["distill"], inputs, Path(folder) / "distill", config, threads)
    seconds = time.perf_counter() - begin
    return Trial(timed_teacher, timed_student, seconds, min(1.0, (time.process_time() - processor) / (seconds * threads)))


def _timed(network: Network, teacher: Network | None, section: Any, inputs: Inputs, folder: Path, config: Config, threads: int) -> Timed:
    folder.mkdir()
    size, _ = batching(len(inputs.data.train), section.batch_size)
    data = replace(
        inputs.data, train=First(inputs.data.train, min(len(inputs.data.train), (1 + TIMED_STEPS) * size)), validation=First(inputs.data.validation, _VALIDATED)
    )
    watch = _Stopwatch()
    context = Context(folder, config.project, config.seed, threads, watch)
    brief = section.model_copy(update={"epochs": 1, "patience": None})
    passes = max(1, -(-(1 + TIMED_STEPS) * size // len(data.train)))  # several over a small set
    after = []
    for number in range(passes):
        train(network, section.objective, teacher, replace(inputs, data=data), brief, context, label=f"trial-{number}")
        after.append(time.perf_counter() - watch.last)
    begin = time.perf_counter()
    validate(network.module, data.validation, size * 4, None, 0, config.seed, "trial")
    forward = (time.perf_counter() - begin) / len(data.validation)
    after_epoch = statistics.median(after) + forward * (len(inputs.data.validation) - len(data.validation))
    return Timed(size, tuple(watch.taken[1:] or watch.taken), after_epoch, forward)


class _Stopwatch:
    """A stage's progress that times what is done with each batch of training. `taken`: seconds of each; `last`: when the latest ended."""

    def __init__(self) -> None:
        self.taken: list[float] = []
        self.last = 0.0

    def __call__(self, items: Iterable[Item], label: str, *, total: int | None = None, unit: str = "batch") -> Iterator[Item]:
        """`items`; between two of a training lies one step, reading the next batch included."""
        training = label.startswith("trial-") and ":" not in label  # else what a teacher is asked beforehand, in the first step
        begin = time.perf_counter()
        for item in items:
            yield item
            if training:
                self.last = time.perf_counter()
                self.taken.append(self.last - begin)
                begin = self.last

    def say(self, message: str) -> None:
        """What a training says of its epochs means nothing here."""


class First:
    """The first samples of a split, as a split."""

    def __init__(self, split: Split, count: int) -> None:
        self.split = split
        self.count = min(count, len(split))

    @property
    def labels(self) -> Int64Array:
        """The class indices, (n,)."""
        return np.ascontiguousarray(self.split.labels[: self.count])

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Int64Array) -> Float32Array:
        """The samples at `indices`."""
        return self.split.read(indices)
