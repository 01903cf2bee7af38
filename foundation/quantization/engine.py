"""The quantization engine: a network becomes its fake-quantized twin, and the twin what the int8 file computes.

    prepare → calibrate_ → (training) → freeze → plan_of → … → twin_of

`prepare` traces the network (torch.fx), merges BatchNorms with the layer before them, gives layers quantized weights and places activation quantizers
where the runtimes fuse (`placement`), but not before layers that are kept in float (`mixed`). `freeze` leaves constants only.
`docs/quantization.md` has the picture.
"""

import copy
import logging
import operator
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from kdpipe.foundation.errors import ConfigError, VerificationError
from kdpipe.foundation.normalize import Normalize
from kdpipe.foundation.quantization.calibration import calibrate_
from kdpipe.foundation.quantization.fake_quant import ActivationQuantizer, InputQuantizer
from kdpipe.foundation.quantization.layers import LAYERS, NORMS, FrozenFloatLayer, FrozenLayer, LiveLayer, folded_layer
from kdpipe.foundation.quantization.mixed import named_layers, needed_on_integers
from kdpipe.foundation.quantization.placement import places, source_of_scale
from kdpipe.foundation.quantization.scheme import QuantizationPlan, Scheme
from kdpipe.foundation.quantization.tracing import Boundary, module_of, traced

__all__ = ["calibrate_", "float_layers_of", "freeze", "freeze_observers_", "layer_names", "plan_of", "prepare", "twin_of"]

BatchNorm = Literal["live", "folded"]

_AGAIN = "_call"

_log = logging.getLogger(__name__)
_UNQUANTIZED = {F.conv1d, F.conv2d, F.conv3d, F.linear, F.conv_transpose2d, torch.matmul, torch.bmm, operator.matmul, F.scaled_dot_product_attention}
_UNQUANTIZED_MODULES = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.MultiheadAttention, nn.Bilinear, nn.RNNBase)


def prepare(module: nn.Module, scheme: Scheme, *, batch_norm: BatchNorm, float_layers: Sequence[str] = ()) -> nn.Module:
    """The trainable twin of `module`, which is not changed: weights rounded, quantizers placed, observing, not yet calibrated.

    `batch_norm` "live": BatchNorms normalise with batch statistics in training, see `layers`; "folded": they are gone before training.
    `float_layers`: layers that stay in float32, by name or pattern (`stage1.*`). Training mode is that of `module`.
    Raises ConfigError when the network cannot be traced, or has no layer of such a name.
    """
    twin = traced(module)
    if not any(isinstance(module_of(node, twin), LAYERS) for node in twin.graph.nodes):
        raise ConfigError("the network has no convolution and no linear layer to quantize", at=type(module).__qualname__, do="build them from torch.nn modules")
    _tell_unquantized(twin)
    kept_float = frozenset(named_layers(layer_names(twin), float_layers))
    _merge_norms_(twin, scheme, batch_norm, kept_float)
    if scheme.quantizes_activations:
        _insert_quantizers_(twin, scheme, kept_float)
    twin.graph.lint()
    twin.recompile()
    twin.train(module.training)
    return twin


def freeze(twin: nn.Module) -> nn.Module:
    """A copy of `twin` as the file computes it: BatchNorms folded, weights and biases on their grids, ranges fixed; evaluation mode."""
    frozen = copy.deepcopy(twin)
    assert isinstance(frozen, fx.GraphModule)
    for module in frozen.modules():
        if isinstance(module, ActivationQuantizer):
            module.observing.fill_(False)
    for node in frozen.graph.nodes:
        live = module_of(node, frozen)
        if isinstance(live, LiveLayer):
            in_float = live.kept_float or not live.scheme.integer_weights
            frozen.set_submodule(str(node.target), FrozenFloatLayer(live) if in_float else FrozenLayer(live, _scale_before(node, frozen)))
    frozen.recompile()
    return frozen.eval().requires_grad_(False)


def freeze_observers_(twin: nn.Module) -> None:
    """From now on ranges and BatchNorm statistics stay as they are; training may go on."""
    for module in twin.modules():
        if isinstance(module, ActivationQuantizer):
            module.observing.fill_(False)
        if isinstance(module, LiveLayer):
            module.statistics_frozen.fill_(True)


def plan_of(twin: nn.Module) -> QuantizationPlan:
    """What rebuilds `twin` (with `twin_of`) but its weights and ranges."""
    quantizers = _quantizer_names(twin)
    holders = (ActivationQuantizer, InputQuantizer, LiveLayer, FrozenLayer, FrozenFloatLayer)
    schemes = {module.scheme for module in twin.modules() if isinstance(module, holders)}
    assert len(schemes) == 1, "one scheme for the whole twin"
    live = any(isinstance(module, LiveLayer) for module in twin.modules())
    return QuantizationPlan(scheme=schemes.pop(), quantizers=quantizers, batch_norm="live" if live else "folded", float_layers=float_layers_of(twin) or None)


def float_layers_of(twin: nn.Module) -> tuple[str, ...]:
    """The layers of `twin` that are kept in float32, in graph order."""
    assert isinstance(twin, fx.GraphModule)
    called = ((str(node.target), module_of(node, twin)) for node in twin.graph.nodes)
    return tuple(dict.fromkeys(_first_call(name) for name, module in called if isinstance(module, LiveLayer | FrozenFloatLayer) and module.kept_float))


