"""Energy per inference where the device has a counter (RAPL, hwmon); else the reason."""

import statistics

from kdpipe.foundation.errors import UnavailableError
from kdpipe.targets.devices.device import Device
from kdpipe.targets.devices.messages import EnergyMeasured, EnergyRequest, NoEnergy
from kdpipe.targets.measurements import Energy, ModelName

_BESIDE_SECONDS = 120.0  # loading the models


def energy(device: Device, request: EnergyRequest, models: tuple[ModelName, ...], *, runtime_name: str) -> tuple[Energy, ...] | str:
    """The energy of each of `models` (names in `request`), or why it is not measured.

    Raises UnavailableError as `Device.ask`, and where a round has no run in it.
    """
    limit = request.rounds * request.seconds * (len(request.models) + 1) * 3 + _BESIDE_SECONDS
    told: dict[str | None, EnergyMeasured] = {}
    for message in device.ask("energy", request, limit_seconds=limit):
        if isinstance(message, NoEnergy):
            return message.reason
        if isinstance(message, EnergyMeasured):
            told[message.model] = message
    if set(told) != {None, *models} or any(runs == 0 for it in told.values() for _, runs, _ in it.rounds):
        raise UnavailableError(
            "the device's energy is not that of every model", at=f"device {device.name}", do="run it again; if it stays, the agent there is damaged"
        )
    rest_watts = statistics.median(joules / seconds for joules, _, seconds in told[None].rounds)
    if not any(joules for it in told.values() for joules, _, _ in it.rounds):
        return f"not measured: {told[None].counter} did not move"
    return tuple(_of_model(name, told[name], request, runtime_name, rest_watts) for name in models)


def _of_model(name: ModelName, told: EnergyMeasured, request: EnergyRequest, runtime_name: str, rest_watts: float) -> Energy:
    each = sorted(1000 * joules / runs for joules, runs, _ in told.rounds)
    return Energy(
        model=name,
        runtime=runtime_name,
        batch=request.batch,
        threads=request.threads,
        counter=told.counter,
        rounds=len(each),
        millijoules=statistics.median(each),
        lowest_millijoules=each[0],
        highest_millijoules=each[-1],
        rest_watts=rest_watts,
    )
