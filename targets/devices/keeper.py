"""What holds the far end of a connection to a device: stores files, runs the agent, and takes everything with it when it goes.

The host sends this file over the connection, with its digest, to `python -c BOOTSTRAP`; nothing is installed there.
Python 3.8 and the standard library suffice. On standard input come JSON lines, some followed by raw bytes:

    {"do": "put", "name": "…", "bytes": n, "sha256": "…"}   then n bytes: a file, renamed to `name` when its digest agrees
    {"do": "run", "command": "bench", "request": {…}, "open": false}   starts the agent; `open`: its standard input stays open
    {"do": "feed", "bytes": n}   then n bytes for the agent's standard input
    {"do": "stop"} · {"do": "beat"} · {"do": "bye"}

On standard output go JSON lines: `keeper` once, `stored`, `refused`, `beat`, `ended`, and between `run` and `ended` the
agent's own lines as they come. When standard input ends, or nothing comes for SILENCE_SECONDS, the agent's process group
is killed and the folder removed: a cut link leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

KEEPER_PROTOCOL = 1
SILENCE_SECONDS = 60.0  # the host beats every 10 s
CHUNK = 1 << 18
PREFIX = "kdpipe-device-"
LOCK = "\0kdpipe-device"  # a name in the kernel, not a file: it goes with the process, and every user of the machine sees it
DISTRIBUTIONS = ("numpy", "onnxruntime", "openvino")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")
_PR_SET_PDEATHSIG = 1


class Keeper:
    """One connection: its folder, at most one running agent, and when the host was last heard."""

    def __init__(self) -> None:
        self.input = sys.stdin.buffer
        self.output = sys.stdout.buffer
        self.folder = ""
        self.agent: subprocess.Popen[bytes] | None = None
        self.pump: threading.Thread | None = None
        self.heard = time.monotonic()
        self.writing = threading.Lock()

    def tell(self, kind: str, **content: Any) -> None:
        """One line to the host; when nobody listens any more, everything ends."""
        self.write(json.dumps(dict(content, kind=kind)).encode() + b"\n")

    def write(self, line: bytes) -> None:
        """The bytes as they are, whole between other lines."""
        try:
            with self.writing:
                self.output.write(line)
                self.output.flush()
        except OSError:
            self.leave(1)

    def leave(self, code: int) -> None:
        """Kill what runs, remove what was stored, end; never returns."""
        self.kill_agent()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
        os._exit(code)

    def kill_agent(self) -> None:
        """The agent and all that it started."""
        if self.agent is not None:
            with contextlib.suppress(OSError):  # it ended by itself
                os.killpg(self.agent.pid, signal.SIGKILL)

    def watch(self) -> None:
        """End when the host was not heard for too long: the link may be cut without a word."""
        while True:
            time.sleep(1)
            if time.monotonic() - self.heard > SILENCE_SECONDS:
                self.leave(1)

    def serve(self, parent: str | None) -> None:
        """Answer until the host goes."""
        lock = locked()
        if not isinstance(lock, socket.socket):
            self.tell("refused", why="busy", message=lock)
            return
        removed = remove_leftovers(parent)
        try:
            self.folder = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
        except OSError as error:
            self.tell("refused", why="disk", message=str(error))
            return
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda *_: self.leave(1))
        threading.Thread(target=self.watch, daemon=True).start()
        installed = distributions()
        self.tell(
            "keeper",
            protocol=KEEPER_PROTOCOL,
            python=".".join(str(part) for part in sys.version_info[:3]),
            free_bytes=shutil.disk_usage(self.folder).free,
            wall_ns=time.time_ns(),  # the last thing before the host hears it
            distributions=installed,
            removed=removed,
        )
        try:
            while self.answer():
                pass
        except Exception as error:  # whatever it is, nothing may stay behind here
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        self.leave(0)

    def answer(self) -> bool:
        """One request; False when there will be no more."""
        line = self.input.readline()
        self.heard = time.monotonic()
        if not line:
            return False
        request = json.loads(line.decode())
        todo = request["do"]
        if todo == "put":
            self.put(request)
        elif todo == "run":
            self.run(request)
        elif todo == "feed":
            self.feed(request["bytes"])
        elif todo == "stop":
            self.kill_agent()
        elif todo == "beat":
            self.tell("beat")
        return bool(todo != "bye")

    def chunks(self, size: int) -> Any:
        """The next `size` raw bytes, piece by piece; everything ends where they stop coming."""
        while size > 0:
            piece = self.input.read(min(CHUNK, size))
            if not piece:
                self.leave(1)
            self.heard = time.monotonic()
            size -= len(piece)
            yield piece

    def put(self, request: dict[str, Any]) -> None:
        """Store a file under a temporary name, compare its digest, rename it."""
        name, digest, refusal, file = request["name"], hashlib.sha256(), None, None
        part = Path(self.folder, ".part")
        try:
            if not _NAME.fullmatch(name):
                raise OSError("not a file name: " + repr(name))
            file = part.open("wb")  # closed below, where what goes wrong is told
        except OSError as error:
            refusal = str(error)
        for piece in self.chunks(request["bytes"]):  # read to the end whatever happens, so that the next line is a line again
            digest.update(piece)
            try:
                if refusal is None and file is not None:
                    file.write(piece)
                    file.flush()
            except OSError as error:
                refusal = str(error)
        if file is not None:
            with contextlib.suppress(OSError):  # told already
                file.close()
        if refusal is not None:
            with contextlib.suppress(OSError):
                part.unlink()
            self.tell("refused", why="disk", message=refusal)
            return
        if digest.hexdigest() == request["sha256"]:
            part.rename(Path(self.folder, name))
        self.tell("stored", name=name, sha256=digest.hexdigest())

    def run(self, request: dict[str, Any]) -> None:
        """Start the agent on the request; its lines are passed on, then `ended` is told."""
        errors = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  # closed when the agent has ended
        script = str(Path(self.folder, "agent.py"))
        self.agent = subprocess.Popen(
            [sys.executable, "-B", script, request["command"]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=self.folder,
            env=dict(os.environ, TMPDIR=self.folder),
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509  # it calls the kernel and nothing else
        )
        self.pump = threading.Thread(target=self.passed_on, args=(self.agent, errors), daemon=True)
        self.pump.start()
        self.to_agent(json.dumps(request["request"]).encode() + b"\n")
        if not request.get("open"):
            self.close_agent_input()

    def feed(self, size: int) -> None:
        """Raw bytes for the agent; with size 0 its standard input ends."""
        for piece in self.chunks(size):
            self.to_agent(piece)
        if size == 0:
            self.close_agent_input()

    def to_agent(self, piece: bytes) -> None:
        """Write; what it no longer reads is dropped, `ended` tells the rest."""
        with contextlib.suppress(OSError, ValueError):
            if self.agent is not None and self.agent.stdin is not None:
                self.agent.stdin.write(piece)
                self.agent.stdin.flush()

    def close_agent_input(self) -> None:
        """Tell the agent that there will be no more."""
        with contextlib.suppress(OSError):
            if self.agent is not None and self.agent.stdin is not None:
                self.agent.stdin.close()

    def passed_on(self, agent: subprocess.Popen[bytes], errors: Any) -> None:
        """The agent's output until it ends, then how it ended and its last words."""
        assert agent.stdout is not None
        for line in agent.stdout:
            self.write(line if line.endswith(b"\n") else line + b"\n")
        status = agent.wait()
        self.kill_agent()  # what it started and left
        errors.seek(0, os.SEEK_END)
        errors.seek(max(0, errors.tell() - 2000))
        words = errors.read().decode(errors="replace").strip()
        errors.close()
        self.tell("ended", status=status, errors=words)


