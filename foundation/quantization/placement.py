"""Where quantizers stand: where ONNX Runtime and OpenVINO fuse.

Quantized: the input; the output of each activation; each convolution, linear layer, addition, product, concatenation and average pooling whose single
consumer is not an activation that the runtimes merge with it (ReLU, ReLU6). What only moves values passes them through and shares their scale.
The logits stay float. Where the target merges a layer with the addition behind it (`sums = "in-layer"`, TensorRT), the layer's result goes into the sum
in float and the shortcut alone is quantized.
"""

import operator
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from kdpipe.foundation.normalize import Normalize
from kdpipe.foundation.quantization.fake_quant import InputQuantizer
from kdpipe.foundation.quantization.layers import LAYERS, FrozenLayer, LiveLayer
from kdpipe.foundation.quantization.tracing import Boundary, module_of, shapes_only


class Kind(Enum):
    """What an operation is to quantization."""

    INPUT = auto()
    LAYER = auto()  # convolution, linear
    ARITHMETIC = auto()  # its result has a range of its own: add, mul, concat, average
    MERGED = auto()  # an activation that becomes part of the operation before it
    ACTIVATION = auto()
    MOVING = auto()  # values unchanged, some left out or elsewhere
    OTHER = auto()


_MERGED_MODULES = (nn.ReLU, nn.ReLU6)
_MERGED = {F.relu, F.relu_, F.relu6, torch.relu, torch.relu_, "relu", "relu_"}
_ACTIVATION_MODULES = (
    *(nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Hardtanh),
    *(nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Softmax),
)
_ACTIVATIONS = {
    *(F.leaky_relu, F.prelu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus, F.hardtanh, F.hardswish, F.hardsigmoid, F.softmax),
    *(torch.sigmoid, torch.tanh, F.sigmoid, F.tanh, torch.softmax, torch.clamp, "sigmoid", "tanh", "softmax", "clamp", "sigmoid_", "tanh_"),
}
ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_BINARY = {
    *ADDITIONS,
    operator.sub,
    operator.isub,
    torch.sub,
    operator.mul,
    operator.imul,
    torch.mul,
    "sub",
    "mul",
    "mul_",
}
_JOINING = {torch.cat, torch.concat}
_AVERAGING_MODULES = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
_AVERAGING = {F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, torch.mean, "mean"}
_MOVING_MODULES = (
    *(
        nn.MaxPool1d,
        nn.MaxPool2d,
        nn.AdaptiveMaxPool2d,
        nn.Flatten,
        nn.Unflatten,
        nn.Identity,
        nn.Dropout,
        nn.Dropout2d,
        nn.ChannelShuffle,
        nn.PixelShuffle,
        nn.ZeroPad2d,
        Boundary,
    ),
)
_MOVING = {
    *(F.max_pool1d, F.max_pool2d, F.adaptive_max_pool2d, F.dropout, F.dropout2d, F.pixel_shuffle, F.channel_shuffle),
    *(torch.flatten, torch.reshape, torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze),
    *("flatten", "view", "reshape", "transpose", "permute", "squeeze", "unsqueeze", "contiguous"),
    operator.getitem,
}


def kind_of(node: fx.Node, root: nn.Module) -> Kind:
    """What `node`, of the graph of `root`, is to quantization."""
    if node.op == "placeholder":
        return Kind.INPUT
    module = module_of(node, root)
    if module is not None:
        return _kind_of_module(module)
    if node.op not in {"call_function", "call_method"}:
        return Kind.OTHER
    target: Callable[..., Any] | str = node.target
    if target in _BINARY:
        # x + 1 or x + parameter: not an operation between two quantized tensors
        return Kind.ARITHMETIC if len([argument for argument in node.args if isinstance(argument, fx.Node) and argument.op != "get_attr"]) == 2 else Kind.OTHER
    families = ((_MERGED, Kind.MERGED), (_ACTIVATIONS, Kind.ACTIVATION), (_JOINING, Kind.ARITHMETIC), (_AVERAGING, Kind.ARITHMETIC), (_MOVING, Kind.MOVING))
    return next((kind for family, kind in families if target in family), Kind.OTHER)


