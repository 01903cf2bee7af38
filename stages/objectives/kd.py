"""Knowledge distillation: the student matches the teacher's softened distribution. Source: Hinton et al. 2015 (arXiv:1503.02531)."""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdpipe.stages.objectives.divergence import kl, widened
from kdpipe.stages.objectives.objective import Loss, Objective, weighted
from kdpipe.stages.schedule import Positive, Scheduled, Share


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The softened KL divergence from teacher to student, averaged over the batch; a scalar, >= 0, in nats.

    `student`, `teacher`: logits, (batch, classes); computed in float32 whatever their dtype. `temperature` > 0.
    No gradient reaches the teacher. Source: eq. 1, and the factor T² of section 2, which keeps the gradient's size as T varies.
    """
    return kl(teacher.detach(), student, temperature) * temperature**2


class Kd(Objective):
    """`(1 - a) · T² · KL(p_T(teacher) ‖ p_T(student)) + a · CE(student, labels)`."""

    temperature: Positive = Field(Scheduled.constant(4.0), description="T: softens both distributions; number or schedule, > 0")
    label_share: Share = Field(Scheduled.constant(0.1), description="a: share of the cross-entropy with the labels; number or schedule, in [0, 1]")

    def logit_loss(self, student: Tensor, teacher: Tensor | None, labels: Tensor, progress: float) -> Loss:
        """Both terms at this point of the training."""
        assert teacher is not None
        share = self.label_share.at(progress)
        return weighted(
            teacher=(1 - share, kd_loss(student, teacher, self.temperature.at(progress))),
            labels=(share, F.cross_entropy(widened(student), labels)),
        )


plugin = Kd
