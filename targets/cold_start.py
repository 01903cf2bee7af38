"""Model load, first inference and peak memory, each time in a fresh process on the device."""

from statistics import median

from kdpipe.foundation.errors import UnavailableError
from kdpipe.targets.devices.device import Device
from kdpipe.targets.devices.messages import StartMeasured, StartRequest
from kdpipe.targets.measurements import ModelName, Start

LIMIT_SECONDS = 120.0


def cold_start(device: Device, model: ModelName, request: StartRequest, *, runtime_name: str, times: int = 1) -> Start:
    """The medians over `times` fresh processes. The runtime's own import is not counted: a deployed program pays it once.

    The file lies in the system's cache after the first time, so that `load_ms` is without the disk.
    """
    starts = [_once(device, request) for _ in range(times)]
    return Start(
        model=model,
        runtime=runtime_name,
        load_ms=median(start.load_ns for start in starts) / 1e6,
        first_inference_ms=median(start.first_inference_ns for start in starts) / 1e6,
        peak_memory_bytes=int(median(start.peak_memory_bytes for start in starts)),
    )


def _once(device: Device, request: StartRequest) -> StartMeasured:
    for message in device.ask("start", request, limit_seconds=LIMIT_SECONDS):
        if isinstance(message, StartMeasured):
            return message
    raise UnavailableError("the device measured no start", at=f"device {device.name}", do="run it again")
