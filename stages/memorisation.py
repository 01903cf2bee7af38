"""Whether a teacher knows its training labels by heart, wrong ones too: it then agrees with them far more often than with those it never saw.

Networks learn what is right first and memorise what is wrong later (Arpit et al. 2017, arXiv:1706.05394). A memorised label is one that the teacher
cannot correct.
"""

import math
from dataclasses import dataclass

import torch

from kdpipe.foundation.networks import Network
from kdpipe.foundation.randomness import numpy_stream
from kdpipe.robustness.attacks.quiet import quiet
from kdpipe.stages.stage import Progress
from kdpipe.tasks.data.batches import batches
from kdpipe.tasks.data.splits import DataSplits, Split

WIDE_GAP = 0.10
"""How much more often a teacher may agree with training labels than with validation labels before that is told, as a share."""

_SAMPLES = 2_000
_BATCH = 256
_Z_95 = 1.959964  # the normal distribution's 97.5 % quantile


@dataclass(frozen=True)
class Agreement:
    """How often a network's first choice is the label, of so many samples."""

    agreeing: int
    samples: int

    @property
    def share(self) -> float:
        """In [0, 1]."""
        return self.agreeing / self.samples


def agreement(network: Network, split: Split, *, seed: int, name: str) -> Agreement:
    """On the samples of a split as they are, at most 2,000 of them, drawn by seed; the network is put back into its modes."""
    chosen = numpy_stream(seed, f"memorisation/{name}").permutation(len(split))[:_SAMPLES]
    agreeing = 0
    with quiet(network.module), torch.no_grad():
        for batch in batches(split, _BATCH, limit=chosen):
            agreeing += int((network.module(batch.x).argmax(dim=1) == batch.labels).sum())
    return Agreement(agreeing, len(chosen))


def memorised(training: Agreement, validation: Agreement) -> bool:
    """Whether the gap is wide, and beyond what the two samples' sizes explain at 95 % (normal approximation)."""
    gap = training.share - validation.share
    variance = sum(one.share * (1 - one.share) / one.samples for one in (training, validation))
    return gap > WIDE_GAP and gap > _Z_95 * math.sqrt(variance)


def tell_memorisation(teacher: Network, data: DataSplits, progress: Progress, *, seed: int) -> None:
    """Says how often the teacher agrees with the labels of training and validation, and what follows where it seems to know the former by heart."""
    training, validation = (agreement(teacher, split, seed=seed, name=name) for name, split in (("train", data.train), ("validation", data.validation)))
    told = f"the teacher agrees with {training.share:.1%} of the training labels and {validation.share:.1%} of the validation labels"
    if memorised(training, validation):
        told += (
            ": it knows training labels by heart and will correct few that are wrong; train it for fewer epochs or with patience, "
            "or with objective = 'gce', 'sce' or 'elr', or on other data"
        )
    progress.say(f"distill: {told}")
