"""The teacher's logits on clean training samples, computed once: with unaugmented data every epoch asks for the same."""

from itertools import islice

import torch
from torch import Tensor, nn

from kdpipe.stages.stage import Progress
from kdpipe.stages.target_cache import Table
from kdpipe.tasks.data.batches import batches
from kdpipe.tasks.data.splits import Split

_MOST_BYTES = 256 << 20
_BATCH = 256


class KnownTargets:
    """A table of logits over a split, filled in the split's order at the first question, so that its bits do not depend on who asks when.

    `kept`: where it is kept on the disk beyond this training, or None.
    """

    def __init__(self, teacher: nn.Module, split: Split, classes: tuple[str, ...], progress: Progress, label: str, kept: Table | None = None) -> None:
        self._teacher, self._split, self._progress, self._label, self._kept = teacher, split, progress, label, kept
        self._shape = (len(split), len(classes))
        self.fits = len(split) * len(classes) * 4 <= _MOST_BYTES
        """whether the table is small enough to be kept in memory"""
        self._table: Tensor | None = None

    def __call__(self, indices: Tensor) -> Tensor:
        """The logits of the samples at `indices`, (len(indices), classes), without a graph."""
        if self._table is None:
            self._table = self._found() if self._kept is not None else self._filled()
        return self._table[indices]

    def _found(self) -> Tensor:
        """The kept table where the teacher still answers as it says, else a new one, which is then kept."""
        assert self._kept is not None
        table = self._kept.read(self._shape, self._say)
        if table is not None and not torch.equal(self._asked(1), table[:_BATCH]):
            self._say("kept logits of the teacher are not used: it gives others now; they are computed anew")
            table = None
        if table is None:
            table = self._filled()
            self._kept.write(table, self._say)
        return table

    def _filled(self) -> Tensor:
        return self._asked(-(-len(self._split) // _BATCH))

    def _asked(self, count: int) -> Tensor:
        """The teacher's logits on the first `count` batches."""
        with torch.no_grad():
            pieces = self._progress(islice(batches(self._split, _BATCH), count), f"{self._label}: teacher's logits", total=count, unit="batch")
            return torch.cat([self._teacher(batch.x) for batch in pieces])

    def _say(self, message: str) -> None:
        self._progress.say(f"{self._label}: {message}")
