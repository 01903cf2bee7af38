"""A network as a torch.fx graph, with the reason and a way out when it cannot become one.

Containers that return one tensor keep their names: after a container's last operation the graph calls a `Boundary` under the container's name,
so that a forward hook on `body.stage2` sees the same tensor on the twin as on the network it came from.
"""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.normalize import Normalize
from kdpipe.foundation.quantization.layers import LAYERS, NORMS


class Boundary(nn.Module):
    """Where a container of the original network ends; returns what it is given. Its children are the container's children."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` itself."""
        return x


def traced(module: nn.Module) -> fx.GraphModule:
    """The graph of `module`, with copies of its parameters. Raises ConfigError when torch.fx cannot follow its forward."""
    module, tracer = copy.deepcopy(module), _Tracer()
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    try:
        graph = tracer.trace(module)
    except Exception as error:  # a user's forward may raise anything when its values are symbolic
        raise ConfigError(
            f"the network cannot be traced: {type(error).__name__}: {error}",
            at=f"{name}{tracer.where}",
            do="write forward so that torch.fx can follow it: no decision by a tensor's values or by the batch (`if x.sum() > 0`), only by settings",
        ) from error
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise ConfigError(
            f"the network takes {len(inputs)} inputs, one tensor is needed", at=name, do="give the other inputs of forward fixed values in its constructor"
        )
    result = fx.GraphModule(module, graph)
    for container in tracer.boundaries:
        _make_boundary(result, container)
    result.recompile()
    return result


class _Tracer(fx.Tracer):
    """Follows all modules but those of torch.nn; remembers where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.boundaries: list[str] = []
        self._stack: list[str] = []

    @property
    def where(self) -> str:
        return f", in its module {self._stack[-1]!r}" if self._stack else ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        plain = any(type(m).forward is kind.forward for kind in (*LAYERS, *NORMS))  # a user's subclass that only adds settings
        return isinstance(m, Normalize) or plain or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = self.path_of_module(m)
        self._stack.append(name)
        result = super().call_module(m, forward, args, kwargs)
        self._stack.pop()
        if isinstance(result, fx.Proxy) and not self.is_leaf_module(m, name) and name not in self.boundaries:
            self.boundaries.append(name)
            return self.create_proxy("call_module", name, (result,), {})
        return result


def _make_boundary(root: nn.Module, name: str) -> None:
    """Put a `Boundary` with the same children in the place of the container `name`."""
    container = root.get_submodule(name)
    boundary = Boundary()
    for child_name, child in container.named_children():
        boundary.add_module(child_name, child)
    for parameter_name, parameter in container.named_parameters(recurse=False):
        boundary.register_parameter(parameter_name, parameter)
    for buffer_name, buffer in container.named_buffers(recurse=False):
        boundary.register_buffer(buffer_name, buffer, persistent=buffer_name not in container._non_persistent_buffers_set)
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent) if parent else root, last, boundary)


def shapes_only(node: fx.Node) -> bool:
    """Whether `node` reads a tensor's shape and not its values."""
    if node.op == "call_method":
        return node.target in {"size", "dim", "numel"}
    return node.op == "call_function" and node.target is getattr and node.args[1] in {"shape", "ndim", "dtype", "device"}


def module_of(node: fx.Node, root: nn.Module) -> nn.Module | None:
    """The module that `node` calls, or None when it calls a function."""
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None
