"""Several teachers in front of an objective that knows one: what they say to a sample becomes one answer.

The mixture is one of probabilities (a linear opinion pool), taken at the objective's own temperature: then the gradient of KL(mixture ‖ student) is
that of the weighted sum of the teachers' KLs, which is what the papers below minimise. A mixture of logits is there as well; in it the
teacher with the largest logits rules, and a natural teacher's are several times those of a robust one.

Sources: You et al. 2017 (KDD, "Learning from multiple teacher networks"), equal weights; Zhang et al. 2022 (arXiv:2201.00007), weights by
confidence; Wolpert 1992 ("Stacked generalization"), weights that are learned for their mixture to be right.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from kdpipe.stages.classes import known_classes
from kdpipe.stages.objectives.configured import ConfiguredObjective
from kdpipe.stages.objectives.divergence import widened
from kdpipe.stages.objectives.objective import Loss, Objective, RobustObjective, Setting, Step, Teacher, weighted

LABEL_PROBABILITY = 0.99
"""What stands in for a teacher where none is believed: one who gives the label this probability, and the other classes equal parts of the rest."""

FIRST_NAME = "teacher"
"""the build's own teacher, beside the names of the further ones"""


class Mixture(BaseModel, extra="forbid", frozen=True):
    """`[distill.mixture]`: how the answers of several teachers become one, for objectives that know one teacher."""

    weights: Literal["fixed", "confidence", "learned"] = Field(
        "fixed",
        description="fixed: as written at each teacher; confidence: for each sample by the cross-entropy with its label; "
        "learned: for their mixture to give the labels much probability",
    )
    teacher_weight: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="weight of [teacher] beside those of [[distill.teachers]]; where learned: at the start"
    )
    of: Literal["probabilities", "logits"] = Field("probabilities", description="what is averaged")
    gate: Literal["wrong", "label-probability", "confidence"] | None = Field(
        None,
        description="a teacher is not believed about a sample where its answer is wrong, or its probability of the label, or of its own answer, is below "
        "gate_threshold; the label takes its place where none is believed; absent: all are believed",
    )
    gate_threshold: float | None = Field(None, gt=0, lt=1, description="of the probability that the gate looks at")

    @model_validator(mode="after")
    def _a_threshold_where_one_is_needed(self) -> Self:
        if self.gate in ("label-probability", "confidence") and self.gate_threshold is None:
            raise ValueError(f"gate = {self.gate!r} needs gate_threshold, the probability below which a teacher is not believed")
        if self.gate not in ("label-probability", "confidence") and self.gate_threshold is not None:
            raise ValueError("gate_threshold = … needs gate = 'label-probability' or 'confidence'")
        return self


class TeacherShare(BaseModel, extra="forbid", frozen=True):
    """A further teacher as those see it who learn from it: its name, what it is to the objective, and its weight in a mixture."""

    name: str
    role: str | None = None
    weight: float = Field(1.0, ge=0)


def mixed(objective: Objective, mixture: Mixture, further: Sequence[TeacherShare]) -> Objective:
    """`objective`, which knows one teacher, in front of the mixture of [teacher] and the `further` ones; the same keys, loss and attack."""
    names = (FIRST_NAME, *(share.name for share in further))
    weights = (mixture.teacher_weight, *(share.weight for share in further))
    if isinstance(objective, RobustObjective):
        return RobustMixed(objective=objective, attack=objective.attack, mixture=mixture, names=names, weights=weights)
    return Mixed(objective=objective, mixture=mixture, names=names, weights=weights)


class Mixed(Objective):
    """An objective whose one teacher is a mixture."""

    objective: ConfiguredObjective
    mixture: Mixture
    names: tuple[str, ...]
    weights: tuple[float, ...]

    @property
    def name(self) -> str:
        """That of the objective within."""
        return self.objective.name

    @property
    def uses_teacher(self) -> bool:
        """As the objective within."""
        return self.objective.uses_teacher

    def auxiliary(self, setting: Setting) -> nn.Module:
        """The objective's own, and the weights where they are learned."""
        return _Auxiliary(self.objective.auxiliary(setting), self.mixture, self.weights)

    def around(self, step: Step) -> AbstractContextManager[None]:
        """What the objective wants."""
        return self.objective.around(_before_mixture(self, step))

    def loss(self, step: Step) -> Loss:
        """The objective's loss, and how far each teacher was believed."""
        inner = _before_mixture(self, step)
        return _told(self.objective.loss(inner), inner)


