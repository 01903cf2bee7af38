"""The errors that a user sees: what happened, where, and what to do; one class per exit code.

Raised where the fact is known and caught once, by the command line. Several problems of one file travel together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `message` what, `at` where (a path, `file:line`, a key), `do` the next step."""

    message: str
    at: str | None = None
    do: str | None = None

    def __str__(self) -> str:
        lines = [f"error: {self.message}"]
        if self.at:
            lines.append(f"  at:  {self.at}")
        if self.do:
            lines.append(f"  do:  {self.do}")
        return "\n".join(lines)


class KdpipeError(Exception):
    """The base of all errors that are told without a traceback."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, at: str | Path | None = None, do: str | None = None) -> None:
        super().__init__(message)
        self.problems: tuple[Problem, ...] = (Problem(message, None if at is None else str(at), do),)

    @classmethod
    def gather(cls, problems: Sequence[Problem]) -> Self:
        """One error that carries all `problems` (at least one), in their order."""
        first = problems[0]
        error = cls(first.message, at=first.at, do=first.do)
        error.problems = tuple(problems)
        return error

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class ConfigError(KdpipeError):
    """The user's input (command, configuration, data, weights, code) cannot be used as it is."""

    exit_code = 2


class BudgetError(KdpipeError):
    """A budget or a comparison is not met."""

    exit_code = 3


class UnavailableError(KdpipeError):
    """A device, a runtime or a resource of this machine (disk, permission) is not available."""

    exit_code = 4


class VerificationError(KdpipeError):
    """An artifact does not load, is damaged beyond repair, or does not agree with its twin."""

    exit_code = 5
