"""The ball that an attack stays in: lengths, directions, and the way back into it and into [0, 1]."""

import torch
from torch import Tensor

from kdpipe.robustness.scorecard import Threat


def project(x_adv: Tensor, x: Tensor, epsilon: float, norm: Threat) -> Tensor:
    """A fresh tensor: `x_adv` in the ball around `x` and in [0, 1]; `x` lies in [0, 1]. For l2 not the nearest such point where both bounds bite."""
    if norm == "linf":
        return torch.clamp(x_adv, x - epsilon, x + epsilon).clamp_(0, 1)
    return to_l2_ball_(x_adv.clone(), x, epsilon)


def to_l2_ball_(x_adv: Tensor, x: Tensor, epsilon: float) -> Tensor:
    """`x_adv` drawn towards `x` into the l2 ball, then clamped to [0, 1]."""
    offset = x_adv.sub_(x)
    offset.mul_(per_sample((epsilon / l2_norms(offset)).clamp_max(1), offset))
    return offset.add_(x).clamp_(0, 1)  # x lies in [0, 1], so this moves nothing away from x


def steepest(gradient: Tensor, norm: Threat) -> Tensor:
    """The direction of length 1 in the norm along which a linear loss rises most, (n, *shape): the signs, or the gradient at length 1; 0 stays 0."""
    if norm == "linf":
        return gradient.sign()
    # a gradient may be tiny in float32 without being zero: scale by its largest value before its norm is taken
    scaled = gradient / per_sample(gradient.flatten(1).abs().amax(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny), gradient)
    return scaled / per_sample(l2_norms(scaled), scaled)


def distances(x_adv: Tensor, x: Tensor, norm: Threat) -> Tensor:
    """How far each sample moved, (n,)."""
    offset = (x_adv - x).flatten(1)
    return offset.abs().amax(dim=1) if norm == "linf" else torch.linalg.vector_norm(offset, dim=1)


def l2_norms(offset: Tensor) -> Tensor:
    """The length of each sample, (n,), never zero: safe to divide by."""
    norms: Tensor = torch.linalg.vector_norm(offset.flatten(1), dim=1)
    return norms.clamp_min_(torch.finfo(offset.dtype).tiny)


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """`value`, (n,), shaped to be multiplied with `like`, (n, *shape)."""
    return value.reshape(-1, *(1,) * (like.dim() - 1))
