"""The teacher as corrector of labels: where it doubts a label, the student learns from the teacher instead, sample by sample.

After Li et al. 2017 (arXiv:1703.02391), who mix label and teacher with one share for all samples; here the share is the sample's own.
A teacher that was trained to convergence on the same wrong labels believes them, and corrects nothing: stop it early (the best epoch
on validation is kept; `patience`), train it with `gce` or `elr`, or on other data. `distill` tells when it seems to know its labels by heart.
"""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdpipe.stages.objectives.divergence import kl_per_sample, widened
from kdpipe.stages.objectives.objective import Loss, Objective
from kdpipe.stages.schedule import Positive, Scheduled, Share


def trust(teacher: Tensor, labels: Tensor, rule: Literal["weight", "drop"], threshold: float) -> Tensor:
    """How far each label is believed, (batch,), in [0, 1]; logits (batch, classes), labels (batch,).

    `weight`: the teacher's p_y. `drop`: 0 where the teacher's first choice is another class with p > `threshold`, else 1.
    """
    p = F.softmax(widened(teacher.detach()), dim=1)
    own = p.gather(1, labels[:, None])[:, 0]
    if rule == "weight":
        return own
    highest, chosen = p.max(dim=1)
    return 1 - ((chosen != labels) & (highest > threshold)).to(own)


class Correction(Objective):
    """`mean of (1 - a·w) · T² · KL(p_T(t) ‖ p_T(s)) + a·w · CE(s, y)`, w the teacher's trust in the label; with w = 1 everywhere it is `kd`."""

    temperature: Positive = Field(Scheduled.constant(4.0), description="T: softens both distributions; number or schedule, > 0")
    label_share: Share = Field(Scheduled.constant(0.5), description="a: share of the cross-entropy where the label is fully trusted; number or schedule")
    rule: Literal["weight", "drop"] = Field("weight", description="weight: trust is the teacher's p of the label; drop: none where it is sure of another class")
    threshold: float = Field(0.9, ge=0, lt=1, description="with drop: from which p on the teacher is sure")

    def logit_loss(self, student: Tensor, teacher: Tensor | None, labels: Tensor, progress: float) -> Loss:
        """Both terms at this point of the training; the log also holds the mean trust."""
        assert teacher is not None
        temperature = self.temperature.at(progress)
        trusted = trust(teacher, labels, self.rule, self.threshold)
        of_labels = self.label_share.at(progress) * trusted
        from_teacher = temperature**2 * kl_per_sample(teacher.detach(), student, temperature)
        from_labels = F.cross_entropy(widened(student), labels, reduction="none")
        total = ((1 - of_labels) * from_teacher + of_labels * from_labels).mean()
        terms = {"teacher": from_teacher.mean(), "labels": from_labels.mean(), "trust": trusted.mean()}
        return Loss(total, {name: value.detach() for name, value in terms.items()})


plugin = Correction
