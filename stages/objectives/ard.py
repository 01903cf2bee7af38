"""Adversarially robust distillation: on attacked samples the student says what the teacher says on clean ones.

Source: Goldblum et al. 2020 (arXiv:1905.09747), eq. 3. Deviations: their code's KL also divides by the number of classes, and its attack
runs in training mode; ours is the formula, attacked in evaluation mode.
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdpipe.stages.objectives.divergence import widened
from kdpipe.stages.objectives.kd import kd_loss
from kdpipe.stages.objectives.objective import Loss, RobustObjective, Step, weighted
from kdpipe.stages.schedule import Positive, Scheduled, Share


class Ard(RobustObjective):
    """`(1 - a) · T² · KL(p_T(t(x)) ‖ p_T(s(x'))) + a · CE(s(x), y)`, x' maximising CE(s(x'), y).

    a is 1 - alpha of the paper. Where it is 0 throughout, as there, the student makes no clean pass.
    """

    temperature: Positive = Field(Scheduled.constant(30.0), description="T: softens both distributions; number or schedule, > 0")
    label_share: Share = Field(Scheduled.constant(0.0), description="a: share of the cross-entropy on clean samples; number or schedule, in [0, 1]")

    def attacked(self, step: Step) -> Tensor:
        """Where the student is most wrong about the labels."""
        return self.worst_case(step, lambda logits: F.cross_entropy(widened(logits), step.labels, reduction="none"))

    def outer(self, step: Step, x_adv: Tensor) -> Loss:
        """Both terms at this point of the training."""
        adversarial = kd_loss(step.student(x_adv), step.targets, self.temperature.at(step.progress))
        if self.label_share == Scheduled.constant(0.0):
            return weighted(adversarial=(1.0, adversarial))
        share = self.label_share.at(step.progress)
        return weighted(
            adversarial=(1 - share, adversarial),
            labels=(share, F.cross_entropy(widened(step.student(step.x)), step.labels)),
        )


plugin = Ard
