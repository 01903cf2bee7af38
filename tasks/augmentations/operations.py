"""The small changes that AugMix and RandAugment are chained of: geometry, tone and, by choice, light and colour.

Each is a function of a batch (batch, channels, height, width) in [0, 1] and of one level in [-1, 1] for each sample, to the same shape and
range. The set and its scales: google-research/augmix (Hendrycks et al. 2020, arXiv:1912.02781, appendix C), with level 1 for its 10, and two
deviations, so that 8 pixels are varied as well: angles and shifts are not rounded to whole degrees and pixels, and shears turn about the centre.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Operation = Callable[[Tensor, Tensor], Tensor]
"""(images, levels (batch,) in [-1, 1]) to images; what has no direction takes the level's size."""

BLURS: tuple[str, ...] = ("gaussian-blur", "gaussian-blur-c", "defocus-blur")
"""The corruptions that a blur without direction trains for."""

GAUSSIAN_NOISES: tuple[str, ...] = ("gaussian-noise", "gaussian-noise-c", "shot-noise", "speckle-noise")
"""Those that Gaussian noise trains for: the others are Gaussian but for few photons, at a strength that depends on the value."""

_TONES = 256
_LARGEST_ANGLE = math.radians(30)
_LARGEST_SHEAR = 0.3
_LARGEST_SHIFT = 1 / 3  # of the side
_LARGEST_ENHANCEMENT = 0.9  # factors from 0.1 to 1.9
_GREY = (0.299, 0.587, 0.114)  # luma as in Pillow (ITU-R 601-2)


def vary(x: Tensor, operations: Sequence[Operation], chosen: Tensor, levels: Tensor) -> Tensor:
    """Each sample through the operation at `chosen` (batch,), at its level; a negative index leaves it as it is. The argument is not changed."""
    varied = x.clone()
    for index, operation in enumerate(operations):
        rows = torch.nonzero(chosen == index).flatten().to(x.device)
        if len(rows):
            varied[rows] = operation(x[rows], levels[rows.cpu()].to(x)).clamp(0, 1)
    return varied


