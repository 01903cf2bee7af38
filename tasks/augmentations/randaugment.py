"""RandAugment: a few small changes in a row, at one magnitude. Source: Cubuk et al. 2020 (arXiv:1909.13719), section 3."""

from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from kdpipe.tasks.augmentations.operations import OVERLAPPING, OVERLAPS, PLAIN, vary

_LARGEST = 30  # of the magnitude, as in the paper


def randaugment(x: Tensor, generator: torch.Generator, *, operations: int = 2, magnitude: float = 9.0, overlapping: bool = False) -> Tensor:
    """Each sample through `operations` changes drawn for it, the identity among them, at `magnitude` of 30 and either direction.

    `x`: (batch, channels, height, width) in [0, 1]; the argument is not changed. Deviation from the paper: without `overlapping`, the
    four operations that resemble the evaluation's corruptions (contrast, brightness, colour, sharpness) are left out.
    """
    known = tuple(({**PLAIN, **OVERLAPPING} if overlapping else PLAIN).values())
    chosen = torch.randint(-1, len(known), (operations, len(x)), generator=generator)  # -1: the identity
    signs = torch.randint(2, (operations, len(x)), generator=generator) * 2 - 1
    varied = x
    for place in range(operations):
        varied = vary(varied, known, chosen[place], signs[place] * (magnitude / _LARGEST))
    return varied


class RandAugment(BaseModel, extra="forbid", frozen=True):
    """A few small changes in a row: geometry and tones, by choice light and colour."""

    name: Literal["randaugment"] = "randaugment"
    operations: int = Field(2, ge=1, le=10, description="changes in a row")
    magnitude: float = Field(9.0, gt=0, le=30, description="strength of each, in (0, 30]")
    overlapping: bool = Field(False, description="with operations that resemble the evaluation's corruptions: contrast, brightness, colour, sharpness")

    @property
    def overlaps(self) -> tuple[str, ...]:
        """The corruptions of the evaluation that it trains for."""
        return OVERLAPS if self.overlapping else ()

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """`x` varied."""
        return randaugment(x, generator, operations=self.operations, magnitude=self.magnitude, overlapping=self.overlapping)
