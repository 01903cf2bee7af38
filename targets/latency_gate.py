"""Is NEW slower than OLD? A regression gate for latency that can be believed on a machine where other programs run.

What is compared is the ratio of the medians, NEW's over OLD's. A fresh process loads both, twice, in either order; it runs them in short windows
ABBA ABBA …, so that whatever the machine does in those milliseconds it does to both. Four windows (two of each) give a log ratio, a load's
figure is the median of its log ratios, a process's is the mean of its two loads. **Processes are the replicates**: the same file, loaded again,
lies elsewhere in memory and differs by some tenths of a per cent for as long as it stays loaded, which no number of windows in one process shows.

After 4, 6, 9, … processes the t interval of their figures is held against the threshold. The errors of all looks together are at most
`ERROR` on each side (alpha spending: the k-th look may spend ERROR / 2^k), so looking early costs nothing of what is promised.
Source: Lan & DeMets 1983, Biometrika 70 (spending); Kalibera & Jones 2013, ISMM, section 6 (replicates at the level that varies).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field

from kdpipe.targets.clock_watch import require_all, watched
from kdpipe.targets.conditions import OTHERS_FLOOR, STOLEN_FLOOR
from kdpipe.targets.devices.device import Device
from kdpipe.targets.devices.messages import BenchRequest, ComparisonDone, ComparisonRequest, ModelFile, Watched, Windows
from kdpipe.targets.latency import nearest_rank

Verdict = Literal["regression", "no regression", "could not tell"]

ERROR = 0.01
"""Chance of calling NEW slower than the threshold when it is exactly that much slower, over all looks; of clearing it then, the same."""
LOOKS: tuple[tuple[int, float], ...] = ((4, 5.8409), (6, 4.7733), (9, 4.3335), (13, 4.1918), (19, 4.1327), (28, 4.1312), (42, 4.1648))
"""Processes at each look, and Student's t for n - 1 degrees of freedom at ERROR / 2^k; scipy's values, a test compares."""

WINDOW_SECONDS = 0.003
WINDOWS = 24  # of each model in a load
_SETTLING_SECONDS = 0.3  # most time for warming up a load
_NAMES = ("old", "new")


@dataclass(frozen=True)
class Pair:
    """What is compared, and how it is run. `inputs`: .npy, float32 (n, *shape)."""

    old: Path
    new: Path
    runtime: str
    inputs: Path
    threads: int = 1
    batch: int = 1
    hint: Literal["latency", "throughput"] = "latency"


class GateResult(BaseModel, extra="forbid", frozen=True):
    """The verdict and what it rests on. Ratios are NEW's median latency over OLD's: 1.10 is 10 % slower."""

    verdict: Verdict
    slower_than: float = Field(description="the threshold as a share: 0.05")
    ratio: float
    low: float
    high: float
    confidence: float = Field(description="of the interval, whenever the comparison stopped")
    process_ratios: tuple[float, ...] = Field(description="one figure per fresh process")
    old_p50_ms: float = Field(description="median over the processes' medians")
    new_p50_ms: float
    runs: int = Field(description="timed runs of both models in all")
    seconds: float
    cores: tuple[int, ...] = Field((), description="logical CPUs that the processes were kept on, each on as many as it has threads")
    others_share: float | None = Field(None, description="of the time of those cores, taken by other programs")
    stolen_share: float | None = Field(None, description="of the time of those cores, taken by the hypervisor")
    throttle_events: int | None = Field(None, description="how often the hardware slowed itself down; None: it does not count")

    @property
    def reasons(self) -> tuple[str, ...]:
        """What else the machine did: it widens the interval, and where the hardware held back, it held both models back."""
        others, stolen = self.others_share or 0.0, self.stolen_share or 0.0
        return (
            *([f"throttled: the hardware counted {self.throttle_events} events; both models ran under them"] if self.throttle_events else []),
            *([f"other programs took {100 * others:.0f} % of its cores"] if others > OTHERS_FLOOR else []),
            *([f"the hypervisor took {100 * stolen:.0f} % of its cores"] if stolen > STOLEN_FLOOR else []),
        )

    @property
    def regressed(self) -> bool:
        """NEW is shown to be slower than the threshold."""
        return self.verdict == "regression"


@dataclass(frozen=True)
class Replicate:
    """One process: the log of NEW's median over OLD's, both medians in ns, and how many runs they rest on."""

    log_ratio: float
    old_ns: float
    new_ns: float
    runs: int
    watched: tuple[Watched, ...] = ()


def decide(log_ratios: Sequence[float], slower_than: float) -> tuple[Verdict, float, float]:
    """The verdict of the last look that these processes (at least 4) allow, and the bounds of the log ratio it rests on."""
    critical = [t for count, t in LOOKS if count <= len(log_ratios)][-1]
    figures = np.asarray(log_ratios, dtype=np.float64)
    half = critical * float(figures.std(ddof=1)) / math.sqrt(len(figures))
    low, high = float(figures.mean()) - half, float(figures.mean()) + half
    threshold = math.log1p(slower_than)
    return ("regression" if low > threshold else "no regression" if high < threshold else "could not tell"), low, high


def log_ratio(old: Sequence[Sequence[int]], new: Sequence[Sequence[int]]) -> float:
    """The log ratio of one load: the median over groups of four neighbouring windows (turns AB and BA) of the log of NEW's median over OLD's.

    `old`, `new`: nanoseconds, window by window, equally many windows. No sample is dropped; a median stays where it is when a few are slow.
    """
    groups = range(0, max(1, len(old) - 1), 2)
    return float(np.median([math.log(_median(new[at : at + 2]) / _median(old[at : at + 2])) for at in groups]))


def gate(
    device: Device, pair: Pair, *, slower_than: float = 0.05, limit_seconds: float = 120.0, progress: Callable[[int], None] = lambda processes: None
) -> GateResult:
    """Whether `pair.new` is slower than `pair.old` on the device; ends at the first look that can tell, at the last, or before the limit is passed.

    `progress` hears how many processes were measured. Raises UnavailableError as `Device.ask` does; at least the first look is always measured.
    """
    begin = time.monotonic()
    measured: list[Replicate] = []
    verdict: Verdict = "could not tell"
    low = high = 0.0
    for count, _ in LOOKS:
        spent = time.monotonic() - begin
        if measured and spent * count / len(measured) > limit_seconds:
            break
        while len(measured) < count:
            measured.append(replicate(device, pair))
            progress(len(measured))
        verdict, low, high = decide([it.log_ratio for it in measured], slower_than)
        if verdict != "could not tell":
            break
    figures = [it.log_ratio for it in measured]
    watched_there = [each for it in measured for each in it.watched]
    counted = [each.throttle_events for each in watched_there if each.throttle_events is not None]
    return GateResult(
        verdict=verdict,
        slower_than=slower_than,
        ratio=math.exp(float(np.mean(figures))),
        low=math.exp(low),
        high=math.exp(high),
        confidence=1 - 2 * ERROR,
        process_ratios=tuple(math.exp(figure) for figure in figures),
        old_p50_ms=float(np.median([it.old_ns for it in measured])) / 1e6,
        new_p50_ms=float(np.median([it.new_ns for it in measured])) / 1e6,
        runs=sum(it.runs for it in measured),
        seconds=time.monotonic() - begin,
        cores=tuple(sorted({core for it in watched_there for core in it.cores})),
        others_share=_mean([it.others_share for it in watched_there]),
        stolen_share=_mean([it.stolen_share for it in watched_there]),
        throttle_events=None if not counted else sum(counted),
    )


def replicate(device: Device, pair: Pair) -> Replicate:
    """One fresh process on the device that loads both models twice, in either order."""
    files = tuple(ModelFile(name=name, path=path) for name, path in zip(_NAMES, (pair.old, pair.new), strict=True))
    comparisons = tuple(
        ComparisonRequest(id=str(number), runtime=pair.runtime, threads=pair.threads, batch=pair.batch, hint=pair.hint, inputs=pair.inputs, models=models)
        for number, models in enumerate((files, files[::-1]))
    )
    request = BenchRequest(
        comparisons=comparisons, seconds=0.01, runs=1, windows=WINDOWS, window_seconds=WINDOW_SECONDS, warmup_seconds=_SETTLING_SECONDS, limit_seconds=60
    )
    loads: dict[tuple[str, str], tuple[tuple[int, ...], ...]] = {}
    conditions: list[Watched] = []
    for message in watched(device.ask("bench", request, limit_seconds=240), device=device.name):
        if isinstance(message, Windows):
            loads[message.comparison, message.model] = message.ns
        elif isinstance(message, ComparisonDone) and message.conditions is not None:
            conditions.append(message.conditions)
    for it in comparisons:
        require_all({name: loads.get((it.id, name), ()) for name in _NAMES}, _NAMES, device=device.name)
    ratios = [log_ratio(loads[it.id, "old"], loads[it.id, "new"]) for it in comparisons]
    old, new = (np.concatenate([np.concatenate(loads[it.id, name]) for it in comparisons]) for name in _NAMES)
    return Replicate(float(np.mean(ratios)), nearest_rank(old, 50), nearest_rank(new, 50), len(old) + len(new), tuple(conditions))


def _mean(shares: Sequence[float | None]) -> float | None:
    told = [share for share in shares if share is not None]
    return float(np.mean(told)) if told else None


def _median(windows: Sequence[Sequence[int]]) -> float:
    return float(np.median(np.concatenate(windows)))