def locked() -> socket.socket | str:
    """The lock of this machine, or who holds it."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        lock.bind(LOCK)
        lock.listen(8)
        return lock
    except OSError:
        pid, uid = holder()
        return f"process {pid} of user {uid}"


def holder() -> tuple[int, int]:
    """Process and user that hold the lock; 0 where the kernel does not tell."""
    asking = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    asking.settimeout(2)
    try:
        asking.connect(LOCK)
        pid, uid, _ = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        return pid, uid
    except OSError:
        return 0, 0
    finally:
        asking.close()


def remove_leftovers(parent: str | None) -> int:
    """Folders of keepers that were killed: whoever holds the lock is the only one that may have such a folder. How many there were."""
    place = parent or tempfile.gettempdir()
    try:
        entries = list(os.scandir(place))
    except OSError:
        return 0
    removed = 0
    for entry in entries:
        if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.getuid():
            shutil.rmtree(entry.path, ignore_errors=True)
            removed += 1
    return removed


def distributions() -> dict[str, str | None]:
    """Versions of what the agent needs; None where it is missing."""
    from importlib import metadata

    found: dict[str, str | None] = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def die_with_parent() -> None:
    """In the new process: the kernel kills it when the keeper is gone, however that came about."""
    with contextlib.suppress(OSError, AttributeError):  # elsewhere than on Linux the process group is killed when the keeper ends in order
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    Keeper().serve(sys.argv[1] if len(sys.argv) > 1 else None)
