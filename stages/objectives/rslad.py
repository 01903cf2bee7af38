"""Robust soft label adversarial distillation: a robust teacher's soft labels guide both the attack and the student.

Source: Zi et al. 2021 (arXiv:2108.07969), eq. 7. Deviation: their code's KL also divides by the number of classes and adds
1e-5 inside the logarithm; ours is the formula itself.
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from kdpipe.stages.objectives.divergence import kl, kl_per_sample
from kdpipe.stages.objectives.objective import Loss, RobustObjective, Step, weighted
from kdpipe.stages.schedule import Scheduled, Share


class Rslad(RobustObjective):
    """`b · KL(p(t(x)) ‖ p(s(x'))) + (1 - b) · KL(p(t(x)) ‖ p(s(x)))`, x' maximising the first; labels are not used.

    The teacher sees clean samples only. The student's clean pass and its adversarial pass both move its BatchNorm statistics.
    """

    natural_start: ClassVar[Literal["uniform", "gaussian"]] = "gaussian"

    robust_share: Share = Field(Scheduled.constant(5 / 6), description="b: share of the adversarial term; number or schedule, in [0, 1]")

    def attacked(self, step: Step) -> Tensor:
        """Where the student differs most from the teacher's answer to the clean batch."""
        return self.worst_case(step, lambda logits: kl_per_sample(step.targets, logits))

    def outer(self, step: Step, x_adv: Tensor) -> Loss:
        """Both terms at this point of the training."""
        share = self.robust_share.at(step.progress)
        return weighted(
            adversarial=(share, kl(step.targets, step.student(x_adv))),
            clean=(1 - share, kl(step.targets, step.student(step.x))),
        )


plugin = Rslad
