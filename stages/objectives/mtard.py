"""Multi-teacher adversarial robustness distillation: a natural teacher for clean samples, a robust one for attacked ones.

Source: Zhao et al. 2022 (ECCV, "Enhanced accuracy and robustness via multi-teacher adversarial distillation"); its extension is
arXiv:2306.16170. Deviations: the losses are compared with their means over the first epoch, where the authors' code takes
those of the first batch, one random draw that then steers the whole training; the KL is the formula itself, where their code
also divides by the number of classes and adds 1e-5 inside the logarithm; the weights' rate does not drop with the learning rate.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdpipe.stages.objectives.divergence import kl, widened
from kdpipe.stages.objectives.objective import Loss, RobustObjective, Setting, Step, weighted
from kdpipe.stages.schedule import Scheduled, Share

_SMALLEST = 1e-12
"""a loss that is nothing, as a divisor"""


class Mtard(RobustObjective):
    """`w · KL(p(t_nat(x)) ‖ p(s(x))) + (1 - w) · KL(p(t_rob(x')) ‖ p(s(x')))`, x' maximising CE(s(x'), y).

    w starts at `natural_share` and stays there for the first epoch. From then on it moves, each step by `balance_rate` of the way, to
    r_nat / (r_nat + r_rob), each r a loss divided by its mean over the first epoch: what is learned more slowly gets more weight.
    """

    natural_start: ClassVar[Literal["uniform", "gaussian"]] = "gaussian"

    natural_share: float = Field(0.5, ge=0, le=1, description="w at the start")
    balance_rate: Share = Field(
        Scheduled.constant(0.025), description="how far w moves in a step to the balance of the two losses' progress; number or schedule, in [0, 1]; 0: w stays"
    )

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        """The robust teacher answers the attacked batch, the natural one the clean batch."""
        return ("robust", "natural")

    def auxiliary(self, setting: Setting) -> nn.Module:
        """The state of the balance; nothing in it is trained."""
        return Balance(self.natural_share)

    def attacked(self, step: Step) -> Tensor:
        """Where the student's cross-entropy with the labels is high."""
        return self.worst_case(step, lambda logits: F.cross_entropy(widened(logits), step.labels, reduction="none"))

    def outer(self, step: Step, x_adv: Tensor) -> Loss:
        """Both terms with their weights of this step; and w, with weight 0, for the log."""
        balance = step.auxiliary
        assert isinstance(balance, Balance)
        robust, natural = step.teachers[0](x_adv), step.targets_of(1)
        adversarial, clean = kl(robust, step.student(x_adv)), kl(natural, step.student(step.x))
        share = balance.moved_(clean.detach(), adversarial.detach(), self.balance_rate.at(step.progress), step)
        return weighted(
            natural=(share, clean),
            adversarial=(1 - share, adversarial),
            natural_share=(0.0, share),
        )


class Balance(nn.Module):
    """w, and what the losses were in the first epoch, in buffers: a resumed training goes on from them to the same bits."""

    share: Tensor
    sums: Tensor
    steps: Tensor

    def __init__(self, share: float) -> None:
        super().__init__()
        self.register_buffer("share", torch.tensor(share))
        self.register_buffer("sums", torch.zeros(2, dtype=torch.float64))
        """of the natural and the adversarial loss over the first epoch's steps"""
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def moved_(self, natural: Tensor, adversarial: Tensor, rate: float, step: Step) -> Tensor:
        """w of this step, a scalar, after it took notice of the losses."""
        losses = torch.stack([natural, adversarial]).double()
        if step.epoch == 0:
            self.sums += losses
            self.steps += 1
        elif self.steps > 0:
            ratios = losses / (self.sums / self.steps).clamp_min(_SMALLEST)
            goal = ratios[0] / ratios.sum().clamp_min(_SMALLEST)
            self.share += rate * (goal.to(self.share) - self.share)
        return self.share.clone()


plugin = Mtard
