"""Projected gradient descent on the cross-entropy, uniform starts, best of all iterates and restarts.

Source: Madry et al. 2018 (arXiv:1706.06083). Step size 2.5 * epsilon / steps.
"""

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdpipe.robustness.attacks.attack import Attack
from kdpipe.robustness.attacks.method import AttackMethod, Draws, Logits, Strongest, margins
from kdpipe.robustness.attacks.pgd import ascend, start_noise, started


class Pgd(AttackMethod):
    """`pgd-<steps>x<restarts>`. Restarts after the first go on only where the model still stands."""

    steps: int = Field(20, ge=1, le=10_000)
    restarts: int = Field(1, ge=1, le=1_000)

    def craft(self, logits_of: Logits, x: Tensor, labels: Tensor, draws: Draws, *, start: Tensor | None = None) -> Tensor:
        """Per sample the most adversarial iterate; a sample that the model gets wrong untouched is attacked as well, for it may be replayed on another."""
        attack = Attack(norm=self.norm, epsilon=self.epsilon, steps=self.steps)
        strongest = Strongest(x)
        for restart in range(self.restarts):
            standing = (strongest.margins < 0).nonzero().squeeze(1)  # all of them at first: -inf
            if len(standing) == 0:
                break
            begin = start.clone() if start is not None and restart == 0 else _started(x[standing], draws.at(standing).generators(restart), attack)
            _climb(logits_of, x[standing], begin, labels[standing], attack, strongest, standing)
        return strongest.x_adv


def _climb(logits_of: Logits, x: Tensor, begin: Tensor, labels: Tensor, attack: Attack, strongest: Strongest, places: Tensor) -> None:
    """One ascent; every point that it passes is offered to `strongest`, at the cost of one forward pass more than its steps."""

    def loss_of(x_adv: Tensor) -> Tensor:
        logits = logits_of(x_adv)
        strongest.offer(x_adv.detach(), margins(logits.detach(), labels), places)
        return F.cross_entropy(logits, labels, reduction="none")

    x_adv = ascend(x, begin, loss_of, attack)
    with torch.no_grad():
        strongest.offer(x_adv, margins(logits_of(x_adv), labels), places)


def _started(x: Tensor, generators: Iterable[torch.Generator], attack: Attack) -> Tensor:
    noise = [start_noise((1, *x.shape[1:]), attack, generator) for generator in generators]
    return started(x, torch.cat(cast(list[Tensor], noise)), attack)  # never None: the start is uniform


plugin = Pgd
