"""What one sample costs a network: multiply-accumulates and parameters."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdpipe.foundation.pruning import Convolution


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one sample. `depthwise`: those in depthwise convolutions (one input channel a group)."""

    total: int
    depthwise: int

    @property
    def depthwise_share(self) -> float:
        """In [0, 1]; 0 for a network of none."""
        return self.depthwise / max(1, self.total)


def count_macs(module: nn.Module, sample_shape: tuple[int, ...]) -> int:
    """The multiply-accumulates of all convolutions and linear layers for one sample of `sample_shape`, as `macs_by_kind` counts them."""
    return macs_by_kind(module, sample_shape).total


def macs_by_kind(module: nn.Module, sample_shape: tuple[int, ...]) -> Macs:
    """The multiply-accumulates of all convolutions and linear layers for one sample of `sample_shape`; each call of a layer counts.

    BatchNorm is left out: it folds away on the device. The module's modes are restored.
    """
    layers = _layers(module, sample_shape)
    depthwise = sum(macs for layer, macs in layers if isinstance(layer, Convolution) and layer.groups == layer.in_channels > 1)
    return Macs(sum(macs for _, macs in layers), depthwise)


def _layers(module: nn.Module, sample_shape: tuple[int, ...]) -> list[tuple[nn.Module, int]]:
    """Each call of a layer with its multiply-accumulates, in the order of the calls."""
    calls: list[tuple[nn.Module, int]] = []

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(layer, Convolution):
            calls.append((layer, output[0].numel() * layer.in_channels // layer.groups * math.prod(layer.kernel_size)))
        elif isinstance(layer, nn.Linear):
            calls.append((layer, output[0].numel() * layer.in_features))

    modes = [(layer, layer.training) for layer in module.modules()]
    handles = [layer.register_forward_hook(add) for layer in module.modules() if isinstance(layer, (*Convolution, nn.Linear))]
    try:
        module.eval()
        with torch.no_grad():
            module(torch.zeros(1, *sample_shape))
    finally:
        for handle in handles:
            handle.remove()
        for layer, training in modes:
            layer.training = training
    return calls


def count_parameters(module: nn.Module) -> int:
    """The numbers that training may change, BatchNorm's included."""
    return sum(parameter.numel() for parameter in module.parameters())
