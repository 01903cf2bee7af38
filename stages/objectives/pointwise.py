"""Logit regression: the student's logits approach the teacher's. Source: Ba & Caruana 2014 (arXiv:1312.6184), eq. 1."""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdpipe.stages.objectives.divergence import widened
from kdpipe.stages.objectives.objective import Loss, Objective, weighted
from kdpipe.stages.schedule import Scheduled, Share


def centred(logits: Tensor) -> Tensor:
    """The logits in float32 with each row's mean removed, which no softmax can see; (batch, classes)."""
    logits = widened(logits)
    return logits - logits.mean(dim=1, keepdim=True)


class Pointwise(Objective):
    """`(1 - a) · mean (t - s)² + a · CE(student, labels)` with t, s the logits, each row's mean removed.

    Deviations: averaged over classes too, without the factor 1/2; means removed, since a shift of all logits changes no prediction.
    """

    label_share: Share = Field(Scheduled.constant(0.1), description="a: share of the cross-entropy with the labels; number or schedule, in [0, 1]")

    def logit_loss(self, student: Tensor, teacher: Tensor | None, labels: Tensor, progress: float) -> Loss:
        """Both terms at this point of the training."""
        assert teacher is not None
        share = self.label_share.at(progress)
        return weighted(
            teacher=(1 - share, F.mse_loss(centred(student), centred(teacher.detach()))),
            labels=(share, F.cross_entropy(widened(student), labels)),
        )


plugin = Pointwise
