"""This host as a device: the agent runs in a process of its own, so that nothing of kdpipe's disturbs what is measured."""

import contextlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import IO

from pydantic import JsonValue

from kdpipe.foundation.errors import UnavailableError
from kdpipe.targets.devices import agent
from kdpipe.targets.devices.device import Command
from kdpipe.targets.devices.messages import BenchRequest, Done, Message, StartRequest, parsed
from kdpipe.targets.instruction_sets import probe
from kdpipe.targets.measurements import DeviceFacts

_LAST_WORDS = 400  # characters of the agent's last line


class LocalDevice:
    """The machine that kdpipe runs on."""

    name = "host"

    def facts(self) -> DeviceFacts:
        """The machine now; None where it does not tell."""
        told = agent.facts()
        return DeviceFacts(
            name=self.name,
            cpu=told["cpu"],
            architecture=told["architecture"],
            instruction_sets=self._instruction_sets,
            cores=told["cores"],
            governor=told["governor"],
            clock_mhz=told["clock_mhz"],
            temperature_celsius=told["temperature_celsius"],
            memory_bytes=told["memory_bytes"],
            runtimes=told["runtimes"],
        )

    def identity(self) -> Mapping[str, JsonValue]:
        """CPU, architecture, instruction sets, cores and runtime versions; clock, temperature, governor and memory are left out."""
        facts = self.facts()
        return {
            "name": facts.name,
            "cpu": facts.cpu,
            "architecture": facts.architecture,
            "instruction_sets": list(facts.instruction_sets),
            "cores": facts.cores,
            "runtimes": dict(sorted(facts.runtimes.items())),
        }

    def ask(self, command: Command, request: BenchRequest | StartRequest | None = None, *, limit_seconds: float) -> Iterator[Message]:
        """See `Device.ask`. Whoever stops reading ends the process."""
        agent_process = [sys.executable, agent.__file__, command]
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(agent_process, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            timer = threading.Timer(limit_seconds, process.kill)
            timer.start()
            try:
                _send(process.stdin, request)
                for line in process.stdout:
                    message = parsed(line, device=self.name)
                    if isinstance(message, Done):
                        return
                    yield message
                errors.seek(0)
                raise self._broken_off(process.wait(), limit_seconds if timer.finished.is_set() else None, errors.read())
            finally:
                timer.cancel()
                process.kill()  # already ended where all went well

    @cached_property
    def _instruction_sets(self) -> tuple[str, ...]:
        return tuple(sorted(probe()))

    def _broken_off(self, code: int, overdue_seconds: float | None, errors: str) -> UnavailableError:
        why = f"ended early with status {code}" if overdue_seconds is None else f"was not done within {overdue_seconds:g} s"
        last = errors.strip().splitlines()[-1:]
        return UnavailableError(
            f"the measuring process {why}{': ' + last[0][:_LAST_WORDS] if last else ''}",
            at=f"device {self.name}",
            do="close other programs, or measure fewer models or for less time ([bench] seconds)",
        )


def _send(stdin: IO[str], request: BenchRequest | StartRequest | None) -> None:
    with contextlib.suppress(BrokenPipeError):  # it died at once: the missing answer is told with its last words
        stdin.write("{}" if request is None else request.model_dump_json())
        stdin.close()
