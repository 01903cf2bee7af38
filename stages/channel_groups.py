"""Which channels of a network can only go together, and how much each of them matters.

torch-pruning (Fang et al. 2023, arXiv:2301.12900) finds the dependencies and scores the groups; the cutting is ours
(`foundation/pruning.py`). Each group is tried before it is believed: with half of its channels cut, the network must give what
it gives with the same channels zeroed. So the logits, zero-padded shortcuts and whatever a user's layer does stay whole.
"""

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch_pruning as tp
from torch import Tensor, nn

from kdpipe.foundation.pruning import CHANNELWISE, CUTTABLE, Convolution, KeptChannels, PruningPlan, is_depthwise, replay_, widths

_TOLERANCE = 1e-4  # of the largest logit: the same sums in another order, in float32


@dataclass(frozen=True)
class Member:
    """One side of one layer in a group: `channels[k]` are the layer's channels that go with the group's channel k."""

    layer: str
    side: Literal["inputs", "outputs"]
    channels: tuple[tuple[int, ...], ...]

    def of(self, chosen: Iterable[int]) -> list[int]:
        """The layer's channels that go with the group's channels `chosen`."""
        return [channel for index in chosen for channel in self.channels[index]]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only go together, named after a layer that makes them. `scores`: (width,), higher matters more, mean 1.

    `mean_score`: what they were divided by; times it the Taylor scores are parts of the loss, comparable between groups.
    """

    name: str
    members: tuple[Member, ...]
    scores: Tensor
    mean_score: float = 1.0

    @property
    def width(self) -> int:
        """How many channels the group has."""
        return len(self.scores)


def find_groups(
    module: nn.Module, example: Tensor, gradients: Mapping[str, Tensor] | None = None, ignored: frozenset[str] = frozenset()
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """The groups of `module` that can be cut, and for those that cannot the reason by name.

    `example`: (n, *shape), a few real samples. Scores: with `gradients` (by parameter name) the first-order Taylor estimate
    |weight · gradient|, without them the squared magnitude; both over the whole group, divided by its mean. `ignored`: layers whose
    outputs stay whole. The module is not changed.
    """
    twin = copy.deepcopy(module).eval().requires_grad_(True)  # torch-pruning follows the autograd graph
    for name, parameter in twin.named_parameters():
        parameter.grad = None if gradients is None else gradients[name]
    names = {layer: name for name, layer in twin.named_modules()}
    scorer = tp.importance.GroupMagnitudeImportance(p=2) if gradients is None else tp.importance.GroupTaylorImportance()
    undivided = tp.importance.GroupMagnitudeImportance(p=2, normalizer=None) if gradients is None else tp.importance.GroupTaylorImportance(normalizer=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of parameters outside layers; groups with them are refused below
        graph = tp.DependencyGraph().build_dependency(twin, example_inputs=example[:1], verbose=False)
        groups = list(graph.get_all_groups(root_module_types=[*Convolution, nn.Linear]))
    found: list[ChannelGroup] = []
    refused: dict[str, str] = {}
    for group in groups:
        name = names[group[0].dep.target.module]
        reason = _unfit(group, graph, names, ignored)
        if reason is None:
            members = _members(group, graph, names)  # first: scoring sorts the group's indices in place
            candidate = ChannelGroup(name, members, scorer(group).detach().float(), float(undivided(group).detach().mean()))
            reason = _tried(module, candidate, example)
        if reason is None:
            found.append(candidate)
        else:
            refused[name] = reason
    return found, refused


def plan_without(removed: Iterable[tuple[ChannelGroup, Sequence[int]]], module: nn.Module) -> PruningPlan:
    """The plan that takes the given channels of each group out of all its layers; `module` tells the layers' widths."""
    gone: dict[tuple[str, str], set[int]] = {}
    for group, channels in removed:
        for member in group.members:
            gone.setdefault((member.layer, member.side), set()).update(member.of(channels))
    layers: dict[str, KeptChannels] = {}
    for name in dict.fromkeys(layer for (layer, _), channels in gone.items() if channels):
        layer_widths = zip(("inputs", "outputs"), widths(module.get_submodule(name)), strict=True)
        sides = {side: tuple(i for i in range(width) if i not in gone[name, side]) for side, width in layer_widths if gone.get((name, side))}
        layers[name] = KeptChannels(inputs=sides.get("inputs"), outputs=sides.get("outputs"))
    return PruningPlan(layers=layers)


