"""This host as a device: the agent runs in a process of its own, so that nothing of kdpipe's disturbs what is measured."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, JsonValue

from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.devices import agent
from kdpipe.targets.devices.device import Command, identity_of
from kdpipe.targets.devices.messages import Message, PredictRequest, Request
from kdpipe.targets.devices.process import asked, predicted
from kdpipe.targets.instruction_sets import probe
from kdpipe.targets.measurements import DeviceFacts


class LocalDevice:
    """The machine that kdpipe runs on."""

    name = "host"
    no_latency: str | None = None

    def connected(self) -> AbstractContextManager[None]:
        """Nothing to reach."""
        return nullcontext()

    def facts(self) -> DeviceFacts:
        """The machine now; None where it does not tell."""
        told = agent.facts()
        return DeviceFacts(
            name=self.name,
            cpu=told["cpu"],
            architecture=told["architecture"],
            emulator=told["emulator"],
            instruction_sets=self._instruction_sets,
            cores=told["cores"],
            governor=told["governor"],
            clock_mhz=told["clock_mhz"],
            temperature_celsius=told["temperature_celsius"],
            memory_bytes=told["memory_bytes"],
            runtimes=told["runtimes"],
        )

    def identity(self) -> Mapping[str, JsonValue]:
        """See `identity_of`."""
        return identity_of(self.facts())

    def ask(self, command: Command, request: Request | None = None, *, limit_seconds: float) -> Iterator[Message]:
        """See `Device.ask`. Whoever stops reading ends the process."""
        return asked([sys.executable], command, request, device=self.name, limit_seconds=limit_seconds)

    def predict(self, request: PredictRequest, batches: Iterable[Float32Array], *, limit_seconds: float) -> Iterator[Float32Array]:
        """See `Device.predict`."""
        return predicted([sys.executable], request, batches, device=self.name, limit_seconds=limit_seconds)

    @cached_property
    def _instruction_sets(self) -> tuple[str, ...]:
        return tuple(sorted(probe()))


class Local(BaseModel, extra="forbid", frozen=True):
    """This host."""

    kind: Literal["local"] = Field("local", description="this host")

    def device(self, name: str, project: Path) -> LocalDevice:
        """The host, under its own name whatever the section is called: its figures are the same."""
        return LocalDevice()


plugin = Local
