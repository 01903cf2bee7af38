"""The pruning plan: which channels of which layer stay, stored as data and replayed exactly.

torch-pruning 1.6.1 records the whole group when a part of it is cut, and replays that to a layer of negative width;
so the plan is ours, and the cutting too: plain slicing, with every width checked.
"""

from collections.abc import Sequence

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from kdpipe.foundation.errors import VerificationError

Convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BatchNorm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CHANNELWISE = (*BatchNorm, nn.PReLU)
"""Layers with one number a channel, whose inputs and outputs are the same channels."""
CUTTABLE = (*Convolution, nn.Linear, *CHANNELWISE)
"""The layer types that `replay_` can cut."""


class KeptChannels(BaseModel, extra="forbid", frozen=True):
    """The channels of one layer that stay, by their index in the unpruned layer; None where that side is whole."""

    inputs: tuple[int, ...] | None = None
    outputs: tuple[int, ...] | None = None


class PruningPlan(BaseModel, extra="forbid", frozen=True):
    """Layer name to kept channels, for every layer that was cut."""

    layers: dict[str, KeptChannels] = Field(default_factory=dict)

    def then(self, later: "PruningPlan") -> "PruningPlan":
        """The one plan that does to the unpruned network what this plan and then `later` do; `later` counts in this plan's result."""
        names = [*self.layers, *(name for name in later.layers if name not in self.layers)]
        whole = KeptChannels()
        return PruningPlan(layers={name: _composed(self.layers.get(name, whole), later.layers.get(name, whole)) for name in names})


def replay_(module: nn.Module, plan: PruningPlan) -> None:
    """Cut `module` to the channels that `plan` keeps; the values of what stays do not change.

    Layers: convolutions (plain, grouped with equal shares, depthwise), linear, BatchNorm, PReLU. Raises VerificationError
    when the plan names a layer that is missing, of another type, or narrower than the plan's indices.
    """
    layers = dict(module.named_modules())
    for name, kept in plan.layers.items():
        layer = layers.get(name)
        if not isinstance(layer, CUTTABLE):
            raise _misfit(name, "there is no such layer" if layer is None else f"a {type(layer).__name__} cannot be cut")
        _require_within(name, layer, kept)
        if isinstance(layer, Convolution):
            _cut_convolution_(name, layer, kept)
        elif isinstance(layer, nn.Linear):
            _cut_linear_(layer, kept)
        else:
            _cut_channelwise_(layer, kept)
        _assert_widths(layer, kept)


