"""AutoAttack, the standard ensemble: Auto-PGD on the cross-entropy, targeted Auto-PGD, targeted FAB, Square; each on the samples that still stand.

Source: Croce & Hein 2020 (arXiv:2003.01690), section 5 and the standard version of their code: 100 steps (of each of nine targets), 5,000 queries.
With two or three classes the targeted DLR loss does not exist (it looks at the four largest logits; their code then fails or is run without that
member): Auto-PGD on the gap between the two logits takes its place, and the result says so.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdpipe.robustness.attacks.method import AttackMethod, Draws, Ensemble, Logits, Part, Strongest, margins
from kdpipe.robustness.attacks.methods.apgd_ce import ApgdCe
from kdpipe.robustness.attacks.methods.apgd_cw import ApgdCw
from kdpipe.robustness.attacks.methods.apgd_t import DLR_CLASSES, ApgdT
from kdpipe.robustness.attacks.methods.fab_t import FabT
from kdpipe.robustness.attacks.methods.square import Square

_STANDARD_STEPS = 100
_QUERIES_A_STEP = 50


class Autoattack(Ensemble):
    """`autoattack` is the standard one; `autoattack-<steps>` spends another budget in the same proportions and is then no standard figure."""

    steps: int = Field(_STANDARD_STEPS, ge=1, le=2_000, description="of Auto-PGD and FAB; Square asks 50 times as often")
    restarts: Literal[1] = 1

    def parts(self, logits_of: Logits, x: Tensor, labels: Tensor, draws: Draws, *, start: Tensor | None = None, after: Part | None = None) -> Iterator[Part]:
        """The state after each member; those for whom no sample is left are not run."""
        strongest = Strongest(x)
        if after is not None:
            strongest.x_adv, strongest.margins = after.x_adv.clone(), after.margins.clone()
        with torch.no_grad():
            classes = logits_of(x[:1]).shape[1]
        members = self.members(classes)
        names = list(members)
        for place, name in enumerate(names):
            if after is not None and place <= names.index(after.name):
                continue
            standing = (strongest.margins < 0).nonzero().squeeze(1)  # all of them at first: -inf
            begin = None if start is None else start[standing]
            x_adv = members[name].craft(logits_of, x[standing], labels[standing], draws.of(name).at(standing), start=begin)
            with torch.no_grad():
                strongest.offer(x_adv, margins(logits_of(x_adv), labels[standing]), standing)
            last = name == names[-1] or not bool((strongest.margins < 0).any())
            yield Part(name, strongest.x_adv.clone(), strongest.margins.clone(), last=last)
            if last:
                return

    def members(self, classes: int = DLR_CLASSES) -> dict[str, AttackMethod]:
        """The attacks by name, in their order, on a model of so many classes."""
        ball: dict[str, Any] = {"norm": self.norm, "epsilon": self.epsilon}
        targeted = {"apgd-t": ApgdT(**ball, steps=self.steps)} if classes >= DLR_CLASSES else {"apgd-cw": ApgdCw(**ball, steps=self.steps)}
        return {
            "apgd-ce": ApgdCe(**ball, steps=self.steps),
            **targeted,
            "fab-t": FabT(**ball, steps=self.steps),
            "square": Square(**ball, steps=_QUERIES_A_STEP * self.steps),
        }

    def note(self, classes: int) -> str | None:
        """What differs from the standard ensemble for so many classes, or with this budget."""
        facts = [] if classes >= DLR_CLASSES else [f"apgd-cw in place of apgd-t, whose loss needs {DLR_CLASSES} classes and finds {classes}"]
        facts += [] if self.steps == _STANDARD_STEPS else [f"{self.steps} steps in place of {_STANDARD_STEPS}"]
        return f"not the standard ensemble: {'; '.join(facts)}" if facts else None


plugin = Autoattack
