"""`kdpipe bench` as a function: finished bundles on devices. One file in many places, and several files against each other in one."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field

from kdpipe.foundation.errors import ConfigError
from kdpipe.foundation.randomness import numpy_stream
from kdpipe.pipeline.device_records import keep, record_of
from kdpipe.pipeline.device_sections import HOST, is_this_host
from kdpipe.pipeline.device_setup import require_device, seen_now_from
from kdpipe.pipeline.evaluation_basis import Asked as BasisAsked
from kdpipe.pipeline.evaluation_basis import Basis, basis_of, read_bundle
from kdpipe.pipeline.manifest import MANIFEST_FILE
from kdpipe.pipeline.variants import expanded
from kdpipe.robustness.intervals import BoolArray
from kdpipe.stages import throughput
from kdpipe.stages.bench import Setting, latency_figure
from kdpipe.stages.device_quality import DeviceQuality, judged_on, spread
from kdpipe.stages.stage import Progress
from kdpipe.targets import latency
from kdpipe.targets.clock_watch import require_all, watched
from kdpipe.targets.cold_start import cold_start
from kdpipe.targets.conditions import judged
from kdpipe.targets.devices.device import Device, require_runtime_there, runnable_there, why_no_latency
from kdpipe.targets.devices.local import LocalDevice
from kdpipe.targets.devices.messages import BenchRequest, ComparisonDone, ComparisonRequest, EnergyRequest, ModelFile, StartRequest, Watched, Windows
from kdpipe.targets.energy import energy
from kdpipe.targets.measurements import Conditions, DeviceFacts, Energy, Latency, Percentile, Rate, Start, Throughput
from kdpipe.targets.profile import Profile, RuntimeNeed
from kdpipe.targets.runtimes.runtime import runtime_of, session_name

MODEL_FILE = "model.onnx"

_AGAIN = "\0again"  # the first bundle once more: what equal files differ by; no folder has such a name
_PERCENTILE = 90
_WARMUP_SECONDS = 1.0
_SAMPLES = 64


@dataclass(frozen=True)
class Asked:
    """What the caller names. `devices`: names of the project's `[devices]`, or `host`; `project`, `data` None: the first bundle's."""

    devices: tuple[str, ...] = (HOST,)
    project: Path | None = None
    data: str | None = None
    seconds: float = 10.0
    batch: int = 1
    threads: int = 1
    mode: Literal["single-stream", "throughput"] = "single-stream"
    streams: int | None = None


class BundleQuality(BaseModel, extra="forbid", frozen=True):
    """A bundle's accuracy in one runtime on one device."""

    bundle: str
    quality: DeviceQuality


class BundleSpread(BaseModel, extra="forbid", frozen=True):
    """How far apart the accuracies of one file lie: the best place minus the worst, in points, with a paired 95 % interval."""

    bundle: str
    places: int
    best: str
    worst: str
    value: float
    low: float
    high: float


class BundleLatency(BaseModel, extra="forbid", frozen=True):
    """A bundle's latency; `ratio_to_first`: p50 over the first bundle's, paired windows, None for that one."""

    bundle: str
    device: str
    latency: Latency
    ratio_to_first: Percentile | None


class BundleThroughput(BaseModel, extra="forbid", frozen=True):
    """A bundle's throughput; `ratio_to_first`: over the first bundle's, above 1 is more, None for that one."""

    bundle: str
    device: str
    throughput: Throughput
    ratio_to_first: Rate | None


class DeviceConditions(BaseModel, extra="forbid", frozen=True):
    """What a device did during one comparison, and whether its figures can be claimed."""

    device: str
    conditions: Conditions


class BundleStart(BaseModel, extra="forbid", frozen=True):
    """A bundle in a fresh process."""

    bundle: str
    device: str
    start: Start


class BundleEnergy(BaseModel, extra="forbid", frozen=True):
    """A bundle's energy."""

    bundle: str
    device: str
    energy: Energy


class Benched(BaseModel, extra="forbid", frozen=True):
    """Everything that was measured; `not_measured`: what was not, each with its reason."""

    devices: tuple[DeviceFacts, ...]
    accuracies: tuple[BundleQuality, ...]
    spreads: tuple[BundleSpread, ...]
    latencies: tuple[BundleLatency, ...]
    starts: tuple[BundleStart, ...]
    energies: tuple[BundleEnergy, ...]
    not_measured: tuple[str, ...] = Field(())
    warnings: tuple[str, ...] = Field(())
    throughputs: tuple[BundleThroughput, ...] = ()
    conditions: tuple[DeviceConditions, ...] = ()


