"""How a network does on the validation split after an epoch: clean, and under a fixed attack of ten steps; and which of two does better."""

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import nn

from kdpipe.foundation.randomness import numpy_stream, stream
from kdpipe.robustness.attacks.attack import Attack
from kdpipe.robustness.attacks.pgd import maximise
from kdpipe.robustness.attacks.quiet import quiet
from kdpipe.stages.training_config import SelectBy
from kdpipe.tasks.data.batches import batches
from kdpipe.tasks.data.splits import Split

_ATTACK_STEPS = 10


class Validation(BaseModel, extra="forbid", frozen=True):
    """Figures on the validation split: for choosing an epoch, not for reporting quality (the scorecard does that, on the test split)."""

    clean_accuracy: float = Field(ge=0, le=1)
    loss: float = Field(description="cross-entropy on clean samples, in nats")
    robust_accuracy: float | None = Field(None, ge=0, le=1, description="under PGD-10 on a fixed random subset; None where not asked for")


def validate(module: nn.Module, split: Split, batch_size: int, attack: Attack | None, attack_samples: int, seed: int, label: str) -> Validation:
    """The figures of `module`; its modes and flags are restored.

    `attack` gives norm and epsilon of PGD-10 (cross-entropy, uniform start, default step size) on `attack_samples` samples.
    Samples and starts are the same after every epoch, so that epochs are compared on equal terms.
    """
    correct, loss = 0, 0.0
    with quiet(module), torch.no_grad():
        for batch in batches(split, batch_size):
            logits = module(batch.x).float()
            correct += int((logits.argmax(dim=1) == batch.labels).sum())
            loss += float(F.cross_entropy(logits, batch.labels, reduction="sum"))
    robust = None if attack is None else _robust_accuracy(module, split, batch_size, attack, attack_samples, seed, label)
    return Validation(clean_accuracy=correct / len(split), loss=loss / len(split), robust_accuracy=robust)


def selected_by(asked: SelectBy | None, attack: Attack | None) -> SelectBy:
    """The figure that networks are chosen by: as asked, else balanced where there is an attack."""
    return asked or ("clean" if attack is None else "balanced")


def chosen_accuracy(validation: Validation, select_by: SelectBy) -> float:
    """The accuracy, in [0, 1], that `select_by` names; balanced is the mean of clean and robust."""
    clean, robust = validation.clean_accuracy, validation.robust_accuracy
    if select_by == "clean":
        return clean
    assert robust is not None, "validated without the attack that it is to be chosen by"
    return robust if select_by == "robust" else (clean + robust) / 2


def rank(validation: Validation, select_by: SelectBy) -> tuple[float, float]:
    """What is compared, the greater the better: the chosen accuracy; where equal (validation sets are small), the lower loss."""
    return chosen_accuracy(validation, select_by), -validation.loss


def _robust_accuracy(module: nn.Module, split: Split, batch_size: int, attack: Attack, samples: int, seed: int, label: str) -> float:
    pgd = Attack(norm=attack.norm, epsilon=attack.epsilon, steps=_ATTACK_STEPS)
    subset = numpy_stream(seed, "validation/attacked").permutation(len(split))[:samples]
    starts = stream(seed, f"{label}/validation")
    correct = 0
    with quiet(module):
        for batch in batches(split, batch_size, limit=subset):
            labels = batch.labels

            def cross_entropy(x: torch.Tensor, labels: torch.Tensor = labels) -> torch.Tensor:
                return F.cross_entropy(module(x).float(), labels, reduction="none")

            x_adv = maximise(batch.x, cross_entropy, pgd, starts)
            with torch.no_grad():
                correct += int((module(x_adv).argmax(dim=1) == labels).sum())
    return correct / len(subset)
