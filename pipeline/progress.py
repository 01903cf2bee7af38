"""What the user sees while a build runs: bars on a terminal, a line now and then in CI, nothing for machines.

All of it goes to stderr. Each class is a `Progress` of `stages/stage.py` and a context manager that leaves the terminal as it was.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Item = TypeVar("Item")

_LINE_EVERY_SECONDS = 10.0


class SilentProgress(AbstractContextManager["SilentProgress"]):
    """Nobody listens: `--json`, or the Python interface's default."""

    def __call__(self, items: Iterable[Item], label: str, *, total: int | None = None, unit: str = "batch") -> Iterable[Item]:
        """`items`, as they are."""
        return items

    def say(self, message: str) -> None:
        """Nothing is printed."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


class PlainProgress(AbstractContextManager["PlainProgress"]):
    """Lines for a log: a message at once; of a running loop at most one line in ten seconds, and one when it ends if it took longer."""

    def __init__(self, stream: TextIO | None = None, *, line_every_seconds: float = _LINE_EVERY_SECONDS) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.line_every_seconds = line_every_seconds
        self._last = time.monotonic()

    def __call__(self, items: Iterable[Item], label: str, *, total: int | None = None, unit: str = "batch") -> Iterator[Item]:
        """`items`, counted: `distill  120/400 batch · 31.2 batch/s · 9 s left`."""
        total = _length(items, total)
        begin = time.monotonic()
        told = False
        done = 0
        for item in items:
            yield item
            done += 1
            now = time.monotonic()
            if now - self._last >= self.line_every_seconds:
                self.say(_state(label, done, total, unit, now - begin))
                told = True
        if told and done != total:
            self.say(_state(label, done, done, unit, time.monotonic() - begin))

    def say(self, message: str) -> None:
        """One line, written at once."""
        print(message, file=self.stream, flush=True)
        self._last = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


class TerminalProgress(AbstractContextManager["TerminalProgress"]):
    """Bars with rate and time left, messages above them; a finished loop's bar goes."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = Console(stderr=True, highlight=False) if console is None else console
        self._bars = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            _CountColumn(),
            TextColumn("·"),
            _RateColumn(),
            TextColumn("·"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            transient=True,
        )

    def __call__(self, items: Iterable[Item], label: str, *, total: int | None = None, unit: str = "batch") -> Iterator[Item]:
        """`items`, counted by a bar."""
        bar = self._bars.add_task(label, total=_length(items, total), unit=unit)
        try:
            for item in items:
                yield item
                self._bars.advance(bar)
        finally:
            self._bars.remove_task(bar)

    def say(self, message: str) -> None:
        """One line above the bars."""
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()


def progress_for(*, as_json: bool) -> SilentProgress | PlainProgress | TerminalProgress:
    """The right one for this process: silent for machines, bars where stderr is a terminal and not CI's, else lines."""
    if as_json:
        return SilentProgress()
    if sys.stderr.isatty() and not os.environ.get("CI"):
        return TerminalProgress()
    return PlainProgress()


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `1 h 04 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _CountColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        total = "?" if task.total is None else f"{task.total:g}"
        return Text(f"{task.completed:g}/{total}")


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        return Text(f"– {unit}/s" if task.speed is None else f"{task.speed:.1f} {unit}/s")


def _length(items: Iterable[Item], total: int | None) -> int | None:
    if total is None and isinstance(items, Sized):
        return len(items)
    return total


def _state(label: str, done: int, total: int | None, unit: str, seconds: float) -> str:
    rate = done / seconds if seconds > 0 else 0.0
    facts = [f"{label}  {done}/{'?' if total is None else total} {unit}", f"{rate:.1f} {unit}/s"]
    if total is not None and total > done and rate > 0:
        facts.append(f"{duration((total - done) / rate)} left")
    return " · ".join(facts)
