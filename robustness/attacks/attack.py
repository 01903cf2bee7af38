"""How strong an attack is: the threat (norm, epsilon) and the budget that is spent inside it."""

from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

from kdpipe.robustness.scorecard import Threat


class Attack(BaseModel, extra="forbid", frozen=True):
    """`[distill.attack]`: projected gradient ascent within `epsilon` of the sample and within [0, 1].

    `epsilon` and `step_size` are in the input's raw value range ([0, 1] for images), whatever normalisation the network holds.
    """

    norm: Threat = Field("linf", description="the ball: linf bounds each value's change, l2 the sample's Euclidean distance")
    epsilon: float = Field(8 / 255, gt=0, allow_inf_nan=False, description="radius of the ball; at most 1 for linf")
    steps: int = Field(10, ge=1, description="gradient steps per restart")
    step_size: float | None = Field(None, gt=0, allow_inf_nan=False, description="length of one step; 2.5 * epsilon / steps where absent")
    restarts: int = Field(1, ge=1, description="independent starts; per sample the one with the highest loss is kept")
    start: Literal["uniform", "gaussian", "none"] = Field("uniform", description="uniform in the ball, 0.001 * N(0, 1) as in TRADES, or the sample itself")

    @model_validator(mode="after")
    def _epsilon_fits_the_norm(self) -> Self:
        if self.norm == "linf" and self.epsilon > 1:
            raise ValueError(f"epsilon = {self.epsilon:g} is not in (0, 1] for linf; 8/255 is 0.0314")
        if self.step_size is not None and self.step_size > 2 * self.epsilon:
            raise ValueError(f"step_size = {self.step_size:g} is more than 2 * epsilon = {2 * self.epsilon:g}; are the two swapped?")
        return self

    def resolved_step_size(self) -> float:
        """The step in use: 2.5 * epsilon / steps by default, enough to cross the ball and turn inside it."""
        return 2.5 * self.epsilon / self.steps if self.step_size is None else self.step_size
