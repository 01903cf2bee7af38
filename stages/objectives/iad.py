"""Introspective adversarial distillation: the teacher is believed as far as it withstands the student's own adversarial samples.

Source: Zhu et al. 2022 (arXiv:2106.04928), eq. 3 (IAD-I). Deviation: their attack runs in training mode, ours in evaluation mode.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdpipe.stages.objectives.divergence import kl_per_sample, widened
from kdpipe.stages.objectives.objective import Loss, RobustObjective, Step, weighted
from kdpipe.stages.schedule import Positive, Scheduled, Weight


def reliability(teacher: Tensor, labels: Tensor, power: float) -> Tensor:
    """p_y^power, how far the teacher is believed: from its logits (batch, classes) on attacked samples to (batch,) in [0, 1], without a graph."""
    probabilities = F.softmax(widened(teacher.detach()), dim=1)
    return probabilities.gather(1, labels[:, None])[:, 0].pow(power)


class Iad(RobustObjective):
    """`T² · mean of (r_i · KL(p_T(t(x)) ‖ p_T(s(x'))) + (1 - r_i) · KL(p_T(s(x)) ‖ p_T(s(x'))))`, x' maximising CE(s(x'), y).

    r_i is `reliability` of the teacher on x'; 1 before `trust_from`. As in the authors' code the student's own clean
    prediction is not detached: a gradient flows through both sides of the second KL.
    """

    temperature: Positive = Field(Scheduled.constant(1.0), description="T: softens all distributions; number or schedule, > 0")
    reliability_power: Weight = Field(
        Scheduled.constant(0.1), description="of the teacher's probability of the label; 0 believes all; number or schedule, >= 0"
    )
    trust_from: float = Field(0.3, ge=0, le=1, description="share of the training during which the teacher is believed whatever it says")
    full_teacher: bool = Field(False, description="the teacher's term keeps weight 1, as in the authors' code; else r_i, as in the paper")

    def attacked(self, step: Step) -> Tensor:
        """Where the student is most wrong about the labels."""
        return self.worst_case(step, lambda logits: F.cross_entropy(widened(logits), step.labels, reduction="none"))

    def outer(self, step: Step, x_adv: Tensor) -> Loss:
        """Both terms at this point of the training, each with its samples' weights; and the mean of r_i, with weight 0, for the log."""
        if step.progress < self.trust_from:
            trust = torch.ones_like(step.labels, dtype=torch.float32)
        else:
            trust = reliability(step.teacher(x_adv), step.labels, self.reliability_power.at(step.progress))
        temperature = self.temperature.at(step.progress)
        adversarial, clean = step.student(x_adv), step.student(step.x)
        guided = kl_per_sample(step.targets, adversarial, temperature) * temperature**2
        own = kl_per_sample(clean, adversarial, temperature) * temperature**2
        return weighted(
            teacher=(1.0, (guided if self.full_teacher else trust * guided).mean()),
            own=(1.0, ((1 - trust) * own).mean()),
            trust=(0.0, trust.mean()),
        )


plugin = Iad
