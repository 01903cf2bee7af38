"""A proposed project as the text of its `kdpipe.toml`: what `kdpipe init` and `kdpipe advise --write` write."""

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Epochs of the student; those of the teacher and of each fine-tuning follow. `train_samples`: None for all. Where a rate is None, the default."""

    epochs: int
    teacher_epochs: int
    batch_size: int | None = None
    learning_rate: float | None = None
    prune_learning_rate: float | None = None
    qat_learning_rate: float | None = None
    train_samples: int | None = None

    @property
    def few(self) -> int:
        """Epochs of pruning's fine-tuning, and of the twin's."""
        return max(1, round(self.epochs / 4))


@dataclass(frozen=True)
class Strength:
    """The attack in the step, and what the files are judged by. `teacher_steps`: None for the default."""

    epsilon: str
    steps: int
    teacher_steps: int | None = None


@dataclass(frozen=True)
class Proposal:
    """All that the file's values follow from. `settings`: further lines of [task], as they stand in the file."""

    task: str
    data: str
    teacher: str
    teacher_objective: str
    student: str
    objective: str
    attacked_in_training: bool
    strength: Strength
    schedule: Schedule
    one_thread: bool

    @property
    def teacher_is_robust(self) -> bool:
        """Whether the teacher is trained under attack."""
        return self.teacher_objective != "plain"


def text_of(proposal: Proposal) -> str:
    """The whole file, with comments for whoever edits it next."""
    schedule, strength = proposal.schedule, proposal.strength
    threads = "threads = 1                          # absent: all cores\n" if proposal.one_thread else ""
    samples = "" if schedule.train_samples is None else _with_comment(f"train_samples = {schedule.train_samples}", "absent: all") + "\n"
    batch = "" if schedule.batch_size is None else f"batch_size = {schedule.batch_size}\n"
    judged = "" if proposal.attacked_in_training else _with_comment(f"epsilon = {strength.epsilon}", "of the attacks that the files are judged by") + "\n"
    return f"""\
# A kdpipe project. Every key and its default: docs/configuration.md. What would run and why: kdpipe plan

[project]
seed = 0                             # same seed, same machine: same result, bit for bit
{threads}
[task]
kind = {quoted(proposal.task)}
data = {quoted(proposal.data)}
{samples}
[teacher]                            # or your own: network = "package.module:factory", weights = "path.safetensors"
network = {quoted(proposal.teacher)}
{_teacher_objective(proposal)}
epochs = {schedule.teacher_epochs}
{batch}{_rate(schedule.learning_rate)}{_teacher_attack(proposal)}
[distill]
student = {quoted(proposal.student)}
{_objective(proposal)}
epochs = {schedule.epochs}
{batch}{_rate(schedule.learning_rate)}{_attack(proposal)}
[prune]                              # without this section nothing is pruned
speedup = 1.6                        # of multiply-accumulates
epochs = {schedule.few}
{batch}{_rate(schedule.prune_learning_rate)}
[qat]
epochs = {schedule.few}
{batch}{_rate(schedule.qat_learning_rate)}
[evaluate]
attacks = ["fgsm", "pgd-20"]
{judged}corruptions = "standard"

[targets.cpu]
[targets.arm]

[budgets]                            # a build that misses one exits with 3
# clean_drop = 1.0                   # percentage points below the teacher, upper 95 % bound
# robust_accuracy = 40.0             # per cent, lower 95 % bound
# size_kb = 200
# p90_ms = 8.0
"""


def quoted(text: str) -> str:
    """A TOML basic string: JSON's escapes are TOML's."""
    return json.dumps(text, ensure_ascii=False)


def _with_comment(line: str, comment: str) -> str:
    return f"{line:<37}# {comment}"


def _rate(value: float | None) -> str:
    return "" if value is None else f"learning_rate = {value:g}\n"


def _teacher_objective(proposal: Proposal) -> str:
    comment = 'a robust teacher; "plain" for an ordinary one' if proposal.teacher_is_robust else 'an ordinary teacher; "trades" for a robust one'
    return _with_comment(f"objective = {quoted(proposal.teacher_objective)}", comment)


def _objective(proposal: Proposal) -> str:
    comment = 'a robust student; "kd" for an ordinary one' if proposal.attacked_in_training else 'no attack in training; "rslad" for a robust student'
    return _with_comment(f"objective = {quoted(proposal.objective)}", comment)


def _teacher_attack(proposal: Proposal) -> str:
    if not proposal.teacher_is_robust:
        return ""
    steps = "" if proposal.strength.teacher_steps is None else f"steps = {proposal.strength.teacher_steps}\n"
    return f"[teacher.attack]\nepsilon = {proposal.strength.epsilon}\n{steps}"


def _attack(proposal: Proposal) -> str:
    if not proposal.attacked_in_training:
        return ""
    head = "[distill.attack]                     # what the student is hardened against, and judged by"
    return f'{head}\nnorm = "linf"\nepsilon = {proposal.strength.epsilon}\nsteps = {proposal.strength.steps}\n'
