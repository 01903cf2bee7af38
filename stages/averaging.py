"""The exponential moving average of a network's weights (Polyak averaging)."""

import copy

import torch
from torch import nn

_WARM_UP = 10  # steps; min(decay, (1 + n) / (10 + n)), so that a short training's average is not its random start


def averaged_copy(module: nn.Module) -> nn.Module:
    """A frozen copy in evaluation mode, to be moved by `average_`."""
    average = copy.deepcopy(module).eval()
    return average.requires_grad_(False)


@torch.no_grad()
def average_(average: nn.Module, module: nn.Module, decay: float, steps: int) -> None:
    """Move `average` towards `module`: `decay · average + (1 - decay) · module`; `steps`: optimiser steps taken, this one included.

    Parameters and BatchNorm's running statistics are averaged; other buffers (counters, scales) are copied.
    With decay 0 the average is the module.
    """
    decay = min(decay, (1 + steps) / (_WARM_UP + steps))
    source = module.state_dict()
    moved = {name for name, _ in module.named_parameters()} | {name for name in source if name.endswith(("running_mean", "running_var"))}
    for name, value in average.state_dict().items():
        if name in moved and value.is_floating_point():
            value.lerp_(source[name], 1 - decay)
        else:
            value.copy_(source[name])
