"""The fast gradient sign method: one step of length epsilon. A point of reference, not a measure of robustness.

Source: Goodfellow et al. 2015 (arXiv:1412.6572), section 4; for l2 along the normalised gradient.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.robustness.attacks.attack import Attack
from kdpipe.robustness.attacks.method import AttackMethod, Draws, Logits, Strongest, margins
from kdpipe.robustness.attacks.pgd import ascend


class Fgsm(AttackMethod):
    """One step along the cross-entropy's gradient from the sample itself; deterministic, without restarts."""

    steps: Literal[1] = 1
    restarts: Literal[1] = 1

    def craft(self, logits_of: Logits, x: Tensor, labels: Tensor, draws: Draws, *, start: Tensor | None = None) -> Tensor:
        """The step's result, or `start` where that is more adversarial."""
        attack = Attack(norm=self.norm, epsilon=self.epsilon, steps=1, step_size=self.epsilon, start="none")
        x_adv = ascend(x, x.clone(), lambda moved: F.cross_entropy(logits_of(moved), labels, reduction="none"), attack)
        if start is None:
            return x_adv
        strongest = Strongest(start)
        with torch.no_grad():
            strongest.offer(start, margins(logits_of(start), labels))
            strongest.offer(x_adv, margins(logits_of(x_adv), labels))
        return strongest.x_adv


plugin = Fgsm
