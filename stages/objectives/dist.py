"""Distillation by correlation: the student keeps the teacher's ranking, of classes in a sample and of samples in a class, not its very numbers.

Source: Huang et al. 2022 (arXiv:2205.10536), eqs. 6 to 10. For a teacher much stronger than the student, whose exact probabilities are out of its reach.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdpipe.stages.objectives.divergence import widened
from kdpipe.stages.objectives.objective import Loss, Objective, weighted
from kdpipe.stages.schedule import Positive, Scheduled, Weight

_FLOOR = 1e-8
"""added to the product of the two lengths: rows or columns without variance correlate with nothing"""


def pearson_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 minus Pearson's correlation of corresponding rows, averaged over the rows; a scalar in [0, 2], and 1 for rows without variance.

    (rows, values) each, float32 or float64. Unchanged when any row is multiplied by a positive number or shifted.
    """
    student, teacher = (rows - rows.mean(dim=1, keepdim=True) for rows in (student, teacher))
    lengths = torch.linalg.vector_norm(student, dim=1) * torch.linalg.vector_norm(teacher, dim=1)
    correlation: Tensor = (student * teacher).sum(dim=1) / (lengths + _FLOOR)
    return (1 - correlation).mean()


def inter_distance(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """`pearson_distance` of each sample's softened probabilities over the classes, from logits (batch, classes). Eq. 8.

    No gradient reaches the teacher. Without a factor T²: the correlation does not change with scale, so neither does its gradient.
    """
    return pearson_distance(_softened(student, temperature), _softened(teacher.detach(), temperature))


def intra_distance(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """`pearson_distance` of each class's softened probabilities over the batch; as `inter_distance`. Eq. 9. Constant 1 for a batch of one sample."""
    return pearson_distance(_softened(student, temperature).T, _softened(teacher.detach(), temperature).T)


class Dist(Objective):
    """`a · CE + b · inter_distance + c · intra_distance`."""

    temperature: Positive = Field(Scheduled.constant(1.0), description="T: softens both distributions; number or schedule, > 0")
    label_weight: Weight = Field(Scheduled.constant(1.0), description="a: weight of the cross-entropy with the labels; number or schedule, >= 0")
    inter_weight: Weight = Field(Scheduled.constant(1.0), description="b: weight of the correlation over classes, per sample; number or schedule, >= 0")
    intra_weight: Weight = Field(Scheduled.constant(1.0), description="c: weight of the correlation over the batch, per class; number or schedule, >= 0")

    def logit_loss(self, student: Tensor, teacher: Tensor | None, labels: Tensor, progress: float) -> Loss:
        """All three terms at this point of the training."""
        assert teacher is not None
        temperature = self.temperature.at(progress)
        return weighted(
            labels=(self.label_weight.at(progress), F.cross_entropy(widened(student), labels)),
            inter=(self.inter_weight.at(progress), inter_distance(student, teacher, temperature)),
            intra=(self.intra_weight.at(progress), intra_distance(student, teacher, temperature)),
        )


def _softened(logits: Tensor, temperature: float) -> Tensor:
    return F.softmax(widened(logits) / temperature, dim=1)


plugin = Dist
