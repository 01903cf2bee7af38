"""What an objective learns beside the student: the weights of its terms by their uncertainty, temperatures by a curriculum.

They are trained by the same optimiser without weight decay, and checkpointed with the student.
Sources: Kendall et al. 2018 (arXiv:1705.07115), section 3.2; Li et al. 2023 (arXiv:2211.16231), section 3 (CTKD, the global temperature) and the authors' code.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdpipe.foundation.errors import ConfigError
from kdpipe.stages.objectives.objective import Loss, Objective
from kdpipe.stages.schedule import LEARNED_START, Scheduled

MOST_TERMS = 8
LIMIT = 4.0
"""of the log-variances: a term whose loss goes to 0, as a divergence may, would else take all the weight"""
RISE = 1 / 24
"""share of the training over which the temperature's opposition grows from 0 to full: 10 of 240 epochs in the authors' code"""


@dataclass(frozen=True)
class _Held:
    """A value in the place of a schedule, whatever the progress."""

    value: Tensor

    def at(self, progress: float) -> Tensor:
        return self.value


class Learned(nn.Module):
    """The learned values of one objective: its terms' log-variances, a slot for each in their order, and its temperatures' positions before the sigmoid."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.log_variances = nn.Parameter(torch.zeros(MOST_TERMS)) if _weighs(objective) else None
        self.schedules = dict(_learned_keys(objective))
        self.positions = nn.ParameterDict({key: nn.Parameter(torch.tensor(LEARNED_START)) for key in self.schedules})

    def temperatures(self) -> dict[str, Tensor]:
        """The present temperatures by key, scalars with their graphs."""
        return {key: schedule.start + (schedule.end - schedule.start) * torch.sigmoid(self.positions[key]) for key, schedule in self.schedules.items()}

    def bound(self, objective: Objective, progress: float) -> Objective:
        """The objective with the present temperatures in place of its learned keys; their gradient is reversed: they move to where the loss is higher.

        The reversal grows by a cosine over the first `RISE` of the training, so that the student meets easy targets first.
        """
        strength = (1 - math.cos(math.pi * min(1.0, progress / RISE))) / 2
        for key, temperature in self.temperatures().items():
            if temperature.requires_grad:
                temperature.register_hook(lambda gradient: -strength * gradient)  # type: ignore[no-untyped-call]
            objective = _with(objective, key.split("/"), _Held(temperature))
        return objective

    def weighed(self, loss: Loss, where: str) -> Loss:
        """The loss with each term's weight w replaced by w·exp(-a), plus a/2 each, a its log-variance; what is learned joins the terms, for the log.

        Terms of weight 0 stay out. ConfigError where the objective has fewer than two terms, or no terms that add up to its loss.
        """
        log = {f"learned {key}": value.detach() for key, value in self.temperatures().items()}
        if self.log_variances is None:
            return Loss(loss.total, loss.terms | log, loss.parts)
        if not 2 <= len(loss.parts) <= MOST_TERMS:
            raise ConfigError(
                f"weighting = 'uncertainty' needs 2 to {MOST_TERMS} terms, this objective has {len(loss.parts)}",
                at=where,
                do="leave weighting out, or choose an objective with several terms",
            )
        with torch.no_grad():
            self.log_variances.clamp_(-LIMIT, LIMIT)
        summands = []
        for slot, (name, (weight, value)) in enumerate(loss.parts.items()):
            if isinstance(weight, Tensor) or weight != 0:
                log_variance = self.log_variances[slot]
                summands.append(torch.exp(-log_variance) * weight * value + log_variance / 2)
                log[f"learned weight of {name}"] = torch.exp(-log_variance.detach())
        return Loss(torch.stack(summands).sum(), loss.terms | log, loss.parts)


def learned_of(objective: Objective) -> Learned | None:
    """What the objective learns beside the student, at its start; None where all its values are given."""
    learned = Learned(objective)
    return learned if any(True for _ in learned.parameters()) else None


def _weighs(objective: Objective) -> bool:
    """Whether its terms' weights are learned, or those of an objective within it."""
    within = (getattr(objective, key) for key in type(objective).model_fields)
    return objective.weighting == "uncertainty" or any(isinstance(value, Objective) and _weighs(value) for value in within)


def _learned_keys(objective: Objective, prefix: str = "") -> Iterator[tuple[str, Scheduled]]:
    """Key to schedule of what is to be learned; the keys of an objective within it after its own key and a slash."""
    for key in type(objective).model_fields:
        value = getattr(objective, key)
        if isinstance(value, Scheduled) and value.shape == "learned":
            yield prefix + key, value
        elif isinstance(value, Objective):
            yield from _learned_keys(value, f"{prefix}{key}/")


def _with(objective: Objective, path: list[str], value: _Held) -> Objective:
    """A copy of the objective with the value at `path` in place of what stands there."""
    key, *rest = path
    return objective.model_copy(update={key: _with(getattr(objective, key), rest, value) if rest else value})
