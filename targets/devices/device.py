"""What a device is to the rest of kdpipe: a machine that answers the agent's requests.

A kind of device is one file here whose `plugin` is the model of its `[devices.NAME]` section, a `Settings`; a user's own
is `kind = "package.module:Class"`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol

from pydantic import JsonValue

from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.devices.messages import Facts, Message, PredictRequest, Request
from kdpipe.targets.instruction_sets import ARCHITECTURES, named
from kdpipe.targets.measurements import DeviceFacts

PACKAGE = "kdpipe.targets.devices"
Command = Literal["probe", "bench", "start", "energy"]


class Device(Protocol):
    """A concrete machine. All that another kind has to bring is this."""

    name: str
    no_latency: str | None
    """why its latencies mean nothing, e.g. because it is emulated; None: they count"""

    def connected(self) -> AbstractContextManager[None]:
        """The device stays reached meanwhile, for several requests; without it each request reaches it anew."""
        ...

    def facts(self) -> DeviceFacts:
        """The machine now, with what changes from minute to minute (clock, temperature)."""
        ...

    def identity(self) -> Mapping[str, JsonValue]:
        """What of the facts stays as it is and changes a measurement: for fingerprints."""
        ...

    def ask(self, command: Command, request: Request | None = None, *, limit_seconds: float) -> Iterator[Message]:
        """The agent's messages, in a fresh process there, without the closing `done`.

        Raises UnavailableError when it cannot start, fails, is silent for `limit_seconds` in all, or breaks off.
        """
        ...

    def predict(self, request: PredictRequest, batches: Iterable[Float32Array], *, limit_seconds: float) -> Iterator[Float32Array]:
        """The logits of each batch, computed there by one process that loads the model once; errors as in `ask`."""
        ...


class Settings(Protocol):
    """A `[devices.NAME]` section, checked."""

    def device(self, name: str, project: Path) -> Device:
        """The device; nothing is reached yet. Paths of the section are relative to `project`."""
        ...


def device_facts(name: str, kind: str, told: Facts) -> DeviceFacts:
    """What the agent told of the machine, instruction sets by our names."""
    machine = ARCHITECTURES.get(told.architecture.lower())
    return DeviceFacts(
        name=name,
        kind=kind,
        cpu=told.cpu,
        architecture=told.architecture,
        instruction_sets=tuple(sorted(named(told.flags) | ({machine} if machine else set()))),
        cores=told.cores,
        governor=told.governor,
        clock_mhz=told.clock_mhz,
        temperature_celsius=told.temperature_celsius,
        memory_bytes=told.memory_bytes,
        runtimes=told.runtimes,
    )


def identity_of(facts: DeviceFacts) -> dict[str, JsonValue]:
    """CPU, architecture, instruction sets, cores and runtime versions; clock, temperature, governor and memory are left out."""
    return {
        "name": facts.name,
        "cpu": facts.cpu,
        "architecture": facts.architecture,
        "instruction_sets": list(facts.instruction_sets),
        "cores": facts.cores,
        "runtimes": dict(sorted(facts.runtimes.items())),
    }