def _unfit(group: Any, graph: Any, names: Mapping[nn.Module, str], ignored: frozenset[str]) -> str | None:
    """Why the group cannot be cut, as far as its layers tell; None where nothing speaks against it."""
    for item in group:
        target = item.dep.target.module
        if isinstance(target, nn.Parameter):
            return "a parameter outside any layer depends on it"
        if target not in names:
            continue  # an operation of torch-pruning's own graph: addition, flattening, …
        if not isinstance(target, CUTTABLE):
            if any(True for _ in target.parameters()):
                return f"a {type(target).__name__} depends on it"
            continue
        if isinstance(target, Convolution) and target.groups > 1 and not is_depthwise(target):
            return "a grouped convolution depends on it"
        if names[target] in ignored and graph.is_out_channel_pruning_fn(item.dep.handler):
            return "ignored by configuration"
        if any(root is None for root in item.root_idxs):
            return "its channels are mixed"
    return "it has a single channel" if len(group[0].idxs) < 2 else None


def _members(group: Any, graph: Any, names: Mapping[nn.Module, str]) -> tuple[Member, ...]:
    width = len(group[0].idxs)
    channels: dict[tuple[str, Literal["inputs", "outputs"]], list[list[int]]] = {}
    for item in group:
        target = item.dep.target.module
        if target not in names or not isinstance(target, CUTTABLE):
            continue
        made_here = graph.is_out_channel_pruning_fn(item.dep.handler) or is_depthwise(target) or isinstance(target, CHANNELWISE)
        side: Literal["inputs", "outputs"] = "outputs" if made_here else "inputs"
        rows = channels.setdefault((names[target], side), [[] for _ in range(width)])
        for root, index in zip(item.root_idxs, item.idxs, strict=True):
            if index not in rows[root]:
                rows[root].append(index)
    return tuple(Member(layer, side, tuple(tuple(row) for row in rows)) for (layer, side), rows in channels.items())


def _tried(module: nn.Module, group: ChannelGroup, example: Tensor) -> str | None:
    """Cut every other channel and compare with the same channels zeroed; the reason why the group must stay whole, or None."""
    removed = range(0, group.width, 2)
    cut, zeroed = copy.deepcopy(module).eval(), copy.deepcopy(module).eval()
    _zero_(zeroed, group, removed)
    with torch.no_grad():
        expected = zeroed(example)
        try:
            replay_(cut, plan_without([(group, removed)], module))
            got = cut(example)
        except Exception as error:  # a network that cannot do without these channels may raise anything
            return f"the network does not run without its channels ({type(error).__name__})"
    if got.shape != expected.shape:
        return "its channels are the network's outputs"
    if (got - expected).abs().max() > _TOLERANCE * expected.abs().max():
        return "the network without its channels does not give what it gives with them zeroed"
    return None


@torch.no_grad()
def _zero_(module: nn.Module, group: ChannelGroup, removed: Iterable[int]) -> None:
    for member in group.members:
        layer, channels = module.get_submodule(member.layer), member.of(removed)
        weight = layer.weight
        if weight is None or isinstance(layer, nn.PReLU):
            continue
        assert isinstance(weight, Tensor)
        if member.side == "inputs":
            weight[:, channels] = 0
            continue
        weight[channels] = 0
        if isinstance(layer.bias, Tensor):
            layer.bias[channels] = 0
