"""What a network minimises in one training step: one small interface for the whole family of objectives.

An objective is one file with one frozen model whose fields are its configuration keys. Three depths of it:
- it compares logits on clean samples: implement `logit_loss` (`kd`);
- it has an attack inside: derive from `RobustObjective`, implement `attacked` (which loss the inner maximisation raises) and `outer` (`rslad`);
- it needs more: `auxiliary` makes a module that is trained and checkpointed with the student (projectors, learned temperatures,
  and in its buffers whatever must survive a resume), `around` wraps the whole step (adversarial weight perturbation).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from kdpipe.robustness.attacks.attack import Attack
from kdpipe.robustness.attacks.pgd import maximise
from kdpipe.robustness.attacks.quiet import quiet
from kdpipe.stages.folding import Pair, folded


@dataclass(frozen=True)
class Loss:
    """`total`: the float32 scalar to minimise, with its graph. `terms`: its parts for the log, detached and before their weights.

    `parts`: by the same names the weights, and the parts with their graphs, where the total is their weighted sum and no more.
    """

    total: Tensor
    terms: dict[str, Tensor]
    parts: dict[str, tuple[float | Tensor, Tensor]] = field(default_factory=dict)

    def plus(self, other: "Loss") -> "Loss":
        """The sum of both; no name is in both."""
        return Loss(self.total + other.total, self.terms | other.terms, self.parts | other.parts)


def weighted(**terms: tuple[float | Tensor, Tensor]) -> Loss:
    """The loss that is the weighted sum of the named `terms`, each (weight, scalar)."""
    total = torch.stack([weight * value for weight, value in terms.values()]).sum()
    return Loss(total, {name: value.detach() for name, (_, value) in terms.items()}, terms)


class Teacher:
    """A frozen network that is asked for its logits; `module` itself for those who need hidden layers or gradients through it.

    `known`: from training indices to the logits on those samples as they lie in the data, where these were computed before.
    `foldable`: its BatchNorms that need not run while an attack goes through it.
    """

    def __init__(self, module: nn.Module, known: Callable[[Tensor], Tensor] | None = None, foldable: tuple[Pair, ...] = ()) -> None:
        self.module = module
        self.known = known
        self.foldable = foldable

    def __call__(self, x: Tensor) -> Tensor:
        """The logits, (batch, classes), without a graph."""
        with torch.no_grad():
            logits: Tensor = self.module(x)
            return logits


@dataclass
class Step:
    """One training step as an objective sees it.

    `x`: the batch as the student gets it, augmented, values in the data's raw range; `labels`, `indices`: (batch,) int64, the
    indices those of the training split. `augmented`: whether `x` differs from the samples in the data. `progress`: share of
    the training that is done, in [0, 1]; `epoch`, `number`: of the epoch and of the step in it, from 0. `foldable`: the student's
    BatchNorms that need not run during an attack. Draw from `generator` alone.
    """

    x: Tensor
    labels: Tensor
    indices: Tensor
    student: nn.Module
    generator: torch.Generator
    teachers: tuple[Teacher, ...] = ()
    auxiliary: nn.Module | None = None
    augmented: bool = True
    progress: float = 0.0
    epoch: int = 0
    number: int = 0
    foldable: tuple[Pair, ...] = ()
    _targets: dict[int, Tensor] = field(default_factory=dict)

    @property
    def teacher(self) -> Teacher:
        """The first teacher, or the only one."""
        return self.teachers[0]

    @property
    def targets(self) -> Tensor:
        """The first teacher's logits on the clean batch, (batch, classes), without a graph; computed at most once a step."""
        return self.targets_of(0)

    def targets_of(self, teacher: int) -> Tensor:
        """The same of the teacher at index `teacher`."""
        if teacher not in self._targets:
            source = self.teachers[teacher]
            self._targets[teacher] = source(self.x) if self.augmented or source.known is None else source.known(self.indices)
        return self._targets[teacher]


@dataclass(frozen=True)
class Setting:
    """What an objective may size its trainable extras by. `example`: two samples, (2, *shape); `samples`: how many the training split has.

    `fresh`: makes a network like the student with initial weights of its own, the same each time; None where the student does not start from initial weights.
    """

    student: nn.Module
    teachers: tuple[nn.Module, ...]
    example: Tensor
    samples: int
    fresh: Callable[[], nn.Module] | None = None


