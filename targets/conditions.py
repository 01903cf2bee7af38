"""Whether a latency can be claimed: the verdict on what the machine did while one comparison was measured.

`throttled`: the hardware slowed itself down meanwhile, so the figures are of its cooling. `noisy`: equal models came out different by more than
NOISE_FLOOR, so smaller differences between others show nothing. Else `claimable`, down to the difference that the A/A pair gives.
"""

from collections.abc import Iterator

from kdpipe.targets.devices.messages import Watched
from kdpipe.targets.latency import DRIFTED, NOISE_FLOOR
from kdpipe.targets.measurements import Conditions, Percentile

PUBLISHED_SECONDS = 10.0
"""The shortest measured time of a figure that is published (DESIGN §7.5)."""
CLOCK_FELL = 0.9  # the lowest clock over the first: a governor's own steps are smaller under full load
OTHERS_FLOOR = 0.05  # of the time of our cores, taken by others
STOLEN_FLOOR = 0.01


def judged(watched: Watched, noise: Percentile, drift: float | None, *, runtime: str, batch: int, threads: int, streams: int | None = None) -> Conditions:
    """The conditions with their verdict. `noise`: the ratio of the A/A pair; `drift`: how much slower the last third was than the first, as a share."""
    resolution = None if noise.low_ms is None or noise.high_ms is None else max(abs(noise.low_ms - 1), abs(noise.high_ms - 1))
    reasons = tuple(_reasons(watched, drift))
    if throttled(watched, drift):
        verdict, told = "throttled", "throttled: not claimable"
    elif resolution is None:
        verdict, told = "noisy", f"noisy: the A/A pair says nothing ({noise.reason})"
    elif resolution > NOISE_FLOOR:
        verdict, told = "noisy", f"noisy: differences below {100 * resolution:.1f} % not claimable"
    else:
        verdict, told = "claimable", "claimable"
    return Conditions(
        runtime=runtime,
        batch=batch,
        threads=threads,
        streams=streams,
        verdict=verdict,
        told=told,
        resolution_percent=None if resolution is None else 100 * resolution,
        reasons=reasons,
        short=watched.seconds < PUBLISHED_SECONDS,
        **watched.model_dump(),
    )


def throttled(watched: Watched, drift: float | None) -> bool:
    """The hardware counted it or says so; or its clock fell and the models became slower with it."""
    first, lowest, _ = watched.clock_mhz
    fell = first is not None and lowest is not None and lowest < CLOCK_FELL * first
    return bool(watched.throttle_events) or bool(watched.held_back) or (fell and drift is not None and drift > DRIFTED)


def _reasons(watched: Watched, drift: float | None) -> Iterator[str]:
    if watched.throttle_events:
        yield f"the hardware counted {watched.throttle_events} throttle events"
    if watched.held_back:
        yield "the board says that it is held back (voltage or heat)"
    first, lowest, _ = watched.clock_mhz
    if first is not None and lowest is not None and lowest < CLOCK_FELL * first:
        yield f"the clock fell from {first:.0f} to {lowest:.0f} MHz"
    if drift is not None and abs(drift) > DRIFTED:
        yield f"the last third was {100 * abs(drift):.0f} % {'slower' if drift > 0 else 'faster'} than the first"
    if watched.others_share is not None and watched.others_share > OTHERS_FLOOR:
        yield f"other programs took {100 * watched.others_share:.0f} % of its cores"
    if watched.stolen_share is not None and watched.stolen_share > STOLEN_FLOOR:
        yield f"the hypervisor took {100 * watched.stolen_share:.0f} % of its cores"
    if watched.siblings:
        yield f"CPUs {', '.join(map(str, watched.siblings))} share its physical cores"
    if watched.seconds < PUBLISHED_SECONDS:
        yield f"short measurement: {watched.seconds:.1f} s, {PUBLISHED_SECONDS:g} s are due for a figure that is published"
