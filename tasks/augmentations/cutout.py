"""Cutout: a square of each image without content. Source: DeVries & Taylor 2017 (arXiv:1708.04552), section 3."""

from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor


def cutout(x: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Each sample with a square of `size` pixels around a random pixel filled with its channels' means; what lies outside the image is cut off.

    The paper fills with the data set's mean (0 after normalisation); an image's own mean is as empty, and needs no statistics.
    """
    samples, _, height, width = x.shape
    row = torch.randint(height, (samples, 1, 1, 1), generator=generator).to(x.device)
    column = torch.randint(width, (samples, 1, 1, 1), generator=generator).to(x.device)
    rows, columns = torch.arange(height, device=x.device).reshape(1, 1, -1, 1), torch.arange(width, device=x.device)
    top, left = row - size // 2, column - size // 2
    inside = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)
    return torch.where(inside, x.mean(dim=(2, 3), keepdim=True), x)


class Cutout(BaseModel, extra="forbid", frozen=True):
    """A square of `size` pixels filled with the image's mean."""

    name: Literal["cutout"] = "cutout"
    size: int | None = Field(None, ge=1, description="edge in pixels; absent: half of the shorter side")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """`x` varied."""
        return cutout(x, self.size or max(1, min(x.shape[2:]) // 2), generator)
