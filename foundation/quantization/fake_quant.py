"""Fake quantization: float tensors on the grid of a quantized type, rounded exactly as ONNX QuantizeLinear does.

`fake_quantize(x) = dequantize(quantize(x))` with `quantize(x) = saturate(round_half_even(x / scale) + zero_point)`: the division is
a true one, so that the twin and the file agree bit for bit (torch's own fake_quantize multiplies by a rounded reciprocal and takes
nine times as long on a CPU). Gradients pass straight through inside the clip range and are zero outside.
Source: Jacob et al. 2018 (arXiv:1712.05877), section 3; straight-through estimator: Bengio et al. 2013 (arXiv:1308.3432).
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdpipe.foundation.quantization.scheme import Scheme

OBSERVER_MOMENTUM = 0.01
"""Share of a training batch's extremes in the running ones."""

_OFF_THE_TIES = 2.0**-20
# Values such as 0.5 lie half-way between two of 256 levels, and each runtime's float error decides anew which one they become. A step this much
# shorter (4 float32 roundings) decides for all of them, and moves no 8-bit level: digits in sixteenths, OpenVINO, 1.7 % of the first
# layer's outputs were one step off before and none after.

_SMALLEST_RANGE = 1e-6  # a constant activation still gets a scale > 0


def integer_range(bits: int, *, signed: bool, symmetric: bool = False) -> tuple[int, int]:
    """The smallest and largest integer of a `bits` wide type; symmetric signed types leave the lowest one out."""
    if not signed:
        return 0, 2**bits - 1
    highest = 2 ** (bits - 1) - 1
    return (-highest if symmetric else -highest - 1), highest


def activation_range(scheme: Scheme) -> tuple[int, int]:
    """The smallest and largest integer of an activation. Signed symmetric keeps -2^(b-1): that is where QuantizeLinear saturates."""
    return integer_range(scheme.activation_bits, signed=scheme.activation_signed)


def weight_limit(scheme: Scheme) -> int:
    """The largest magnitude of an integer weight: 127 for 8 bits, 63 for 7."""
    return integer_range(scheme.weight_bits, signed=True, symmetric=True)[1]


