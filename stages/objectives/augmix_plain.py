"""AugMix with its consistency loss as published, without a teacher: for teachers that are to stand corruptions.

Source: Hendrycks et al. 2020 (arXiv:1912.02781), section 3.
"""

from typing import ClassVar

import torch.nn.functional as F

from kdpipe.stages.objectives.augmix import AugMixViews, jensen_shannon
from kdpipe.stages.objectives.divergence import widened
from kdpipe.stages.objectives.objective import Loss, Step, weighted


class AugmixPlain(AugMixViews):
    """`CE(s(x), y) + w · JS(p(s(x)), p(s(view)), p(s(other view)))`."""

    needs_teacher: ClassVar[bool] = False

    def loss(self, step: Step) -> Loss:
        """Both terms at this point of the training."""
        clean, one, other = self.predictions(step)
        return weighted(
            labels=(1.0, F.cross_entropy(widened(clean), step.labels)),
            consistency=(self.consistency.at(step.progress), jensen_shannon(clean, one, other)),
        )


plugin = AugmixPlain
