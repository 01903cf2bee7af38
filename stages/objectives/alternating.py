"""Clean and attacked batches by turns: the cost of robust distillation, halved or less, and a clean accuracy nearer to the teacher's.

Source: training on clean and on adversarial samples, Goodfellow et al. 2015 (arXiv:1412.6572), section 6, and Kurakin et al. 2017 (arXiv:1611.01236),
section 3, who mix them in a batch; taking turns keeps each batch's BatchNorm statistics of one kind. The targets and the attack are `rslad`'s.
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdpipe.stages.objectives.divergence import kl_per_sample, widened
from kdpipe.stages.objectives.kd import kd_loss
from kdpipe.stages.objectives.objective import Loss, RobustObjective, Step, weighted
from kdpipe.stages.schedule import Positive, Scheduled, Share


class Alternating(RobustObjective):
    """`(1 - a) · T² · KL(p_T(t(x)) ‖ p_T(s(x*))) + a · CE(s(x*), y)`, x* = x, and at each n-th turn x' maximising KL(p(t(x)) ‖ p(s(x'))).

    A turn is a step or an epoch; each epoch's steps are counted anew, the clean ones first. The teacher sees clean samples only.
    """

    natural_start: ClassVar[Literal["uniform", "gaussian"]] = "gaussian"

    turn: Literal["step", "epoch"] = Field("step", description="what changes between clean and attacked")
    attacked_every: int = Field(2, ge=1, description="n: of so many turns the last is attacked, the others are clean; 1: all are attacked")
    temperature: Positive = Field(Scheduled.constant(1.0), description="T: softens both distributions in the loss, not in the attack; number or schedule, > 0")
    label_share: Share = Field(Scheduled.constant(0.0), description="a: share of the cross-entropy with the labels; number or schedule, in [0, 1]")

    def attacks(self, step: Step) -> bool:
        """Whether it is an attacked turn."""
        count = step.number if self.turn == "step" else step.epoch
        return count % self.attacked_every == self.attacked_every - 1

    def attacked(self, step: Step) -> Tensor:
        """At an attacked turn where the student differs most from the teacher's answer to the clean batch; else the batch itself."""
        return self.worst_case(step, lambda logits: kl_per_sample(step.targets, logits)) if self.attacks(step) else step.x

    def outer(self, step: Step, x_adv: Tensor) -> Loss:
        """Both terms at this point of the training; they have one name on clean and attacked turns, and the log their mean."""
        logits, share = step.student(x_adv), self.label_share.at(step.progress)
        return weighted(
            teacher=(1 - share, kd_loss(logits, step.targets, self.temperature.at(step.progress))),
            labels=(share, F.cross_entropy(widened(logits), step.labels)),
        )


plugin = Alternating
