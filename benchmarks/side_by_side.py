"""Files timed in turn on this host: what the benchmarks that compare files share."""

from kdpipe.targets import latency
from kdpipe.targets.devices.local import LocalDevice
from kdpipe.targets.devices.messages import BenchRequest, Windows


def windows_of(request: BenchRequest, *, limit_seconds: float) -> dict[str, latency.Windows]:
    """The samples of each model of the request's one comparison, in nanoseconds, window by window."""
    messages = LocalDevice().ask("bench", request, limit_seconds=limit_seconds)
    return {message.model: message.arrays for message in messages if isinstance(message, Windows)}
