"""A frozen twin as a module that torch.onnx exports to QuantizeLinear and DequantizeLinear, integer weights included.

ONNX operators without a torch counterpart are written with `torch.onnx.ops.symbolic`; the module can be exported, not run.

OpenVINO's CPU plug-in merges a layer, the quantizer behind it, the addition of a shortcut and the quantizer behind that into one kernel, and
leaves the first rounding out ("drop rounding one special residual pattern", intel_cpu/src/dnnl_postops_composer.cpp): the sum is not the twin's.
It does so for the first operation behind the layer only: of a quantizer written twice, the second one rounds (docs/decisions/rounding-before-additions.md).
"""

import copy

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from kdpipe.foundation.quantization.fake_quant import ActivationQuantizer, InputQuantizer, activation_range, quantize
from kdpipe.foundation.quantization.layers import FrozenLayer, apply_layer
from kdpipe.foundation.quantization.placement import ADDITIONS, Kind, kind_of, users_of
from kdpipe.foundation.quantization.scheme import Scheme
from kdpipe.foundation.quantization.tracing import module_of

_ONE_PIXEL = (1, (1,), (1, 1), [1, 1])


def exportable(twin: nn.Module, *, keep_rounding: bool = False, float_bias: bool = False) -> nn.Module:
    """A copy of the frozen `twin` for `torch.onnx.export`: same inputs, outputs and module names.

    `keep_rounding`: the quantizers of `before_additions` are written twice, so that OpenVINO rounds there as the twin does. The file's values are
    the same with and without; ONNX Runtime takes the second pair out again.
    `float_bias`: biases are float32 with the same values, for TensorRT, which dequantizes no int32.
    """
    result = copy.deepcopy(twin)
    assert isinstance(result, fx.GraphModule)
    twice = before_additions(result) if keep_rounding else ()
    _name_global_averages_(result)
    for name, module in list(result.named_modules()):
        if isinstance(module, ActivationQuantizer):
            grid = (module.scale, module.zero_point)
            result.set_submodule(name, _QuantizeDequantize(module.scheme, *grid, *grid, times=2 if name in twice else 1))
        elif isinstance(module, InputQuantizer):
            result.set_submodule(name, _QuantizedInput(module))
        elif isinstance(module, FrozenLayer):
            result.set_submodule(name, _IntegerLayer(module, float_bias=float_bias))
    result.recompile()
    return result.eval()


def before_additions(twin: nn.Module) -> tuple[str, ...]:
    """The quantizers of `twin` that stand between a layer, or an activation merged with it, and one addition of two tensors that alone takes the value."""
    assert isinstance(twin, fx.GraphModule)
    return tuple(str(node.target) for node in twin.graph.nodes if isinstance(module_of(node, twin), ActivationQuantizer) and _is_summand(node, twin))


def _is_summand(node: fx.Node, twin: fx.GraphModule) -> bool:
    users = users_of(node, twin)
    return len(users) == 1 and users[0].target in ADDITIONS and kind_of(users[0], twin) is Kind.ARITHMETIC and _layer_behind(node.all_input_nodes[0], twin)


def _layer_behind(node: fx.Node, twin: fx.GraphModule) -> bool:
    while kind_of(node, twin) in {Kind.MERGED, Kind.MOVING}:
        node = node.all_input_nodes[0]
    return kind_of(node, twin) is Kind.LAYER


class _QuantizeDequantize(nn.Module):
    """QuantizeLinear with one scale and zero point, DequantizeLinear with another or the same; `times` in a row: a value on the grid stays where it is."""

    scale: Tensor
    zero_point: Tensor
    out_scale: Tensor
    out_zero_point: Tensor

    def __init__(self, scheme: Scheme, scale: Tensor, zero_point: Tensor, out_scale: Tensor, out_zero_point: Tensor, *, times: int = 1) -> None:
        super().__init__()
        self.times = times
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
        scale, zero_point = (self.scale, self.zero_point) if self.same else (self.out_scale, self.out_zero_point)
        for _ in range(self.times):
            q = torch.onnx.ops.symbolic("QuantizeLinear", (x, self.scale, self.zero_point), dtype=self.dtype, shape=x.shape)
            x = torch.onnx.ops.symbolic("DequantizeLinear", (q, scale, zero_point), dtype=torch.float32, shape=x.shape)
        return x


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
    """A convolution or linear layer whose int8 weight and int32 bias (or float32 bias) are initializers, integers before DequantizeLinear."""

    weight: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor
    bias_scale: Tensor

    def __init__(self, frozen: FrozenLayer, *, float_bias: bool) -> None:
        super().__init__()
        self.layer = frozen.layer
        scale = frozen.weight_scale.flatten()
        if frozen.scheme.weight_granularity == "per-tensor":
            scale = scale[0]
        self.register_buffer("weight", quantize(frozen.weight, frozen.weight_scale, 0, -frozen.limit, frozen.limit).to(torch.int8))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero_point", torch.zeros_like(scale, dtype=torch.int8))
        self.integer_bias = not float_bias and frozen.bias is not None and bool((frozen.bias_scale > 0).all())
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
