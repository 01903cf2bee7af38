"""What the rules of `kdpipe advise` look at, and what they answer with."""

from dataclasses import dataclass
from typing import Literal

from kdpipe.foundation.errors import ConfigError
from kdpipe.pipeline.evidence import SMALL, Criterion, Interval

Goal = Literal["attacks", "corruptions", "clean"]
GOALS: dict[Goal, Criterion] = {"attacks": "robust", "corruptions": "corrupted", "clean": "clean"}
"""What the file is to withstand, and the figure that objectives are ranked by for it."""

NO_EVIDENCE = "no evidence here: customary value"


@dataclass(frozen=True)
class Choice:
    """What was chosen, why, and on what figures; all in words. `rule`: a name in `RULES`."""

    rule: str
    what: str
    because: str
    evidence: str


@dataclass(frozen=True)
class Noise:
    """What is known of wrong training labels. `percent`: their share, None where it is not known; `how`: where that is from, or why not."""

    percent: float | None
    how: str


@dataclass(frozen=True)
class Facts:
    """What the rules look at. `shape`: (channels, height, width); `counts`: training samples of each class; `noise`: None where nobody looked."""

    data: str
    shape: tuple[int, ...]
    counts: tuple[int, ...]
    train: int
    validation: int
    test: int
    noise: Noise | None = None

    @property
    def small(self) -> bool:
        """Whether the images are smaller than any that a table is about."""
        return min(self.shape[1:]) <= SMALL

    @property
    def size(self) -> str:
        """`28×28`."""
        return "×".join(str(side) for side in self.shape[1:])

    @property
    def colour(self) -> bool:
        """Whether there is more than one channel."""
        return self.shape[0] > 1


def goal_named(name: str) -> Goal:
    """The goal of that name; ConfigError where there is none."""
    for goal in GOALS:
        if goal == name:
            return goal
    raise ConfigError(f"there is no goal {name!r}", at="--goal", do=f"known: {', '.join(GOALS)}")


def percent_of(figure: Interval) -> str:
    """`68.6 % [64.4, 72.5]`."""
    return f"{figure[0]:.1f} % [{figure[1]:.1f}, {figure[2]:.1f}]"


def listed(words: list[str]) -> str:
    """The words with commas between them."""
    return ", ".join(words)
