"""Mixed precision: which values need integers when some layers stay in float.

A layer that is kept in float computes with its own weights on values that nothing rounds for it. So a value is quantized where a layer on integers takes it,
or an operation between tensors whose own result is needed as integers; what only float layers take stays float. A layer whose output stays
float writes no integers, and the runtimes then run it in float as well (on its rounded weights).
"""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import fx

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.quantization.layers import FrozenFloatLayer, LiveLayer
from kdpipe.foundation.quantization.placement import Kind, kind_of
from kdpipe.foundation.quantization.tracing import module_of, shapes_only

_PREFIX = "body."  # of the network within its normalisation: left out by whoever writes a list by hand


def needed_on_integers(places: Sequence[fx.Node], twin: fx.GraphModule) -> list[fx.Node]:
    """Those of `places` whose values a layer on integers takes, directly or through operations that are themselves needed on integers."""
    kinds = {node: kind_of(node, twin) for node in twin.graph.nodes}
    needed: dict[fx.Node, bool] = {}
    for node in reversed(list(twin.graph.nodes)):  # users stand behind what they use
        needed[node] = any(_takes_integers(user, kinds, needed, twin) for user in node.users if not shapes_only(user))
    return [node for node in places if needed[node]]


def _takes_integers(user: fx.Node, kinds: dict[fx.Node, Kind], needed: dict[fx.Node, bool], twin: fx.GraphModule) -> bool:
    if kinds[user] is Kind.LAYER:
        layer = module_of(user, twin)
        return not (isinstance(layer, LiveLayer | FrozenFloatLayer) and layer.kept_float)
    return needed[user]


def named_layers(known: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """The layers of `known` that the names and patterns in `wanted` mean, in the order of `known`; `body.` may be left out.

    Raises ConfigError for the first that means none.
    """
    chosen: set[str] = set()
    for pattern in wanted:
        found = [name for name in known if fnmatchcase(name, pattern) or fnmatchcase(name, _PREFIX + pattern)]
        if not found:
            names = [name.removeprefix(_PREFIX) for name in known]
            near = difflib.get_close_matches(pattern.removeprefix(_PREFIX), names, n=1)
            listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
            raise ConfigError(
                f"the network has no convolution or linear layer {pattern!r}",
                at="[qat] keep_float",
                do=(f"did you mean {near[0]!r}? " if near else "") + f"layers: {listed}",
            )
        chosen.update(found)
    return tuple(name for name in known if name in chosen)
