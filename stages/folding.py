"""BatchNorm folded into the convolution before it while a network is attacked: in evaluation mode it is one multiplication per channel.

Found by watching, not by tracing, so it works for any network: a pair is a convolution whose very output a BatchNorm takes.
All pairs together are tried once, and believed only if the logits stay what they were.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_TOLERANCE = 1e-4  # of the largest logit: float32, one rounding more per layer


@dataclass(frozen=True)
class Pair:
    """A convolution and the BatchNorm that alone takes its output."""

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d


def foldable_pairs(module: nn.Module, example: Tensor) -> tuple[Pair, ...]:
    """The pairs of `module` (in evaluation mode) that can be folded; none where folding them would change its logits on `example`."""
    made: dict[int, nn.Conv2d] = {}
    kept: list[Tensor] = []  # alive, so that no address is used twice
    pairs: list[Pair] = []
    calls: Counter[nn.Module] = Counter()

    def note_convolution(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        calls[layer] += 1
        made[id(output)] = layer
        kept.append(output)

    def note_norm(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        calls[layer] += 1
        if (convolution := made.get(id(inputs[0]))) is not None and layer.running_mean is not None:
            pairs.append(Pair(convolution, layer))

    convolutions = [layer for layer in module.modules() if type(layer) is nn.Conv2d]
    norms = [layer for layer in module.modules() if type(layer) is nn.BatchNorm2d]
    handles = [layer.register_forward_hook(note_convolution) for layer in convolutions]
    handles += [layer.register_forward_pre_hook(note_norm) for layer in norms]
    try:
        with torch.no_grad():
            expected = module(example)
    finally:
        for handle in handles:
            handle.remove()
    once = tuple(pair for pair in pairs if calls[pair.convolution] == 1 and calls[pair.norm] == 1)
    with torch.no_grad(), folded(once):
        got = module(example)
    return once if (got - expected).abs().max() <= _TOLERANCE * expected.abs().max() else ()


@contextmanager
def folded(pairs: Sequence[Pair]) -> Iterator[None]:
    """Meanwhile the convolutions do their BatchNorm's work, by its running statistics, and the BatchNorms nothing; no gradient reaches either."""
    try:
        for pair in pairs:
            weight, bias = _folded_weights(pair)
            pair.convolution.__dict__.update(weight=weight, bias=bias)  # an instance's own attribute goes before the registered parameter
            pair.norm.__dict__["forward"] = _identity
        yield
    finally:
        for pair in pairs:
            for layer, names in ((pair.convolution, ("weight", "bias")), (pair.norm, ("forward",))):
                for name in names:
                    layer.__dict__.pop(name, None)


@torch.no_grad()
def _folded_weights(pair: Pair) -> tuple[Tensor, Tensor]:
    norm, convolution = pair.norm, pair.convolution
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight
    shift = -norm.running_mean * factor if convolution.bias is None else (convolution.bias - norm.running_mean) * factor
    if norm.bias is not None:
        shift = shift + norm.bias
    return convolution.weight * factor.reshape(-1, 1, 1, 1), shift


def _identity(x: Tensor) -> Tensor:
    return x
