"""Decoupled distillation: what the teacher says of the label and what it says among the other classes, each with its own weight.

Source: Zhao et al. 2022 (arXiv:2203.08679), eq. 7. In plain distillation the second part is weighted with the teacher's doubt
about the label, so a confident teacher's knowledge of the other classes is lost: KL = target_kl + (1 - p_y(t)) · other_kl.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdpipe.stages.objectives.divergence import kl, widened
from kdpipe.stages.objectives.objective import Loss, Objective, weighted
from kdpipe.stages.schedule import Positive, Scheduled, Weight


def target_kl(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """KL between the two networks' (p_y, 1 - p_y), softened, averaged over the batch; a scalar, >= 0, in nats, without T².

    Logits (batch, classes), labels (batch,). No gradient reaches the teacher. Source: eq. 5, TCKD.
    """
    log_p = _label_or_not(teacher.detach(), labels, temperature)
    log_q = _label_or_not(student, labels, temperature)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1).mean()


def other_kl(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """KL between the softened distributions over the classes other than the label; as `target_kl`. Source: eq. 5, NCKD.

    With two classes there is one other class, and nothing to learn: 0.
    """
    return kl(_others(teacher.detach(), labels), _others(student, labels), temperature)


class Dkd(Objective):
    """`CE + r · T² · (alpha · target_kl + beta · other_kl)`, r rising from 0 to 1 over the start of the training.

    r is the authors' code's, not the paper's; theirs lasts 20 of 240 epochs, the default here is the same share.
    """

    temperature: Positive = Field(Scheduled.constant(4.0), description="T: softens both distributions; number or schedule, > 0")
    target_weight: Weight = Field(Scheduled.constant(1.0), description="alpha: weight of what concerns the label; number or schedule, >= 0")
    other_weight: Weight = Field(Scheduled.constant(8.0), description="beta: weight of what concerns the other classes; number or schedule, >= 0")
    label_weight: Weight = Field(Scheduled.constant(1.0), description="weight of the cross-entropy with the labels; number or schedule, >= 0")
    rise: float = Field(1 / 12, ge=0, le=1, description="share of the training over which the teacher's terms rise to their weights")

    def logit_loss(self, student: Tensor, teacher: Tensor | None, labels: Tensor, progress: float) -> Loss:
        """All three terms at this point of the training."""
        assert teacher is not None
        temperature = self.temperature.at(progress)
        scale = temperature**2 * (1.0 if progress >= self.rise else progress / self.rise)
        return weighted(
            labels=(self.label_weight.at(progress), F.cross_entropy(widened(student), labels)),
            target=(scale * self.target_weight.at(progress), target_kl(student, teacher, labels, temperature)),
            others=(scale * self.other_weight.at(progress), other_kl(student, teacher, labels, temperature)),
        )


def _label_or_not(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """log p_y and log(1 - p_y), (batch, 2); the second by logsumexp over the others, so that it is finite where p_y rounds to 1."""
    logits = widened(logits) / temperature
    pair = torch.stack([logits.gather(1, labels[:, None])[:, 0], _others(logits, labels).logsumexp(dim=1)], dim=1)
    return F.log_softmax(pair, dim=1)


def _others(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits without the label's, (batch, classes - 1)."""
    is_other = torch.ones_like(logits, dtype=torch.bool).scatter(1, labels[:, None], value=False)
    return logits[is_other].reshape(len(logits), -1)


plugin = Dkd
