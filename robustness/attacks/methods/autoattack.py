"""AutoAttack, the standard ensemble: Auto-PGD on the cross-entropy, targeted Auto-PGD, targeted FAB, Square; each on the samples that still stand.

Source: Croce & Hein 2020 (arXiv:2003.01690), section 5 and the standard version of their code: 100 steps (of each of nine targets), 5,000 queries.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from kdpipe.robustness.attacks.method import AttackMethod, Draws, Logits, Strongest, margins
from kdpipe.robustness.attacks.methods.apgd_ce import ApgdCe
from kdpipe.robustness.attacks.methods.apgd_t import ApgdT, require_four_classes
from kdpipe.robustness.attacks.methods.fab_t import FabT
from kdpipe.robustness.attacks.methods.square import Square

_QUERIES_A_STEP = 50


class Autoattack(AttackMethod):
    """`autoattack` is the standard one; `autoattack-<steps>` spends another budget in the same proportions and is then no standard figure."""

    steps: int = Field(100, ge=1, le=2_000, description="of Auto-PGD and FAB; Square asks 50 times as often")
    restarts: Literal[1] = 1

    def craft(self, logits_of: Logits, x: Tensor, labels: Tensor, draws: Draws, *, start: Tensor | None = None) -> Tensor:
        """Per sample the most adversarial point of the members that met it. Raises ConfigError for fewer than four classes."""
        strongest = Strongest(x)
        with torch.no_grad():
            require_four_classes(logits_of(x[:1]).shape[1], "autoattack")
        for name, member in self.members().items():
            standing = (strongest.margins < 0).nonzero().squeeze(1)  # all of them at first: -inf
            if len(standing) == 0:
                break
            begin = None if start is None else start[standing]
            x_adv = member.craft(logits_of, x[standing], labels[standing], draws.of(name).at(standing), start=begin)
            with torch.no_grad():
                strongest.offer(x_adv, margins(logits_of(x_adv), labels[standing]), standing)
        return strongest.x_adv

    def members(self) -> dict[str, AttackMethod]:
        """The attacks by name, in their order."""
        return {
            "apgd-ce": ApgdCe(norm=self.norm, epsilon=self.epsilon, steps=self.steps),
            "apgd-t": ApgdT(norm=self.norm, epsilon=self.epsilon, steps=self.steps),
            "fab-t": FabT(norm=self.norm, epsilon=self.epsilon, steps=self.steps),
            "square": Square(norm=self.norm, epsilon=self.epsilon, steps=_QUERIES_A_STEP * self.steps),
        }


plugin = Autoattack
