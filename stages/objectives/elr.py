"""Early-learning regularisation: what the network thought of a sample before it memorised labels holds it back from a wrong one.

Source: Liu et al. 2020 (arXiv:2007.00151), the regulariser of section 4.1 with the temporal ensembling of section 4.2, as in the authors' code:
the predictions are clamped to [1e-4, 1 - 1e-4], which keeps log(1 - <q, p>) above log 1e-4.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdpipe.stages.objectives.divergence import widened
from kdpipe.stages.objectives.label_loss import LabelLoss
from kdpipe.stages.objectives.objective import Loss, Setting, Step
from kdpipe.stages.schedule import Scheduled, Weight

CLAMP = 1e-4
"""How near to 0 and 1 a prediction may come in the regulariser."""


def clamped_predictions(logits: Tensor) -> Tensor:
    """softmax in [CLAMP, 1 - CLAMP], float32, (batch, classes)."""
    return F.softmax(widened(logits), dim=1).clamp(CLAMP, 1 - CLAMP)


def early_learning_regulariser(predictions: Tensor, targets: Tensor) -> Tensor:
    """`log(1 - <q, p>)` averaged over the batch; a scalar in [log CLAMP, 0], the lower the better p agrees with q.

    `predictions`, `targets`: (batch, classes), from `clamped_predictions`; no gradient reaches the targets.
    """
    agreement = (targets.detach() * predictions).sum(dim=1).clamp(max=1 - CLAMP)
    return torch.log1p(-agreement).mean()


class Memory(nn.Module):
    """For each training sample, the moving average of what the student predicted on it: `q`, (samples, classes), starting at 0."""

    q: Tensor

    def __init__(self, samples: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("q", torch.zeros(samples, classes))

    def updated_(self, indices: Tensor, predictions: Tensor, decay: float) -> Tensor:
        """The targets of the samples at `indices` after `q <- decay · q + (1 - decay) · p / Σp`; (batch, classes), without a graph."""
        p = predictions.detach().to(self.q)
        self.q[indices] = decay * self.q[indices] + (1 - decay) * p / p.sum(dim=1, keepdim=True)
        return self.q[indices]


class Elr(LabelLoss):
    """`CE(s, y) + w · mean log(1 - <q, p(s)>)`, q the sample's moving average of p(s).

    The averages are kept by training index, checkpointed and resumed; samples x classes x 4 bytes. `[prune]` and `[qat]` begin new ones.
    """

    needs_teacher: ClassVar[bool] = False

    regularisation: Weight = Field(Scheduled.constant(3.0), description="w: weight of the regulariser; 3 for 10 classes, 7 for 100; number or schedule, >= 0")
    decay: float = Field(0.7, ge=0, lt=1, description="of the averages, per epoch: higher remembers earlier epochs longer; 0.7 for 10 classes, 0.9 for 100")

    def auxiliary(self, setting: Setting) -> nn.Module:
        """The averages; nothing in them is trained."""
        with torch.no_grad():
            classes = setting.student(setting.example).shape[1]
        return Memory(setting.samples, classes)

    def loss(self, step: Step) -> Loss:
        """Both terms; the averages of the batch's samples move."""
        memory = step.auxiliary
        assert isinstance(memory, Memory)
        logits = step.student(step.x)
        predictions = clamped_predictions(logits)
        targets = memory.updated_(step.indices, predictions, self.decay)
        regulariser = early_learning_regulariser(predictions, targets)
        both = F.cross_entropy(widened(logits), step.labels) + self.regularisation.at(step.progress) * regulariser
        return self.beside_the_teacher(both, logits, step.targets if self.uses_teacher else None, step.progress)


plugin = Elr
