"""AugMix with its consistency loss, distilled: two mixed views of each image are to be answered as the image itself is.

Source: Hendrycks et al. 2020 (arXiv:1912.02781), section 3, Jensen-Shannon loss; cross-entropy on the image there is `kd` on it here.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdpipe.foundation.errors import ConfigError
from kdpipe.stages.objectives.divergence import widened
from kdpipe.stages.objectives.kd import kd_loss
from kdpipe.stages.objectives.objective import Loss, Objective, Step, weighted
from kdpipe.stages.schedule import Positive, Scheduled, Share, Weight
from kdpipe.tasks.augmentations.augmix import augmix
from kdpipe.tasks.augmentations.operations import OVERLAPS

_LEAST = 1e-7  # of the mean's probabilities, as in the authors' code


def jensen_shannon(*logits: Tensor) -> Tensor:
    """The mean divergence KL(p_k ‖ M) of the distributions from their mean M, averaged over the batch; a scalar in [0, ln k], in nats.

    `logits`: each (batch, classes). M is clamped to at least 1e-7. Gradients reach all of them; their order does not matter.
    """
    log_p = torch.stack([F.log_softmax(widened(one), dim=1) for one in logits])
    p = log_p.exp()
    log_mean = p.mean(dim=0).clamp(_LEAST, 1).log()
    return (p * (log_p - log_mean)).sum(dim=2).mean()


class AugMixViews(Objective):
    """What `augmix` and `augmix-plain` share: the keys of the views, and the three predictions of a batch."""

    consistency: Weight = Field(Scheduled.constant(12.0), description="weight of the Jensen-Shannon term; number or schedule, >= 0")
    severity: float = Field(3.0, gt=0, le=10, description="largest level of a view's operations, in (0, 10]")
    width: int = Field(3, ge=1, le=10, description="chains that are mixed into a view")
    depth: int | None = Field(None, ge=1, le=10, description="operations in a chain; absent: 1 to 3 at random")
    overlapping: bool = Field(False, description="with operations that resemble the evaluation's corruptions: contrast, brightness, colour, sharpness")

    @property
    def trained_corruptions(self) -> tuple[str, ...]:
        """None, unless operations that resemble them are allowed."""
        return OVERLAPS if self.overlapping else ()

    def predictions(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """The student's logits on the batch and on two views of it, from one pass under common BatchNorm statistics, as in the authors' code."""
        if step.x.ndim != 4:
            raise ConfigError(
                f"{self.name} needs images (batch, channels, height, width), these samples are {tuple(step.x.shape)}",
                at="objective",
                do="choose kd, or noise",
            )
        views = [augmix(step.x, step.generator, severity=self.severity, width=self.width, depth=self.depth, overlapping=self.overlapping) for _ in range(2)]
        clean, one, other = step.student(torch.cat([step.x, *views])).chunk(3)
        return clean, one, other


class Augmix(AugMixViews):
    """`(1 - a) · T² · KL(p_T(t(x)) ‖ p_T(s(x))) + a · CE(s(x), y) + w · JS(p(s(x)), p(s(view)), p(s(other view)))`.

    The teacher sees the batch alone: the views' targets are the student's own answer to it.
    """

    temperature: Positive = Field(Scheduled.constant(4.0), description="T: softens both distributions; number or schedule, > 0")
    label_share: Share = Field(Scheduled.constant(0.1), description="a: share of the cross-entropy with the labels; number or schedule, in [0, 1]")

    def loss(self, step: Step) -> Loss:
        """The three terms at this point of the training."""
        clean, one, other = self.predictions(step)
        share = self.label_share.at(step.progress)
        return weighted(
            teacher=(1 - share, kd_loss(clean, step.targets, self.temperature.at(step.progress))),
            labels=(share, F.cross_entropy(widened(clean), step.labels)),
            consistency=(self.consistency.at(step.progress), jensen_shannon(clean, one, other)),
        )


plugin = Augmix
