"""Training images varied at random: mirrored, shifted, made noisy, blurred, cut, mixed of their variants; each sample by draws of its own.

Functions on a batch, (batch, channels, height, width) in [0, 1] to the same shape and range; the argument is not changed.
Draws are made on the CPU from the caller's generator. The models are the entries of `augment` in `[task]`.
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, Field
from torch import Tensor
from torch.nn import functional as F

from kdpipe.tasks.augmentations.augmix import AugMix
from kdpipe.tasks.augmentations.cutout import Cutout
from kdpipe.tasks.augmentations.operations import BLURS, GAUSSIAN_NOISES
from kdpipe.tasks.augmentations.randaugment import RandAugment

OVERLAPS: dict[str, tuple[str, ...]] = {"noise": GAUSSIAN_NOISES, "blur": BLURS}
"""The corruptions of the evaluation that these augmentations train for: accuracy under them is then no longer of the unseen."""

_BLUR_REACH = 3  # a Gaussian is cut off at three deviations


def flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each sample mirrored left to right with probability 1/2."""
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(_per_sample(mirrored, x), x.flip(3), x)


def crop(x: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Each sample shifted by up to `padding` pixels in both directions; what comes in repeats the edge."""
    height, width = x.shape[2:]
    down, right = torch.randint(0, 2 * padding + 1, (2, len(x)), generator=generator).to(x.device)
    windows = F.pad(x, (padding,) * 4, mode="replicate").unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(x), device=x.device), :, down, right]


def noise(x: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise, its deviation drawn from [0, `std`] for each sample, clipped to [0, 1]."""
    strength = torch.rand(len(x), generator=generator) * std
    return (x + _per_sample(strength, x) * torch.randn(x.shape, generator=generator).to(x)).clamp(0, 1)


def blur(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """A Gaussian blur, its deviation drawn from [0, `sigma`] pixels for each sample."""
    samples, channels, height, width = x.shape
    reach = min(int(_BLUR_REACH * sigma + 0.5), min(height, width) - 1)
    if reach == 0:
        return x.clone()
    deviations = torch.rand(samples, generator=generator).clamp(min=1e-3) * sigma
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviations[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0).to(x)
    stacked = F.pad(x, (reach,) * 4, mode="replicate").reshape(1, samples * channels, height + 2 * reach, width + 2 * reach)
    stacked = F.conv2d(stacked, kernel[:, None, :, None], groups=samples * channels)
    return F.conv2d(stacked, kernel[:, None, None, :], groups=samples * channels).reshape(x.shape).clamp(0, 1)


class Flip(BaseModel, extra="forbid", frozen=True):
    """Mirrored left to right in half of the cases. Not for digits or letters."""

    name: Literal["flip"] = "flip"

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """`x` varied."""
        return flip(x, generator)


class Crop(BaseModel, extra="forbid", frozen=True):
    """Shifted by up to `padding` pixels."""

    name: Literal["crop"] = "crop"
    padding: int | None = Field(None, ge=1, description="pixels; None: an eighth of the shorter side")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """`x` varied."""
        return crop(x, self.padding or max(1, min(x.shape[2:]) // 8), generator)


class Noise(BaseModel, extra="forbid", frozen=True):
    """Gaussian noise of a deviation up to `std`."""

    name: Literal["noise"] = "noise"
    std: float = Field(0.1, gt=0, le=1, description="largest deviation, in the value range [0, 1]")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """`x` varied."""
        return noise(x, self.std, generator)


class Blur(BaseModel, extra="forbid", frozen=True):
    """Gaussian blur of a deviation up to `sigma`."""

    name: Literal["blur"] = "blur"
    sigma: float = Field(1.0, gt=0, le=20, description="largest deviation, in pixels")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """`x` varied."""
        return blur(x, self.sigma, generator)


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Augmentation = Annotated[Flip | Crop | Noise | Blur | Cutout | RandAugment | AugMix, Field(discriminator="name"), BeforeValidator(_by_name)]
"""One entry of `augment`: a name, or a table with `name` and its parameters."""


def overlaps(step: Augmentation) -> tuple[str, ...]:
    """The corruptions of the evaluation that the augmentation, with its settings, trains for."""
    return step.overlaps if isinstance(step, RandAugment | AugMix) else OVERLAPS.get(step.name, ())


def _per_sample(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.device).reshape(-1, 1, 1, 1)