def activation_parameters(low: Tensor, high: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Scale (float32, > 0) and zero point (int32) for values in [low, high], both scalars; 0 is always on the grid.

    `qmax - zero_point` steps never exceed `high` where `low` is 0, so that a runtime may leave out the clip of a ReLU6.
    Symmetric: zero point 0 for signed integers, for unsigned 0 when no value is negative and 2^(b-1) otherwise.
    """
    qmin, qmax = activation_range(scheme)
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    if scheme.activation_symmetric:
        negative = low < 0
        middle = (qmin + qmax + 1) // 2
        zero_point = torch.where(negative, middle, 0 if scheme.activation_signed else qmin).to(torch.int32)
        steps = (qmax - zero_point).to(low.dtype)
        scale = torch.maximum(-low, high).clamp(min=_SMALLEST_RANGE) / steps
    else:
        scale = (high - low).clamp(min=_SMALLEST_RANGE) / (qmax - qmin)
        zero_point = (qmin - torch.round(low / scale)).clamp(qmin, qmax).to(torch.int32)
        steps = (qmax - zero_point).to(low.dtype)
    too_far = (low == 0) & (scale * steps > high) & (high > _SMALLEST_RANGE)
    return torch.where(too_far, torch.nextafter(scale, torch.zeros_like(scale)), scale), zero_point


def weight_scale(weight: Tensor, scheme: Scheme) -> Tensor:
    """The symmetric scale of a weight (output channels first): shape (channels, 1, …), > 0; per tensor all channels share one.

    Channels without any weight get a scale of 1e-6 over the limit.
    """
    magnitude = weight.detach().abs().flatten(1).amax(1) if scheme.weight_granularity == "per-channel" else weight.detach().abs().amax().expand(weight.shape[0])
    return (magnitude.clamp(min=_SMALLEST_RANGE) / weight_limit(scheme)).reshape(-1, *(1,) * (weight.dim() - 1))


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor | int, qmin: int, qmax: int) -> Tensor:
    """The integers of `x` as float32 values: `saturate(round_half_even(x / scale) + zero_point)`; `scale` broadcasts. NaN stays NaN."""
    return torch.div(x, scale).round_().add_(zero_point).clamp_(qmin, qmax)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor | int) -> Tensor:
    """`(q - zero_point) * scale`, as DequantizeLinear."""
    return (q - zero_point) * scale


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | int, qmin: int, qmax: int, *, out_scale: Tensor | None = None, out_zero_point: Tensor | int | None = None
) -> Tensor:
    """`x` on the grid of `scale` and `zero_point`, same shape; float32.

    With `out_scale` and `out_zero_point` the integers are read on another grid: an affine map that costs nothing.
    Gradient: straight through (times out_scale / scale) where the integer lies in [qmin, qmax], zero where it was clipped; none to the scales.
    """
    out_scale = scale if out_scale is None else out_scale
    out_zero_point = zero_point if out_zero_point is None else out_zero_point
    result: Tensor = _FakeQuantize.apply(x, scale, zero_point, qmin, qmax, out_scale, out_zero_point)  # type: ignore[no-untyped-call]
    return result


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | int, qmin: int, qmax: int, out_scale: Tensor, out_zero_point: Tensor | int) -> Tensor:
        q = torch.div(x, scale).round_().add_(zero_point)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward((q >= qmin).logical_and_(q <= qmax))
            ctx.gain = None if out_scale is scale else out_scale / scale
        return q.clamp_(qmin, qmax).sub_(out_zero_point).mul_(out_scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
        (inside,) = ctx.saved_tensors
        passed = gradient * inside
        return (passed if ctx.gain is None else passed * ctx.gain), None, None, None, None, None, None


def rounded_to_float16(x: Tensor) -> Tensor:
    """`x` as float16 holds it, float32, same shape; beyond ±65,504 infinite. The gradient passes straight through."""
    result: Tensor = _RoundToFloat16.apply(x)  # type: ignore[no-untyped-call]
    return result


class _RoundToFloat16(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.half().float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class ActivationQuantizer(nn.Module):
    """Fake quantization of one activation tensor; everything it knows is in buffers.

    `low`, `high`: the range in use; `seen_low`, `seen_high`: running extremes of training batches (moved by `OBSERVER_MOMENTUM`
    in training mode while `observing`); `low_share`, `high_share`: the part of the extremes that calibration kept, so that a
    range found by percentile or error stays as tight while it follows the training.
    """

    scale: Tensor
    zero_point: Tensor
    low: Tensor
    high: Tensor
    seen_low: Tensor
    seen_high: Tensor
    low_share: Tensor
    high_share: Tensor
    observing: Tensor

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme
        self.qmin, self.qmax = activation_range(scheme)
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))
        for name, value in (("low", 0.0), ("high", 0.0), ("seen_low", 0.0), ("seen_high", 0.0), ("low_share", 1.0), ("high_share", 1.0)):
            self.register_buffer(name, torch.tensor(value))
        self.register_buffer("observing", torch.tensor(True))

    def set_range_(self, seen_low: float, seen_high: float, low: float, high: float) -> None:
        """Take the extremes of calibration and the range [low, high] that was chosen within them."""
        self.seen_low.fill_(seen_low)
        self.seen_high.fill_(seen_high)
        self.low_share.fill_(low / seen_low if seen_low != 0 else 1.0)
        self.high_share.fill_(high / seen_high if seen_high != 0 else 1.0)
        self.update_()

    def update_(self) -> None:
        """Range, scale and zero point anew from the extremes."""
        self.low.copy_(self.seen_low * self.low_share)
        self.high.copy_(self.seen_high * self.high_share)
        scale, zero_point = activation_parameters(self.low, self.high, self.scheme)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def forward(self, x: Tensor) -> Tensor:
        """`x` on the grid; in training mode the range follows first."""
        if self.training and bool(self.observing):
            with torch.no_grad():
                low, high = torch.aminmax(x.detach())
                self.seen_low.lerp_(low, OBSERVER_MOMENTUM)
                self.seen_high.lerp_(high, OBSERVER_MOMENTUM)
                self.update_()
        return fake_quantize(x, self.scale, self.zero_point, self.qmin, self.qmax)


class InputQuantizer(nn.Module):
    """The raw input, quantized, as the normalised input: takes the place of the network's normalisation.

    Its range is the contract's, [low, high], and not what calibration happened to see.
    `kind` "regrid" (asymmetric schemes, all channels normalised alike): the raw value is quantized with step (high - low) / (2^b - 1),
    for [0, 1] and 8 bits the grey levels of an 8-bit image, and the same integers are read with the normalised scale and zero point. The mean moves
    to the nearest level, by half a level at most. Zero padding then means exactly what it means in the float network.
    `kind` "affine" (all else): normalised in float, then quantized over the range that [low, high] becomes.
    """

    scale: Tensor
    zero_point: Tensor
    raw_scale: Tensor
    raw_zero_point: Tensor
    factor: Tensor
    shift: Tensor

    def __init__(self, scheme: Scheme, factor: Tensor, shift: Tensor, low: float, high: float) -> None:
        super().__init__()
        self.scheme = scheme
        self.qmin, self.qmax = activation_range(scheme)
        alike = bool((factor == factor.flatten()[0]).all()) and bool((shift == shift.flatten()[0]).all())
        self.kind: Literal["regrid", "affine"] = "regrid" if alike and not scheme.activation_symmetric else "affine"
        self.register_buffer("factor", factor.clone(), persistent=False)
        self.register_buffer("shift", shift.clone(), persistent=False)
        ends = torch.stack([low * factor + shift, high * factor + shift])
        scale, zero_point = activation_parameters(ends.min(), ends.max(), scheme)
        raw_scale, raw_zero_point = activation_parameters(torch.tensor(low), torch.tensor(high), scheme)
        raw_scale = raw_scale * (1 - _OFF_THE_TIES)
        if self.kind == "regrid":
            scale = raw_scale * factor.flatten()[0]
            mean_level = torch.round(-shift.flatten()[0] / factor.flatten()[0] / raw_scale).to(torch.int32)
            zero_point = raw_zero_point + mean_level
            if not self.qmin <= int(zero_point) <= self.qmax:  # a mean outside the value range: no integer stands for it
                self.kind = "affine"
                scale, zero_point = activation_parameters(ends.min(), ends.max(), scheme)
        for name, value in (("scale", scale), ("zero_point", zero_point), ("raw_scale", raw_scale), ("raw_zero_point", raw_zero_point)):
            self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The raw input to the quantized, normalised one."""
        if self.kind == "regrid":
            return fake_quantize(x, self.raw_scale, self.raw_zero_point, self.qmin, self.qmax, out_scale=self.scale, out_zero_point=self.zero_point)
        return fake_quantize(x * self.factor + self.shift, self.scale, self.zero_point, self.qmin, self.qmax)
