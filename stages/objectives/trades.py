"""TRADES: cross-entropy on clean samples plus how far the worst case moves the network's own prediction.

Source: Zhang et al. 2019 (arXiv:1901.08573), eq. 3 (section 3.2) with beta for 1/lambda.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from kdpipe.robustness.attacks.attack import Attack
from kdpipe.stages.objectives.divergence import kl, kl_per_sample, widened
from kdpipe.stages.objectives.objective import Loss, RobustObjective, Step, under_attack, weighted
from kdpipe.stages.schedule import Scheduled, Weight


class Trades(RobustObjective):
    """`CE(s(x), y) + beta · KL(p(s(x)) ‖ p(s(x')))`, x' maximising the second term.

    As in the authors' code a gradient flows through both sides of the KL in the outer loss. In the attack the clean
    prediction is a constant, so it is computed once, in evaluation mode; the authors recompute it at every attack step.
    """

    needs_teacher: ClassVar[bool] = False
    natural_start: ClassVar[Literal["uniform", "gaussian"]] = "gaussian"

    beta: Weight = Field(Scheduled.constant(6.0), description="weight of the robust term; number or schedule, >= 0")

    @field_validator("attack")
    @classmethod
    def _starts_beside_the_sample(cls, attack: Attack) -> Attack:
        if attack.start == "none":
            raise ValueError("start = 'none' leaves this attack without a gradient (the KL is flat at the sample itself); use 'gaussian' or 'uniform'")
        return attack

    def attacked(self, step: Step) -> Tensor:
        """Where the network's prediction moves most."""
        with under_attack(step), torch.no_grad():
            prediction = step.student(step.x)
        return self.worst_case(step, lambda logits: kl_per_sample(prediction, logits))

    def outer(self, step: Step, x_adv: Tensor) -> Loss:
        """Both terms at this point of the training."""
        clean = step.student(step.x)
        return weighted(
            labels=(1.0, F.cross_entropy(widened(clean), step.labels)),
            adversarial=(self.beta.at(step.progress), kl(clean, step.student(x_adv))),
        )


plugin = Trades
