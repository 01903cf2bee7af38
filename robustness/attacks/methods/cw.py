"""Projected gradient ascent on the margin between the label's logit and the largest other one: blind to how confident the model is.

Source: the loss f6 of Carlini & Wagner 2017 (arXiv:1608.04644, section IV.A) without its confidence bound, raised by PGD as in
Madry et al. 2018 (arXiv:1706.06083, section 5.1). Step size 2.5 * epsilon / steps. Papers differ in what they call C&W: this is no minimal-norm attack.
"""

from functools import partial

from pydantic import Field
from torch import Tensor

from kdpipe.robustness.attacks.attack import Attack
from kdpipe.robustness.attacks.method import AttackMethod, Draws, Logits, margins
from kdpipe.robustness.attacks.pgd import ascend
from kdpipe.robustness.attacks.restarts import Run, search


class Cw(AttackMethod):
    """`cw-<steps>x<restarts>`. Restarts after the first go on only where the model still stands."""

    steps: int = Field(50, ge=1, le=10_000)
    restarts: int = Field(1, ge=1, le=1_000)

    def craft(self, logits_of: Logits, x: Tensor, labels: Tensor, draws: Draws, *, start: Tensor | None = None) -> Tensor:
        """Per sample the most adversarial iterate of all restarts."""
        attack = Attack(norm=self.norm, epsilon=self.epsilon, steps=self.steps, restarts=self.restarts)
        return search(logits_of, x, labels, draws, attack, partial(ascend, attack=attack), _margin, start=start)


def _margin(logits: Tensor, labels: Tensor, _: Run) -> Tensor:
    return margins(logits, labels)


plugin = Cw
