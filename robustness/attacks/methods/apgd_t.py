"""Auto-PGD towards other classes, one after the other, on the targeted difference-of-logits-ratio loss: the second member of AutoAttack.

Source: Croce & Hein 2020 (arXiv:2003.01690), equation 7 (targeted DLR), section 5: the nine likeliest other classes of the clean sample.
The loss does not change when logits are scaled or shifted. It needs four classes.
"""

from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from kdpipe.foundation.errors import ConfigError
from kdpipe.robustness.attacks.apgd import climb
from kdpipe.robustness.attacks.attack import Attack
from kdpipe.robustness.attacks.method import AttackMethod, Draws, Logits, other_classes
from kdpipe.robustness.attacks.restarts import Run, search

DLR_CLASSES = 4
"""The targeted DLR loss looks at the four largest logits."""

_TARGETS = 9
_EPSILON = 1e-12  # as published: four equal logits


class ApgdT(AttackMethod):
    """`apgd-t-<steps>x<restarts>`: so many restarts for each of nine targets (all other classes where there are fewer), while the model stands."""

    steps: int = Field(100, ge=1, le=10_000, description="of each target")
    restarts: int = Field(1, ge=1, le=100, description="of each target")

    def craft(self, logits_of: Logits, x: Tensor, labels: Tensor, draws: Draws, *, start: Tensor | None = None) -> Tensor:
        """Per sample the most adversarial iterate of all targets and restarts. Raises ConfigError for fewer than four classes."""
        with torch.no_grad():
            targets = other_classes(logits_of(x), labels)[:, :_TARGETS]
        _require_four_classes(targets.shape[1] + 1)
        attack = Attack(norm=self.norm, epsilon=self.epsilon, steps=self.steps, restarts=self.restarts * targets.shape[1])

        def loss(logits: Tensor, wanted: Tensor, run: Run) -> Tensor:
            return targeted_dlr(logits, wanted, targets[run.places, run.restart % targets.shape[1]])

        return search(logits_of, x, labels, draws, attack, partial(climb, attack=attack), loss, start=start)


def _require_four_classes(classes: int) -> None:
    if classes < DLR_CLASSES:
        raise ConfigError(
            f"'apgd-t' needs {DLR_CLASSES} classes, the model has {classes}: the DLR loss looks at the four largest logits",
            at="[evaluate] attacks",
            do="write 'apgd-cw' in its place, or 'autoattack', which does so by itself",
        )


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """The targeted difference of logits ratio, (n,): -(z_y - z_t) / (z_1 - (z_3 + z_4) / 2), z_k the k-th largest of at least four logits."""
    largest = logits.topk(4, dim=1).values
    own, target = logits.gather(1, torch.stack([labels, targets], dim=1)).unbind(dim=1)
    return (target - own) / (largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + _EPSILON)


plugin = ApgdT
