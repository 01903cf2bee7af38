"""Adversarial weight perturbation: each step is taken at the weights that a small move uphill leads to, so that the loss becomes flat around what is learned.

Source: Wu et al. 2020 (arXiv:2004.05884), Algorithm 1, and the authors' code: perturb, backward, optimiser's step, restore; no tensor of one dimension.
The move of a tensor w is γ·‖w‖·g/‖g‖, g the loss's gradient there: its relative size is γ, whatever the scale of the layer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn


class WeightPerturbation(BaseModel, extra="forbid", frozen=True):
    """`[….awp]`: how far the weights are moved, and from when on."""

    gamma: float = Field(
        0.005, gt=0, le=0.5, description="length of the move of each weight tensor, as a share of the tensor's own (0.01 for at, 0.005 for others)"
    )
    start: float = Field(0.1, ge=0, lt=1, description="share of the training that is done before weights are moved")


@contextmanager
def perturbed(student: nn.Module, loss_of: Callable[[], Tensor], gamma: float, *, remembering: nn.Module | None = None) -> Iterator[None]:
    """Meanwhile the student's weights are moved uphill on `loss_of`; afterwards moved back, and what was added to them meanwhile stays added.

    `loss_of()`: the scalar loss at the present weights; it is asked once, and what that does to buffers (BatchNorm's statistics,
    observed ranges) of the student and of `remembering` is undone. Biases and BatchNorm are never moved, nor is a tensor without a gradient.
    """
    weights = [parameter for parameter in student.parameters() if parameter.requires_grad and parameter.ndim >= 2]
    with _buffers_kept(student, *([] if remembering is None else [remembering])):
        gradients = torch.autograd.grad(loss_of(), weights, allow_unused=True)
    moved = []
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None and (length := torch.linalg.vector_norm(gradient)) > 0 and torch.isfinite(length):
                before = weight.clone()
                weight.add_(gradient / length * (gamma * torch.linalg.vector_norm(weight)))
                moved.append((weight, before, weight.clone()))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before, perturbed_weight in moved:
                weight.sub_(perturbed_weight).add_(before)  # exactly `before` where nothing was added


@contextmanager
def _buffers_kept(*modules: nn.Module) -> Iterator[None]:
    before = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    yield
    with torch.no_grad():
        for buffer, value in before:
            buffer.copy_(value)
