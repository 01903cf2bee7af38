"""Convolutions and linear layers with quantized weights: trainable ones with a live BatchNorm, and frozen ones as in the file.

In training mode a live BatchNorm normalises with the batch's statistics while the weight is rounded as if the *running* statistics
were already folded in (Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.2, without its correction factor): the weight is scaled by
gamma / sqrt(running variance + eps), quantized, and scaled back, which is quantization on the grid of the folded weight.
In evaluation mode, and once the statistics are frozen, the layer computes with the folded weight and bias as the file will.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.quantization.fake_quant import fake_quantize, rounded_to_float16, weight_limit, weight_scale
from kdpipe.foundation.quantization.scheme import Scheme

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_BIAS_LIMIT = 2**30  # of the int32 bias; leaves the accumulator as much room again


class LiveLayer(nn.Module):
    """A convolution or linear layer in quantization-aware training; `norm` is the BatchNorm after it, or None.

    `layer` and `norm` are the network's own modules, so that a layer that is called twice keeps one weight. `kept_float`: nothing is rounded.
    """

    statistics_frozen: Tensor

    def __init__(self, layer: Layer, norm: Norm | None, scheme: Scheme, *, kept_float: bool = False) -> None:
        super().__init__()
        self.layer = layer
        self.norm = norm
        self.scheme = scheme
        self.kept_float = kept_float
        self.register_buffer("statistics_frozen", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        """What the layer and its BatchNorm compute, with rounded weights."""
        if self.norm is None or not self.training or bool(self.statistics_frozen):
            weight, bias = self.folded()
            return apply_layer(self.layer, x, self._quantized(weight), bias)
        factor = per_channel(self._factor().detach(), self.layer.weight)
        factor = torch.where(factor == 0, 1.0, factor)
        weight = self._quantized(self.layer.weight * factor) / factor
        result: Tensor = self.norm(apply_layer(self.layer, x, weight, self.layer.bias))
        return result

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with the running statistics folded in, not quantized."""
        weight: Tensor = self.layer.weight
        bias: Tensor | None = self.layer.bias
        if self.norm is None:
            return weight, bias
        factor = self._factor()
        mean = self.norm.running_mean
        assert mean is not None, "a BatchNorm without running statistics is never merged"
        offset = (-mean if bias is None else bias - mean) * factor
        if self.norm.bias is not None:
            offset = offset + self.norm.bias
        return weight * per_channel(factor, weight), offset

    def _factor(self) -> Tensor:
        assert self.norm is not None
        assert self.norm.running_var is not None
        deviation = torch.sqrt(self.norm.running_var + self.norm.eps)
        return self.norm.weight / deviation if self.norm.affine else 1 / deviation

    def _quantized(self, weight: Tensor) -> Tensor:
        if self.kept_float:
            return weight
        if not self.scheme.integer_weights:
            return rounded_to_float16(weight)
        limit = weight_limit(self.scheme)
        return fake_quantize(weight, weight_scale(weight, self.scheme), 0, -limit, limit)


class FrozenLayer(nn.Module):
    """A layer as the file has it: the weight on its grid, the bias on that of the int32 accumulator.

    `weight_scale`: (channels, 1, …). `bias_scale`: (channels,), the input's scale times the weight's; zeros where the input is not quantized
    and the bias stays float.
    """

    weight_scale: Tensor
    bias_scale: Tensor

    def __init__(self, live: LiveLayer, input_scale: Tensor | None) -> None:
        super().__init__()
        weight, bias = (None if value is None else value.detach() for value in live.folded())
        assert weight is not None
        self.layer = without_parameters(live.layer)
        self.scheme = live.scheme
        self.limit = weight_limit(live.scheme)
        scale = weight_scale(weight, live.scheme)
        bias_scale = torch.zeros(weight.shape[0])
        if bias is not None and input_scale is not None:
            # A channel of tiny weights beside a large bias would overflow int32: its weights get a coarser grid.
            scale = torch.maximum(scale, per_channel(bias.abs() / (input_scale * _BIAS_LIMIT), weight))
            if live.scheme.weight_granularity == "per-tensor":
                scale = scale.amax().expand_as(scale)
            bias_scale = input_scale * scale.flatten()
            bias = fake_quantize(bias, bias_scale, 0, -_BIAS_LIMIT, _BIAS_LIMIT)
        self.weight = nn.Parameter(fake_quantize(weight, scale, 0, -self.limit, self.limit), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias_scale", bias_scale)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer computes in the file, in float arithmetic on the same numbers."""
        return apply_layer(self.layer, x, self.weight, self.bias)


class FrozenFloatLayer(nn.Module):
    """A layer that the file computes in float: kept in float32, or its weight rounded to float16 (and its bias where the file computes in float16)."""

    def __init__(self, live: LiveLayer) -> None:
        super().__init__()
        weight, bias = (None if value is None else value.detach().clone() for value in live.folded())
        assert weight is not None
        self.layer = without_parameters(live.layer)
        self.scheme = live.scheme
        self.kept_float = live.kept_float
        if not self.kept_float:
            weight = rounded_to_float16(weight)
            if bias is not None and self.scheme.half_arithmetic:
                bias = rounded_to_float16(bias)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer computes in the file."""
        return apply_layer(self.layer, x, self.weight, self.bias)


def apply_layer(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What `layer` computes, with another weight and bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    padding = layer.padding
    if layer.padding_mode != "zeros":
        if isinstance(padding, str):
            raise ConfigError(
                f"a convolution with padding {padding!r} and padding_mode {layer.padding_mode!r} cannot be quantized",
                at=str(layer),
                do="give the padding as numbers",
            )
        x = F.pad(x, [amount for size in reversed(padding) for amount in (size, size)], mode=layer.padding_mode)
        padding = (0,) * len(padding)
    convolve = _CONVOLUTIONS[weight.dim() - 2]
    result: Tensor = convolve(x, weight, bias, layer.stride, padding, layer.dilation, layer.groups)
    return result


def per_channel(values: Tensor, weight: Tensor) -> Tensor:
    """(channels,) as (channels, 1, …), to scale `weight` by output channel."""
    return values.reshape(-1, *(1,) * (weight.dim() - 1))


def folded_layer(layer: Layer, norm: Norm, scheme: Scheme) -> Layer:
    """A new layer with `norm` folded in; its bias is a parameter."""
    weight, bias = LiveLayer(layer, norm, scheme).folded()
    assert bias is not None
    result = without_parameters(layer)
    result.weight = nn.Parameter(weight.detach().clone())
    result.bias = nn.Parameter(bias.detach().clone())
    return result


def without_parameters(layer: Layer) -> Layer:
    """A copy of the layer that holds its settings only: stride, padding, sizes."""
    result = layer.__class__.__new__(layer.__class__)
    nn.Module.__init__(result)
    settings = {name: value for name, value in vars(layer).items() if not name.startswith("_") or name == "_reversed_padding_repeated_twice"}
    result.__dict__.update(settings)
    result.register_parameter("weight", None)
    result.register_parameter("bias", None)
    return result
