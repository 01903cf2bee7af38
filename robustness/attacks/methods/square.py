"""The Square attack: a random search with square patches that asks only for logits, on any model.

Source: Andriushchenko et al. 2020 (arXiv:1912.00049): algorithm 1, algorithm 2 for linf, algorithm 3 for l2, the margin loss of section 3.1.
Deviations: p starts at 0.8 (as in AutoAttack, arXiv:2003.01690); the first l2 point tiles one orientation of the pattern.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdpipe.robustness.attacks.method import AttackMethod, Draws, Logits, Strongest, margins

_FIRST_SHARE = 0.8  # of the image that the first patches cover
_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries, scaled to the budget (section 4)
_TILES = 5  # a side in the first l2 point


class Square(AttackMethod):
    """`square-<queries>`: a sample is left alone once the model errs on it. Samples that are no images are searched value by value."""

    needs_gradients: ClassVar[bool] = False
    steps: int = Field(1000, ge=1, le=100_000, description="queries")
    restarts: Literal[1] = 1

    def craft(self, logits_of: Logits, x: Tensor, labels: Tensor, draws: Draws, *, start: Tensor | None = None) -> Tensor:
        """Per sample the point with the largest margin of at most `steps` asked."""
        images = x if x.dim() == 4 else x.reshape(len(x), 1, 1, -1)
        channels, height, width = images.shape[1:]
        generators = list(draws.generators())
        stripes = torch.stack([torch.rand(channels, height, width, generator=generator) for generator in generators])
        uniform = torch.stack([torch.rand(self.steps, 5 + channels, generator=generator) for generator in generators])
        propose = _linf_proposal if self.norm == "linf" else _l2_proposal
        if start is not None:
            first = start.reshape(images.shape)
        else:
            first = _linf_start(images, stripes, self.epsilon) if self.norm == "linf" else _l2_start(images, stripes, self.epsilon)
        strongest = Strongest(images)
        with torch.no_grad():
            strongest.offer(first, margins(logits_of(first.reshape(x.shape)), labels))
            for query in range(1, self.steps):
                standing = (strongest.margins < 0).nonzero().squeeze(1)
                if len(standing) == 0:
                    break
                side = _side(query / self.steps, height, width)
                candidate = propose(images[standing], strongest.x_adv[standing], side, uniform[standing, query], self.epsilon)
                found = margins(logits_of(candidate.reshape(len(standing), *x.shape[1:])), labels[standing])
                strongest.offer(candidate, found, standing)
        return strongest.x_adv.reshape(x.shape)


def _side(progress: float, height: int, width: int) -> int:
    """The patch's side after `progress` in [0, 1) of the budget."""
    halvings = sum(progress * 10_000 > at for at in _HALVED_AT)
    side = round(math.sqrt(_FIRST_SHARE / 2**halvings * height * width))
    return min(max(side, 1), height, width)


def _linf_start(x: Tensor, uniform: Tensor, epsilon: float) -> Tensor:
    """Vertical stripes of ±epsilon."""
    return (x + epsilon * _signs(uniform[:, :, :1])).clamp_(0, 1)


def _linf_proposal(x: Tensor, x_best: Tensor, side: int, uniform: Tensor, epsilon: float) -> Tensor:
    """`x_best` with one patch at ±epsilon, the sign drawn for each channel."""
    patch = (x + epsilon * _signs(uniform[:, 5:])[:, :, None, None]).clamp_(0, 1)
    return torch.where(_window(x, side, uniform[:, 0], uniform[:, 1]), patch, x_best)


