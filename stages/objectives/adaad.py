"""Adaptive adversarial distillation: the attack looks for where student and teacher differ most, and there the student learns from the teacher.

Source: Huang et al. 2023 (CVPR, "Boosting accuracy and robustness of student models via adaptive adversarial distillation"), eqs. 3 and 4.
Deviation: for CIFAR-10 their code's KL also divides by the number of classes.
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from kdpipe.stages.objectives.divergence import kl, kl_per_sample
from kdpipe.stages.objectives.objective import Loss, RobustObjective, Step, weighted
from kdpipe.stages.schedule import Scheduled, Share


class Adaad(RobustObjective):
    """`b · KL(p(t(x')) ‖ p(s(x'))) + (1 - b) · KL(p(t(x)) ‖ p(s(x)))`, x' maximising the first; labels are not used.

    In the attack the gradient passes through the teacher too, which makes it dear; in the outer loss none does.
    Where b is 1 throughout, as in the paper, there is no clean pass.
    """

    natural_start: ClassVar[Literal["uniform", "gaussian"]] = "gaussian"

    robust_share: Share = Field(Scheduled.constant(1.0), description="b: share of the adversarial term; number or schedule, in [0, 1]")

    def attacked(self, step: Step) -> Tensor:
        """Where the two networks differ most."""
        return self.worst_case_for(step, lambda x: kl_per_sample(step.teacher.module(x), step.student(x)))

    def outer(self, step: Step, x_adv: Tensor) -> Loss:
        """Both terms at this point of the training."""
        adversarial = kl(step.teacher(x_adv), step.student(x_adv))
        if self.robust_share == Scheduled.constant(1.0):
            return weighted(adversarial=(1.0, adversarial))
        share = self.robust_share.at(step.progress)
        return weighted(
            adversarial=(share, adversarial),
            clean=(1 - share, kl(step.targets, step.student(step.x))),
        )


plugin = Adaad
