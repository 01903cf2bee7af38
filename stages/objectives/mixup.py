"""Mixup: the student learns between two samples as it learns on them. Source: Zhang et al. 2018 (arXiv:1710.09412), eq. 1.

With a teacher it is asked about the mixed batch: what lies between two images is its to judge (Beyer et al. 2022, arXiv:2106.05237, distil so).
"""

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdpipe.stages.objectives.divergence import widened
from kdpipe.stages.objectives.kd import kd_loss
from kdpipe.stages.objectives.objective import Loss, Objective, Step, weighted
from kdpipe.stages.schedule import Positive, Scheduled, Share


def mixed(x: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """`share * x + (1 - share) * x[partners]`, `partners` (batch,), and `share`, one for the batch from Beta(alpha, alpha) as in the authors' code."""
    partners = torch.randperm(len(x), generator=generator).to(x.device)
    seed = int(torch.randint(2**62, (1,), generator=generator))  # torch has no Beta that draws from a generator
    share = float(np.random.Generator(np.random.PCG64(seed)).beta(alpha, alpha))
    return share * x + (1 - share) * x[partners], partners, share


class Mixup(Objective):
    """`(1 - a) · T² · KL(p_T(t(m)) ‖ p_T(s(m))) + a · (l · CE(s(m), y) + (1 - l) · CE(s(m), y'))`, m the batch mixed with itself, y' the partners' labels.

    With a = 1 no teacher is asked: the paper's own loss.
    """

    needs_teacher: ClassVar[bool] = True

    alpha: float = Field(1.0, gt=0, le=100, description="of Beta(alpha, alpha), from which the mixing share is drawn: near 0 hardly mixed, 1 uniform")
    temperature: Positive = Field(Scheduled.constant(4.0), description="T: softens both distributions; number or schedule, > 0")
    label_share: Share = Field(
        Scheduled.constant(0.1), description="a: share of the cross-entropy with the labels; number or schedule, in [0, 1]; 1: no teacher"
    )

    @property
    def uses_teacher(self) -> bool:
        """Whether there is a share for the teacher, at any time."""
        return self.label_share != Scheduled.constant(1.0)

    def loss(self, step: Step) -> Loss:
        """The terms at this point of the training."""
        x, partners, mixing = mixed(step.x, self.alpha, step.generator)
        logits = widened(step.student(x))
        own, other = F.cross_entropy(logits, step.labels), F.cross_entropy(logits, step.labels[partners])
        labels = mixing * own + (1 - mixing) * other
        if not self.uses_teacher:
            return weighted(labels=(1.0, labels))
        share = self.label_share.at(step.progress)
        return weighted(teacher=(1 - share, kd_loss(logits, step.teacher(x), self.temperature.at(step.progress))), labels=(share, labels))


plugin = Mixup
