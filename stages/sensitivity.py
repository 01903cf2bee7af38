"""How sensitive each layer is to quantization: what it does to the logits when it alone is quantized, and what is mended when it alone is not.

Measured on the twin, which computes what the file does. A layer's input is rounded with it: its share of the damage is that of its weights and of the
values that it takes. Sources: Wu et al. 2020 (arXiv:2004.09602), "partial quantization"; that single layers do nearly all of the damage: arXiv:2012.08420.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field
from torch import nn

from kdpipe.foundation.predictor import Float32Array, TorchPredictor
from kdpipe.stages.stage import Progress

Twin = Callable[[Sequence[str]], nn.Module]
"""Names of layers to the frozen twin in which these stay in float32."""


class Sensitivity(BaseModel, extra="forbid", frozen=True):
    """What quantizing one layer does. Distances: mean difference of the logits to those of the network without any rounding, as a share of their spread."""

    layer: str
    weights: int = Field(description="elements of its weight")
    alone_distance: float = Field(description="this layer quantized, all others in float")
    alone_accuracy: float = Field(ge=0, le=1)
    without_distance: float = Field(description="all layers quantized but this one")
    without_accuracy: float = Field(ge=0, le=1)


class Sensitivities:
    """The figures of the network without rounding, with every layer quantized, and the table of the layers.

    On samples `x`, (n, *shape), with `labels`, (n,).
    """

    def __init__(self, twin: Twin, layers: Sequence[str], x: Float32Array, labels: npt.NDArray[np.int64]) -> None:
        self._twin, self._layers, self.n = twin, layers, len(labels)
        self._x, self._labels = x, labels
        self._reference = TorchPredictor(twin(layers))(self._x)
        self._spread = max(float(np.ptp(self._reference, axis=1).mean()), 1e-12)
        self.reference_accuracy = self._accuracy(self._reference)
        self.all_distance, self.all_accuracy = self._figures(())
        self.table: tuple[Sensitivity, ...] = ()

    def measured(self, progress: Progress) -> tuple[Sensitivity, ...]:
        """One row a layer, the largest distance alone first; equal ones in the network's order."""
        rows = list(self._rows(progress))
        self.table = tuple(sorted(rows, key=lambda row: -row.alone_distance))
        return self.table

    def _rows(self, progress: Progress) -> Iterator[Sensitivity]:
        sizes = {name: parameter.numel() for name, parameter in self._twin(self._layers).named_parameters()}
        for layer in progress(self._layers, "sensitivity", total=len(self._layers), unit="layer"):
            alone = self._figures([name for name in self._layers if name != layer])
            without = self._figures([layer])
            yield Sensitivity(
                layer=layer,
                weights=sizes[f"{layer}.weight"],
                alone_distance=alone[0],
                alone_accuracy=alone[1],
                without_distance=without[0],
                without_accuracy=without[1],
            )

    def _figures(self, float_layers: Sequence[str]) -> tuple[float, float]:
        logits = TorchPredictor(self._twin(float_layers))(self._x)
        distance = float(np.abs(logits.astype(np.float64) - self._reference).mean()) / self._spread
        return distance, self._accuracy(logits)

    def _accuracy(self, logits: Float32Array) -> float:
        return float((logits.argmax(1) == self._labels).mean())
