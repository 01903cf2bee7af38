"""Ranges of activations from samples: by extremes, by percentile, or by the smallest squared rounding error.

Calibration looks at the float activations: quantizers let everything through while they are watched.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.quantization.fake_quant import ActivationQuantizer, activation_parameters, activation_range, fake_quantize

Method = Literal["minmax", "percentile", "mse"]
Look = Callable[[str, Tensor], None]

_BINS = 2048
_SHARES = torch.linspace(1.0, 0.3, 36)  # of the extremes, tried by "mse"


def calibrate_(twin: nn.Module, batches: Iterable[Tensor], method: Method = "minmax", *, percentile: float = 99.99) -> None:
    """Set the range of every activation quantizer in `twin` from `batches` of raw inputs, (n, *shape).

    `percentile`: share of the values, in per cent, that "percentile" keeps on each side. The twin's mode is kept.
    Raises ConfigError without any batch, or when an activation is not finite.
    """
    samples = list(batches)
    if not samples:
        raise ConfigError("no samples to calibrate with", at="calibration", do="give at least one training sample")
    quantizers = {name: module for name, module in twin.named_modules() if isinstance(module, ActivationQuantizer)}
    extremes: dict[str, tuple[Tensor, Tensor]] = {}

    def watch_extremes(name: str, x: Tensor) -> None:
        low, high = torch.aminmax(x)
        if name in extremes:
            low, high = torch.minimum(low, extremes[name][0]), torch.maximum(high, extremes[name][1])
        extremes[name] = low, high

    _watch(twin, quantizers, samples, watch_extremes)
    for name, (low, high) in extremes.items():
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise ConfigError(f"the activation at {name!r} is not finite in calibration", at="calibration", do="check the weights that were given and the data")
    histograms: dict[str, Tensor] = {}
    if method != "minmax":

        def watch_histogram(name: str, x: Tensor) -> None:
            low, high = extremes[name]
            counts = torch.histc(x.float(), _BINS, float(low), float(high)).double()
            histograms[name] = histograms.get(name, torch.zeros(_BINS, dtype=torch.float64)) + counts

        _watch(twin, quantizers, samples, watch_histogram)
    for name, quantizer in quantizers.items():
        if name not in extremes:  # called nowhere: its module is not part of the graph any more
            continue
        low, high = extremes[name]
        chosen_low, chosen_high = _chosen_range(quantizer, low, high, histograms.get(name), method, percentile)
        quantizer.set_range_(float(low), float(high), float(chosen_low), float(chosen_high))


def _watch(twin: nn.Module, quantizers: dict[str, ActivationQuantizer], batches: list[Tensor], look: Look) -> None:
    with _watched(quantizers, look), _evaluating(twin), torch.no_grad():
        for batch in batches:
            twin(batch)


@contextmanager
def _watched(quantizers: dict[str, ActivationQuantizer], look: Look) -> Iterator[None]:
    handles: list[RemovableHandle] = []
    for name, quantizer in quantizers.items():

        def hook(_module: nn.Module, arguments: tuple[Tensor, ...], _output: Tensor, name: str = name) -> Tensor:
            look(name, arguments[0].detach())
            return arguments[0]

        handles.append(quantizer.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = {each: each.training for each in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for each, training in modes.items():
            each.training = training


def _chosen_range(
    quantizer: ActivationQuantizer, low: Tensor, high: Tensor, histogram: Tensor | None, method: Method, percentile: float
) -> tuple[Tensor, Tensor]:
    if histogram is None or bool(low == high):
        return low, high
    if method == "percentile":
        return _percentile_range(low, high, histogram, percentile)
    return _least_error_range(quantizer, low, high, histogram)


def _percentile_range(low: Tensor, high: Tensor, histogram: Tensor, percentile: float) -> tuple[Tensor, Tensor]:
    share = torch.cumsum(histogram, 0) / histogram.sum()
    edges = torch.linspace(float(low), float(high), _BINS + 1)
    below = int(torch.searchsorted(share, 1 - percentile / 100))
    above = int(torch.searchsorted(share, percentile / 100))
    return edges[below], edges[min(above + 1, _BINS)]


def _least_error_range(quantizer: ActivationQuantizer, low: Tensor, high: Tensor, histogram: Tensor) -> tuple[Tensor, Tensor]:
    """The share of the extremes with the smallest mean squared error of quantization, over the histogram's bin centres."""
    edges = torch.linspace(float(low), float(high), _BINS + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    qmin, qmax = activation_range(quantizer.scheme)

    def error(share: Tensor) -> float:
        scale, zero_point = activation_parameters(low * share, high * share, quantizer.scheme)
        difference = (fake_quantize(centres, scale, zero_point, qmin, qmax) - centres).double()
        return float((histogram * difference**2).sum())

    best = min(_SHARES, key=error)
    return low * best, high * best