def autocontrast(x: Tensor, level: Tensor) -> Tensor:
    """Each channel stretched to [0, 1]; a flat one stays. The level has no meaning here."""
    low, high = x.amin(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
    spread = high - low
    return torch.where(spread > 0, (x - low) / spread.clamp(min=1e-6), x)


def equalize(x: Tensor, level: Tensor) -> Tensor:
    """Each channel's tones, of 256, made equally frequent, by Pillow's rule; the level has no meaning here."""
    tones = (x * (_TONES - 1)).round().long().flatten(2)
    counts = torch.zeros(*tones.shape[:2], _TONES, dtype=torch.long, device=x.device).scatter_add_(2, tones, torch.ones_like(tones))
    brightest = counts.gather(2, tones.amax(dim=2, keepdim=True))
    step = (tones.shape[2] - brightest) // (_TONES - 1)
    before = counts.cumsum(dim=2) - counts
    table = ((step // 2 + before) // step.clamp(min=1)).clamp(max=_TONES - 1)
    equalized = table.gather(2, tones).to(x) / (_TONES - 1)
    return torch.where(step > 0, equalized, x.flatten(2)).reshape(x.shape)  # fewer pixels than tones: as it was, like Pillow


def posterize(x: Tensor, level: Tensor) -> Tensor:
    """4 to 1 bits for each value: 4 less the whole part of four times the level."""
    bits = (4 - (4 * level.abs()).floor()).clamp(min=1)
    block = _per_sample(2 ** (8 - bits))
    return torch.floor((x * (_TONES - 1)).round() / block) * block / (_TONES - 1)


def solarize(x: Tensor, level: Tensor) -> Tensor:
    """Values from 1 - |level| on inverted."""
    return torch.where(x >= 1 - _per_sample(level.abs()), 1 - x, x)


def rotate(x: Tensor, level: Tensor) -> Tensor:
    """Turned about the centre by up to 30 degrees."""
    angle = level * _LARGEST_ANGLE
    cosine, sine = angle.cos(), angle.sin()
    return _moved(x, cosine, -sine, sine, cosine)


def shear_x(x: Tensor, level: Tensor) -> Tensor:
    """Rows shifted in proportion to their distance from the middle, by up to 0.3 of it."""
    one = torch.ones_like(level)
    return _moved(x, one, level * _LARGEST_SHEAR, 0 * one, one)


def shear_y(x: Tensor, level: Tensor) -> Tensor:
    """Columns shifted in proportion to their distance from the middle, by up to 0.3 of it."""
    one = torch.ones_like(level)
    return _moved(x, one, 0 * one, level * _LARGEST_SHEAR, one)


def translate_x(x: Tensor, level: Tensor) -> Tensor:
    """Shifted sideways by up to a third of the width."""
    one = torch.ones_like(level)
    return _moved(x, one, 0 * one, 0 * one, one, right=2 * _LARGEST_SHIFT * level)


def translate_y(x: Tensor, level: Tensor) -> Tensor:
    """Shifted up or down by up to a third of the height."""
    one = torch.ones_like(level)
    return _moved(x, one, 0 * one, 0 * one, one, down=2 * _LARGEST_SHIFT * level)


def color(x: Tensor, level: Tensor) -> Tensor:
    """Saturation times 0.1 to 1.9; grey images stay."""
    return _enhanced(x, _grey(x).expand_as(x), level)


def contrast(x: Tensor, level: Tensor) -> Tensor:
    """Contrast around the mean grey times 0.1 to 1.9."""
    return _enhanced(x, _grey(x).mean(dim=(2, 3), keepdim=True).expand_as(x), level)


def brightness(x: Tensor, level: Tensor) -> Tensor:
    """All values times 0.1 to 1.9."""
    return _enhanced(x, torch.zeros_like(x), level)


def sharpness(x: Tensor, level: Tensor) -> Tensor:
    """Difference to a smoothed version (3x3, the centre weighs 5 of 13) times 0.1 to 1.9; the border stays."""
    if min(x.shape[2:]) < 3:
        return x
    kernel = torch.ones(x.shape[1], 1, 3, 3).to(x)
    kernel[:, :, 1, 1] = 5
    smooth = x.clone()
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(x, kernel / 13, groups=x.shape[1])
    return _enhanced(x, smooth, level)


PLAIN: Mapping[str, Operation] = {
    "autocontrast": autocontrast,
    "equalize": equalize,
    "posterize": posterize,
    "rotate": rotate,
    "solarize": solarize,
    "shear-x": shear_x,
    "shear-y": shear_y,
    "translate-x": translate_x,
    "translate-y": translate_y,
}
"""Those that resemble none of the evaluation's corruptions, as their authors judge: the default of AugMix and RandAugment."""

OVERLAPPING: Mapping[str, Operation] = {"color": color, "contrast": contrast, "brightness": brightness, "sharpness": sharpness}
"""Those that do."""

OVERLAPS: tuple[str, ...] = ("contrast", "contrast-c", "brightness", "brightness-c", "saturate", *BLURS)
"""The corruptions that OVERLAPPING trains for; a sharpness below 1 is a blur."""


def _moved(x: Tensor, xx: Tensor, xy: Tensor, yx: Tensor, yy: Tensor, *, right: Tensor | None = None, down: Tensor | None = None) -> Tensor:
    """Sampled where the matrix ((xx, xy), (yx, yy)) sends each pixel's offset from the centre, in pixels; bilinear, black outside.

    `right`, `down`: added to that, in half sides.
    """
    height, width = x.shape[2:]
    none = torch.zeros_like(xx)
    across = torch.stack((xx, xy * (height / width), none if right is None else right), dim=1)
    along = torch.stack((yx * (width / height), yy, none if down is None else down), dim=1)
    grid = F.affine_grid(torch.stack((across, along), dim=1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _enhanced(x: Tensor, degenerate: Tensor, level: Tensor) -> Tensor:
    """From the degenerate image past `x`: factor 1 is `x`."""
    return degenerate + _per_sample(1 + _LARGEST_ENHANCEMENT * level) * (x - degenerate)


def _grey(x: Tensor) -> Tensor:
    if x.shape[1] != 3:
        return x.mean(dim=1, keepdim=True)
    return (x * torch.tensor(_GREY).to(x).reshape(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def _per_sample(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)