@dataclass(frozen=True)
class _Bundle:
    name: str
    model: Path
    profile: Profile


@dataclass
class _Found:
    """What comes together while devices are measured one after the other."""

    devices: list[DeviceFacts]
    accuracies: list[BundleQuality]
    correct: dict[str, dict[str, BoolArray]]
    """bundle to place to which samples were right"""
    latencies: list[BundleLatency]
    starts: list[BundleStart]
    energies: list[BundleEnergy]
    not_measured: list[str]
    warnings: list[str]
    throughputs: list[BundleThroughput] = field(default_factory=list)
    conditions: list[DeviceConditions] = field(default_factory=list)


def bench(bundles: Sequence[Path], asked: Asked, progress: Progress) -> Benched:
    """Every bundle on every device: accuracy over the whole test split, and where the device's time counts, latency, start and energy.

    Bundles are measured in interleaved windows, the first one twice; of a bundle of variants each is one. Raises ConfigError for
    bundles that cannot be compared or a device that is not there, UnavailableError where a device is not reached or cannot be believed.
    """
    bundles = [folder for bundle in bundles for folder in expanded(bundle)]
    _require_bundles(bundles)
    basis = basis_of(bundles[0], BasisAsked(project=asked.project, data=asked.data))
    chosen = _bundles(bundles, basis)
    project = asked.project or basis.project or Path()
    found = _Found([], [], {bundle.name: {} for bundle in chosen}, [], [], [], [], [])
    devices = [device_named(name, project) for name in dict.fromkeys(asked.devices)]
    for device in devices:  # all are reached before the first is measured, which takes long
        facts = device.facts()
        found.devices.append(facts)
        if not isinstance(device, LocalDevice):
            tell_changes(project, device.name, facts, progress)
        for bundle in chosen:
            _, missing = runnable_there(facts, bundle.profile.runtimes_there(facts.runtimes), at=f"device {device.name}")
            found.not_measured += [f"{bundle.name}: {line}" for line in missing]
    for device, facts in zip(devices, found.devices, strict=True):
        with device.connected():
            _accuracies(device, facts, chosen, basis, progress, found)
            _times(device, facts, chosen, basis, asked, progress, found)
    return Benched(
        devices=tuple(found.devices),
        accuracies=tuple(found.accuracies),
        spreads=tuple(_spreads(found)),
        latencies=tuple(found.latencies),
        starts=tuple(found.starts),
        energies=tuple(found.energies),
        not_measured=tuple(found.not_measured),
        warnings=tuple(found.warnings),
        throughputs=tuple(found.throughputs),
        conditions=tuple(found.conditions),
    )


def _require_bundles(folders: Sequence[Path]) -> None:
    for folder in folders:
        if not (folder / MANIFEST_FILE).is_file():
            raise ConfigError(
                "no bundle here", at=folder, do="name a folder that kdpipe build wrote: dist/PROJECT/TARGET; of two files: kdpipe compare --latency"
            )


def _bundles(folders: Sequence[Path], basis: Basis) -> list[_Bundle]:
    """The bundles, under names that tell them apart. ConfigError where one was judged on other data than the first."""
    made: list[_Bundle] = []
    for number, folder in enumerate(folders):
        if folder.resolve() in (other.resolve() for other in folders[:number]):
            raise ConfigError("the same bundle twice", at=folder, do="name it once; the first one is measured twice by itself")
        bundle = read_bundle(folder)
        if basis.bundle is not None and bundle.data != basis.bundle.data:
            raise ConfigError("it was built on other data than the first bundle", at=folder, do="measure it by itself")
        profile = Profile.model_validate(bundle.values["targets"][bundle.target]["profile"])
        name = f"{bundle.project}/{bundle.target}"
        taken = any(other.name == name for other in made)  # of a build elsewhere
        made.append(_Bundle(str(folder) if taken else name, folder / MODEL_FILE, profile))
    return made


def device_named(name: str, project: Path) -> Device:
    """The project's device of this name, or this host; nothing is reached yet. ConfigError: unknown name."""
    if is_this_host(name, project):
        return LocalDevice()
    return require_device(project, name).device(name, project)


