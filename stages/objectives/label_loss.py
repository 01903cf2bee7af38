"""What the losses for labels that may be wrong have in common: the teacher stands beside the labels where `teacher_share` asks for it.

Without a share they need no teacher, so that they also train one: a teacher that has not learned the wrong labels by heart is
what `correction` and every distillation from noisy data begin with.
"""

from pydantic import Field
from torch import Tensor

from kdpipe.stages.objectives.kd import kd_loss
from kdpipe.stages.objectives.objective import Loss, Objective, weighted
from kdpipe.stages.schedule import Positive, Scheduled, Share


class LabelLoss(Objective):
    """`(1 - a) · L(student, labels) + a · T² · KL(p_T(teacher) ‖ p_T(student))`; the subclass chooses L."""

    teacher_share: Share = Field(Scheduled.constant(0.0), description="a: share of the divergence from the teacher; number or schedule; 0: none is asked")
    temperature: Positive = Field(Scheduled.constant(4.0), description="T of that divergence; number or schedule, > 0")

    @property
    def uses_teacher(self) -> bool:
        """Whether there is a share for the teacher, at any time."""
        return self.teacher_share != Scheduled.constant(0.0)

    def beside_the_teacher(self, label_loss: Tensor, student: Tensor, teacher: Tensor | None, progress: float) -> Loss:
        """The scalar `label_loss` and the teacher's term, weighted as at this point of the training; logits (batch, classes)."""
        if teacher is None:
            return weighted(labels=(1.0, label_loss))
        share = self.teacher_share.at(progress)
        return weighted(
            labels=(1 - share, label_loss),
            teacher=(share, kd_loss(student, teacher, self.temperature.at(progress))),
        )
