"""What a device is to the rest of kdpipe: a machine that answers the agent's requests.

A kind of device is one file here whose `plugin` is the model of its `[devices.NAME]` section, a `Settings`; a user's own
is `kind = "package.module:Class"`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from packaging.specifiers import SpecifierSet
from pydantic import JsonValue

from kdpipe.foundation.errors import UnavailableError
from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.devices.agent import module_of
from kdpipe.targets.devices.messages import Facts, Message, PredictRequest, Request
from kdpipe.targets.instruction_sets import ARCHITECTURES, named
from kdpipe.targets.measurements import DeviceFacts
from kdpipe.targets.profile import RuntimeNeed
from kdpipe.targets.runtimes.runtime import what_helps

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


@dataclass(frozen=True)
class Machine:
    """A device of a build. `identity`: what it was when the build was planned."""

    name: str
    settings: Settings
    identity: Mapping[str, JsonValue]


def same_as_planned(device: Device, machine: Machine) -> DeviceFacts:
    """The machine's facts now; UnavailableError where it is not what it was when the build was planned."""
    facts = device.facts()
    changes = changed(machine.identity, identity_of(facts))
    if changes:
        raise UnavailableError(
            f"device {machine.name} changed since the build was planned: {'; '.join(changes)}",
            at=f"device {machine.name}",
            do="run kdpipe build again: it measures the device as it is now",
        )
    return facts


def changed(before: Mapping[str, JsonValue], after: Mapping[str, JsonValue]) -> tuple[str, ...]:
    """What differs between two identities, in words: `onnxruntime 1.22.0 → 1.23.1`, `cores 4 → 2`."""
    words: list[str] = []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            words += changed(old, new)
        elif isinstance(old, list) and isinstance(new, list):
            gone, come = [it for it in old if it not in new], [it for it in new if it not in old]
            words += [f"{key}: {', '.join([*(f'-{it}' for it in gone), *(f'+{it}' for it in come)])}"] if gone or come else []
        elif old != new:
            words.append(f"{key} {'none' if old is None else old} → {'none' if new is None else new}")
    return tuple(words)


def require_runtime_there(facts: DeviceFacts, runtime: str, versions: str, *, at: str) -> str:
    """The version of the runtime on the device, when it is in the range `versions`; UnavailableError when it is missing or another."""
    there = facts.runtimes.get(runtime)
    install = f"{facts.runtimes.get('python', 'python')}: python -m pip install '{runtime}{versions}'"
    if ":" in runtime:
        raise UnavailableError(
            f"the runtime {runtime} is your own: it runs on this host only", at=at, do="measure in a runtime that ships: onnxruntime, openvino"
        )
    module = module_of(runtime)
    if there is None and module != runtime and module in facts.runtimes:
        able = ", ".join(name for name in facts.runtimes if module_of(name) == module)
        raise UnavailableError(f"device {facts.name} cannot run {runtime}: its {module} {facts.runtimes[module]} has {able}", at=at, do=what_helps(runtime))
    if there is None:
        raise UnavailableError(f"the runtime {runtime} is not installed on device {facts.name}", at=at, do=f"install it there, in its Python {install}")
    if not SpecifierSet(versions).contains(there, prereleases=True):
        raise UnavailableError(f"device {facts.name} has {runtime} {there}, {versions} is needed", at=at, do=f"install it there, in its Python {install}")
    return there


def runnable_there(facts: DeviceFacts, needs: Sequence[RuntimeNeed], *, at: str) -> tuple[list[RuntimeNeed], list[str]]:
    """The runtimes of `needs` that the device has, and for each that it has not, what is so not measured.

    Raises UnavailableError where it has none of them, or has one in a version that is not in the range.
    """
    there = [need for need in needs if need.name in facts.runtimes]
    for need in there or needs:
        require_runtime_there(facts, need.name, need.versions, at=at)
    return there, [f"not measured: {need.name} is not installed on device {facts.name}" for need in needs if need not in there]


def device_facts(name: str, kind: str, told: Facts) -> DeviceFacts:
    """What the agent told of the machine, instruction sets by our names."""
    machine = ARCHITECTURES.get(told.architecture.lower())
    return DeviceFacts(
        name=name,
        kind=kind,
        cpu=told.cpu,
        architecture=told.architecture,
        emulator=told.emulator,
        instruction_sets=tuple(sorted(named(told.flags) | ({machine} if machine else set()))),
        cores=told.cores,
        governor=told.governor,
        clock_mhz=told.clock_mhz,
        temperature_celsius=told.temperature_celsius,
        memory_bytes=told.memory_bytes,
        runtimes=told.runtimes,
    )


def why_no_latency(device: Device, facts: DeviceFacts) -> str | None:
    """Why times of this machine mean nothing: its kind says so, or its programs turn out to be emulated; None: they count."""
    if device.no_latency is None and facts.emulator is not None:
        return f"not measured: what runs on device {facts.name} is emulated ({facts.emulator}), and an emulator's time says nothing of the chip's"
    return device.no_latency


def identity_of(facts: DeviceFacts) -> dict[str, JsonValue]:
    """CPU, architecture, instruction sets, cores and runtime versions; clock, temperature, governor and memory are left out."""
    emulated: dict[str, JsonValue] = {"emulator": facts.emulator} if facts.emulator is not None and facts.kind != "emulated" else {}
    return {
        **emulated,
        "name": facts.name,
        "cpu": facts.cpu,
        "architecture": facts.architecture,
        "instruction_sets": list(facts.instruction_sets),
        "cores": facts.cores,
        "runtimes": dict(sorted(facts.runtimes.items())),
    }
