"""The keys that every training section of `kdpipe.toml` has."""

from typing import Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from kdpipe.stages.schedule import LearningRateSchedule
from kdpipe.stages.weight_perturbation import WeightPerturbation

SelectBy = Literal["clean", "robust", "balanced"]


class TrainingConfig(BaseModel, extra="forbid", frozen=True):
    """The keys that every training section has."""

    epochs: int = Field(30, ge=1, description="passes over the training split")
    batch_size: int = Field(64, ge=2, description="samples per step")
    learning_rate: float = Field(0.05, gt=0, allow_inf_nan=False, description="highest learning rate of the schedule")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd with Nesterov momentum, or adamw")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd; adamw's first beta")
    weight_decay: float = Field(5e-4, ge=0, allow_inf_nan=False, description="of weights with two or more dimensions; biases and BatchNorm are spared")
    clip_norm: float | None = Field(None, gt=0, description="upper bound of the gradient's norm; absent: none")
    schedule: LearningRateSchedule = Field("cosine", description="cosine to 0, multi-step (times 0.1 at each milestone), or constant")
    milestones: tuple[float, ...] = Field((0.5, 0.75), description="shares of the training, in (0, 1), at which multi-step drops")
    warmup_epochs: float = Field(0.0, ge=0, description="epochs of linear rise from 0 to the learning rate")
    patience: int | None = Field(None, ge=1, description="stop after so many epochs without a better one; absent: never")
    ema_decay: float | None = Field(None, ge=0, lt=1, description="decay of averaged weights, which are then what is judged and kept; absent: none")
    swa_start: float | None = Field(
        None, ge=0, lt=1, description="share of the training from which the epochs' weights are averaged equally, then judged and kept instead; absent: none"
    )
    awp: WeightPerturbation | None = Field(None, description="adversarial weight perturbation, a section of its own; absent: none")
    select_by: SelectBy | None = Field(
        None, description="validation figure that the best epoch is chosen by; absent: balanced (the mean of both) with an attack in the objective, else clean"
    )
    validation_attack_samples: int = Field(256, ge=1, description="validation samples that are attacked (PGD-10) after each epoch, where select_by asks for it")

    @field_validator("milestones")
    @classmethod
    def _within_the_training(cls, milestones: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < milestone < 1 for milestone in milestones):
            raise ValueError(f"{list(milestones)} are not all in (0, 1): they are shares of the training, not epochs")
        return milestones

    @model_validator(mode="after")
    def _one_average(self) -> Self:
        if self.ema_decay is not None and self.swa_start is not None:
            raise ValueError("ema_decay and swa_start are two averages of the same weights: give one of them")
        return self
