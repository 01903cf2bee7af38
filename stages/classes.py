"""Teachers that were trained for other classes, or for the same in another order: their answers in the order of the data, by name."""

import torch
from torch import Tensor, nn

from kdpipe.foundation.errors import ConfigError

_SHOWN = 5


def columns_of(given: tuple[str, ...], wanted: tuple[str, ...], *, at: object) -> tuple[int | None, ...]:
    """For each of the `wanted` classes its place among the `given` ones, None where it is not there.

    ConfigError where fewer than two are there: nothing could be learned of them. `at`: where the given network comes from.
    """
    places = {label: place for place, label in enumerate(given)}
    columns = tuple(places.get(label) for label in wanted)
    if sum(column is not None for column in columns) < 2:
        raise ConfigError(
            f"the teacher's classes {first_names(given)} share fewer than two names with the data's {first_names(wanted)}",
            at=str(at),
            do="give a teacher of these classes; classes are matched by their names, so rename them where only the spelling differs",
        )
    return columns


def first_names(names: tuple[str, ...]) -> str:
    """The first of the names, for a message."""
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


class InOrder(nn.Module):
    """A network whose logits are put into another order of classes, (batch, given) to (batch, wanted).

    A class that it does not know is as unlikely as the least likely of those that it knows. `known`: bool, (wanted,).
    """

    columns: Tensor
    known: Tensor

    def __init__(self, module: nn.Module, columns: tuple[int | None, ...]) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("columns", torch.tensor([0 if column is None else column for column in columns]))
        self.register_buffer("known", torch.tensor([column is not None for column in columns]))

    def forward(self, x: Tensor) -> Tensor:
        """The logits of the wanted classes."""
        logits: Tensor = self.module(x)[:, self.columns]
        if bool(self.known.all()):
            return logits
        lowest = logits[:, self.known].min(dim=1, keepdim=True).values
        return torch.where(self.known, logits, lowest)


def known_classes(module: nn.Module, classes: int) -> Tensor:
    """Which of the `classes` classes a teacher knows, bool (classes,); all, where it was trained for them."""
    return module.known if isinstance(module, InOrder) else torch.ones(classes, dtype=torch.bool)
