"""Why a runtime's sums differ from the twin's: which roundings before additions it leaves out when it merges a layer with an addition.

OpenVINO's CPU plug-in does so where a file has one quantizer there, not two (docs/decisions/rounding-before-additions.md). From the twin
with none and with all of these quantizers, always the change is made that brings its logits nearest to the runtime's.
"""

import copy
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor, fx, nn

from kdpipe.foundation.predictor import Float32Array, TorchPredictor
from kdpipe.foundation.quantization.fake_quant import ActivationQuantizer, activation_range
from kdpipe.foundation.quantization.qdq import before_additions

_EXPLAINED = 0.1  # of the mean difference may remain; what was seen is below 0.02


def left_out_roundings(twin: nn.Module, x: Float32Array, found: Float32Array) -> tuple[str, ...]:
    """The quantizers of `twin` without whose rounding it gives the logits `found` for the samples `x`; empty where that does not explain them."""
    if not isinstance(twin, fx.GraphModule):
        return ()
    tried = copy.deepcopy(twin)
    names = before_additions(twin)
    rounded = {name: twin.get_submodule(name) for name in names}
    clipped = {name: _Clipped(quantizer) for name, quantizer in rounded.items() if isinstance(quantizer, ActivationQuantizer)}

    def difference(candidate: frozenset[str]) -> float:
        for name in names:
            tried.set_submodule(name, clipped[name] if name in candidate else rounded[name])
        return float(np.abs(TorchPredictor(tried)(x).astype(np.float64) - found).mean())

    first = difference(frozenset())
    starts = (frozenset(names), frozenset[str]()) if first > 0 else ()
    ends = [_nearest(start, names, difference) for start in starts]
    left_out, nearest = min(ends, key=lambda end: end[1], default=(frozenset[str](), 0.0))
    return tuple(name for name in names if name in left_out) if nearest <= _EXPLAINED * first else ()


def _nearest(start: frozenset[str], names: Sequence[str], difference: Callable[[frozenset[str]], float]) -> tuple[frozenset[str], float]:
    """From `start` one quantizer more or one less, whichever brings the difference down most, until none does."""
    chosen, least = start, difference(start)
    while least > 0 and names:
        candidates = {chosen ^ {name}: difference(chosen ^ {name}) for name in names}
        best = min(candidates, key=lambda candidate: candidates[candidate])
        if candidates[best] >= least:
            break
        chosen, least = best, candidates[best]
    return chosen, least


class _Clipped(nn.Module):
    """The range of a quantizer without its steps."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        qmin, qmax = activation_range(quantizer.scheme)
        self.low = float((qmin - quantizer.zero_point) * quantizer.scale)
        self.high = float((qmax - quantizer.zero_point) * quantizer.scale)

    def forward(self, x: Tensor) -> Tensor:
        """`x` within the range."""
        return x.clamp(self.low, self.high)
