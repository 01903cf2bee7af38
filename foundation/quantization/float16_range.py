"""Whether float16 can hold what a network computes: it ends at 65,504, and what is larger becomes infinite without a word."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.quantization.layers import LiveLayer

LARGEST = 65504.0


def require_float16_range(twin: nn.Module, batches: Iterable[Tensor] | None) -> None:
    """ConfigError naming the first layer of the trainable `twin` that float16 cannot hold: its weight, or its result on `batches`.

    `batches` None: results stay in float32.
    """
    layers = {name: module for name, module in twin.named_modules() if isinstance(module, LiveLayer) and not module.kept_float}
    for name, layer in layers.items():
        _require(name, "a weight", float(layer.folded()[0].detach().abs().max()))
    if batches is None:
        return
    peaks: dict[str, float] = {}
    handles = []
    for name, layer in layers.items():

        def watch(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            peaks[name] = max(peaks.get(name, 0.0), float(output.detach().abs().max()))

        handles.append(layer.register_forward_hook(watch))
    training = twin.training
    try:
        with torch.no_grad():
            for batch in batches:
                twin.eval()(batch)
    finally:
        twin.train(training)
        for handle in handles:
            handle.remove()
    for name, peak in peaks.items():
        _require(name, "a result", peak)


def _require(name: str, what: str, magnitude: float) -> None:
    if magnitude <= LARGEST:  # false for NaN as well
        return
    raise ConfigError(
        f"{what} of the layer {name!r} reaches {magnitude:,.0f}, float16 ends at {LARGEST:,.0f}",
        at="scheme float16",
        do=f"keep the layer in float32: [qat] keep_float = [{name!r}], or choose scheme = 'weights-only'",
    )
