"""MART: adversarial training that spends its consistency on the samples that the network gets wrong.

Source: Wang et al. 2020 (ICLR, "Improving adversarial robustness requires revisiting misclassified examples"), eqs. 7 to 11.
Deviation: the margin's logarithm is exact, where the authors' code caps it by adding 1e-4 inside.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdpipe.stages.objectives.divergence import kl_per_sample, widened
from kdpipe.stages.objectives.objective import Loss, RobustObjective, Step, weighted
from kdpipe.stages.schedule import Scheduled, Weight


def boosted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p_y - log(1 - the largest other class's p), averaged over the batch; a scalar, >= 0. Logits (batch, classes). Eq. 8."""
    logits = widened(logits)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    rival = others.argmax(dim=1, keepdim=True)
    is_rest = torch.ones_like(logits, dtype=torch.bool).scatter(1, rival, value=False)
    rest = logits[is_rest].reshape(len(logits), -1).logsumexp(dim=1)  # 1 - p of the rival, by its classes: finite where p rounds to 1
    return F.cross_entropy(logits, labels) + (logits.logsumexp(dim=1) - rest).mean()


def doubtful_kl(clean: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
    """The mean of KL(p(clean) ‖ p(adversarial)) · (1 - p_y(clean)); a scalar, >= 0. A gradient flows through all of it. Eq. 10."""
    doubt = 1 - F.softmax(widened(clean), dim=1).gather(1, labels[:, None])[:, 0]
    return (kl_per_sample(clean, adversarial) * doubt).mean()


class Mart(RobustObjective):
    """`boosted_cross_entropy(s(x'), y) + lambda · doubtful_kl(s(x), s(x'), y)`, x' maximising CE(s(x'), y)."""

    needs_teacher: ClassVar[bool] = False
    natural_start: ClassVar[Literal["uniform", "gaussian"]] = "gaussian"

    consistency_weight: Weight = Field(Scheduled.constant(5.0), description="lambda: weight of the consistency on doubtful samples; number or schedule, >= 0")

    def attacked(self, step: Step) -> Tensor:
        """Where the student is most wrong about the labels."""
        return self.worst_case(step, lambda logits: F.cross_entropy(widened(logits), step.labels, reduction="none"))

    def outer(self, step: Step, x_adv: Tensor) -> Loss:
        """Both terms at this point of the training."""
        clean, adversarial = step.student(step.x), step.student(x_adv)
        return weighted(
            adversarial=(1.0, boosted_cross_entropy(adversarial, step.labels)),
            consistency=(self.consistency_weight.at(step.progress), doubtful_kl(clean, adversarial, step.labels)),
        )


plugin = Mart
