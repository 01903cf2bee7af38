"""The near end of a connection to a device: one process that reaches its keeper, files sent once, one agent at a time.

How the keeper is reached (ssh, or a plain process in tests) is the argument vector; what is said is here. Everything that
comes back is input from outside: limited in size and time, checked before it is believed.
"""

import contextlib
import hashlib
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, Field, JsonValue, TypeAdapter, ValidationError

from kdpipe.foundation.errors import UnavailableError
from kdpipe.foundation.files import canonical_json, sha256_of
from kdpipe.targets.devices.keeper import CHUNK, KEEPER_PROTOCOL
from kdpipe.targets.devices.messages import printable

BOOTSTRAP = (
    "import sys,hashlib;"
    'sys.version_info<(3,8)and sys.exit("Python 3.8 or newer is needed, this is "+sys.version.split()[0]);'
    "i=sys.stdin.buffer;n,d=i.readline().decode().split();s=i.read(int(n));"
    'hashlib.sha256(s).hexdigest()==d or sys.exit("the keeper arrived damaged");'
    'exec(compile(s,"keeper","exec"),{"__name__":"__main__"})'
)
"""What Python is asked to run there: it reads the keeper from its standard input and checks its digest."""

BEAT_SECONDS = 10.0
SILENCE_SECONDS = 45.0  # beats are answered: four of them went unanswered
LINE_BYTES = 64 << 20  # a minute of samples of a very fast model is a quarter of this
ANSWER_BYTES = 512 << 20  # of one request; what answers batches is held against the batches
LAST_WORDS = 400
_ENDED = b'"kind": "ended"}\n'

Sources = Mapping[str, Path]
"""name there to file here"""


class _KeeperReady(BaseModel, extra="forbid", frozen=True):
    kind: Literal["keeper"]
    protocol: int
    python: str = Field(max_length=40)
    free_bytes: int = Field(ge=0)
    wall_ns: int = Field(gt=0)
    distributions: dict[str, Annotated[str, Field(max_length=100)] | None]
    removed: int = Field(0, ge=0, description="folders of keepers that were killed before")


class _Stored(BaseModel, extra="forbid", frozen=True):
    kind: Literal["stored"]
    name: str
    sha256: str


class _Refused(BaseModel, extra="forbid", frozen=True):
    kind: Literal["refused"]
    why: Literal["busy", "disk"]
    message: str


class Ended(BaseModel, extra="forbid", frozen=True):
    """The agent ended: its exit status (negative: the signal) and its last words."""

    kind: Literal["ended"]
    status: int
    errors: str


_READY = TypeAdapter[_KeeperReady | _Refused](Annotated[_KeeperReady | _Refused, Field(discriminator="kind")])
_KEPT = TypeAdapter[_Stored | _Refused](Annotated[_Stored | _Refused, Field(discriminator="kind")])


class Explain(Protocol):
    """The error for a process that ended early, from its status and its last words; `heard`: it had said something before."""

    def __call__(self, status: int, words: str, *, heard: bool) -> UnavailableError:
        """The error."""
        ...


class BusyError(UnavailableError):
    """Another measurement runs on the device."""