class Objective(BaseModel, extra="forbid", frozen=True):
    """The base of all objectives; the fields of a subclass are its keys in `[distill]`."""

    needs_teacher: ClassVar[bool] = True
    robust: ClassVar[bool] = False
    """whether an attack runs inside the step; then there is a field `attack`"""

    weighting: Literal["uncertainty"] | None = Field(
        None, description="uncertainty: the terms' weights are learned as well (times the given ones); absent: as given"
    )

    @property
    def name(self) -> str:
        """What one writes as `objective = …`: the file's name, or `package.module:Class` for a user's own."""
        package, _, module = type(self).__module__.rpartition(".")
        if package == __package__:
            return module.replace("_", "-")
        return f"{type(self).__module__}:{type(self).__qualname__}"

    @property
    def uses_teacher(self) -> bool:
        """Whether this one, with its settings, asks a teacher; `needs_teacher` says it of the kind."""
        return self.needs_teacher

    @property
    def trained_corruptions(self) -> tuple[str, ...]:
        """The corruptions of the evaluation that it makes itself, in the step: accuracy under them is not of the unseen."""
        return ()

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """What its teachers are to it (`robust`, `natural`), in the order of `step.teachers`; none where it has one, which several may be mixed into."""
        return ()

    def loss(self, step: Step) -> Loss:
        """The loss of one step; the student is in training mode and each of its forward passes moves its BatchNorm statistics."""
        teacher = step.targets if self.uses_teacher else None
        return self.logit_loss(step.student(step.x), teacher, step.labels, step.progress)

    def logit_loss(self, student: Tensor, teacher: Tensor | None, labels: Tensor, progress: float) -> Loss:
        """The loss from logits (batch, classes) and labels (batch,) alone; `teacher` has no graph, and is None without a teacher."""
        raise NotImplementedError(f"{type(self).__name__} implements neither loss nor logit_loss")

    def auxiliary(self, setting: Setting) -> nn.Module | None:
        """A module trained and checkpointed with the student, not part of the artifact; None where nothing is needed.

        Called under a random stream of its own, on networks in evaluation mode.
        """
        return None

    def around(self, step: Step) -> AbstractContextManager[None]:
        """What holds while loss, gradients and the optimiser's step are computed; nothing by default."""
        return nullcontext()


class RobustObjective(Objective):
    """An objective with an attack inside; which loss it maximises is the subclass's choice."""

    robust: ClassVar[bool] = True
    natural_start: ClassVar[Literal["uniform", "gaussian"]] = "uniform"
    """where the attack starts when the user's `[….attack]` does not say"""

    attack: Attack = Field(default_factory=Attack, description="the attack inside the step, a section of its own")

    def loss(self, step: Step) -> Loss:
        """`outer` on `attacked`. Who overrides this instead of those two cannot be `igdm`'s base, and pays the attack twice under `[….awp]`."""
        return self.outer(step, self.attacked(step))

    def attacked(self, step: Step) -> Tensor:
        """x', the batch that the inner maximisation leads to; without a graph."""
        raise NotImplementedError(f"{type(self).__name__} implements neither loss nor attacked")

    def outer(self, step: Step, x_adv: Tensor) -> Loss:
        """The loss to minimise, given x'; the student is in training mode. Another call on the same step gives the same, but for BatchNorm's statistics."""
        raise NotImplementedError(f"{type(self).__name__} implements neither loss nor outer")

    @property
    def splits(self) -> bool:
        """Whether `attacked` and `outer` can be had one by one."""
        return type(self).loss is RobustObjective.loss

    @model_validator(mode="after")
    def _start_where_the_paper_does(self) -> "RobustObjective":
        if "start" not in self.attack.model_fields_set:
            object.__setattr__(self, "attack", self.attack.model_copy(update={"start": self.natural_start}))  # the model is frozen, and still being made
        return self

    def worst_case(self, step: Step, loss_per_sample: Callable[[Tensor], Tensor]) -> Tensor:
        """The batch moved within the attack's ball so that `loss_per_sample` of the student's logits is high; without a graph."""
        with under_attack(step):
            return maximise(step.x, lambda x_adv: loss_per_sample(step.student(x_adv)), self.attack, step.generator)

    def worst_case_for(self, step: Step, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
        """The same for a per-sample loss of the moved batch itself, where a teacher looks at it as well: the gradient passes through `module` of each."""
        with under_attack(step), folded([pair for teacher in step.teachers for pair in teacher.foldable]):
            return maximise(step.x, loss_of, self.attack, step.generator)


@contextmanager
def under_attack(step: Step) -> Iterator[None]:
    """The student as an attack sees it: evaluation mode, no weight gradients, BatchNorm folded where it can be; all restored after."""
    with quiet(step.student), folded(step.foldable):
        yield
