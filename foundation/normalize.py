"""Normalisation as a network's first layer, so that its input is the raw value range."""

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """`(x - mean) / std` per channel, computed as `x * factor + shift`. `low`, `high`: the raw value range."""

    factor: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], dimensions: int, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        shape = (1, -1) + (1,) * (dimensions - 1)
        self.low, self.high = low, high
        self.register_buffer("factor", (1 / torch.tensor(std)).reshape(shape), persistent=False)
        self.register_buffer("shift", (-torch.tensor(mean) / torch.tensor(std)).reshape(shape), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The raw input, normalised."""
        return x * self.factor + self.shift


class Normalized(nn.Module):
    """`body((x - mean) / std)`, per channel; the outermost module of every network."""

    def __init__(self, body: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], dimensions: int, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std, dimensions, low, high)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """(batch, *shape) in the raw value range to the logits, (batch, classes)."""
        logits: Tensor = self.body(self.normalize(x))
        return logits
