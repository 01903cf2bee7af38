"""ONNX operators as differentiable torch functions: what small classifiers are made of.

An operator is a function of its node's attributes and its inputs (None where an optional one is left out) that returns its first output. Shapes and
indices are int64 tensors like any other value. Semantics: the ONNX operator specification, inference mode.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Attributes = Mapping[str, Any]
Value = Tensor | None
Operator = Callable[..., Tensor]
"""(attributes, *inputs) to the output."""

_DTYPES = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64}
"""onnx.TensorProto's numbers"""


def conv(attributes: Attributes, x: Tensor, weight: Tensor, bias: Value = None) -> Tensor:
    """Conv of one to three dimensions, any padding."""
    rank = weight.dim() - 2
    stride, dilation = _sides(attributes, "strides", rank), _sides(attributes, "dilations", rank)
    x = _padded(x, attributes, weight.shape[2:], stride, dilation, 0.0)
    convolve: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return convolve(x, weight, bias, stride=stride, dilation=dilation, groups=attributes.get("group", 1))


def gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Value = None) -> Tensor:
    """alpha * A' B' + beta * C."""
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    product: Tensor = attributes.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + attributes.get("beta", 1.0) * c


def batch_normalization(attributes: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """With its running statistics."""
    return F.batch_norm(x, mean, variance, scale, bias, training=False, eps=attributes.get("epsilon", 1e-5))


def max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    """MaxPool; its indices are not given."""
    rank = x.dim() - 2
    kernel, stride, dilation = attributes["kernel_shape"], _sides(attributes, "strides", rank), _sides(attributes, "dilations", rank)
    x = _padded(x, attributes, kernel, stride, dilation, -math.inf)
    pool: Callable[..., Tensor] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    return pool(x, kernel, stride=stride, dilation=dilation, ceil_mode=bool(attributes.get("ceil_mode", 0)))


def average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    """AveragePool; padded values count only with `count_include_pad`."""
    rank = x.dim() - 2
    kernel, stride = attributes["kernel_shape"], _sides(attributes, "strides", rank)
    ones = [1] * rank
    pool: Callable[..., Tensor] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    summed = pool(_padded(x, attributes, kernel, stride, ones, 0.0), kernel, stride=stride, ceil_mode=bool(attributes.get("ceil_mode", 0)))
    if attributes.get("count_include_pad", 0):
        return summed
    counted = _padded(torch.ones_like(x[:1, :1]), attributes, kernel, stride, ones, 0.0)
    return summed / pool(counted, kernel, stride=stride, ceil_mode=bool(attributes.get("ceil_mode", 0)))


def reshape(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    """0 keeps a side unless `allowzero`."""
    sides = shape.tolist()
    if not attributes.get("allowzero", 0):
        sides = [x.shape[place] if side == 0 else side for place, side in enumerate(sides)]
    return x.reshape(sides)


def flatten(attributes: Attributes, x: Tensor) -> Tensor:
    """To two dimensions, cut at `axis`."""
    axis = attributes.get("axis", 1) % (x.dim() + 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def squeeze(attributes: Attributes, x: Tensor, axes: Value = None) -> Tensor:
    """Without the sides of length 1 at `axes`, or all of them."""
    places = _axes(attributes, axes)
    return x.squeeze() if places is None else x.squeeze([place % x.dim() for place in places])


def unsqueeze(attributes: Attributes, x: Tensor, axes: Value = None) -> Tensor:
    """With sides of length 1 at `axes` of the result."""
    places = _axes(attributes, axes) or []
    for place in sorted(place % (x.dim() + len(places)) for place in places):
        x = x.unsqueeze(place)
    return x


def slice_(attributes: Attributes, x: Tensor, starts: Value = None, ends: Value = None, axes: Value = None, steps: Value = None) -> Tensor:
    """Slice with steps > 0."""
    begin, end = (value.tolist() if value is not None else attributes[name] for name, value in (("starts", starts), ("ends", ends)))
    places = axes.tolist() if axes is not None else attributes.get("axes", range(len(begin)))
    strides = steps.tolist() if steps is not None else [1] * len(begin)
    for place, low, high, step in zip(places, begin, end, strides, strict=True):
        if step < 1:
            raise NotImplementedError("Slice with a negative step")
        sides: list[slice] = [slice(None)] * x.dim()
        sides[place] = slice(low, high, step)
        x = x[tuple(sides)]
    return x


def gather(attributes: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    """The entries of `x` along one axis."""
    axis = attributes.get("axis", 0) % x.dim()
    chosen = torch.where(indices < 0, indices + x.shape[axis], indices).long()
    return x.index_select(axis, chosen.reshape(-1)).reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def clip(attributes: Attributes, x: Tensor, low: Value = None, high: Value = None) -> Tensor:
    """Bounds as inputs (opset 11 on) or attributes."""
    low = low if low is not None else _scalar(attributes.get("min"), x)
    high = high if high is not None else _scalar(attributes.get("max"), x)
    return x if low is None and high is None else torch.clamp(x, low, high)


def pad(attributes: Attributes, x: Tensor, pads: Value = None, value: Value = None, axes: Value = None) -> Tensor:
    """Pad with a constant, by reflection or with the edge."""
    widths = pads.tolist() if pads is not None else list(attributes["pads"])
    half = len(widths) // 2
    places = axes.tolist() if axes is not None else range(half)
    both = {place % x.dim(): (widths[number], widths[number + half]) for number, place in enumerate(places)}
    last_first = [side for place in reversed(range(x.dim())) for side in both.get(place, (0, 0))]
    mode = attributes.get("mode", "constant")
    if mode == "constant":
        return F.pad(x, last_first, value=float(value) if value is not None else attributes.get("value", 0.0))
    inner = last_first[: 2 * (x.dim() - 2)]
    return F.pad(x, inner, mode={"reflect": "reflect", "edge": "replicate"}[mode])


def layer_normalization(attributes: Attributes, x: Tensor, scale: Tensor, bias: Value = None) -> Tensor:
    """Over the axes from `axis` on."""
    shape = x.shape[attributes.get("axis", -1) % x.dim() :]
    return F.layer_norm(x, shape, scale.reshape(shape), None if bias is None else bias.reshape(shape), attributes.get("epsilon", 1e-5))


def softmax(attributes: Attributes, x: Tensor) -> Tensor:
    """Along one axis; of opset 12 and before this holds for two dimensions."""
    return x.softmax(attributes.get("axis", -1))


def reduced(function: Callable[..., Tensor]) -> Operator:
    """A reduction over `axes` (an attribute, or an input from opset 13 or 18 on)."""

    def operator(attributes: Attributes, x: Tensor, axes: Value = None) -> Tensor:
        places = _axes(attributes, axes)
        if places is None and attributes.get("noop_with_empty_axes", 0):
            return x
        return function(x, dim=list(range(x.dim())) if places is None else places, keepdim=bool(attributes.get("keepdims", 1)))

    return operator


def of(function: Callable[..., Tensor]) -> Operator:
    """An operator that has no attributes: the function of its inputs."""
    return lambda attributes, *inputs: function(*inputs)


def _divided(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _concat(attributes: Attributes, *parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=attributes["axis"])


def _expand(attributes: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sides: tuple[int, ...] = torch.broadcast_shapes(x.shape, tuple(shape.tolist()))  # type: ignore[no-untyped-call]
    return x.expand(sides)


def _hard_sigmoid(attributes: Attributes, x: Tensor) -> Tensor:
    line: Tensor = attributes.get("alpha", 0.2) * x + attributes.get("beta", 0.5)
    return line.clamp(0, 1)


def _constant_of_shape(attributes: Attributes, shape: Tensor) -> Tensor:
    value: Tensor = attributes.get("value", torch.zeros(1))
    return value.expand(tuple(shape.tolist())).clone()


def _prelu(attributes: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x >= 0, x, slope * x)


def _pool_all(x: Tensor, function: Callable[..., Tensor]) -> Tensor:
    return function(x, dim=list(range(2, x.dim())), keepdim=True)


OPERATORS: Mapping[str, Operator] = {
    "Abs": of(torch.abs),
    "Add": of(torch.add),
    "And": of(torch.logical_and),
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Cast": lambda attributes, x: x.to(_DTYPES[attributes["to"]]),
    "Clip": clip,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Conv": conv,
    "Div": of(_divided),
    "Dropout": lambda attributes, x, *_: x,
    "Elu": lambda attributes, x: F.elu(x, attributes.get("alpha", 1.0)),
    "Equal": of(torch.eq),
    "Erf": of(torch.erf),
    "Exp": of(torch.exp),
    "Expand": _expand,
    "Flatten": flatten,
    "Floor": of(torch.floor),
    "Gather": gather,
    "Gelu": lambda attributes, x: F.gelu(x, approximate=attributes.get("approximate", "none")),
    "Gemm": gemm,
    "GlobalAveragePool": of(lambda x: _pool_all(x, torch.mean)),
    "GlobalMaxPool": of(lambda x: _pool_all(x, torch.amax)),
    "Greater": of(torch.gt),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": of(lambda x: x * (x / 6 + 0.5).clamp(0, 1)),
    "Identity": of(lambda x: x),
    "InstanceNormalization": lambda attributes, x, scale, bias: F.instance_norm(x, weight=scale, bias=bias, eps=attributes.get("epsilon", 1e-5)),
    "LayerNormalization": layer_normalization,
    "LeakyRelu": lambda attributes, x: F.leaky_relu(x, attributes.get("alpha", 0.01)),
    "Less": of(torch.lt),
    "Log": of(torch.log),
    "LogSoftmax": lambda attributes, x: x.log_softmax(attributes.get("axis", -1)),
    "MatMul": of(torch.matmul),
    "Max": lambda attributes, first, *others: _folded(torch.maximum, first, others),
    "MaxPool": max_pool,
    "Min": lambda attributes, first, *others: _folded(torch.minimum, first, others),
    "Mish": of(F.mish),
    "Mul": of(torch.mul),
    "Neg": of(torch.neg),
    "Not": of(torch.logical_not),
    "PRelu": _prelu,
    "Pad": pad,
    "Pow": of(torch.pow),
    "ReduceL2": reduced(lambda x, dim, keepdim: torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim)),
    "ReduceMax": reduced(torch.amax),
    "ReduceMean": reduced(torch.mean),
    "ReduceMin": reduced(torch.amin),
    "ReduceSum": reduced(torch.sum),
    "Relu": of(torch.relu),
    "Reshape": reshape,
    "Round": of(torch.round),
    "Selu": of(F.selu),
    "Shape": lambda attributes, x: torch.tensor(x.shape[attributes.get("start", 0) : attributes.get("end", None)], dtype=torch.int64),
    "Sigmoid": of(torch.sigmoid),
    "Sign": of(torch.sign),
    "Slice": slice_,
    "Softmax": softmax,
    "Softplus": of(F.softplus),
    "Sqrt": of(torch.sqrt),
    "Squeeze": squeeze,
    "Sub": of(torch.sub),
    "Sum": lambda attributes, first, *others: _folded(torch.add, first, others),
    "Tanh": of(torch.tanh),
    "Transpose": lambda attributes, x: x.permute(attributes.get("perm", tuple(range(x.dim()))[::-1])),
    "Unsqueeze": unsqueeze,
    "Where": of(torch.where),
}


def _folded(function: Callable[[Tensor, Tensor], Tensor], first: Tensor, others: Sequence[Tensor]) -> Tensor:
    for other in others:
        first = function(first, other)
    return first


def _padded(x: Tensor, attributes: Attributes, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], value: float) -> Tensor:
    """`x` with the padding of a convolution or pooling around it; the operator itself then pads no more."""
    rank = x.dim() - 2
    mode = attributes.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return x
    if mode == "NOTSET":
        pads = list(attributes.get("pads", [0] * 2 * rank))
        both = [(pads[place], pads[place + rank]) for place in range(rank)]
    else:  # SAME_UPPER, SAME_LOWER: the output has ceil(side / stride)
        both = []
        for side, length, step, spread in zip(x.shape[2:], kernel, stride, dilation, strict=True):
            total = max((-(-side // step) - 1) * step + (length - 1) * spread + 1 - side, 0)
            less, more = total // 2, total - total // 2
            both.append((less, more) if mode == "SAME_UPPER" else (more, less))
    if not any(width for pair in both for width in pair):
        return x
    return F.pad(x, [width for pair in reversed(both) for width in pair], value=value)


def _sides(attributes: Attributes, name: str, rank: int) -> list[int]:
    return list(attributes.get(name) or [1] * rank)


def _axes(attributes: Attributes, axes: Value) -> list[int] | None:
    places = axes.tolist() if axes is not None else attributes.get("axes")
    return None if places is None or len(places) == 0 else list(places)


def _scalar(value: float | None, like: Tensor) -> Value:
    return None if value is None else torch.tensor(value, dtype=like.dtype)
