"""The momentum iterative fast gradient sign method: small steps along a running sum of gradients; made to transfer to other models.

Source: Dong et al. 2018 (arXiv:1710.06081): algorithm 1 with decay 1.0 and steps of epsilon / steps; for l2 the sum at length 1 (MI-FGM there).
Deviation: per sample the most adversarial iterate, not the last one.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from kdpipe.robustness.attacks.attack import Attack
from kdpipe.robustness.attacks.ball import per_sample, project, steepest
from kdpipe.robustness.attacks.method import AttackMethod, Draws, Logits
from kdpipe.robustness.attacks.pgd import LossOf, losses_and_gradient
from kdpipe.robustness.attacks.restarts import cross_entropy, search

_DECAY = 1.0
_TINY = torch.finfo(torch.float32).tiny


class MiFgsm(AttackMethod):
    """`mi-fgsm-<steps>`: from the sample itself, deterministic, without restarts."""

    steps: int = Field(10, ge=1, le=10_000)
    restarts: Literal[1] = 1

    def craft(self, logits_of: Logits, x: Tensor, labels: Tensor, draws: Draws, *, start: Tensor | None = None) -> Tensor:
        """Per sample the most adversarial iterate."""
        attack = Attack(norm=self.norm, epsilon=self.epsilon, steps=self.steps, start="none")
        return search(logits_of, x, labels, draws, attack, self._climb, cross_entropy, start=start)

    def _climb(self, x: Tensor, x_adv: Tensor, loss_of: LossOf) -> Tensor:
        momentum = x.new_zeros(x.shape)
        for step in range(self.steps):
            _, gradient = losses_and_gradient(x_adv, loss_of, step)
            # the paper divides by the sum of magnitudes; their mean differs by the same factor in every step, and does not underflow
            momentum = _DECAY * momentum + gradient / per_sample(gradient.flatten(1).abs().mean(dim=1).clamp_min(_TINY), gradient)
            moved = x_adv.detach() + self.epsilon / self.steps * steepest(momentum, self.norm)
            x_adv = project(moved, x, self.epsilon, self.norm)
        return x_adv


plugin = MiFgsm
