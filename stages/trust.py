"""Whether a teacher is worth learning from: one that is right no more often than a guess is refused before hours are spent on it.

Wrong weights, classes in another order, an input in another value range: they all end here. Judged on the validation split, by the mean of
the classes' own accuracies: on unbalanced data a network that always gives the same answer is right often, and has learned nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.networks import Network
from kdpipe.robustness.attacks.quiet import quiet
from kdpipe.robustness.intervals import wilson
from kdpipe.stages.classes import known_classes
from kdpipe.stages.stage import Progress
from kdpipe.tasks.data.batches import batches
from kdpipe.tasks.data.splits import DataSplits, Split

_BATCH = 256
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Standing:
    """How a teacher does on `n` samples of the classes that it knows. `balanced`: the mean of the classes' accuracies; `chance`: what guessing gets."""

    correct: int
    n: int
    balanced: float
    chance: float

    @property
    def guesses(self) -> bool:
        """Whether it is right no more often than a guess."""
        return self.balanced <= self.chance + _ROUNDING

    def __str__(self) -> str:
        return f"right in {100 * self.correct / self.n:.1f} % of {self.n} validation samples (mean of the classes {100 * self.balanced:.1f} %)"


def standing(module: nn.Module, split: Split, classes: int) -> Standing:
    """The standing of the network `module` (to logits of `classes` classes) on `split`; its modes and flags are restored."""
    right, seen = torch.zeros(classes, dtype=torch.int64), torch.zeros(classes, dtype=torch.int64)
    known = known_classes(module, classes)
    with quiet(module), torch.no_grad():
        for batch in batches(split, _BATCH):
            asked = known[batch.labels]
            labels = batch.labels[asked]
            answers = module(batch.x[asked]).argmax(dim=1)
            right += torch.bincount(labels[answers == labels], minlength=classes)
            seen += torch.bincount(labels, minlength=classes)
    there = seen > 0
    balanced = (right[there].double() / seen[there]).mean().item() if bool(there.any()) else 0.0
    return Standing(int(right.sum()), int(seen.sum()), balanced, 1 / int(known.sum()))


def require_trust(teachers: Sequence[tuple[str, Network]], data: DataSplits, progress: Progress, *, forced: bool) -> None:
    """ConfigError where a teacher, each with its place in the file, only guesses; `forced`: it is said instead.

    A teacher that cannot be told from a guess, by the 95 % interval of its accuracy, is said in any case.
    """
    for at, network in teachers:
        found = standing(network.module, data.validation, len(data.classes))
        if found.n == 0:
            raise ConfigError("no validation sample is of a class that the teacher knows", at=at, do="give a teacher of the data's classes")
        if found.guesses and not forced:
            raise ConfigError(
                f"the teacher is {found}: guessing gets {100 * found.chance:.1f} %",
                at=at,
                do="check that its classes are the data's in the same order, that its input has the data's value range, and that it was trained long enough; "
                "to learn from it all the same: trust_teacher = true in [distill]",
            )
        if found.guesses or wilson(found.correct, found.n)[0] <= found.chance:
            progress.say(f"{at}: the teacher is {found}, not clearly more than a guess ({100 * found.chance:.1f} %)")
