"""Indirect gradient distillation: an adversarial distillation of choice, and beside it the student's answer turns within the ball as the teacher's does.

Source: Lee, Cho & Kim 2025 (arXiv:2312.03286, "Indirect gradient matching for adversarial robust distillation"), their module and the authors' code.
To first order f(x + δ) - f(x - δ) is twice the input gradient along δ, so matching it matches gradients without a second derivative.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, JsonValue, PlainSerializer, model_validator
from torch import Tensor, nn

from kdpipe.stages.objectives.configured import NAME_KEY, as_keys, parse_objective
from kdpipe.stages.objectives.divergence import kl
from kdpipe.stages.objectives.objective import Loss, Objective, RobustObjective, Setting, Step, weighted
from kdpipe.stages.schedule import Scheduled, Weight

PUBLISHED_WEIGHTS: Mapping[str, float] = {"rslad": 0.9, "adaad": 5.0, "ard": 5.0, "iad": 50.0}
"""alpha by base, for CIFAR-10 and a ResNet-18 (the paper's appendix)"""


def alignment(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """KL(softmax(t⁺ - t⁻) ‖ softmax(s⁺ - s⁻)), averaged over the batch; a scalar, >= 0, in nats.

    Each pair: logits on x + δ and on x - δ, (batch, classes). No gradient reaches the teacher. Adding to all logits of a pair what
    does not depend on the sign of δ changes nothing.
    """
    return kl((teacher[0] - teacher[1]).detach(), student[0] - student[1])


def _base(value: Any) -> Any:
    if isinstance(value, str):
        return parse_objective(value, {}, at="base")
    if isinstance(value, Mapping):
        if "attack" in value:
            raise ValueError("the base's attack is this objective's: its keys belong in [distill.attack]")
        keys = {key: item for key, item in value.items() if key != NAME_KEY}
        return parse_objective(str(value.get(NAME_KEY, "rslad")), keys, at="base")
    return value


def _written(base: Objective) -> dict[str, JsonValue]:
    return {key: value for key, value in as_keys(base).items() if key != "attack"}


class Igdm(RobustObjective):
    """`the base's loss + a · KL(softmax(t(x + δ) - t(x - δ)) ‖ softmax(s(x + δ) - s(x - δ)))`, x + δ = x' of the base's attack.

    As in the authors' code x - δ is not clamped, and the student answers it in training mode; the passes on x' are the base's own.
    a rises linearly from 0 to the value published for the base, where it is not given.
    """

    base: Annotated[Objective, BeforeValidator(_base), PlainSerializer(_written)] = Field(
        default_factory=lambda: parse_objective("rslad", {}, at="base"),
        description="what it is added to: rslad, adaad, ard, iad by name, or a table with `objective` and its keys",
    )
    alignment_weight: Weight | None = Field(
        None, description="a; number or schedule, >= 0; absent: from 0 to 0.9 (rslad), 5 (adaad, ard) or 50 (iad), as published"
    )

    @model_validator(mode="after")
    def _start_where_the_paper_does(self) -> "Igdm":  # in place of the parent's: the base decides
        base = self.base
        if not isinstance(base, RobustObjective) or not base.splits or isinstance(base, Igdm):
            raise ValueError(f"base = {base.name!r} cannot be built upon: rslad, adaad, ard, iad can, and what implements `attacked` and `outer`")
        if self.alignment_weight is None and base.name not in PUBLISHED_WEIGHTS:
            raise ValueError(f"no alignment_weight is published for base = {base.name!r}: give one")
        given = "start" in self.attack.model_fields_set
        attack = self.attack if given else self.attack.model_copy(update={"start": base.natural_start})
        object.__setattr__(self, "attack", attack)  # the model is frozen, and still being made
        object.__setattr__(self, "base", base.model_copy(update={"attack": attack}))
        return self

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """As the base's; the first one is aligned with."""
        return self.base.teacher_roles

    def weight_at(self, progress: float) -> float:
        """a at this point of the training."""
        if self.alignment_weight is None:
            return Scheduled.model_validate({"from": 0.0, "to": PUBLISHED_WEIGHTS[self.base.name]}).at(progress)
        return self.alignment_weight.at(progress)

    def auxiliary(self, setting: Setting) -> nn.Module | None:
        """The base's."""
        return self.base.auxiliary(setting)

    def around(self, step: Step) -> AbstractContextManager[None]:
        """The base's."""
        return self.base.around(step)

    def attacked(self, step: Step) -> Tensor:
        """The base's x'."""
        assert isinstance(self.base, RobustObjective)
        return self.base.attacked(step)

    def outer(self, step: Step, x_adv: Tensor) -> Loss:
        """The base's terms and the alignment's at this point of the training."""
        assert isinstance(self.base, RobustObjective)
        opposite = 2 * step.x - x_adv
        with _answers(step.student) as student, _answers(step.teacher.module) as teacher:
            base = self.base.outer(step, x_adv)
            ours = (_answer(student, x_adv, step.student), step.student(opposite))
            theirs = (_answer(teacher, x_adv, step.teacher), step.teacher(opposite))
        aligned = weighted(alignment=(self.weight_at(step.progress), alignment(ours, theirs)))
        return base.plus(aligned)


@contextmanager
def _answers(module: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """A list that each pass through `module` meanwhile adds its input and output to."""
    kept: list[tuple[Tensor, Tensor]] = []
    handle = module.register_forward_hook(lambda _, inputs, output: kept.append((inputs[0], output)))
    try:
        yield kept
    finally:
        handle.remove()


def _answer(kept: list[tuple[Tensor, Tensor]], x: Tensor, asked: Callable[[Tensor], Tensor]) -> Tensor:
    """What was answered to `x` itself, else what `asked` says now."""
    found = next((output for given, output in kept if given is x), None)
    return asked(x) if found is None else found


plugin = Igdm
