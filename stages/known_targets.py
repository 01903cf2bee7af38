"""The teacher's logits on clean training samples, computed once: with unaugmented data every epoch asks for the same."""

import torch
from torch import Tensor, nn

from kdpipe.stages.stage import Progress
from kdpipe.tasks.data.batches import batches
from kdpipe.tasks.data.splits import Split

_MOST_BYTES = 256 << 20
_BATCH = 256


class KnownTargets:
    """A table of logits over a split, filled in the split's order at the first question, so that its bits do not depend on who asks when."""

    def __init__(self, teacher: nn.Module, split: Split, classes: tuple[str, ...], progress: Progress, label: str) -> None:
        self._teacher, self._split, self._progress, self._label = teacher, split, progress, label
        self.fits = len(split) * len(classes) * 4 <= _MOST_BYTES
        """whether the table is small enough to be kept in memory"""
        self._table: Tensor | None = None

    def __call__(self, indices: Tensor) -> Tensor:
        """The logits of the samples at `indices`, (len(indices), classes), without a graph."""
        if self._table is None:
            self._table = self._filled()
        return self._table[indices]

    def _filled(self) -> Tensor:
        total = -(-len(self._split) // _BATCH)
        with torch.no_grad():
            pieces = self._progress(batches(self._split, _BATCH), f"{self._label}: teacher's logits", total=total, unit="batch")
            return torch.cat([self._teacher(batch.x) for batch in pieces])
