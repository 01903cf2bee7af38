"""The layers of a network as they are called, with all that their run time depends on, and how their widths follow from what is pruned.

A layer that is called twice is there twice. Convolutions, linear layers and additions are followed; what else takes time on the device (pooling,
activations that no layer absorbs, the call itself) is in no table: `latency_pruning` measures the whole file and corrects for it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from kdpipe.foundation.pruning import Convolution, is_depthwise
from kdpipe.foundation.quantization.placement import Kind, kind_of
from kdpipe.foundation.quantization.tracing import module_of, traced
from kdpipe.stages.channel_groups import ChannelGroup
from kdpipe.stages.layer_files import LayerShape


@dataclass(frozen=True)
class LayerCall:
    """One call. `layer`: its name; of an addition the layer that makes its operand, None where none does. `times`: how often in this call (tokens)."""

    layer: str | None
    shape: LayerShape
    times: int = 1


@dataclass(frozen=True)
class Side:
    """The width of one side of a call: `whole` channels, less `share` for each channel that goes from the group of that number."""

    whole: int
    shares: tuple[tuple[int, int], ...]
    """pairs of group's number and share"""

    def left(self, removed: Sequence[int]) -> int:
        """The width when `removed[g]` channels of group g are gone, at least 1."""
        return max(1, self.whole - sum(share * removed[group] for group, share in self.shares))


@dataclass(frozen=True)
class PrunableCall:
    """A call with the sides that pruning changes."""

    call: LayerCall
    inputs: Side
    outputs: Side

    def shape(self, removed: Sequence[int]) -> LayerShape:
        """The layer when `removed[g]` channels of group g are gone."""
        return self.call.shape.resized(self.inputs.left(removed), self.outputs.left(removed))


def layer_calls(module: nn.Module, sample_shape: tuple[int, ...]) -> tuple[LayerCall, ...]:
    """The calls of `module` for one sample of `sample_shape`, in order. ConfigError where torch.fx cannot follow it (so neither could quantization)."""
    graph_module = traced(module.eval())
    sizes = _Sizes(graph_module)
    with torch.no_grad():
        sizes.run(torch.zeros(1, *sample_shape))
    return tuple(_calls(graph_module, sizes.shapes))


def prunable_calls(calls: Sequence[LayerCall], groups: Sequence[ChannelGroup], module: nn.Module) -> tuple[PrunableCall, ...]:
    """The calls with what each group takes from their sides; `module`: the network that both are of."""
    shares: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for number, group in enumerate(groups):
        for member in group.members:
            shares.setdefault((member.layer, member.side), []).append((number, max(len(channels) for channels in member.channels)))

    def side(call: LayerCall, side: str) -> Side:
        layer = None if call.layer is None else module.get_submodule(call.layer)
        whole = call.shape.inputs if side == "inputs" else call.shape.outputs
        if call.layer is None:
            return Side(whole, ())
        if call.shape.op == "add" or (layer is not None and is_depthwise(layer)):
            side = "outputs"
        return Side(whole, tuple(shares.get((call.layer, side), ())))

    return tuple(PrunableCall(call, side(call, "inputs"), side(call, "outputs")) for call in calls)


class _Sizes(fx.Interpreter):
    """Runs the graph and keeps the shape of every tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape)
        return result


def _calls(graph_module: fx.GraphModule, shapes: Mapping[fx.Node, tuple[int, ...]]) -> Iterator[LayerCall]:
    for node in graph_module.graph.nodes:
        layer = module_of(node, graph_module)
        if isinstance(layer, Convolution):
            yield LayerCall(str(node.target), _convolution(layer, shapes[node.all_input_nodes[0]][2:]))
        elif isinstance(layer, nn.Linear):
            times = math.prod(shapes[node][1:-1])
            yield LayerCall(str(node.target), LayerShape(op="linear", inputs=layer.in_features, outputs=layer.out_features), times)
        elif kind_of(node, graph_module) is Kind.ARITHMETIC and _adds(node, shapes):
            _, channels, *size = shapes[node]
            yield LayerCall(_maker(node, graph_module), LayerShape(op="add", inputs=channels, outputs=channels, size=tuple(size)))


def _convolution(layer: nn.Module, size: tuple[int, ...]) -> LayerShape:
    assert isinstance(layer, Convolution)
    return LayerShape(
        op="conv",
        inputs=layer.in_channels,
        outputs=layer.out_channels,
        size=size,
        kernel=tuple(layer.kernel_size),
        stride=tuple(layer.stride),
        padding=_padding(layer),
        dilation=tuple(layer.dilation),
        groups=layer.groups,
    )


def _padding(layer: nn.Module) -> tuple[int, ...]:
    """In numbers; "same" with an odd number of pixels has one more on one side, which is left out."""
    assert isinstance(layer, Convolution)
    if layer.padding == "valid":
        return (0,) * len(layer.kernel_size)
    if layer.padding == "same":
        return tuple(dilation * (kernel - 1) // 2 for kernel, dilation in zip(layer.kernel_size, layer.dilation, strict=True))
    return tuple(int(amount) for amount in layer.padding)


def _adds(node: fx.Node, shapes: Mapping[fx.Node, tuple[int, ...]]) -> bool:
    """Whether two images (or sequences) of one shape become one: an addition, or a product, which costs the same."""
    operands = [shapes.get(operand) for operand in node.all_input_nodes]
    return len(operands) == 2 and operands[0] == operands[1] == shapes.get(node) and len(shapes[node]) > 2


def _maker(node: fx.Node, graph_module: fx.GraphModule) -> str | None:
    """The layer whose outputs have the channels of `node`, followed back through what keeps them apart (norms, activations, other additions)."""
    waiting, seen = list(node.all_input_nodes), set[fx.Node]()
    while waiting:
        source = waiting.pop(0)
        if source in seen:
            continue
        seen.add(source)
        if isinstance(module_of(source, graph_module), Convolution):
            return str(source.target)
        waiting += source.all_input_nodes
    return None