def layer_names(module: nn.Module) -> tuple[str, ...]:
    """The convolutions and linear layers that can be quantized, in graph order; of a network or its twin. ConfigError when it cannot be traced."""
    graph = module if isinstance(module, fx.GraphModule) else traced(module)
    layers = (*LAYERS, LiveLayer, FrozenLayer, FrozenFloatLayer)
    return tuple(dict.fromkeys(_first_call(str(node.target)) for node in graph.graph.nodes if isinstance(module_of(node, graph), layers)))


def twin_of(module: nn.Module, plan: QuantizationPlan) -> nn.Module:
    """The twin that `plan` describes, built from the float network; its weights and ranges are to be loaded.

    Raises VerificationError when quantizers stand elsewhere than the plan says: the network is another, or was traced by another version.
    """
    twin = prepare(module, plan.scheme, batch_norm="live", float_layers=plan.float_layers or ())
    if plan.batch_norm == "folded":
        twin = freeze(twin)
    if (found := _quantizer_names(twin)) != plan.quantizers:
        first = next(
            (f"{ours!r} instead of {theirs!r}" for ours, theirs in zip(found, plan.quantizers, strict=False) if ours != theirs), "their number differs"
        )
        raise VerificationError(f"quantizers do not stand where the plan says: {first}", at="quantization plan", do="build the qat stage again")
    return twin


def _first_call(name: str) -> str:
    """The network's own name of a layer that the twin calls `name`: one that is called again has a number there."""
    first, _, call = name.rpartition(_AGAIN)
    return first if first and call.isdigit() else name


def _quantizer_names(twin: nn.Module) -> tuple[str, ...]:
    assert isinstance(twin, fx.GraphModule)
    return tuple(str(node.target) for node in twin.graph.nodes if isinstance(module_of(node, twin), ActivationQuantizer | InputQuantizer))


def _tell_unquantized(twin: fx.GraphModule) -> None:
    stay_float = [str(node) for node in twin.graph.nodes if node.target in _UNQUANTIZED or isinstance(module_of(node, twin), _UNQUANTIZED_MODULES)]
    if stay_float:
        _log.warning("these layers stay float, only torch.nn's Conv1d to Conv3d and Linear are quantized: %s", ", ".join(stay_float))


def _merge_norms_(twin: fx.GraphModule, scheme: Scheme, batch_norm: BatchNorm, kept_float: Collection[str]) -> None:
    """Put a LiveLayer in the place of each layer, with the BatchNorm that follows it, and take that out of the graph."""
    calls: Counter[str] = Counter()
    live_layers: list[tuple[fx.Node, str, LiveLayer]] = []
    merged: set[str] = set()
    for node in list(twin.graph.nodes):
        layer = module_of(node, twin)
        if not isinstance(layer, LAYERS):
            continue
        norm_node = _norm_after(node, twin)
        norm = None if norm_node is None else module_of(norm_node, twin)
        assert norm is None or isinstance(norm, NORMS)
        if norm is not None and batch_norm == "folded":
            layer, norm = folded_layer(layer, norm, scheme), None
        if norm_node is not None:
            norm_node.replace_all_uses_with(norm_node.all_input_nodes[0])
            twin.graph.erase_node(norm_node)
            merged.add(str(norm_node.target))
        name = str(node.target)
        calls[name] += 1
        # called again: a layer of its own there (its input has another scale), with the same parameters
        live_layers.append((node, name if calls[name] == 1 else f"{name}{_AGAIN}{calls[name]}", LiveLayer(layer, norm, scheme, kept_float=name in kept_float)))
    for node, name, live in live_layers:
        twin.set_submodule(name, live)
        node.target = name
    for name in merged - {str(node.target) for node in twin.graph.nodes}:
        twin.delete_submodule(name)
    twin.delete_all_unused_submodules()


def _norm_after(node: fx.Node, twin: fx.GraphModule) -> fx.Node | None:
    """The BatchNorm that alone takes the values of the layer at `node`, through ends of containers; None where there is none that can be folded."""
    users = list(node.users)
    while len(users) == 1 and isinstance(module_of(users[0], twin), Boundary):
        users = list(users[0].users)
    if len(users) != 1 or not isinstance(norm := module_of(users[0], twin), NORMS) or norm.running_mean is None:
        return None
    layer = module_of(node, twin)
    assert isinstance(layer, LAYERS)
    return users[0] if norm.num_features == layer.weight.shape[0] else None  # else it normalises another axis than the channels


def _insert_quantizers_(twin: fx.GraphModule, scheme: Scheme, kept_float: Collection[str]) -> None:
    twin.add_module("quantizers", nn.Module())
    chosen = places(twin.graph, twin, sums_in_layers=scheme.sums == "in-layer")
    for node in needed_on_integers(chosen, twin) if kept_float else chosen:
        module = module_of(node, twin)
        if isinstance(module, Normalize):
            twin.set_submodule(str(node.target), InputQuantizer(scheme, module.factor, module.shift, module.low, module.high))
            continue
        name = f"quantizers.{node.name}"
        twin.set_submodule(name, ActivationQuantizer(scheme))
        users = list(node.users)
        with twin.graph.inserting_after(node):
            quantized = twin.graph.call_module(name, (node,))
        for user in users:
            user.replace_input_with(node, quantized)


def _scale_before(node: fx.Node, twin: fx.GraphModule) -> Tensor | None:
    """The scale of the values that the layer at `node` takes; None where no quantizer stands before it."""
    source = source_of_scale(node.all_input_nodes[0], twin.graph, twin)
    quantizer = None if source is None else module_of(source, twin)
    return quantizer.scale if isinstance(quantizer, ActivationQuantizer | InputQuantizer) else None