def _l2_start(x: Tensor, uniform: Tensor, epsilon: float) -> Tensor:
    """The pattern in tiles over the image, its sign drawn for each tile and channel; length epsilon."""
    tile_height, tile_width = max(1, x.shape[2] // _TILES), max(1, x.shape[3] // _TILES)
    rows, columns = (torch.arange(x.shape[2]) // tile_height) * tile_height, (torch.arange(x.shape[3]) // tile_width) * tile_width
    signs = _signs(uniform[:, :, rows][:, :, :, columns])  # each tile has the sign of its first pixel
    pattern = _pattern(tile_height, tile_width)[torch.arange(x.shape[2]) % tile_height][:, torch.arange(x.shape[3]) % tile_width]
    offset = signs * pattern
    return (x + epsilon * offset / _norms(offset, (1, 2, 3))).clamp_(0, 1)


def _l2_proposal(x: Tensor, x_best: Tensor, side: int, uniform: Tensor, epsilon: float) -> Tensor:
    """`x_best` with the change in one patch moved to another: the length that is free goes into the pattern of section 3.4."""
    channels, height, width = x.shape[1:]
    side = min(max(side, 3), height, width)
    side -= 1 - side % 2 if side > 1 else 0  # odd, so that the pattern has a centre
    offset = x_best - x
    gains, yields = _window(x, side, uniform[:, 0], uniform[:, 1]), _window(x, side, uniform[:, 2], uniform[:, 3])
    spare = (epsilon**2 - offset.square().sum(dim=(1, 2, 3), keepdim=True)).clamp_min(0)
    available = ((offset * (gains | yields)).square().sum(dim=(2, 3), keepdim=True) + spare / channels).sqrt()
    pattern = _pattern(side, side)
    upright = (uniform[:, 4] < 0.5)[:, None, None]
    patterns = torch.where(upright, pattern, pattern.T)[:, None] * _signs(uniform[:, 5:])[:, :, None, None]
    placed = torch.zeros_like(x)
    placed[gains.expand_as(x)] = patterns.flatten()  # windows are filled row by row, sample after sample
    kept = offset * gains
    direction = placed + kept / _norms(kept, (2, 3))
    moved = torch.where(gains, available * direction / _norms(direction, (2, 3)), offset * ~yields)
    shrunk = moved * (epsilon / _norms(moved, (1, 2, 3))).clamp_max(1)
    return (x + shrunk).clamp_(0, 1)


def _pattern(height: int, width: int) -> Tensor:
    """(height, width): a hill and its negative side by side, length 1; section 3.4."""
    left = _hill(height, width // 2) if width > 1 else torch.zeros(height, 0)
    right = _hill(height, width - width // 2)
    return _unit(torch.cat([left, -right], dim=1))


def _hill(height: int, width: int) -> Tensor:
    """Concentric rectangles, the k-th from the centre adding 1 / (k + 1)²; length 1."""
    rows, columns = (torch.arange(height) - height // 2).abs(), (torch.arange(width) - width // 2).abs()
    ring = torch.maximum(rows[:, None], columns[None, :])
    weights = 1 / torch.arange(1, int(ring.max()) + 2, dtype=torch.float32) ** 2
    return _unit(weights.flip(0).cumsum(0).flip(0)[ring])


def _unit(pattern: Tensor) -> Tensor:
    return pattern / pattern.square().sum().sqrt()


def _window(x: Tensor, side: int, row: Tensor, column: Tensor) -> Tensor:
    """(n, 1, height, width) bool: a square at a place drawn from `row`, `column` in [0, 1)."""
    height, width = x.shape[2:]
    top = (row * (height - side + 1)).long()[:, None]
    left = (column * (width - side + 1)).long()[:, None]
    rows, columns = torch.arange(height), torch.arange(width)
    in_rows, in_columns = (rows >= top) & (rows < top + side), (columns >= left) & (columns < left + side)
    return in_rows[:, None, :, None] & in_columns[:, None, None, :]


def _signs(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0)


def _norms(offset: Tensor, dimensions: tuple[int, ...]) -> Tensor:
    return offset.square().sum(dim=dimensions, keepdim=True).sqrt().clamp_min(torch.finfo(offset.dtype).tiny)


plugin = Square
