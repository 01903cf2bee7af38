"""Looking into networks: the outputs of named modules, and which modules end a stage."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from kdpipe.foundation.errors import ConfigError


@contextmanager
def watched(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """A dictionary that each pass through `module` meanwhile fills with the outputs of the submodules called `names`, with their graphs.

    A submodule that is called several times leaves its last output.
    """
    outputs: dict[str, Tensor] = {}
    handles = [module.get_submodule(name).register_forward_hook(partial(_keep, outputs, name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def stage_ends(module: nn.Module, example: Tensor) -> dict[str, tuple[int, ...]]:
    """The submodules that end a stage, in the order in which they run, with their outputs' shapes.

    A stage ends with the last submodule whose output has one spatial size (networks of images), or one width (others; the
    logits are no stage). What runs before the first layer with weights, and maps of one pixel, are left out.
    """
    ran = _outputs_in_order(module, example)
    maps = {name: shape for name, shape in ran.items() if len(shape) == 4 and shape[2] * shape[3] > 1}
    last: dict[tuple[int, ...], str]
    if maps:
        last = {shape[2:]: name for name, shape in maps.items()}
    else:
        *hidden, logits = list(ran.items()) or [("", ())]
        last = {shape[1:]: name for name, shape in hidden if len(shape) >= 2 and shape != logits[1]}
    ends = set(last.values())
    return {name: shape for name, shape in ran.items() if name in ends}


def output_shapes(module: nn.Module, names: Sequence[str], example: Tensor, *, at: str) -> dict[str, tuple[int, ...]]:
    """The output shapes of the submodules called `names`; ConfigError when one is not there or does not run."""
    ran = _outputs_in_order(module, example, all_of_them=True)
    for name in names:
        if name not in ran:
            some = ", ".join(list(stage_ends(module, example))[:6])
            raise ConfigError(f"no layer {name!r} runs in the network", at=at, do=f"layers that end a stage: {some}; absent keys choose by themselves")
    return {name: ran[name] for name in names}


def _outputs_in_order(module: nn.Module, example: Tensor, *, all_of_them: bool = False) -> dict[str, tuple[int, ...]]:
    """Submodule name to output shape, in the order in which they end; the modules' modes are the caller's."""
    ran: dict[str, tuple[int, ...]] = {}
    started = [all_of_them]

    def note(name: str, layer: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        started[0] = started[0] or any(True for _ in layer.parameters())
        if started[0] and isinstance(output, Tensor):
            ran.pop(name, None)  # the last call counts
            ran[name] = tuple(output.shape)

    handles = [layer.register_forward_hook(partial(note, name)) for name, layer in module.named_modules() if name]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    return ran


def _keep(outputs: dict[str, Tensor], name: str, layer: nn.Module, inputs: tuple[object, ...], output: Tensor) -> None:
    outputs[name] = output