class RobustMixed(Mixed, RobustObjective):
    """The same for an objective with an attack inside."""

    @property
    def splits(self) -> bool:
        """As the objective within."""
        return self._robust.splits

    def attacked(self, step: Step) -> Tensor:
        """Where the objective's attack leads."""
        return self._robust.attacked(_before_mixture(self, step))

    def outer(self, step: Step, x_adv: Tensor) -> Loss:
        """The objective's loss there."""
        inner = _before_mixture(self, step)
        return _told(self._robust.outer(inner, x_adv), inner)

    @property
    def _robust(self) -> RobustObjective:
        assert isinstance(self.objective, RobustObjective)
        return self.objective


class _Auxiliary(nn.Module):
    """What the objective trains beside the student, and the logarithms of the learned weights."""

    def __init__(self, inner: nn.Module | None, mixture: Mixture, weights: tuple[float, ...]) -> None:
        super().__init__()
        self.inner = inner
        start = torch.tensor(weights).clamp_min(1e-6).log()
        self.log_weights = nn.Parameter(start) if mixture.weights == "learned" else None


@dataclass(kw_only=True)
class _MixedStep(Step):
    """A step whose one teacher is the council of the `whole` step's."""

    whole: Step
    council: "Council"

    @property
    def answers(self) -> list[Tensor]:
        """What each of the teachers says to the clean batch; each is asked once a step."""
        return [self.whole.targets_of(number) for number in range(len(self.whole.teachers))]

    def targets_of(self, teacher: int) -> Tensor:
        """The mixture's answer to the clean batch."""
        if teacher not in self._targets:
            with torch.no_grad():
                self._targets[teacher] = self.council.mix(self.answers)
        return self._targets[teacher]


def _before_mixture(objective: Mixed, step: Step) -> _MixedStep:
    auxiliary = step.auxiliary
    assert isinstance(auxiliary, _Auxiliary)
    council = Council(objective, step, auxiliary.log_weights)
    values = {part.name: getattr(step, part.name) for part in fields(Step) if part.name != "_targets"}
    foldable = tuple(pair for teacher in step.teachers for pair in teacher.foldable)
    values |= {"teachers": (Teacher(council, foldable=foldable),), "auxiliary": auxiliary.inner}
    return _MixedStep(**values, whole=step, council=council)


def _told(loss: Loss, step: _MixedStep) -> Loss:
    """With the term that learned weights are trained by, and the mean weight of each teacher for the log."""
    council = step.council
    if council.log_weights is not None:
        whole = loss.plus(weighted(mixture=(1.0, council.surprise(step.answers))))
        loss = Loss(whole.total, whole.terms, whole.parts if loss.parts else {})
    elif not step._targets:
        return loss  # the objective did not ask about the clean batch, and nobody is asked for the log's sake alone
    believed = council.believed(step.answers)
    log = {f"weight of {name}": weight for name, weight in zip(council.objective.names, believed.weights.mean(dim=0), strict=True)}
    return Loss(loss.total, {**loss.terms, **log, "from labels": (~believed.any).float().mean()}, loss.parts)


@dataclass(frozen=True)
class Believed:
    """`weights`: (batch, teachers), each row of sum 1. `any`: (batch,) bool, whether any teacher is believed; where not, the row means nothing."""

    weights: Tensor
    any: Tensor


