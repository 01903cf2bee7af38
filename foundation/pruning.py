"""The pruning plan: which channels of which layer stay, stored as data and replayed exactly."""

from pydantic import BaseModel, Field


class KeptChannels(BaseModel, extra="forbid", frozen=True):
    """The channels of one layer that stay, by their index in the unpruned layer; None where that side is whole."""

    inputs: tuple[int, ...] | None = None
    outputs: tuple[int, ...] | None = None


class PruningPlan(BaseModel, extra="forbid", frozen=True):
    """Layer name to kept channels, for every layer that was cut."""

    layers: dict[str, KeptChannels] = Field(default_factory=dict)
