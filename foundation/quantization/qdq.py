"""A frozen twin as a module that torch.onnx exports to QuantizeLinear and DequantizeLinear, integer weights included.

ONNX operators without a torch counterpart are written with `torch.onnx.ops.symbolic`; the module can be exported, not run.
"""

import copy

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from kdpipe.foundation.quantization.fake_quant import ActivationQuantizer, InputQuantizer, activation_range, quantize
from kdpipe.foundation.quantization.layers import FrozenLayer, apply_layer
from kdpipe.foundation.quantization.scheme import Scheme

_ONE_PIXEL = (1, (1,), (1, 1), [1, 1])


def exportable(twin: nn.Module) -> nn.Module:
    """A copy of the frozen `twin` for `torch.onnx.export`: same inputs, outputs and module names."""
    result = copy.deepcopy(twin)
    assert isinstance(result, fx.GraphModule)
    _name_global_averages_(result)
    for name, module in list(result.named_modules()):
        if isinstance(module, ActivationQuantizer):
            result.set_submodule(name, _QuantizeDequantize(module.scheme, module.scale, module.zero_point, module.scale, module.zero_point))
        elif isinstance(module, InputQuantizer):
            result.set_submodule(name, _QuantizedInput(module))
        elif isinstance(module, FrozenLayer):
            result.set_submodule(name, _IntegerLayer(module))
    result.recompile()
    return result.eval()


class _QuantizeDequantize(nn.Module):
    """QuantizeLinear with one scale and zero point, DequantizeLinear with another (or the same)."""

    scale: Tensor
    zero_point: Tensor
    out_scale: Tensor
    out_zero_point: Tensor

    def __init__(self, scheme: Scheme, scale: Tensor, zero_point: Tensor, out_scale: Tensor, out_zero_point: Tensor) -> None:
        super().__init__()
        self.dtype = torch.int8 if scheme.activation_signed else torch.uint8
        self.narrow = scheme.activation_bits < 8
        self.same = out_scale is scale
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point.to(self.dtype))
        if not self.same:
            self.register_buffer("out_scale", out_scale)
            self.register_buffer("out_zero_point", out_zero_point.to(self.dtype))
        if self.narrow:  # QuantizeLinear saturates at 8 bits: narrower types are clipped before it
            qmin, qmax = activation_range(scheme)
            self.low = float((qmin - zero_point) * scale)
            self.high = float((qmax - zero_point) * scale)

    def forward(self, x: Tensor) -> Tensor:
        """`x` through both operators."""
        if self.narrow:
            x = x.clamp(self.low, self.high)
        q = torch.onnx.ops.symbolic("QuantizeLinear", (x, self.scale, self.zero_point), dtype=self.dtype, shape=x.shape)
        scale, zero_point = (self.scale, self.zero_point) if self.same else (self.out_scale, self.out_zero_point)
        return torch.onnx.ops.symbolic("DequantizeLinear", (q, scale, zero_point), dtype=torch.float32, shape=x.shape)


class _QuantizedInput(nn.Module):
    factor: Tensor
    shift: Tensor

    def __init__(self, quantizer: InputQuantizer) -> None:
        super().__init__()
        self.affine = quantizer.kind == "affine"
        raw = (quantizer.scale, quantizer.zero_point) if self.affine else (quantizer.raw_scale, quantizer.raw_zero_point)
        self.register_buffer("factor", quantizer.factor)
        self.register_buffer("shift", quantizer.shift)
        self.quantizer = _QuantizeDequantize(quantizer.scheme, *raw, quantizer.scale, quantizer.zero_point)

    def forward(self, x: Tensor) -> Tensor:
        """The raw input as the normalised input."""
        result: Tensor = self.quantizer(x * self.factor + self.shift if self.affine else x)
        return result


class _IntegerLayer(nn.Module):
    """A convolution or linear layer whose int8 weight and int32 bias are initializers before DequantizeLinear."""

    weight: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor
    bias_scale: Tensor

    def __init__(self, frozen: FrozenLayer) -> None:
        super().__init__()
        self.layer = frozen.layer
        scale = frozen.weight_scale.flatten()
        if frozen.scheme.weight_granularity == "per-tensor":
            scale = scale[0]
        self.register_buffer("weight", quantize(frozen.weight, frozen.weight_scale, 0, -frozen.limit, frozen.limit).to(torch.int8))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero_point", torch.zeros_like(scale, dtype=torch.int8))
        self.integer_bias = frozen.bias is not None and bool((frozen.bias_scale > 0).all())
        self.bias: Tensor | None
        if frozen.bias is None:
            self.bias = None
        elif self.integer_bias:
            self.register_buffer("bias", torch.round(frozen.bias.double() / frozen.bias_scale.double()).to(torch.int32))
            self.register_buffer("bias_scale", frozen.bias_scale)
        else:
            self.register_buffer("bias", frozen.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """What the frozen layer computes."""
        weight = _dequantized(self.weight, self.weight_scale, self.weight_zero_point)
        bias = self.bias if self.bias is None or not self.integer_bias else _dequantized(self.bias, self.bias_scale)
        return apply_layer(self.layer, x, weight, bias)


def _dequantized(q: Tensor, scale: Tensor, *zero_point: Tensor) -> Tensor:
    # int32 needs no zero point; an int8 weight without one keeps ONNX Runtime 1.32 from fusing Gemm
    return torch.onnx.ops.symbolic("DequantizeLinear", (q, scale, *zero_point), {"axis": 0}, dtype=torch.float32, shape=q.shape)


class _GlobalAverage(nn.Module):
    """torch.onnx writes the average over all pixels as ReduceMean, which ONNX Runtime computes in float."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, …) to (batch, channels, 1, …)."""
        return torch.onnx.ops.symbolic("GlobalAveragePool", (x,), dtype=torch.float32, shape=(*x.shape[:2], *(1,) * (x.dim() - 2)))


def _name_global_averages_(result: fx.GraphModule) -> None:
    for node in result.graph.nodes:
        module = result.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d) and module.output_size in _ONE_PIXEL:
            result.set_submodule(node.target, _GlobalAverage())
        elif node.op == "call_function" and node.target in {F.adaptive_avg_pool1d, F.adaptive_avg_pool2d} and node.args[1:] in [(size,) for size in _ONE_PIXEL]:
            name = f"{node.name}_global"
            result.add_module(name, _GlobalAverage())
            node.op, node.target, node.args, node.kwargs = "call_module", name, node.args[:1], {}
