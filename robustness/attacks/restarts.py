"""An ascent with gradients from several starts: further starts only where the model still stands, of all points passed the most adversarial."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpipe.robustness.attacks.attack import Attack
from kdpipe.robustness.attacks.method import Draws, Logits, Strongest, margins
from kdpipe.robustness.attacks.pgd import LossOf, start_noise, started


@dataclass(frozen=True)
class Run:
    """One run of the ascent: `restart` from 0, and where in the batch its samples stand, (n,) int64."""

    restart: int
    places: Tensor


PerSampleLoss = Callable[[Tensor, Tensor, Run], Tensor]
"""Logits (n, classes) and labels (n,) of a run's samples to their losses (n,), which the ascent raises."""

Ascent = Callable[[Tensor, Tensor, LossOf], Tensor]
"""Samples, the points to begin from (their storage may be used), the loss: the last point. It asks for the loss of every other point that it passes."""


def search(logits_of: Logits, x: Tensor, labels: Tensor, draws: Draws, attack: Attack, climb: Ascent, loss: PerSampleLoss, *, start: Tensor | None) -> Tensor:
    """Per sample the most adversarial point of `attack.restarts` runs of `climb`; the first begins at `start` where that is given.

    The first run takes all samples, also those that the model gets wrong untouched, for they may be replayed on another.
    """
    strongest = Strongest(x)
    for restart in range(attack.restarts):
        standing = (strongest.margins < 0).nonzero().squeeze(1)  # all of them at first: -inf
        if len(standing) == 0:
            break
        begin = start.clone() if start is not None and restart == 0 else _started(x[standing], draws.at(standing).generators(restart), attack)
        _climb(logits_of, x[standing], begin, labels[standing], climb, loss, strongest, Run(restart, standing))
    return strongest.x_adv


def cross_entropy(logits: Tensor, labels: Tensor, _: Run) -> Tensor:
    """Per sample, (n,), in nats: the loss of most attacks."""
    return F.cross_entropy(logits, labels, reduction="none")


def _climb(logits_of: Logits, x: Tensor, begin: Tensor, labels: Tensor, climb: Ascent, loss: PerSampleLoss, strongest: Strongest, run: Run) -> None:
    """One ascent; every point that it passes is offered to `strongest`, at the cost of one forward pass more than its steps."""

    def loss_of(x_adv: Tensor) -> Tensor:
        logits = logits_of(x_adv)
        strongest.offer(x_adv.detach(), margins(logits.detach(), labels), run.places)
        return loss(logits, labels, run)

    x_adv = climb(x, begin, loss_of)
    with torch.no_grad():
        strongest.offer(x_adv, margins(logits_of(x_adv), labels), run.places)


def _started(x: Tensor, generators: Iterable[torch.Generator], attack: Attack) -> Tensor:
    if attack.start == "none":
        return x.clone()
    noise = [start_noise((1, *x.shape[1:]), attack, generator) for generator in generators]
    return started(x, torch.cat(cast(list[Tensor], noise)), attack)  # never None: that is start = "none"
