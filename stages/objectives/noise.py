"""Distillation under noise: part of each batch is noisy for the student, while the teacher sees it clean.

Sources: half a batch with Gaussian noise, Rusak et al. 2020 (arXiv:2001.06057), section 3.1; sigma 0.1 at CIFAR-10's size, Kireev et al. 2022
(arXiv:2103.02325); the clean teacher as target of the noisy student, as `kd` with augmentation of the student's input alone.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdpipe.stages.objectives.divergence import widened
from kdpipe.stages.objectives.kd import kd_loss
from kdpipe.stages.objectives.objective import Loss, Objective, Step, weighted
from kdpipe.stages.schedule import Positive, Scheduled, Share, Weight
from kdpipe.tasks.augmentations.operations import GAUSSIAN_NOISES


def with_noise(x: Tensor, sigma: float, count: int, generator: torch.Generator) -> Tensor:
    """The batch with N(0, sigma²) added to each value of its first `count` samples, within [0, 1]; the others as they are.

    `x`: (batch, *shape) in [0, 1]. As much is drawn from `generator`, on the CPU, whatever `count` is.
    """
    noise = torch.randn(x.shape, generator=generator).mul_(sigma)
    noise[count:] = 0
    return (x + noise.to(x)).clamp_(0, 1)


class Noise(Objective):
    """`(1 - a) · T² · KL(p_T(t(x)) ‖ p_T(s(x + n))) + a · CE(s(x + n), y)`, n Gaussian in a share of the batch and 0 in the rest.

    Both parts go through the student in one pass, under common BatchNorm statistics. Which samples are noisy changes with the batches' random order.
    """

    sigma: Weight = Field(Scheduled.constant(0.1), description="the noise's standard deviation in the input's raw range; number or schedule, >= 0")
    noisy_share: Share = Field(Scheduled.constant(0.5), description="share of each batch that is noisy; number or schedule, in [0, 1]")
    temperature: Positive = Field(Scheduled.constant(4.0), description="T: softens both distributions; number or schedule, > 0")
    label_share: Share = Field(Scheduled.constant(0.1), description="a: share of the cross-entropy with the labels; number or schedule, in [0, 1]")

    @property
    def trained_corruptions(self) -> tuple[str, ...]:
        """Those that are Gaussian, or nearly."""
        return GAUSSIAN_NOISES

    def loss(self, step: Step) -> Loss:
        """Both terms at this point of the training."""
        count = round(self.noisy_share.at(step.progress) * len(step.x))
        logits = step.student(with_noise(step.x, self.sigma.at(step.progress), count, step.generator))
        share = self.label_share.at(step.progress)
        return weighted(
            teacher=(1 - share, kd_loss(logits, step.targets, self.temperature.at(step.progress))),
            labels=(share, F.cross_entropy(widened(logits), step.labels)),
        )


plugin = Noise