def tell_changes(project: Path, name: str, facts: DeviceFacts, progress: Progress) -> None:
    """Says what changed on the device since it was last reached, and keeps what it is now."""
    settings = require_device(project, name)
    record = record_of(project, name, settings)
    for change in seen_now_from(record.facts, facts) if record else ():
        progress.say(f"device {name} changed since it was last reached: {change}")
    keep(project, name, settings, facts)


def _accuracies(device: Device, facts: DeviceFacts, bundles: Sequence[_Bundle], basis: Basis, progress: Progress, found: _Found) -> None:
    for bundle in bundles:
        needs = bundle.profile.runtimes_there(facts.runtimes)
        for it in judged_on(device, facts, bundle.model, needs, basis.data.test, progress, hint=bundle.profile.bench.hint):
            found.accuracies.append(BundleQuality(bundle=bundle.name, quality=it.quality))
            found.correct[bundle.name][f"{runtime_of(it.quality.runtime)} on {device.name}"] = it.correct


def _times(device: Device, facts: DeviceFacts, bundles: Sequence[_Bundle], basis: Basis, asked: Asked, progress: Progress, found: _Found) -> None:
    measurable, sets = [], frozenset(facts.instruction_sets)
    for bundle in bundles:
        reason = why_no_latency(device, facts) or bundle.profile.why_not_measurable(sets, where=f"device {device.name}", runtimes=facts.runtimes)
        if reason is None:
            measurable.append(bundle)
        else:
            found.not_measured.append(f"latency of {bundle.name} on {device.name}: {reason}")
    test = basis.data.test
    samples = test.read(np.linspace(0, len(test) - 1, min(len(test), max(_SAMPLES, 8 * asked.batch))).astype(np.int64))
    comparisons = list(_comparisons(measurable, facts, asked))
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npy"
        np.save(inputs, samples)
        for setting, together in progress(comparisons, f"latency on {device.name}", total=len(comparisons), unit="comparison"):
            if asked.mode == "throughput":
                _loaded(device, facts, setting, together, inputs, asked, basis.seed, found)
                continue
            _compared(device, setting, together, inputs, asked, basis.seed, found)
            _started(device, setting, together, inputs, found)
            _energy(device, setting, together, inputs, asked, found)


def _comparisons(bundles: Sequence[_Bundle], facts: DeviceFacts, asked: Asked) -> Iterator[tuple[Setting, list[_Bundle]]]:
    """Bundles that run in the same runtime with the same batch are measured together."""
    groups: dict[tuple[str, int], list[tuple[_Bundle, RuntimeNeed]]] = {}
    for bundle in bundles:
        batch = bundle.profile.static_batch if bundle.profile.batch == "static" else asked.batch
        for need in runnable_there(facts, bundle.profile.runtimes_there(facts.runtimes), at=bundle.name)[0]:
            groups.setdefault((need.name, batch), []).append((bundle, need))
    for (runtime, batch), members in groups.items():
        versions = [require_runtime_there(facts, need.name, need.versions, at=bundle.name) for bundle, need in members]
        identity = f"{runtime}/batch-{batch}/threads-{asked.threads}"
        yield Setting(identity, members[0][1], session_name(runtime, versions[0]), batch, asked.threads), [bundle for bundle, _ in members]


