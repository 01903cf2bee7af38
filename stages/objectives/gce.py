"""Generalised cross-entropy: between cross-entropy, which learns fast, and the mean absolute error, which does not mind wrong labels.

Source: Zhang & Sabuncu 2018 (arXiv:1805.07836): L_q of section 3.2, the truncated loss of section 3.3. Their gradient is that of
cross-entropy times p_y^q: samples whose label the network does not believe pull less.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdpipe.stages.objectives.divergence import widened
from kdpipe.stages.objectives.label_loss import LabelLoss
from kdpipe.stages.objectives.objective import Loss


def generalised_cross_entropy(logits: Tensor, labels: Tensor, q: float) -> Tensor:
    """`(1 - p_y^q) / q` for each sample, (batch,), in [0, 1 / q]; logits (batch, classes), labels (batch,), q in [0, 1].

    q = 0 is the limit, cross-entropy in nats; q = 1 is 1 - p_y, half of the mean absolute error. No log of 0 for any logits.
    """
    log_p = -F.cross_entropy(widened(logits), labels, reduction="none")
    return -log_p if q == 0 else -torch.expm1(q * log_p) / q


class Gce(LabelLoss):
    """`(1 - p_y(s)^q) / q`, averaged over the batch; with `truncation` k a sample counts only while p_y(s) > k.

    Deviation: the authors decide every tenth epoch, with the best network so far, which samples count; here it is the student at that step.
    """

    needs_teacher: ClassVar[bool] = False

    q: float = Field(0.7, gt=0, le=1, description="towards 0 cross-entropy, at 1 the mean absolute error: higher withstands more noise and learns slower")
    truncation: float | None = Field(None, gt=0, lt=1, description="k: labels less probable than this teach nothing; absent: all teach")
    truncate_from: float = Field(1 / 3, ge=0, le=1, description="share of the training after which that begins: a fresh network believes no label")

    def logit_loss(self, student: Tensor, teacher: Tensor | None, labels: Tensor, progress: float) -> Loss:
        """The loss at this point of the training."""
        losses = generalised_cross_entropy(student, labels, self.q)
        if self.truncation is not None and progress >= self.truncate_from:
            losses = losses.clamp(max=-math.expm1(self.q * math.log(self.truncation)) / self.q)  # a constant: no gradient beyond
        return self.beside_the_teacher(losses.mean(), student, teacher, progress)


plugin = Gce
