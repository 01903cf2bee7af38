"""What a device is to the rest of kdpipe: a machine that answers the agent's three requests."""

from collections.abc import Iterator, Mapping
from typing import Literal, Protocol

from pydantic import JsonValue

from kdpipe.targets.devices.messages import BenchRequest, Message, StartRequest
from kdpipe.targets.measurements import DeviceFacts

Command = Literal["probe", "bench", "start"]


class Device(Protocol):
    """A concrete machine. All that another kind (SSH, emulated) has to bring is this."""

    name: str

    def facts(self) -> DeviceFacts:
        """The machine now, with what changes from minute to minute (clock, temperature)."""
        ...

    def identity(self) -> Mapping[str, JsonValue]:
        """What of the facts stays as it is and changes a measurement: for fingerprints."""
        ...

    def ask(self, command: Command, request: BenchRequest | StartRequest | None = None, *, limit_seconds: float) -> Iterator[Message]:
        """The agent's messages, in a fresh process there, without the closing `done`.

        Raises UnavailableError when it cannot start, fails, is silent for `limit_seconds` in all, or breaks off.
        """
        ...
