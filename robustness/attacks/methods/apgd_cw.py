"""Auto-PGD towards other classes, one after the other, on the gap between two logits: what stands in for targeted DLR where there are too few classes for it.

Source: Croce & Hein 2020 (arXiv:2003.01690): algorithm 1, and the targets of section 5; the loss is the margin of Carlini & Wagner 2017 (arXiv:1608.04644,
section IV.A, f6 without its confidence bound) towards one class. The targeted DLR loss is this one divided by a gap between other logits of the sample:
with two or three classes there are none.
"""

from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from kdpipe.robustness.attacks.apgd import climb
from kdpipe.robustness.attacks.attack import Attack
from kdpipe.robustness.attacks.method import AttackMethod, Draws, Logits, other_classes
from kdpipe.robustness.attacks.restarts import Run, search

_TARGETS = 9


class ApgdCw(AttackMethod):
    """`apgd-cw-<steps>x<restarts>`: so many restarts for each of nine targets (all other classes where there are fewer), while the model stands."""

    steps: int = Field(100, ge=1, le=10_000, description="of each target")
    restarts: int = Field(1, ge=1, le=100, description="of each target")

    def craft(self, logits_of: Logits, x: Tensor, labels: Tensor, draws: Draws, *, start: Tensor | None = None) -> Tensor:
        """Per sample the most adversarial iterate of all targets and restarts."""
        with torch.no_grad():
            targets = other_classes(logits_of(x), labels)[:, :_TARGETS]
        attack = Attack(norm=self.norm, epsilon=self.epsilon, steps=self.steps, restarts=self.restarts * targets.shape[1])

        def loss(logits: Tensor, wanted: Tensor, run: Run) -> Tensor:
            aims = targets[run.places, run.restart % targets.shape[1]]
            own, aim = logits.gather(1, torch.stack([wanted, aims], dim=1)).unbind(dim=1)
            return aim - own

        return search(logits_of, x, labels, draws, attack, partial(climb, attack=attack), loss, start=start)


plugin = ApgdCw
