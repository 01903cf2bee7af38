"""Whether a device's clock ran as ours did while it measured; what a jumping or lying clock gives is no latency.

The device says how long its own clock ran from its `hello` to the end of measuring, and says it at that moment; we hold it
against our monotonic clock. Also no model can have been timed for longer than all of it took.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from kdpipe.foundation.errors import UnavailableError
from kdpipe.targets.devices.messages import Elapsed, Hello, Message, ThroughputWindows, Windows

TOLERATED_SHARE = 0.05
TOLERATED_SECONDS = 2.0  # a busy host or a slow link hears of it late


def require_all(windows: Mapping[str, Sequence[object]], models: Iterable[str], *, device: str) -> None:
    """Raises UnavailableError unless the device told of each model, and of as many windows of each: figures of one comparison are paired."""
    counts = {name: len(windows.get(name, ())) for name in models}
    if min(counts.values()) == 0 or len(set(counts.values())) > 1:
        told = ", ".join(f"{name.strip(chr(0))} {count}" for name, count in counts.items())
        raise UnavailableError(
            f"the device did not measure its models in turn: windows of {told}",
            at=f"device {device}",
            do="run it again; if it stays, the agent there is damaged",
        )


def watched(messages: Iterable[Message], *, device: str) -> Iterator[Message]:
    """The messages of a `bench`, passed on at once. Raises UnavailableError when the device's clock did not run as ours."""
    begun, there, timed_ns = time.monotonic(), None, 0
    for message in messages:
        if isinstance(message, Hello):
            begun = time.monotonic()
        elif isinstance(message, Elapsed):
            here, there = time.monotonic() - begun, message.ns / 1e9
            if abs(here - there) > TOLERATED_SECONDS + TOLERATED_SHARE * here:
                raise UnavailableError(
                    f"the device's clock jumped while measuring: {there:.1f} s passed there, {here:.1f} s here",
                    at=f"device {device}",
                    do="let its time service settle (timedatectl), keep it from sleeping, then measure again; nothing of this run is used",
                )
        elif isinstance(message, Windows | ThroughputWindows):
            timed_ns += sum(map(sum, message.ns)) if isinstance(message, Windows) else sum(max(ns for _, ns in window) for window in message.windows)
            if there is None or timed_ns / 1e9 > there:
                raise UnavailableError(
                    f"the device's times cannot be: {timed_ns / 1e9:.1f} s of runs in {there or 0:.1f} s of measuring",
                    at=f"device {device}",
                    do="its clock is wrong or its agent is damaged: check both, then measure again",
                )
        yield message
