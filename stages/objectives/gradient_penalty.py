"""Input-gradient penalty: where the loss hardly changes with the input, a small perturbation hardly changes the answer.

Source: Ross & Doshi-Velez 2018 (arXiv:1711.09404), section 3. Partial robustness at the cost of one more backward pass, without an attack.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdpipe.stages.objectives.divergence import widened
from kdpipe.stages.objectives.objective import Loss, Objective, Step, weighted
from kdpipe.stages.schedule import Scheduled, Weight


def squared_gradient(losses: Tensor, x: Tensor) -> Tensor:
    """The squared Euclidean length of each sample's gradient of the summed `losses`, (batch,), with a graph: it can be minimised.

    `losses` (batch,), computed from `x` (batch, *shape), which requires a gradient. Unit: losses² per unit of x², summed over
    the values, so it grows with the number of pixels. Where samples meet in batch statistics, so do their gradients.
    """
    (gradient,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
    return gradient.flatten(1).square().sum(dim=1)


class GradientPenalty(Objective):
    """`mean of (CE_i + w · ‖∇ of CE by x_i‖²)`, x in the data's raw range."""

    needs_teacher: ClassVar[bool] = False

    penalty_weight: Weight = Field(Scheduled.constant(0.1), description="w: weight of the squared gradient; number or schedule, >= 0")

    def loss(self, step: Step) -> Loss:
        """Both terms at this point of the training; one pass of the student."""
        x = step.x.detach().requires_grad_()
        losses = F.cross_entropy(widened(step.student(x)), step.labels, reduction="none")
        return weighted(
            labels=(1.0, losses.mean()),
            penalty=(self.penalty_weight.at(step.progress), squared_gradient(losses, x).mean()),
        )


plugin = GradientPenalty
