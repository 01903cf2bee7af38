"""Averages of a network's weights while it is trained: exponential over the steps (Polyak), or equal over the last epochs (SWA).

Source of the second: Izmailov et al. 2018 (arXiv:1803.05407), Algorithm 1, an epoch as the cycle.
"""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

_WARM_UP = 10  # steps; min(decay, (1 + n) / (10 + n)), so that a short training's average is not its random start


def averaged_copy(module: nn.Module) -> nn.Module:
    """A frozen copy in evaluation mode, to be moved by `average_`."""
    average = copy.deepcopy(module).eval()
    return average.requires_grad_(False)


@torch.no_grad()
def average_equally_(average: nn.Module, module: nn.Module, count: int) -> None:
    """Move `average`, the mean of `count` - 1 networks (of none: anything), to the mean of these and `module`; as `average_`."""
    _move_(average, module, 1 / count)


@torch.no_grad()
def average_(average: nn.Module, module: nn.Module, decay: float, steps: int) -> None:
    """Move `average` towards `module`: `decay · average + (1 - decay) · module`; `steps`: optimiser steps taken, this one included.

    Parameters and BatchNorm's running statistics are averaged; other buffers (counters, scales) are copied.
    With decay 0 the average is the module.
    """
    decay = min(decay, (1 + steps) / (_WARM_UP + steps))
    _move_(average, module, 1 - decay)


def settle_norms_(module: nn.Module, samples: Iterable[Tensor]) -> None:
    """Estimate BatchNorm's running statistics anew, as the mean over the batches in `samples`; nothing else of `module` changes.

    Averaged weights have activations of their own, which no network in the average had. BatchNorms that do not run in training
    mode (frozen ones of a twin) keep their statistics.
    """
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.running_mean is not None]
    update_bn(samples, module)
    settled = {id(value) for norm in norms if norm.num_batches_tracked for value in (norm.running_mean, norm.running_var)}
    with torch.no_grad():
        for buffer, value in before:
            if id(buffer) not in settled:
                buffer.copy_(value)


def _move_(average: nn.Module, module: nn.Module, share: float) -> None:
    source = module.state_dict()
    moved = {name for name, _ in module.named_parameters()} | {name for name in source if name.endswith(("running_mean", "running_var"))}
    for name, value in average.state_dict().items():
        if name in moved and value.is_floating_point():
            value.lerp_(source[name], share)
        else:
            value.copy_(source[name])
