"""Throughput of several files on one device: how many samples a second they get through when all cores are asked at once."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kdpipe.foundation.randomness import numpy_stream
from kdpipe.targets import throughput
from kdpipe.targets.clock_watch import require_all, watched
from kdpipe.targets.conditions import judged
from kdpipe.targets.devices.device import Device
from kdpipe.targets.devices.messages import BenchRequest, ComparisonDone, ComparisonRequest, ModelFile, ThroughputWindows, Watched
from kdpipe.targets.measurements import Conditions, ModelName, Rate, Throughput

WINDOW_SECONDS = 0.1  # callers end within one run of each other, which must be a small part of it
_AGAIN = "\0again"  # the baseline once more: what equal files differ by


@dataclass(frozen=True)
class Load:
    """How the models are asked: `streams` callers at the same time, each with `threads` threads. `runtime_name`: `onnxruntime 1.32.0 CPU`."""

    id: str
    runtime: str
    runtime_name: str
    batch: int
    threads: int
    streams: int

    @property
    def title(self) -> str:
        """For messages: `onnxruntime, batch 32, 2 callers of 1 thread`."""
        callers = f"{self.streams} caller{'s' if self.streams > 1 else ''}"
        return f"{self.runtime}, batch {self.batch}, {callers} of {self.threads} thread{'s' if self.threads > 1 else ''}"


@dataclass(frozen=True)
class Measured:
    """Of each model its figure and its ratio to the baseline (None: it is the baseline); `conditions` None: the device does not tell."""

    rates: Mapping[str, tuple[Rate, Rate | None]]
    windows: int
    conditions: Conditions | None
    warnings: tuple[str, ...]

    def figure(self, name: str, load: Load, *, to_float: bool) -> Throughput:
        """The result of the model `name`; `to_float`: the baseline was the float student."""
        rate, ratio = self.rates[name]
        model: ModelName = "float" if to_float and ratio is None else "teacher" if name == "teacher" else "int8"
        return Throughput(
            model=model,
            runtime=load.runtime_name,
            batch=load.batch,
            threads=load.threads,
            streams=load.streams,
            windows=self.windows,
            samples_per_second=rate,
            ratio_to_float=ratio if to_float else None,
        )


def streams_of(asked: int | None, cores: int, threads: int) -> int:
    """How many callers: as many as were asked for, else as many as the cores have room for."""
    return asked or max(1, cores // threads)


def measured(
    device: Device, load: Load, files: Mapping[str, Path], baseline: str, inputs: Path, *, seconds: float, warmup_seconds: float, seed: int
) -> Measured:
    """The throughput of `files` in interleaved windows, the baseline twice. Raises UnavailableError as `Device.ask` does."""
    models = (*(ModelFile(name=name, path=path) for name, path in files.items()), ModelFile(name=_AGAIN, path=files[baseline]))
    comparison = ComparisonRequest(
        id=load.id,
        runtime=load.runtime,
        threads=load.threads,
        batch=load.batch,
        hint="throughput",
        inputs=inputs,
        models=models,
        mode="throughput",
        streams=load.streams,
    )
    limit = max(60.0, 4 * seconds)
    request = BenchRequest(
        comparisons=(comparison,), seconds=seconds, runs=1, windows=5, window_seconds=WINDOW_SECONDS, warmup_seconds=warmup_seconds, limit_seconds=limit
    )
    windows: dict[str, throughput.CallerWindows] = {}
    seen: list[Watched] = []
    warnings = []
    for message in watched(device.ask("bench", request, limit_seconds=2 * (limit + warmup_seconds) + 60), device=device.name):
        if isinstance(message, ThroughputWindows):
            windows[message.model] = message.windows
        elif isinstance(message, ComparisonDone):
            warnings += [] if all(message.warm.values()) else [f"{load.title}: not stable when the warm-up ended"]
            seen += [message.conditions] if message.conditions is not None else []
    require_all(windows, (model.name for model in models), device=device.name)
    own = throughput.measured(windows, numpy_stream(seed, f"bench/{load.id}"))
    noise, drift = throughput.noise_of(own[_AGAIN], own[baseline]), throughput.drift_of(own[baseline])
    met = [judged(it, noise, drift, runtime=load.runtime_name, batch=load.batch, threads=load.threads, streams=load.streams) for it in seen]
    rates = {name: (throughput.rate_of(own[name], load.batch), None if name == baseline else throughput.ratio_of(own[name], own[baseline])) for name in files}
    return Measured(rates, len(windows[baseline]), met[0] if met else None, tuple(warnings))


def loads(settings: Iterable[tuple[str, str]], *, batch: int, threads: int, streams: int) -> Iterator[Load]:
    """A load for each (runtime, its name with version) of `settings`, each runtime once."""
    for runtime, name in dict(settings).items():
        yield Load(f"{runtime}/batch-{batch}/threads-{threads}/streams-{streams}", runtime, name, batch, threads, streams)
