"""Cross-entropy with the labels: training without a teacher."""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdpipe.stages.objectives.divergence import widened
from kdpipe.stages.objectives.objective import Loss, Objective, weighted


class Plain(Objective):
    """Cross-entropy, averaged over the batch, in nats; optionally with smoothed labels (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""

    needs_teacher: ClassVar[bool] = False

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the label that is spread evenly over all classes")

    def logit_loss(self, student: Tensor, teacher: Tensor | None, labels: Tensor, progress: float) -> Loss:
        """The cross-entropy; `teacher` is not looked at."""
        return weighted(labels=(1.0, F.cross_entropy(widened(student), labels, label_smoothing=self.label_smoothing)))


plugin = Plain
