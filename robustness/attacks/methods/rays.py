"""RayS: a search over sign vectors for the direction in which the border is nearest; asks for the predicted class alone, and for nothing else.

Source: Chen & Gu 2020 (arXiv:2006.12792): the discrete search of section 3.2, its hierarchical blocks (algorithm 1, the sign of one block after the other
flipped, blocks halved when all were tried), and the fast check with binary search (algorithm 2). It is made for linf, where corners of the ball are the
strongest changes; in l2 `hopskipjump` is. Deviations: a sample is done once its border is within epsilon, for that is what was asked; all samples of a batch
ask together; with `start` the first direction is the way to it, without one it is drawn, not all ones.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdpipe.robustness.attacks.ball import per_sample, project
from kdpipe.robustness.attacks.method import AttackMethod, Draws, Logits, Strongest, margins

_TOLERANCE = 1e-3  # of a radius, as a share of the largest change that the value range allows; as published for linf


class Rays(AttackMethod):
    """`rays-<queries>`: a sample is left alone once the model errs on it. Decides by right or wrong; logits serve to rank what is handed back."""

    needs_gradients: ClassVar[bool] = False
    steps: int = Field(1000, ge=2, le=100_000, description="queries")
    restarts: Literal[1] = 1

    def craft(self, logits_of: Logits, x: Tensor, labels: Tensor, draws: Draws, *, start: Tensor | None = None) -> Tensor:
        """Per sample a point within epsilon that the model errs on, or the one in the ball with the largest margin that was asked."""
        strongest = Strongest(x if start is None else start)
        with torch.no_grad():
            for first in [x] if start is None else [x, start]:
                strongest.offer(first, margins(logits_of(first), labels))
            search = _Search(x, self._directions(x, draws, start), 1.0 if self.norm == "linf" else math.sqrt(x[0].numel()))
            for _ in range(self.steps - (1 if start is None else 2)):
                standing = (strongest.margins < 0).nonzero().squeeze(1)
                if len(standing) == 0:
                    break
                radius, directions = search.question(standing)
                asked = (x[standing] + per_sample(radius, x) * directions).clamp_(0, 1)
                found = margins(logits_of(asked), labels[standing])
                search.answer_(standing, found >= 0)
                inside = radius <= self.epsilon
                strongest.offer(project(asked[inside], x[standing][inside], self.epsilon, self.norm), found[inside], standing[inside])
        return strongest.x_adv

    def _directions(self, x: Tensor, draws: Draws, start: Tensor | None) -> Tensor:
        if start is None:
            return torch.stack([torch.where(torch.rand(x.shape[1:], generator=generator) < 0.5, -1.0, 1.0) for generator in draws.generators()])
        return torch.where(start < x, -1.0, 1.0)


class _Search:
    """Where each sample's search is. `best`: the signs of the nearest border met, at `radius`; `asked`: those under question, between `low` and `high`.

    `farthest`: the largest change that the value range allows, in the attack's norm.
    """

    def __init__(self, x: Tensor, directions: Tensor, farthest: float) -> None:
        n, self.size = len(x), x[0].numel()
        self.farthest = farthest
        self.best = directions.flatten(1).clone()
        self.asked = self.best.clone()
        self.shape = x.shape[1:]
        self.radius = x.new_full((n,), float("inf"))
        self.low, self.high = x.new_zeros(n), x.new_full((n,), farthest)
        self.narrowing = torch.zeros(n, dtype=torch.bool)
        self.blocks = torch.ones(n, dtype=torch.int64)
        self.block = torch.full((n,), -1, dtype=torch.int64)  # the first question is the first direction itself

    def question(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """For the samples at `places` the radius, (k,), and the direction, (k, *shape), to ask at."""
        middle = (self.low + self.high) / 2
        radius = torch.where(self.narrowing, middle, self.radius.clamp_max(self.farthest))[places]
        return radius, self.asked[places].reshape(len(places), *self.shape) / self.farthest

    def answer_(self, places: Tensor, errs: Tensor) -> None:
        """Take the answers, (k,) bool: whether the model errs there."""
        narrowing = self.narrowing[places]
        near, far = places[narrowing & errs], places[narrowing & ~errs]
        middle = (self.low + self.high) / 2
        self.high[near], self.low[far] = middle[near], middle[far]
        begun = places[~narrowing & errs]  # the border is nearer this way: find out how near
        self.low[begun], self.high[begun] = 0, self.radius[begun].clamp_max(self.farthest)
        self.narrowing[begun] = True
        done = places[self.narrowing[places] & (self.high[places] - self.low[places] <= _TOLERANCE * self.farthest)]
        self.radius[done], self.best[done] = self.high[done], self.asked[done]
        self.narrowing[done] = False
        self._next_block_(torch.cat([done, places[~narrowing & ~errs]]))

    def _next_block_(self, places: Tensor) -> None:
        """The next block's signs flipped; after the last one the blocks are halved, down to single values, and then begun anew."""
        self.block[places] += 1
        over = places[self.block[places] >= self.blocks[places]]
        self.block[over] = 0
        self.blocks[over] = torch.where(self.blocks[over] >= self.size, 1, (2 * self.blocks[over]).clamp_max(self.size))
        position = torch.arange(self.size)
        inside = position * self.blocks[places, None] // self.size == self.block[places, None]
        self.asked[places] = torch.where(inside, -self.best[places], self.best[places])


plugin = Rays