def widths(layer: nn.Module) -> tuple[int, int]:
    """The number of input and of output channels of a cuttable layer."""
    if isinstance(layer, Convolution):
        return layer.in_channels, layer.out_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, BatchNorm):
        return layer.num_features, layer.num_features
    assert isinstance(layer, nn.PReLU)
    return layer.num_parameters, layer.num_parameters


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each input channel has filters of its own and nothing mixes them."""
    return isinstance(layer, Convolution) and layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels


def _composed(first: KeptChannels, later: KeptChannels) -> KeptChannels:
    def side(before: tuple[int, ...] | None, after: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if before is None or after is None:
            return after if before is None else before
        return tuple(before[i] for i in after)

    return KeptChannels(inputs=side(first.inputs, later.inputs), outputs=side(first.outputs, later.outputs))


def _require_within(name: str, layer: nn.Module, kept: KeptChannels) -> None:
    for side, indices, width in zip(("input", "output"), (kept.inputs, kept.outputs), widths(layer), strict=True):
        if indices is None:
            continue
        if not indices or len(set(indices)) != len(indices) or min(indices) < 0 or max(indices) >= width:
            raise _misfit(name, f"{len(indices)} {side} channels do not lie in its {width}, each once")


def _cut_convolution_(name: str, layer: nn.Module, kept: KeptChannels) -> None:
    assert isinstance(layer, Convolution)
    inputs = _indices(kept.inputs, layer.in_channels)
    outputs = _indices(kept.outputs, layer.out_channels)
    if is_depthwise(layer):
        if kept.inputs is not None and kept.outputs is not None and kept.inputs != kept.outputs:
            raise _misfit(name, "a depthwise convolution keeps the same inputs and outputs")
        outputs = outputs if kept.outputs is not None else inputs
        weight = layer.weight[outputs]
        layer.groups = layer.in_channels = len(outputs)
    else:
        weight = _grouped_slice(name, layer.weight, layer.groups, inputs, outputs)
        layer.in_channels = len(inputs)
    layer.out_channels = len(outputs)
    _put_(layer, "weight", weight)
    if layer.bias is not None:
        _put_(layer, "bias", layer.bias[outputs])


def _grouped_slice(name: str, weight: Tensor, groups: int, inputs: Tensor, outputs: Tensor) -> Tensor:
    """The part of a (out, in / groups, …) weight that stays; each group must keep as many channels as any other."""
    width_in, width_out = weight.shape[1], weight.shape[0] // groups
    pieces = []
    for group in range(groups):
        rows = outputs[outputs // width_out == group]
        columns = inputs[inputs // width_in == group] - group * width_in
        if len(rows) * groups != len(outputs) or len(columns) * groups != len(inputs):
            raise _misfit(name, f"its {groups} groups would keep different numbers of channels")
        pieces.append(weight[rows][:, columns])
    return torch.cat(pieces)


def _cut_linear_(layer: nn.Linear, kept: KeptChannels) -> None:
    inputs, outputs = _indices(kept.inputs, layer.in_features), _indices(kept.outputs, layer.out_features)
    _put_(layer, "weight", layer.weight[outputs][:, inputs])
    if layer.bias is not None:
        _put_(layer, "bias", layer.bias[outputs])
    layer.in_features, layer.out_features = len(inputs), len(outputs)


def _cut_channelwise_(layer: nn.Module, kept: KeptChannels) -> None:
    """BatchNorm and PReLU: one number a channel in every tensor, so both sides are one."""
    chosen = kept.outputs if kept.outputs is not None else kept.inputs
    if chosen is None:
        return
    indices = torch.tensor(chosen)
    for name, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        if value.ndim == 1:
            _put_(layer, name, value[indices])
    if isinstance(layer, BatchNorm):
        layer.num_features = len(chosen)
    else:
        assert isinstance(layer, nn.PReLU)
        layer.num_parameters = len(chosen)


def _put_(layer: nn.Module, name: str, value: Tensor) -> None:
    value = value.detach().clone(memory_format=torch.contiguous_format)
    old = layer._parameters.get(name)
    if old is None:
        layer.register_buffer(name, value)
    else:
        setattr(layer, name, nn.Parameter(value, requires_grad=old.requires_grad))


def _indices(chosen: Sequence[int] | None, width: int) -> Tensor:
    return torch.arange(width) if chosen is None else torch.tensor(chosen)


def _assert_widths(layer: nn.Module, kept: KeptChannels) -> None:
    width_in, width_out = widths(layer)
    channelwise = is_depthwise(layer) or isinstance(layer, CHANNELWISE)
    if not channelwise:
        assert kept.inputs is None or width_in == len(kept.inputs)
    assert kept.outputs is None or width_out == len(kept.outputs)
    if isinstance(layer, Convolution):
        assert layer.weight.shape[:2] == (width_out, width_in // layer.groups)
    elif isinstance(layer, nn.Linear):
        assert layer.weight.shape == (width_out, width_in)
    elif isinstance(layer, BatchNorm) and layer.running_mean is not None:
        assert layer.running_mean.shape == (width_out,)


def _misfit(name: str, fact: str) -> VerificationError:
    return VerificationError(f"the pruning plan does not fit layer {name!r}: {fact}", at="network.json", do="its factory has changed: build again")
