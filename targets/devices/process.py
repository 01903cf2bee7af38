"""The agent as a process on this machine: how `local` runs it, and `emulated` with an emulator before it."""

import contextlib
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO

from kdpipe.foundation.errors import UnavailableError
from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.devices import agent
from kdpipe.targets.devices.frames import frame, logits_of
from kdpipe.targets.devices.messages import Done, Message, PredictRequest, Request, parsed, printable

_LAST_WORDS = 400  # characters of the agent's last line


def asked(
    python: Sequence[str], command: str, request: Request | None, *, device: str, limit_seconds: float, environment: Mapping[str, str] | None = None
) -> Iterator[Message]:
    """See `Device.ask`. `python`: the arguments before the agent's file. Whoever stops reading ends the process."""
    yield from _talk(python, command, request, None, device, limit_seconds, environment)


def predicted(
    python: Sequence[str],
    request: PredictRequest,
    batches: Iterable[Float32Array],
    *,
    device: str,
    limit_seconds: float,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Float32Array]:
    """See `Device.predict`."""
    sizes: list[int] = []
    frames = (frame(batch, sizes) for batch in batches)
    yield from logits_of(_talk(python, "predict", request, frames, device, limit_seconds, environment), sizes, device=device)


def _talk(
    python: Sequence[str],
    command: str,
    request: Request | None,
    frames: Iterator[bytes] | None,
    device: str,
    limit_seconds: float,
    environment: Mapping[str, str] | None,
) -> Iterator[Message]:
    with (
        tempfile.TemporaryFile("w+b") as errors,
        subprocess.Popen([*python, agent.__file__, command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(limit_seconds, process.kill)
        timer.start()
        try:
            _send(process.stdin, ("{}" if request is None else request.model_dump_json()).encode() + b"\n", last=frames is None)
            while True:
                if frames is not None:  # one after each answer: what waits in memory is one batch
                    content = next(frames, b"")
                    _send(process.stdin, content, last=not content)
                    frames = frames if content else None
                line = process.stdout.readline()
                if not line:
                    break
                message = parsed(line, device=device)
                if isinstance(message, Done):
                    return
                yield message
            errors.seek(0)
            raise _broken_off(device, process.wait(), limit_seconds if timer.finished.is_set() else None, errors.read().decode(errors="replace"))
        finally:
            timer.cancel()
            process.kill()  # already ended where all went well


def _send(stdin: IO[bytes], content: bytes, *, last: bool) -> None:
    with contextlib.suppress(OSError, ValueError):  # it died: the missing answer is told with its last words
        stdin.write(content)
        stdin.flush()
        if last:
            stdin.close()


def _broken_off(device: str, code: int, overdue_seconds: float | None, errors: str) -> UnavailableError:
    why = f"ended early with status {code}" if overdue_seconds is None else f"was not done within {overdue_seconds:g} s"
    last = errors.strip().splitlines()[-1:]
    return UnavailableError(
        f"the measuring process {why}{': ' + printable(last[0])[:_LAST_WORDS] if last else ''}",
        at=f"device {device}",
        do="close other programs, or measure fewer models or for less time ([bench] seconds)",
    )
