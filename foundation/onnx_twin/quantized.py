"""ONNX's quantized operators with straight-through gradients: what makes a differentiable twin of an int8 file.

Integers are float32 tensors with integer values: they carry gradients. Rounding and saturation are QuantizeLinear's; backward, the gradient passes
where the integer lies in its range and is zero where it was clipped, as in kdpipe's own twins (`foundation/quantization/fake_quant.py`).
Source of the estimator: Bengio et al. 2013 (arXiv:1308.3432).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from kdpipe.foundation.onnx_twin.operators import Attributes, Operator, Value, conv

_RANGES = {torch.uint8: (0, 255), torch.int8: (-128, 127), torch.int32: (-(2**31), 2**31 - 1)}


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
        q = torch.div(x, scale).round_().add_(zero_point)
        ctx.save_for_backward((q >= low).logical_and_(q <= high), scale)
        return q.clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        inside, scale = ctx.saved_tensors
        return gradient * inside / scale, None, None, None, None


def quantize(x: Tensor, scale: Tensor, zero_point: Value, axis: int = 1) -> Tensor:
    """The integers of `x` as float32: saturate(round_half_even(x / scale) + zero_point); uint8 where no zero point says otherwise."""
    kind = torch.uint8 if zero_point is None else zero_point.dtype
    offset = torch.zeros(()) if zero_point is None else _along(zero_point.float(), x, axis)
    result: Tensor = _Quantize.apply(x, _along(scale, x, axis), offset, *_RANGES[kind])  # type: ignore[no-untyped-call]
    return result


def dequantize(q: Tensor, scale: Tensor, zero_point: Value = None, axis: int = 1) -> Tensor:
    """(q - zero_point) * scale, float32."""
    offset = torch.zeros(()) if zero_point is None else _along(zero_point.float(), q, axis)
    return (q.float() - offset) * _along(scale, q, axis)


def _quantize_linear(attributes: Attributes, x: Tensor, scale: Tensor, zero_point: Value = None) -> Tensor:
    return quantize(x, scale, zero_point, attributes.get("axis", 1))


def _dequantize_linear(attributes: Attributes, q: Tensor, scale: Tensor, zero_point: Value = None) -> Tensor:
    return dequantize(q, scale, zero_point, attributes.get("axis", 1))


def _qlinear_conv(
    attributes: Attributes, x: Tensor, xs: Tensor, xz: Tensor, w: Tensor, ws: Tensor, wz: Tensor, ys: Tensor, yz: Tensor, bias: Value = None
) -> Tensor:
    real = conv(attributes, dequantize(x, xs, xz), dequantize(w, ws, wz, axis=0), None if bias is None else bias.float() * xs * ws)
    return quantize(real, ys, yz)


def _qlinear_matmul(attributes: Attributes, a: Tensor, as_: Tensor, az: Tensor, b: Tensor, bs: Tensor, bz: Tensor, ys: Tensor, yz: Tensor) -> Tensor:
    return quantize(dequantize(a, as_, az) @ dequantize(b, bs, bz, axis=-1), ys, yz)


def _qgemm(
    attributes: Attributes,
    a: Tensor,
    as_: Tensor,
    az: Tensor,
    b: Tensor,
    bs: Tensor,
    bz: Tensor,
    c: Value = None,
    ys: Value = None,
    yz: Value = None,
) -> Tensor:
    transposed = attributes.get("transB", 0)
    weight = dequantize(b, bs, bz, axis=0 if transposed else 1)
    real = attributes.get("alpha", 1.0) * (dequantize(a.T if attributes.get("transA", 0) else a, as_, az) @ (weight.T if transposed else weight))
    real = real if c is None else real + c.float() * as_ * bs
    return real if ys is None else quantize(real, ys, yz)


def _of_two(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def operator(attributes: Attributes, a: Tensor, as_: Tensor, az: Value, b: Tensor, bs: Tensor, bz: Value, ys: Tensor, yz: Value = None) -> Tensor:
        return quantize(function(dequantize(a, as_, az), dequantize(b, bs, bz)), ys, yz)

    return operator


def _qlinear_average(attributes: Attributes, x: Tensor, xs: Tensor, xz: Value, ys: Tensor, yz: Value = None) -> Tensor:
    if attributes.get("channels_last", 0):
        raise NotImplementedError("QLinearGlobalAveragePool with channels last")
    return quantize(dequantize(x, xs, xz).mean(dim=list(range(2, x.dim())), keepdim=True), ys, yz)


def _conv_integer(attributes: Attributes, x: Tensor, w: Tensor, xz: Value = None, wz: Value = None) -> Tensor:
    one = torch.ones(())
    return conv(attributes, dequantize(x, one, xz), dequantize(w, one, wz, axis=0))


def _matmul_integer(attributes: Attributes, a: Tensor, b: Tensor, az: Value = None, bz: Value = None) -> Tensor:
    one = torch.ones(())
    return dequantize(a, one, az, axis=-2) @ dequantize(b, one, bz, axis=-1)


QUANTIZED: Mapping[str, Operator] = {
    "ConvInteger": _conv_integer,
    "DequantizeLinear": _dequantize_linear,
    "MatMulInteger": _matmul_integer,
    "QGemm": _qgemm,
    "QLinearAdd": _of_two(torch.add),
    "QLinearConv": _qlinear_conv,
    "QLinearGlobalAveragePool": _qlinear_average,
    "QLinearMatMul": _qlinear_matmul,
    "QLinearMul": _of_two(torch.mul),
    "QuantizeLinear": _quantize_linear,
}


def _along(value: Tensor, like: Tensor, axis: int) -> Tensor:
    """One value for all, or one for each place along `axis` of `like`, shaped to broadcast."""
    if value.numel() == 1:
        return value.reshape(())
    if value.dim() > 1:
        raise NotImplementedError("quantization by blocks")
    shape = [1] * like.dim()
    shape[axis % like.dim()] = -1
    return value.reshape(shape)
