"""What one sample costs a network: multiply-accumulates and parameters."""

import math

import torch
from torch import Tensor, nn

from kdpipe.foundation.pruning import Convolution


def count_macs(module: nn.Module, sample_shape: tuple[int, ...]) -> int:
    """The multiply-accumulates of all convolutions and linear layers for one sample of `sample_shape`; each call of a layer counts.

    BatchNorm is left out: it folds away on the device. The module's modes are restored.
    """
    macs = 0

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        if isinstance(layer, Convolution):
            macs += output[0].numel() * layer.in_channels // layer.groups * math.prod(layer.kernel_size)
        elif isinstance(layer, nn.Linear):
            macs += output[0].numel() * layer.in_features

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
    return macs


def count_parameters(module: nn.Module) -> int:
    """The numbers that training may change, BatchNorm's included."""
    return sum(parameter.numel() for parameter in module.parameters())
