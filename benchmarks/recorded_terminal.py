"""Commands run in a terminal of their own, everything that they print recorded with its time.

The recording is an asciicast (version 2): `asciinema play FILE` plays it. `screen` gives what a terminal shows at its end.
Source of the format: docs.asciinema.org, "asciicast v2": a JSON header line, then lines [seconds, "o", output].
"""

import codecs
import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyte

COLUMNS, ROWS = 118, 40
_WIDEST_SCREEN, _LONGEST_SCREEN = 1000, 4000  # columns and lines that `screen` can give back
_ERASED = "\r\x1b[2K"  # a bar that is drawn anew begins so
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_MOVES = re.compile(r"[\n\x1b]")
_FRAME_SECONDS = 3.0
_PROMPT = "\x1b[1;32m$\x1b[0m "


class Recording:
    """What was printed so far, `events`: (seconds, text)."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = {**environment, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
        self.events: list[tuple[float, str]] = []
        self.begun = time.time()
        self._begin = time.monotonic()

    def run(self, command: str, folder: Path, answers: Mapping[str, str] | None = None) -> int:
        """The exit code of the command, run by bash. `answers`: what is typed when the text stands in the output's last line."""
        self._add(_PROMPT + command + "\r\n")
        near, far = pty.openpty()
        fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        process = subprocess.Popen(
            ["bash", "-c", command], stdin=far, stdout=far, stderr=far, cwd=folder, env=self.environment, start_new_session=True, close_fds=True
        )
        os.close(far)
        decoder, waiting = codecs.getincrementaldecoder("utf-8")("replace"), dict(answers or {})
        while True:
            readable, _, _ = select.select([near], [], [], 0.2)
            try:
                output = os.read(near, 1 << 16) if readable else None
            except OSError:  # Linux's word for: the other end is closed
                break
            if output == b"":
                break
            if output is None:
                if process.poll() is not None:
                    break
                continue
            self._add(decoder.decode(output))
            last = self.events[-1][1].rsplit("\n", 1)[-1]
            for question in [it for it in waiting if it in last]:
                os.write(near, waiting.pop(question).encode() + b"\n")
        os.close(near)
        return process.wait()

    def write(self, path: Path, title: str) -> None:
        """The recording as an asciicast."""
        header = {
            "version": 2,
            "width": COLUMNS,
            "height": ROWS,
            "timestamp": int(self.begun),
            "idle_time_limit": 1,
            "title": title,
            "env": {"TERM": "xterm-256color"},
        }
        lines = [json.dumps(header), *(json.dumps([round(seconds, 3), "o", text], ensure_ascii=False) for seconds, text in thinned(self.events))]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _add(self, text: str) -> None:
        self.events.append((time.monotonic() - self._begin, text))


def thinned(events: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Without frames of a progress bar that are erased within three seconds: ten a second would make a file of megabytes. The end stays as it was."""
    kept: list[tuple[float, str]] = []
    for seconds, text in events:
        if kept and text.startswith(_ERASED):
            begun, last = kept[-1]
            if last.startswith(_ERASED) and not _MOVES.search(_COLOUR.sub("", last.removeprefix(_ERASED))) and seconds - begun < _FRAME_SECONDS:
                kept[-1] = (begun, text)
                continue
        kept.append((seconds, text))
    return kept


def screen(path: Path) -> str:
    """All that stands on a terminal after the recording was played: progress bars as they ended, long lines whole, since it is as wide as they are."""
    lines = path.read_text(encoding="utf-8").splitlines()
    shown = pyte.Screen(_WIDEST_SCREEN, _LONGEST_SCREEN)
    terminal = pyte.Stream(shown)
    for line in lines[1:]:
        terminal.feed(json.loads(line)[2])
    return "\n".join(line.rstrip() for line in shown.display).rstrip() + "\n"