def _kind_of_module(module: nn.Module) -> Kind:
    if isinstance(module, Normalize | InputQuantizer):
        return Kind.INPUT
    if isinstance(module, (*LAYERS, LiveLayer, FrozenLayer)):
        return Kind.LAYER
    families = ((_MERGED_MODULES, Kind.MERGED), (_ACTIVATION_MODULES, Kind.ACTIVATION), (_AVERAGING_MODULES, Kind.ARITHMETIC), (_MOVING_MODULES, Kind.MOVING))
    return next((kind for family, kind in families if isinstance(module, family)), Kind.OTHER)


def places(graph: fx.Graph, root: nn.Module, *, sums_in_layers: bool = False) -> list[fx.Node]:
    """The nodes whose outputs are to be quantized, in graph order; `graph` has its BatchNorms merged already.

    `sums_in_layers`: a layer whose result only goes into an addition keeps it in float, of two such layers the first operand.
    """
    kinds = {node: kind_of(node, root) for node in graph.nodes}
    chosen = {node for node in graph.nodes if _has_own_grid(node, kinds, root) and not _is_logits(node, kinds, root)}
    if sums_in_layers:
        chosen -= _taken_into_sums(graph, kinds, root)
    for node in graph.nodes:
        # every layer computes on integers: what reaches it from an operation that we do not know is quantized as well
        if kinds[node] is Kind.LAYER and (source := _source(node.args[0], kinds)) is not None and source not in chosen:
            chosen.add(source)
    return [node for node in graph.nodes if node in chosen]


def source_of_scale(node: fx.Node, graph: fx.Graph, root: nn.Module) -> fx.Node | None:
    """The node whose scale the values of `node` have: itself, or what it passes through."""
    return _source(node, {each: kind_of(each, root) for each in graph.nodes})


def _has_own_grid(node: fx.Node, kinds: dict[fx.Node, Kind], root: nn.Module) -> bool:
    kind = kinds[node]
    if kind is Kind.INPUT:
        return not any(kinds[user] is Kind.INPUT for user in node.users)  # the normalisation stands for the raw input
    if kind in {Kind.LAYER, Kind.ARITHMETIC}:
        users = users_of(node, root)
        return not (len(users) == 1 and kinds[users[0]] is Kind.MERGED)
    return kind in {Kind.MERGED, Kind.ACTIVATION}


def _taken_into_sums(graph: fx.Graph, kinds: dict[fx.Node, Kind], root: nn.Module) -> set[fx.Node]:
    found = set()
    for node in graph.nodes:
        if kinds[node] is not Kind.ARITHMETIC or node.target not in ADDITIONS:
            continue
        operands = [_within(argument, root) for argument in node.args if isinstance(argument, fx.Node)]
        layers = [operand for operand in operands if kinds[operand] is Kind.LAYER and users_of(operand, root) == [node]]
        found |= set(layers[:1])
    return found


def _within(node: fx.Node, root: nn.Module) -> fx.Node:
    """What gives the value, seen through the ends of containers."""
    while isinstance(module_of(node, root), Boundary | nn.Identity):
        node = node.all_input_nodes[0]
    return node


def _is_logits(node: fx.Node, kinds: dict[fx.Node, Kind], root: nn.Module) -> bool:
    """Whether nothing but the network's output, reached without another quantizable operation, takes this value."""
    ends = {Kind.MOVING, Kind.OTHER, Kind.ACTIVATION, Kind.MERGED}
    return all(user.op == "output" or (kinds[user] in ends and _is_logits(user, kinds, root)) for user in users_of(node, root))


def users_of(node: fx.Node, root: nn.Module) -> list[fx.Node]:
    """Who takes the values of `node`, seen through the ends of containers."""
    found: list[fx.Node] = []
    for user in node.users:
        if isinstance(module_of(user, root), Boundary | nn.Identity):
            found += users_of(user, root)
        elif not shapes_only(user):
            found.append(user)
    return found


def _source(node: Any, kinds: dict[fx.Node, Kind]) -> fx.Node | None:
    while isinstance(node, fx.Node) and kinds[node] is Kind.MOVING and node.args:
        node = node.args[0]
    return node if isinstance(node, fx.Node) else None
