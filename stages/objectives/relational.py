"""Relational distillation: the student arranges the samples of a batch as the teacher does, by their distances and angles.

Source: Park et al. 2019 (arXiv:1904.05068), section 3.2. Only relations are compared, so the two networks' features need not have one width or scale.
"""

from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdpipe.stages.objectives.divergence import widened
from kdpipe.stages.objectives.hidden import layer_pairs, output_shapes, watched_passes
from kdpipe.stages.objectives.objective import Loss, Objective, Setting, Step, weighted
from kdpipe.stages.schedule import Scheduled, Weight

_SAME = 1e-6
"""samples nearer to each other than this have no direction between them"""


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber's loss between the networks' distances of all pairs of samples, each in units of its own mean distance; a scalar, >= 0.

    Features (batch, width) of any two widths. No gradient reaches the teacher. 0 for one sample. Source: eqs. 4 to 6;
    averaged over the pairs, as in the authors' code (theirs counts each sample with itself as well).
    """
    if len(student) < 2:
        return student.sum() * 0
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher.detach()))


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber's loss between the networks' cosines of the angles in all triples of samples; a scalar, >= 0. As `distance_loss`, 0 below three samples.

    Source: eqs. 7 to 9, averaged over the triples. Memory grows with batch³: 64 samples 1 MB, 512 samples 537 MB, several times over.
    """
    count = len(student)
    if count < 3:
        return student.sum() * 0
    difference = F.smooth_l1_loss(_cosines(student), _cosines(teacher.detach()), reduction="sum")  # 0 where two of the three are one sample
    return difference / (count * (count - 1) * (count - 2))


class Relational(Objective):
    """`a · CE + d · distance_loss + g · angle_loss` between the features before the classifier: the last stage's end, averaged over positions."""

    distance_weight: Weight = Field(Scheduled.constant(25.0), description="d: weight of the distances; number or schedule, >= 0")
    angle_weight: Weight = Field(Scheduled.constant(50.0), description="g: weight of the angles; number or schedule, >= 0")
    label_weight: Weight = Field(Scheduled.constant(1.0), description="a: weight of the cross-entropy with the labels; number or schedule, >= 0")
    student_layer: str | None = Field(None, description="name of the student's module; absent: the last that ends a stage")
    teacher_layer: str | None = Field(None, description="name of the teacher's module; absent: the last that ends a stage")

    @model_validator(mode="after")
    def _layers_go_together(self) -> Self:
        if (self.student_layer is None) != (self.teacher_layer is None):
            raise ValueError("student_layer and teacher_layer go together: give both, or neither")
        return self

    def auxiliary(self, setting: Setting) -> nn.Module:
        """Which layers are compared; nothing in it is trained."""
        return _Watched(self, setting)

    def loss(self, step: Step) -> Loss:
        """All three terms at this point of the training; one pass through each network."""
        layers = step.auxiliary
        assert isinstance(layers, _Watched)
        passes = watched_passes(step, [layers.student_layer], [layers.teacher_layer])
        student, teacher = _features(passes.student[layers.student_layer]), _features(passes.teacher[layers.teacher_layer])
        return weighted(
            labels=(self.label_weight.at(step.progress), F.cross_entropy(widened(passes.logits), step.labels)),
            distances=(self.distance_weight.at(step.progress), distance_loss(student, teacher)),
            angles=(self.angle_weight.at(step.progress), angle_loss(student, teacher)),
        )


def _features(output: Tensor) -> Tensor:
    """(batch, width) of a layer's output: maps averaged over positions, others flattened."""
    output = widened(output)
    return output.mean(dim=(2, 3)) if output.ndim == 4 else output.flatten(1)


def _relative_distances(features: Tensor) -> Tensor:
    """The Euclidean distances of all pairs, divided by their mean; (batch · (batch - 1) / 2,)."""
    distances = F.pdist(features)
    return distances / distances.mean().clamp_min(_SAME)


def _cosines(features: Tensor) -> Tensor:
    """The cosine of the angle at j between i and k, (j, i, k); 0 where i or k is j, or as good as j."""
    offsets = features[None, :] - features[:, None]
    squares = offsets.square().sum(dim=2, keepdim=True)
    apart = squares > _SAME**2
    directions = torch.where(apart, offsets * torch.rsqrt(torch.where(apart, squares, 1.0)), 0.0)  # no gradient from where there is no direction
    return directions @ directions.transpose(1, 2)


class _Watched(nn.Module):
    """The names of the two layers that are compared; without parameters."""

    def __init__(self, objective: Relational, setting: Setting) -> None:
        super().__init__()
        if objective.student_layer is not None and objective.teacher_layer is not None:
            output_shapes(setting.student, (objective.student_layer,), setting.example, at="student_layer")
            output_shapes(setting.teachers[0], (objective.teacher_layer,), setting.example, at="teacher_layer")
            self.student_layer, self.teacher_layer = objective.student_layer, objective.teacher_layer
        else:
            last = layer_pairs(setting.student, setting.teachers[0], setting.example, None, None, at=objective.name)[-1]
            self.student_layer, self.teacher_layer = last.student, last.teacher


plugin = Relational
