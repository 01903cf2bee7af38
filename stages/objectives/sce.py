"""Symmetric cross-entropy: beside the labels' view of the prediction, the prediction's view of the labels, which wrong ones cannot dominate.

Source: Wang et al. 2019 (arXiv:1908.06112), section 4. The reverse term -Σ_c p_c · log y_c has log 0 replaced by a constant A; for a one-hot
label it is then |A| · (1 - p_y): bounded, a multiple of the mean absolute error.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdpipe.stages.objectives.divergence import widened
from kdpipe.stages.objectives.label_loss import LabelLoss
from kdpipe.stages.objectives.objective import Loss
from kdpipe.stages.schedule import Scheduled, Weight

LOG_ZERO = 9.210340371976182
"""|A|: what stands for -log 0; the authors' code clamps the one-hot label at 1e-4, the paper's experiments take 4."""


def reverse_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """`LOG_ZERO · (1 - p_y)` for each sample, (batch,), in [0, LOG_ZERO]; logits (batch, classes), labels (batch,)."""
    return -LOG_ZERO * torch.expm1(-F.cross_entropy(widened(logits), labels, reduction="none"))


class Sce(LabelLoss):
    """`alpha · CE(s, y) + beta · RCE(s, y)`, averaged over the batch."""

    needs_teacher: ClassVar[bool] = False

    label_weight: Weight = Field(Scheduled.constant(0.1), description="alpha: weight of the cross-entropy; 0.1 for 10 classes, 6 for 100; number or schedule")
    reverse_weight: Weight = Field(Scheduled.constant(1.0), description="beta: weight of the reverse term, which withstands noise; number or schedule")

    def logit_loss(self, student: Tensor, teacher: Tensor | None, labels: Tensor, progress: float) -> Loss:
        """Both terms at this point of the training."""
        forward = F.cross_entropy(widened(student), labels)
        backward = reverse_cross_entropy(student, labels).mean()
        both = self.label_weight.at(progress) * forward + self.reverse_weight.at(progress) * backward
        return self.beside_the_teacher(both, student, teacher, progress)


plugin = Sce