class Link:
    """A connection that is open. `ready`: what the keeper told of the machine when it came up; `clock_ahead_seconds`: its clock's, of ours."""

    def __init__(self, arguments: list[str], *, at: str, explain: Explain, connect_seconds: float) -> None:
        """Connects. `explain`: the error for a process that ended early.

        Raises UnavailableError: not reached within `connect_seconds`, no Python there, no space there; BusyError when it is in use.
        """
        self.at = at
        self._explain = explain
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the link
        self._process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, start_new_session=True)
        self._lines: queue.Queue[bytes] = queue.Queue(maxsize=64)
        self._writing = threading.Lock()
        self._closing = threading.Event()
        self._stored: set[str] = set()
        self._heard = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            source = files("kdpipe.targets.devices").joinpath("keeper.py").read_bytes()
            self._send(f"{len(source)} {hashlib.sha256(source).hexdigest()}\n".encode() + source)
            self.ready = self._greeted(connect_seconds)
            self.clock_ahead_seconds = self.ready.wall_ns / 1e9 - time.time()
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._beats, daemon=True).start()

    def put(self, name: str, source: Path) -> None:
        """The file there as `name`, its digest compared on both sides; sent once."""
        if name in self._stored:
            return
        digest = sha256_of(source)
        with source.open("rb") as file, self._writing:
            self._write(canonical_json({"do": "put", "name": name, "bytes": source.stat().st_size, "sha256": digest}) + b"\n")
            while piece := file.read(CHUNK):
                self._write(piece)
        answer: _Stored | _Refused = self._checked(self._line(time.monotonic() + SILENCE_SECONDS, f"storing {name}"), _KEPT)
        if isinstance(answer, _Refused):
            raise UnavailableError(
                f"the device cannot store {name} ({source.stat().st_size / 1e6:.1f} MB): {answer.message}",
                at=self.at,
                do="make room there, or name a folder with room: [devices.NAME] folder",
            )
        if answer.name != name or answer.sha256 != digest:
            raise UnavailableError(
                f"{name} arrived damaged: its digest there is another", at=self.at, do="try again; if it stays, check the device's memory and disk"
            )
        self._stored.add(name)

    def run(self, command: str, request: JsonValue, *, limit_seconds: float, feed: Iterator[bytes] | None = None) -> Iterator[bytes | Ended]:
        """The agent's lines, then how it ended. `feed`: frames for its standard input, one after each line that it tells.

        Whoever stops reading ends the agent. Raises UnavailableError: silent, too long, too large, or the link is cut.
        """
        deadline = time.monotonic() + limit_seconds
        self._send(canonical_json({"do": "run", "command": command, "request": request, "open": feed is not None}) + b"\n")
        ended, came, fed = False, 0, feed is not None
        try:
            while True:
                if feed is not None:
                    frame = next(feed, b"")
                    self._send(canonical_json({"do": "feed", "bytes": len(frame)}) + b"\n" + frame)
                    feed = feed if frame else None
                line = self._line(deadline, f"{command}, which was given {limit_seconds:g} s")
                if line.endswith(_ENDED):
                    ended = True
                    yield self._checked(line, TypeAdapter(Ended))
                    return
                came += len(line)
                if came > ANSWER_BYTES and not fed:
                    raise self._too_large(ANSWER_BYTES)
                yield line
        finally:
            if not ended and self._process.poll() is None:
                self._stop()

    def close(self) -> None:
        """Say goodbye, then end the process; the keeper removes what it stored."""
        if self._closing.is_set():
            return
        self._closing.set()
        with contextlib.suppress(OSError, ValueError), self._writing:
            assert self._process.stdin is not None
            self._process.stdin.write(b'{"do":"bye"}\n')
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        while self._reader.is_alive():  # it may wait for room
            with contextlib.suppress(queue.Empty):
                self._lines.get(timeout=0.05)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()

    def _greeted(self, connect_seconds: float) -> _KeeperReady:
        first = self._line(time.monotonic() + connect_seconds, f"connecting, which was given {connect_seconds:g} s")
        if not first.startswith(b"{"):
            raise UnavailableError(
                f"the login there prints words of its own: {_shown(first)!r}",
                at=self.at,
                do="a login that runs a command must print nothing: there, put what ~/.bashrc prints behind 'case $- in *i*)'; "
                "where the words say that this user may not log in, take another one",
            )
        answer: _KeeperReady | _Refused = self._checked(first, _READY)
        if isinstance(answer, _Refused):
            if answer.why == "busy":
                raise BusyError(
                    f"the device is in use: {answer.message} measures on it",
                    at=self.at,
                    do="wait until it is done: two measurements at once would both be wrong",
                )
            raise UnavailableError(
                f"the device cannot keep files: {answer.message}", at=self.at, do="make room there, or name a folder with room: [devices.NAME] folder"
            )
        if answer.protocol != KEEPER_PROTOCOL:
            raise self._not_valid(first, "another protocol")
        return answer

    def _stop(self) -> None:
        """End the agent and read until it is gone, so that the link can be used again."""
        with contextlib.suppress(UnavailableError):
            self._send(b'{"do":"stop"}\n')
            while not self._line(time.monotonic() + 10, "ending").endswith(_ENDED):
                continue

    def _line(self, deadline: float, doing: str) -> bytes:
        """The next line that is no answered beat."""
        while True:
            wait = min(SILENCE_SECONDS, max(0.0, deadline - time.monotonic()))
            try:
                line = self._lines.get(timeout=wait)
            except queue.Empty:
                late = time.monotonic() >= deadline
                raise UnavailableError(
                    f"the device was not done with {doing}" if late else f"the device said nothing for {SILENCE_SECONDS:g} s while {doing}",
                    at=self.at,
                    do="check the connection and what else runs there, or measure for less time ([bench] seconds)",
                ) from None
            if not line:
                self._lines.put(b"")  # for whoever asks next
                raise self._gone()
            self._heard = True
            if len(line) > LINE_BYTES:
                raise self._too_large(LINE_BYTES)
            if line != b'{"kind": "beat"}\n':
                return line

    def _gone(self) -> UnavailableError:
        status = self._process.wait()
        self._errors.seek(0)
        return self._explain(status, self._errors.read().decode(errors="replace").strip(), heard=self._heard)

    def _checked(self, line: bytes, adapter: TypeAdapter[Any]) -> Any:
        try:
            return adapter.validate_json(line)
        except ValidationError as error:
            raise self._not_valid(line, error.errors()[0]["msg"]) from error

    def _too_large(self, limit: int) -> UnavailableError:
        return UnavailableError(
            f"the device's answer is larger than {limit / 1e6:.1f} MB", at=self.at, do="the agent there is not ours: check who has access to the device"
        )

    def _not_valid(self, line: bytes, why: str) -> UnavailableError:
        return UnavailableError(
            f"the device's answer is not valid ({why}): {_shown(line)!r}",
            at=self.at,
            do="run it again; if it stays, what answers there is not kdpipe's: check who has access to the device",
        )

    def _send(self, content: bytes) -> None:
        with self._writing:
            self._write(content)

    def _write(self, content: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it is gone: the missing answer is told with its last words
            self._process.stdin.write(content)
            self._process.stdin.flush()

    def _beats(self) -> None:
        while not self._closing.wait(BEAT_SECONDS):
            self._send(b'{"do":"beat"}\n')

    def _read(self) -> None:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline(LINE_BYTES + 1):
            self._lines.put(line)
        self._lines.put(b"")


def _shown(line: bytes) -> str:
    return printable(line[:120].decode(errors="replace"))