class Council(nn.Module):
    """Several teachers about one batch, as a network from samples to the mixture's logits. A gradient passes through the teachers, none through the weights."""

    def __init__(self, objective: Mixed, step: Step, log_weights: Tensor | None) -> None:
        super().__init__()
        self.objective = objective
        self.mixture = objective.mixture
        self.teachers = [teacher.module for teacher in step.teachers]  # a plain list: the step does not own them
        self.labels = step.labels
        self.log_weights = log_weights
        self.temperature = _temperature(objective.objective, step.progress)

    def get_submodule(self, target: str) -> nn.Module:
        """A layer of the first teacher: hidden layers are that one's."""
        return self.teachers[0].get_submodule(target)

    def forward(self, x: Tensor) -> Tensor:
        """The mixture's logits, (batch, classes), of the batch that the step's labels belong to."""
        return self.mix([teacher(x) for teacher in self.teachers])

    def mix(self, answers: Sequence[Tensor]) -> Tensor:
        """One answer of the teachers' `answers`, each (batch, classes), in float32.

        Softened by the objective's temperature it is the weighted mean of their softened probabilities (or it is the weighted mean of their logits).
        """
        believed = self.believed(answers)
        weights = believed.weights.T[:, :, None]
        logits = torch.stack([widened(answer) for answer in answers])
        if self.mixture.of == "logits":
            answer = (weights * (logits - logits.mean(dim=2, keepdim=True))).sum(dim=0)
        else:
            answer = self.temperature * torch.logsumexp(weights.log() + F.log_softmax(logits / self.temperature, dim=2), dim=0)
        return torch.where(believed.any[:, None], answer, label_logits(self.labels, answer.shape[1]).to(answer))

    def believed(self, answers: Sequence[Tensor]) -> Believed:
        """How far each teacher is believed about each sample, by what it says to it; without a graph."""
        log_p = torch.stack([F.log_softmax(widened(answer.detach()), dim=1) for answer in answers], dim=1)  # (batch, teachers, classes)
        trusted = self._knows(log_p.shape[2]) & self._passes(log_p)
        weights = self._prior(log_p) * trusted
        total = weights.sum(dim=1, keepdim=True)
        believed = total[:, 0] > 0
        even = torch.full_like(weights, 1 / len(answers))
        return Believed(torch.where(believed[:, None], weights / total.clamp_min(torch.finfo(total.dtype).tiny), even), believed)

    def surprise(self, answers: Sequence[Tensor]) -> Tensor:
        """The mean of -log of the mixture's probability of the label, in nats, a scalar: convex in the learned weights, which alone get a gradient.

        A teacher that does not know a sample's class has no part in it.
        """
        assert self.log_weights is not None
        log_p = torch.stack([F.log_softmax(widened(answer.detach()), dim=1) for answer in answers], dim=1)
        of_label = log_p.gather(2, self.labels[:, None, None].expand(-1, log_p.shape[1], 1))[:, :, 0]
        knows = self._knows(log_p.shape[2])
        knows = knows | ~knows.any(dim=1, keepdim=True)  # nobody knows the class: all are equally wrong about it
        weights = self.log_weights.masked_fill(~knows, -math.inf)
        return -(torch.logsumexp(weights + of_label, dim=1) - torch.logsumexp(weights, dim=1)).mean()

    def _prior(self, log_p: Tensor) -> Tensor:
        """The weights before any gate, (batch, teachers)."""
        count = log_p.shape[1]
        if self.log_weights is not None:
            return F.softmax(self.log_weights.detach(), dim=0).expand(len(log_p), count)
        weights = torch.tensor(self.objective.weights, dtype=log_p.dtype).to(log_p).expand(len(log_p), count)
        if self.mixture.weights == "confidence" and count > 1:
            surprise = -log_p.gather(2, self.labels[:, None, None].expand(-1, count, 1))[:, :, 0]
            weights = weights * (1 - F.softmax(surprise, dim=1)) / (count - 1)  # arXiv:2201.00007, its weights of the logits' loss
        return weights

    def _passes(self, log_p: Tensor) -> Tensor:
        """Whom the gate lets through, bool (batch, teachers)."""
        of_label = log_p.gather(2, self.labels[:, None, None].expand(-1, log_p.shape[1], 1))[:, :, 0]
        highest, answer = log_p.max(dim=2)
        if self.mixture.gate == "wrong":
            return answer == self.labels[:, None]
        if self.mixture.gate is None or self.mixture.gate_threshold is None:
            return torch.ones_like(answer, dtype=torch.bool)
        return (of_label if self.mixture.gate == "label-probability" else highest) >= math.log(self.mixture.gate_threshold)

    def _knows(self, classes: int) -> Tensor:
        """Which teachers know the samples' classes, bool (batch, teachers)."""
        return torch.stack([known_classes(teacher, classes).to(self.labels.device)[self.labels] for teacher in self.teachers], dim=1)


def _temperature(objective: Objective, progress: float) -> float:
    """That by which the objective softens its teacher, 1 where it has none; of a learned one the present value."""
    given = getattr(objective, "temperature", None)
    value = 1.0 if given is None else given.at(progress)
    return value.item() if isinstance(value, Tensor) else float(value)


def label_logits(labels: Tensor, classes: int) -> Tensor:
    """Logits (batch, classes) of one who gives the label the probability LABEL_PROBABILITY, the rest even."""
    height = math.log(LABEL_PROBABILITY / (1 - LABEL_PROBABILITY) * (classes - 1))
    return F.one_hot(labels, classes).float() * height
