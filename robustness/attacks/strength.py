"""Which of several attacks is the strongest: one order for tables, example samples and masking checks.

By what is spent on one sample: attacks with gradients before those without, then steps times restarts; of equals the first. It orders attacks of one
kind by their budget and says nothing of how cleverly it is spent: whether one did more than another, the results tell.
"""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

Thing = TypeVar("Thing")


class Budget(Protocol):
    """What an attack spends on one sample; an `AttackMethod` or an `AttackFigure`."""

    @property
    def steps(self) -> int:
        """Gradient steps, or queries, of one restart."""
        ...

    @property
    def restarts(self) -> int:
        """Independent starts."""
        ...


def strongest(things: Iterable[Thing], attack_of: Callable[[Thing], Budget]) -> Thing | None:
    """The one whose attack is the strongest, the first of equals; None where there is none. `attack_of`: a thing's attack."""
    return max(things, key=lambda thing: _strength(attack_of(thing)), default=None)


def _strength(attack: Budget) -> tuple[bool, int]:
    return getattr(attack, "needs_gradients", True), attack.steps * attack.restarts
