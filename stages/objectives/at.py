"""Adversarial training: cross-entropy on the worst case within the ball. Source: Madry et al. 2018 (arXiv:1706.06083), eq. 2.1."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from kdpipe.stages.objectives.divergence import widened
from kdpipe.stages.objectives.objective import Loss, RobustObjective, Step, weighted


class At(RobustObjective):
    """`CE(s(x'), y)`, x' maximising the same."""

    needs_teacher: ClassVar[bool] = False

    def attacked(self, step: Step) -> Tensor:
        """Where the student is most wrong about the labels."""
        return self.worst_case(step, lambda logits: F.cross_entropy(widened(logits), step.labels, reduction="none"))

    def outer(self, step: Step, x_adv: Tensor) -> Loss:
        """The cross-entropy on the attacked batch."""
        return weighted(adversarial=(1.0, F.cross_entropy(widened(step.student(x_adv)), step.labels)))


plugin = At
