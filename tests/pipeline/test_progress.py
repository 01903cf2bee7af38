import io
import os
import pty
import subprocess
import sys

import pytest
from rich.console import Console

from kdpipe.pipeline.progress import PlainProgress, SilentProgress, TerminalProgress, duration, progress_for


@pytest.mark.parametrize(
    "progress", [SilentProgress(), PlainProgress(io.StringIO()), TerminalProgress(Console(file=io.StringIO()))], ids=["silent", "plain", "terminal"]
)
def test_all_items_come_through_in_order(progress: SilentProgress | PlainProgress | TerminalProgress) -> None:
    with progress:
        assert list(progress(range(5), "x")) == [0, 1, 2, 3, 4]
        assert list(progress(iter("ab"), "x", total=2, unit="epoch")) == ["a", "b"]


def test_a_log_gets_counts_rate_and_time_left() -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream, line_every_seconds=0.0)
    for _ in progress(iter(range(2)), "distill", total=2, unit="batch"):
        pass
    first, last = stream.getvalue().splitlines()
    assert first.startswith("distill  1/2 batch · ")
    assert "batch/s" in first
    assert first.endswith(" s left")
    assert last.startswith("distill  2/2 batch · ")
    assert "left" not in last


def test_a_log_is_not_flooded() -> None:
    stream = io.StringIO()
    for _ in PlainProgress(stream)(range(10_000), "distill"):
        pass
    assert stream.getvalue() == ""


def test_a_loop_of_unknown_length_is_counted_too() -> None:
    stream = io.StringIO()
    for _ in PlainProgress(stream, line_every_seconds=0.0)(iter(range(1)), "x"):
        pass
    assert stream.getvalue().splitlines()[0].startswith("x  1/? batch")


def test_messages_stand_above_the_bars_as_they_are() -> None:
    stream = io.StringIO()
    with TerminalProgress(Console(file=stream, force_terminal=True, width=200)) as progress:
        for _ in progress(range(3), "distill", unit="epoch"):
            progress.say("epoch: [teacher] 91.2 %")
    assert "epoch: [teacher] 91.2 %" in stream.getvalue()
    assert "distill" in stream.getvalue()


def test_an_abandoned_loop_takes_its_bar_away() -> None:
    progress = TerminalProgress(Console(file=io.StringIO()))
    with progress:
        loop = iter(progress(range(3), "x"))
        next(loop)
        assert len(progress._bars.tasks) == 1
        del loop
        assert progress._bars.tasks == []


def test_machines_get_silence_and_logs_get_lines() -> None:
    assert isinstance(progress_for(as_json=True), SilentProgress)
    assert isinstance(progress_for(as_json=False), PlainProgress)


WHICH = "from kdpipe.pipeline.progress import progress_for; print(type(progress_for(as_json=False)).__name__)"


@pytest.mark.parametrize(("ci", "kind"), [("", "TerminalProgress"), ("true", "PlainProgress")], ids=["terminal", "CI"])
def test_a_terminal_gets_bars_unless_it_is_cis(ci: str, kind: str) -> None:
    master, slave = pty.openpty()
    try:
        told = subprocess.run([sys.executable, "-c", WHICH], stdout=subprocess.PIPE, stderr=slave, text=True, check=True, env={**os.environ, "CI": ci})
    finally:
        os.close(slave)
        os.close(master)
    assert told.stdout == f"{kind}\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3599.7, "1 h 00 min"), (3840, "1 h 04 min")],
)
def test_a_duration_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
