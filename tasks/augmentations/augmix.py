"""AugMix: several short chains of small changes, mixed with each other and with the image. Source: Hendrycks et al. 2020 (arXiv:1912.02781), algorithm 1."""

from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from kdpipe.tasks.augmentations.operations import OVERLAPPING, OVERLAPS, PLAIN, vary

_DEEPEST = 3
_LOWEST_LEVEL = 0.01  # as in the authors' code, where levels are 0.1 to `severity`, of 10


def augmix(x: Tensor, generator: torch.Generator, *, severity: float = 3.0, width: int = 3, depth: int | None = None, overlapping: bool = False) -> Tensor:
    """Each sample as `(1 - m) * sample + m * sum of w_i * chain_i(sample)`, m uniform in [0, 1], w uniform on the simplex; in x's memory format.

    `x`: (batch, channels, height, width) in [0, 1]; the argument is not changed. `severity`: in (0, 10], the largest level of an
    operation. `width`: chains; `depth`: operations in each, None for 1 to 3 at random. `overlapping`: with operations
    that resemble the evaluation's corruptions. Draws on the CPU, equally many whatever they are. Algorithm 1 with alpha = 1.
    """
    operations = tuple(({**PLAIN, **OVERLAPPING} if overlapping else PLAIN).values())
    samples, chains, longest = len(x), width * len(x), depth or _DEEPEST
    weights = torch.empty(samples, width).exponential_(generator=generator)
    weights = weights / weights.sum(dim=1, keepdim=True)
    share = torch.rand(samples, generator=generator)
    lengths = torch.randint(1, _DEEPEST + 1, (chains,), generator=generator) if depth is None else torch.full((chains,), depth)
    chosen = torch.randint(len(operations), (longest, chains), generator=generator)
    levels = _LOWEST_LEVEL + torch.rand((longest, chains), generator=generator) * max(severity / 10 - _LOWEST_LEVEL, 0)
    signs = torch.randint(2, (longest, chains), generator=generator) * 2 - 1
    chained = x.repeat_interleave(width, dim=0)
    for place in range(longest):
        chained = vary(chained, operations, torch.where(lengths > place, chosen[place], -1), levels[place] * signs[place])
    mixed = (chained.reshape(samples, width, *x.shape[1:]) * weights.to(x).reshape(samples, width, 1, 1, 1)).sum(dim=1)
    share = share.to(x).reshape(-1, 1, 1, 1)
    return torch.empty_like(x).copy_(((1 - share) * x + share * mixed).clamp(0, 1))


class AugMix(BaseModel, extra="forbid", frozen=True):
    """Chains of small changes, mixed with the image. For its consistency loss see the objective `augmix`, which makes its own views."""

    name: Literal["augmix"] = "augmix"
    severity: float = Field(3.0, gt=0, le=10, description="largest level of an operation, in (0, 10]")
    width: int = Field(3, ge=1, le=10, description="chains that are mixed")
    depth: int | None = Field(None, ge=1, le=10, description="operations in a chain; absent: 1 to 3 at random")
    overlapping: bool = Field(False, description="with operations that resemble the evaluation's corruptions: contrast, brightness, colour, sharpness")

    @property
    def overlaps(self) -> tuple[str, ...]:
        """The corruptions of the evaluation that it trains for."""
        return OVERLAPS if self.overlapping else ()

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """`x` varied."""
        return augmix(x, generator, severity=self.severity, width=self.width, depth=self.depth, overlapping=self.overlapping)
