"""Projected gradient descent on the cross-entropy, uniform starts, best of all iterates and restarts.

Source: Madry et al. 2018 (arXiv:1706.06083). Step size 2.5 * epsilon / steps.
"""

from functools import partial

from pydantic import Field
from torch import Tensor

from kdpipe.robustness.attacks.attack import Attack
from kdpipe.robustness.attacks.method import AttackMethod, Draws, Logits
from kdpipe.robustness.attacks.pgd import ascend
from kdpipe.robustness.attacks.restarts import cross_entropy, search


class Pgd(AttackMethod):
    """`pgd-<steps>x<restarts>`. Restarts after the first go on only where the model still stands."""

    steps: int = Field(20, ge=1, le=10_000)
    restarts: int = Field(1, ge=1, le=1_000)

    def craft(self, logits_of: Logits, x: Tensor, labels: Tensor, draws: Draws, *, start: Tensor | None = None) -> Tensor:
        """Per sample the most adversarial iterate; a sample that the model gets wrong untouched is attacked as well, for it may be replayed on another."""
        attack = Attack(norm=self.norm, epsilon=self.epsilon, steps=self.steps, restarts=self.restarts)
        return search(logits_of, x, labels, draws, attack, partial(ascend, attack=attack), cross_entropy, start=start)


plugin = Pgd
