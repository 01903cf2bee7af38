"""Values that change while a network trains: a loss's weight or temperature, and the learning rate.

Progress is the share of the training that is done, in [0, 1].
"""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic_core import PydanticKnownError

LearningRateSchedule = Literal["cosine", "multi-step", "constant"]

LEARNED_START = 1.0
"""where a learned value begins, before the sigmoid (Li et al. 2023, arXiv:2211.16231, the authors' code): 0.73 of the way"""


class Scheduled(BaseModel, extra="forbid", frozen=True):
    """A number, written as such, or a way from one to another: `{ from = 8, to = 2, shape = "cosine" }`.

    With the shape "learned" (temperatures only) it lies between the two, where training moves it (`stages/learned.py`); outside of a training where it begins.
    """

    start: float = Field(alias="from", allow_inf_nan=False, description="value at the start of the training")
    end: float = Field(alias="to", allow_inf_nan=False, description="value at its end")
    shape: Literal["linear", "cosine", "learned"] = Field("linear", description="straight, slow at both ends, or learned between them (temperatures only)")

    @classmethod
    def constant(cls, value: float) -> Self:
        """The same value all the time."""
        return cls.model_validate({"from": value, "to": value})

    def at(self, progress: float) -> float:
        """The value when the share `progress` in [0, 1] of the training is done."""
        if self.start == self.end:
            return self.start
        if self.shape == "learned":
            return self.start + (self.end - self.start) / (1 + math.exp(-LEARNED_START))
        way = progress if self.shape == "linear" else (1 - math.cos(math.pi * progress)) / 2
        return self.start + (self.end - self.start) * way

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {"from": value, "to": value}
        return value

    @model_validator(mode="after")
    def _room_to_learn(self) -> Self:
        if self.shape == "learned" and self.start >= self.end:
            raise ValueError(f"shape = 'learned' needs from < to, these are {self.start:g} and {self.end:g}")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> Any:
        if self.start == self.end:
            return self.start
        return {"from": self.start, "to": self.end, "shape": self.shape}


def _positive(value: Scheduled) -> Scheduled:
    if min(value.start, value.end) <= 0:
        raise PydanticKnownError("greater_than", {"gt": 0})
    return value


def _not_negative(value: Scheduled) -> Scheduled:
    if min(value.start, value.end) < 0:
        raise PydanticKnownError("greater_than_equal", {"ge": 0})
    return value


def _given(value: Scheduled) -> Scheduled:
    if value.shape == "learned":
        raise ValueError("shape = 'learned' is for temperatures; weights are learned by weighting = 'uncertainty'")
    return value


def _at_most_one(value: Scheduled) -> Scheduled:
    if max(value.start, value.end) > 1:
        raise PydanticKnownError("less_than_equal", {"le": 1})
    return value


Positive = Annotated[Scheduled, AfterValidator(_positive)]
"""A scheduled number above 0, or a learned one: a temperature."""

Weight = Annotated[Scheduled, AfterValidator(_given), AfterValidator(_not_negative)]
"""A scheduled number of at least 0: the weight of a term."""

Share = Annotated[Scheduled, AfterValidator(_given), AfterValidator(_not_negative), AfterValidator(_at_most_one)]
"""A scheduled number in [0, 1]: how much of the whole one of two terms takes."""


def learning_rate(
    base: float,
    progress: float,
    *,
    schedule: LearningRateSchedule = "cosine",
    warmup: float = 0.0,
    milestones: tuple[float, ...] = (0.5, 0.75),
    drop: float = 0.1,
) -> float:
    """The learning rate when the share `progress` in [0, 1) of the training is done.

    `warmup`: the share that is spent rising linearly from 0 to `base`. Then cosine: from `base` to 0; multi-step: times
    `drop` at each of the `milestones` (shares of the whole training) that has been passed; constant: `base`.
    """
    if progress < warmup:
        return base * progress / warmup
    if schedule == "constant":
        return base
    if schedule == "multi-step":
        return base * drop ** sum(progress >= milestone for milestone in milestones)
    done = (progress - warmup) / (1 - warmup)
    return base * (1 + math.cos(math.pi * min(done, 1.0))) / 2
