"""Auto-PGD on the cross-entropy: the first member of AutoAttack.

Source: Croce & Hein 2020 (arXiv:2003.01690), algorithm 1 with the cross-entropy.
"""

from functools import partial

from pydantic import Field
from torch import Tensor

from kdpipe.robustness.attacks.apgd import climb
from kdpipe.robustness.attacks.attack import Attack
from kdpipe.robustness.attacks.method import AttackMethod, Draws, Logits
from kdpipe.robustness.attacks.restarts import cross_entropy, search


class ApgdCe(AttackMethod):
    """`apgd-ce-<steps>x<restarts>`. Restarts after the first go on only where the model still stands."""

    steps: int = Field(100, ge=1, le=10_000)
    restarts: int = Field(1, ge=1, le=1_000)

    def craft(self, logits_of: Logits, x: Tensor, labels: Tensor, draws: Draws, *, start: Tensor | None = None) -> Tensor:
        """Per sample the most adversarial iterate of all restarts."""
        attack = Attack(norm=self.norm, epsilon=self.epsilon, steps=self.steps, restarts=self.restarts)
        return search(logits_of, x, labels, draws, attack, partial(climb, attack=attack), cross_entropy, start=start)


plugin = ApgdCe
