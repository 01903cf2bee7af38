"""`kdpipe init`: a first `kdpipe.toml`, chosen from what the data looks like, each choice with its reason."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.files import told_disk_errors, write_text
from kdpipe.pipeline.building import importable
from kdpipe.pipeline.config import DEFAULT_TASK, FILE, task_model
from kdpipe.tasks.data.find import BUILT_IN
from kdpipe.tasks.data.splits import DataSplits
from kdpipe.tasks.networks.named import default_networks

DEFAULT_DATA = "digits"

_SAMPLES_TO_SEE = 40_000  # training samples, over all epochs of the student: enough for sets of any size to settle
_EPOCHS = (8, 30)
_LITTLE_WORK = 16  # pixels of the shorter side: up to here one thread is about as fast as two, and not disturbed by other processes


@dataclass(frozen=True)
class Written:
    """What was written and why: `choices` are pairs of a choice and its reason, in words."""

    path: Path
    choices: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Choices:
    """What the file's values follow from."""

    data: str
    teacher: str
    student: str
    epochs: int
    epsilon: str
    one_thread: bool


def initialise(folder: Path, *, task: str = DEFAULT_TASK, data: str | None = None) -> Written:
    """Write `kdpipe.toml` into `folder` (made if missing) for this data; an existing one is never touched.

    `data`: as a user types it, a path relative to where they stand. Raises ConfigError for a file that exists and for data that cannot be used.
    """
    path = folder / FILE
    if path.exists():
        raise ConfigError(f"{FILE} exists already; it is not overwritten", at=path, do="edit it, or remove it first")
    model = task_model(task, at="--task")
    with told_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    named = _as_written(data or DEFAULT_DATA, folder)
    with importable(folder.resolve()):
        loaded: DataSplits = model.model_validate({"data": named}).load(folder, 0)  # type: ignore[attr-defined]  # every task has it
    choices, reasons = _chosen(named, loaded, given=data is not None)
    write_text(path, _text(task, choices))
    return Written(path, tuple(reasons))


def _as_written(data: str, folder: Path) -> str:
    """The data as the file names it: a name, a callable, or a path relative to the project where it lies inside, else absolute."""
    if data in BUILT_IN or ":" in data:
        return data
    found = Path(data).resolve()
    home = folder.resolve()
    if not found.is_relative_to(home):
        return str(found)
    inside = os.path.relpath(found, home)
    return f"./{inside}" if inside in BUILT_IN else inside  # else the built-in set of that name would be meant


def _chosen(name: str, data: DataSplits, *, given: bool) -> tuple[_Choices, list[tuple[str, str]]]:
    teacher, student = default_networks(data.shape)
    low, high = _EPOCHS
    epochs = max(low, min(high, round(_SAMPLES_TO_SEE / len(data.train))))
    channels, *sides = data.shape
    epsilon, why_epsilon = ("0.1", "grey images: the customary bound for handwriting and clothes") if channels == 1 else ("0.0314", "colour images: 8/255")
    size = "×".join(str(side) for side in sides)
    splits = f"{len(data.train)} / {len(data.validation)} / {len(data.test)} train / validation / test"
    facts = f"{len(data.classes)} classes, {size} {'grey' if channels == 1 else 'colour'}, {splits}"
    reasons = [
        (f"data {name}", facts if given else f"none was named, and these come with kdpipe; {facts}"),
        (f"teacher {teacher}, student {student}", f"fit images of {size}"),
        (
            f"{_teacher_epochs(epochs)} epochs for the teacher, {epochs} for the student",
            f"about {_SAMPLES_TO_SEE:,} samples seen, {low} to {high} epochs; half for the larger network",
        ),
        (f"epsilon {epsilon}", why_epsilon),
        ("targets cpu and arm", "both are built on this machine; a device of yours is named in [devices]"),
    ]
    one_thread = min(sides) <= _LITTLE_WORK
    if one_thread:
        reasons.append(("one thread", f"images of {size} are too little work to share between cores"))
    return _Choices(name, teacher, student, epochs, epsilon, one_thread), reasons


def _text(task: str, choices: _Choices) -> str:
    few = max(1, round(choices.epochs / 4))
    threads = "threads = 1                          # absent: all cores\n" if choices.one_thread else ""
    return f"""\
# A kdpipe project. Every key and its default: docs/configuration.md. What would run and why: kdpipe plan

[project]
seed = 0                             # same seed, same machine: same result, bit for bit
{threads}
[task]
kind = {_quoted(task)}
data = {_quoted(choices.data)}

[teacher]                            # or your own: network = "package.module:factory", weights = "path.safetensors"
network = {_quoted(choices.teacher)}
objective = "trades"                 # a robust teacher; "plain" for an ordinary one
epochs = {_teacher_epochs(choices.epochs)}
[teacher.attack]
epsilon = {choices.epsilon}

[distill]
student = {_quoted(choices.student)}
objective = "rslad"                  # a robust student; "kd" for an ordinary one
epochs = {choices.epochs}
[distill.attack]                     # what the student is hardened against, and judged by
norm = "linf"
epsilon = {choices.epsilon}
steps = 10

[prune]                              # without this section nothing is pruned
speedup = 1.6                        # of multiply-accumulates
epochs = {few}

[qat]
epochs = {few}

[evaluate]
attacks = ["fgsm", "pgd-20"]
corruptions = "standard"

[targets.cpu]
[targets.arm]

[budgets]                            # a build that misses one exits with 3
# clean_drop = 1.0                   # percentage points below the teacher, upper 95 % bound
# robust_accuracy = 40.0             # per cent, lower 95 % bound
# size_kb = 200
# p90_ms = 8.0
"""


def _teacher_epochs(epochs: int) -> int:
    """Half the student's: a step of the larger network takes some three times as long, and it settles in fewer."""
    return max(_EPOCHS[0], epochs // 2)


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's escapes are TOML's."""
    return json.dumps(text, ensure_ascii=False)