def _compared(device: Device, setting: Setting, bundles: Sequence[_Bundle], inputs: Path, asked: Asked, seed: int, found: _Found) -> None:
    models = (*(ModelFile(name=bundle.name, path=bundle.model) for bundle in bundles), ModelFile(name=_AGAIN, path=bundles[0].model))
    hint = bundles[0].profile.bench.hint
    comparison = ComparisonRequest(
        id=setting.id, runtime=setting.need.name, threads=setting.threads, batch=setting.batch, hint=hint, inputs=inputs, models=models
    )
    limit = max(60.0, 4 * asked.seconds)
    request = BenchRequest(
        comparisons=(comparison,), seconds=asked.seconds, runs=latency.runs_needed(_PERCENTILE), warmup_seconds=_WARMUP_SECONDS, limit_seconds=limit
    )
    windows: dict[str, latency.Windows] = {}
    inside: dict[str, latency.Windows | None] = {}
    seen: list[Watched] = []
    where = f"device {device.name}, {setting.title}"
    for message in watched(device.ask("bench", request, limit_seconds=2 * limit + 60), device=device.name):
        if isinstance(message, Windows):
            windows[message.model], inside[message.model] = message.arrays, message.inside
        elif isinstance(message, ComparisonDone):
            found.warnings += [] if all(message.warm.values()) else [f"{where}: not stable when the warm-up ended"]
            seen += [message.conditions] if message.conditions is not None else []
    require_all(windows, (model.name for model in models), device=device.name)
    measured = latency.measured(windows, numpy_stream(seed, f"bench/{setting.id}"))
    first = measured[bundles[0].name]
    for bundle in bundles:
        ratio = None if bundle is bundles[0] else latency.ratio_of(measured[bundle.name], first)
        own_clock = latency.median_inside(inside[bundle.name], numpy_stream(seed, f"bench/{setting.id}/{bundle.name}/inside"))
        figure = latency_figure(setting, "int8", measured[bundle.name], None, own_clock)
        found.latencies.append(BundleLatency(bundle=bundle.name, device=device.name, latency=figure, ratio_to_first=ratio))
    again, drift = latency.ratio_of(measured[_AGAIN], first), latency.drift_of(windows[bundles[0].name])
    for it in seen:
        met = judged(it, again, drift, runtime=setting.runtime_name, batch=setting.batch, threads=setting.threads)
        found.conditions.append(DeviceConditions(device=device.name, conditions=met))
    said = latency.noise_warning(again, where), latency.drift_warning(windows[bundles[0].name], where)
    found.warnings += [line.replace("the float model", bundles[0].name) for line in said if line]


def _loaded(device: Device, facts: DeviceFacts, setting: Setting, bundles: Sequence[_Bundle], inputs: Path, asked: Asked, seed: int, found: _Found) -> None:
    streams = throughput.streams_of(asked.streams, facts.cores, setting.threads)
    (load,) = throughput.loads([(setting.need.name, setting.runtime_name)], batch=setting.batch, threads=setting.threads, streams=streams)
    files = {bundle.name: bundle.model for bundle in bundles}
    measured = throughput.measured(device, load, files, bundles[0].name, inputs, seconds=asked.seconds, warmup_seconds=_WARMUP_SECONDS, seed=seed)
    for bundle in bundles:
        figure, ratio = measured.figure(bundle.name, load, to_float=False), measured.rates[bundle.name][1]
        found.throughputs.append(BundleThroughput(bundle=bundle.name, device=device.name, throughput=figure, ratio_to_first=ratio))
    found.conditions += [DeviceConditions(device=device.name, conditions=measured.conditions)] if measured.conditions else []
    found.warnings += [f"device {device.name}, {line}" for line in measured.warnings]


def _started(device: Device, setting: Setting, bundles: Sequence[_Bundle], inputs: Path, found: _Found) -> None:
    for bundle in bundles:
        request = StartRequest(
            runtime=setting.need.name, model=bundle.model, threads=setting.threads, batch=setting.batch, hint=bundle.profile.bench.hint, inputs=inputs
        )
        start = cold_start(device, "int8", request, runtime_name=setting.runtime_name, times=3)
        found.starts.append(BundleStart(bundle=bundle.name, device=device.name, start=start))


def _energy(device: Device, setting: Setting, bundles: Sequence[_Bundle], inputs: Path, asked: Asked, found: _Found) -> None:
    for bundle in bundles:
        request = EnergyRequest(
            runtime=setting.need.name,
            threads=setting.threads,
            batch=setting.batch,
            hint=bundle.profile.bench.hint,
            inputs=inputs,
            models=(ModelFile(name="int8", path=bundle.model),),
            seconds=min(2.0, max(0.2, asked.seconds / 10)),
        )
        measured = energy(device, request, ("int8",), runtime_name=setting.runtime_name)
        if isinstance(measured, str):
            line = f"energy on {device.name}: {measured}"
            if line not in found.not_measured:
                found.not_measured.append(line)
            return
        found.energies += [BundleEnergy(bundle=bundle.name, device=device.name, energy=it) for it in measured]


def _spreads(found: _Found) -> Iterator[BundleSpread]:
    for bundle, correct in found.correct.items():
        if len(correct) > 1:
            best, worst, difference = spread(correct)
            yield BundleSpread(bundle=bundle, places=len(correct), best=best, worst=worst, value=difference.value, low=difference.low, high=difference.high)
