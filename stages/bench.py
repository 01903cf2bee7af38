"""The bench stage: latency, start and memory of the finished files on one device, and why int8 is or is not faster.

A target is measured where it belongs: on its device, or, for a CPU profile of this host's class, here. Everything else is
written "not measured", with the reason, and the offline checks that need no device stand in the warnings.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
from pydantic import BaseModel, Field, InstanceOf

from kdpipe.foundation.files import write_json
from kdpipe.foundation.randomness import numpy_stream
from kdpipe.stages import throughput
from kdpipe.stages.device_quality import CORRECT_FILE, QUALITY_FILE, DeviceQualities, Judged, judged_on
from kdpipe.stages.stage import Context, Inputs
from kdpipe.targets import latency
from kdpipe.targets.clock_watch import require_all, watched
from kdpipe.targets.cold_start import cold_start
from kdpipe.targets.conditions import judged
from kdpipe.targets.devices.device import Device, Machine, require_runtime_there, same_as_planned, why_no_latency
from kdpipe.targets.devices.local import LocalDevice
from kdpipe.targets.devices.messages import BenchRequest, ComparisonDone, ComparisonRequest, EnergyRequest, Message, ModelFile, StartRequest, Watched, Windows
from kdpipe.targets.energy import energy
from kdpipe.targets.explanation import why_not_faster
from kdpipe.targets.instruction_sets import probe
from kdpipe.targets.lint import lint
from kdpipe.targets.measurements import Bench, Conditions, DeviceFacts, Energy, Explanation, Latency, ModelName, NoiseCheck, Percentile, Start, Throughput
from kdpipe.targets.profile import Profile, RuntimeNeed, Threads
from kdpipe.targets.runtimes.runtime import require_runtime, session_name
from kdpipe.tasks.data.splits import Float32Array, Split

VERSION = 1
TOOLS = ("onnxruntime", "openvino", "onnx", "numpy")
BENCH_FILE = "bench.json"

FILES: Mapping[ModelName, str] = {"int8": "model.onnx", "float": "float.onnx", "teacher": "teacher.onnx"}
_AGAIN = "float-again"  # the A/A check: the baseline loaded a second time
_BATCHES_OF_INPUT = 8  # distinct batches of real input that the largest batch size gets; small ones get more
_LINT_LINES = 20  # findings that the warnings repeat; the export's lint.json has all


class BenchConfig(BaseModel, extra="forbid", frozen=True):
    """`[bench]`: what differs from the target profile's own settings; None: the profile decides."""

    seconds: float | None = Field(None, gt=0, le=600, description="measured time of one comparison in s (all models; one runtime, batch, thread count)")
    batches: tuple[Annotated[int, Field(ge=1, le=4096)], ...] | None = Field(None, min_length=1, description="batch sizes, e.g. [1, 32]")
    threads: tuple[Threads, ...] | None = Field(None, min_length=1, description="thread counts, e.g. [1, 'all']")
    percentiles: tuple[Literal[50, 90, 95, 99], ...] | None = Field(None, min_length=1, description="measured on until these are claimable")
    modes: tuple[Literal["single-stream", "throughput", "cold-start"], ...] | None = Field(
        None, min_length=1, description="what is measured; unset: single-stream (the latency of each run) and cold-start"
    )
    streams: int | None = Field(None, ge=1, le=1024, description="callers at the same time for throughput, one thread each; unset: one for each core")
    starts: int = Field(1, ge=1, le=20, description="fresh processes for load, first inference and memory; medians are reported")
    warmup_seconds: float = Field(1.0, gt=0, le=60, description="most time for warming up one comparison")
    device: str | None = Field(None, description="filled by the build: the name of the device that measures; None: this host")
    machine: InstanceOf[Machine] | None = Field(
        None, exclude=True, description="filled by the build: that device; in fingerprints stands what it is, not where"
    )
    accuracy_on: tuple[InstanceOf[Machine], ...] = Field((), exclude=True, description="filled by the build: further devices that judge the file's accuracy")


@dataclass(frozen=True)
class Setting:
    """What a comparison's figures are measured with. `runtime_name`: `onnxruntime 1.32.0 CPU`."""

    id: str
    need: RuntimeNeed
    runtime_name: str
    batch: int
    threads: int

    @property
    def title(self) -> str:
        """For messages: `onnxruntime, batch 1, 2 threads`."""
        return f"{self.need.name}, batch {self.batch}, {self.threads} thread{'s' if self.threads > 1 else ''}"


def run(inputs: Inputs, config: BenchConfig, context: Context) -> Path:
    """The folder with `bench.json`: everything measured for the target of `inputs.profile`, or why it was not.

    With devices also `device_quality.json` and `device_correct.npz`: the int8 file's accuracy on each, sample by sample.
    Raises UnavailableError when a device is not reached or is not what it was when the build was planned, when a runtime
    is missing or of another version than the profile's, and when a device's answers cannot be believed.
    """
    profile = inputs.profile
    assert profile is not None  # bench belongs to a target
    judged: list[Judged] = []
    bench = _bench(inputs, profile, config, context, judged)
    for machine in config.accuracy_on:
        device = machine.settings.device(machine.name, context.project)
        with device.connected():
            facts = same_as_planned(device, machine)
            judged += _judged(inputs, profile, context, device, facts, profile.runtimes_there(facts.runtimes))
    if judged:
        arrays = {f"{it.quality.device.name}/{it.quality.runtime}/clean": it.correct for it in judged}
        np.savez(context.folder / CORRECT_FILE, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for options
        write_json(context.folder / QUALITY_FILE, DeviceQualities(qualities=tuple(it.quality for it in judged)).model_dump(mode="json"))
    write_json(context.folder / BENCH_FILE, bench.model_dump(mode="json"))
    return context.folder


def _bench(inputs: Inputs, profile: Profile, config: BenchConfig, context: Context, judged: list[Judged]) -> Bench:
    """The measurements of the target's device; its accuracy is appended to `judged` where it is not this host, which `score-export` accuracy_on."""
    if config.machine is None:
        host = LocalDevice()
        reason = why_no_latency(host, host.facts()) or profile.why_not_measurable(probe(), runtimes=host.facts().runtimes)
        if reason is None:
            fitted, absent = profile.fitted_to(host.facts().runtimes, where="this host")
            return _with_warnings(_measured(inputs, fitted, config, context, host), absent)
        return _not_measured(inputs, profile, context, reason)
    machine = config.machine
    device = machine.settings.device(machine.name, context.project)
    with device.connected():
        facts = same_as_planned(device, machine)
        profile, absent = profile.fitted_to(facts.runtimes, where=f"device {device.name}")
        for line in absent:
            context.progress.say(f"bench {profile.name}: {line}")
        judged += _judged(inputs, profile, context, device, facts, profile.runtimes_on_device)
        sets = frozenset(facts.instruction_sets)
        reason = why_no_latency(device, facts) or profile.why_not_measurable(sets, where=f"device {device.name}", runtimes=facts.runtimes)
        if reason is not None:
            return _not_measured(inputs, profile, context, reason)
        return _with_warnings(_measured(inputs, profile, config, context, device), absent)


def _with_warnings(bench: Bench, more: tuple[str, ...]) -> Bench:
    return bench.model_copy(update={"warnings": (*bench.warnings, *more)})


def _judged(inputs: Inputs, profile: Profile, context: Context, device: Device, facts: DeviceFacts, needs: Sequence[RuntimeNeed]) -> list[Judged]:
    model = inputs.artifacts["export"] / FILES["int8"]
    found = list(judged_on(device, facts, model, needs, inputs.data.test, context.progress, hint=profile.bench.hint))
    for it in found:
        context.progress.say(f"accuracy on {device.name}, {it.quality.runtime}: {it.quality.clean.value:.2f} %, n = {it.quality.clean.n}")
    return found


def _not_measured(inputs: Inputs, profile: Profile, context: Context, reason: str) -> Bench:
    context.progress.say(f"bench {profile.name}: {reason}")
    return Bench(target=profile.name, device=None, not_measured=reason, warnings=offline_warnings(inputs.artifacts["export"], profile))


def offline_warnings(export: Path, profile: Profile) -> tuple[str, ...]:
    """What can be said of the int8 file without its device: the findings of the offline checks, and what they leave open."""
    findings = lint(export / FILES["int8"], profile)
    lines = [f"offline check: {finding}" for finding in findings[:_LINT_LINES]]
    if len(findings) > _LINT_LINES:
        lines.append(f"offline check: {len(findings) - _LINT_LINES} more findings")
    open_claims = "speed" if profile.accelerator == "CPU" else f"speed, operator coverage and accuracy in {profile.accelerator}"
    return (*lines, f"open until a device measures it: {open_claims}")


def _measured(inputs: Inputs, profile: Profile, config: BenchConfig, context: Context, device: Device) -> Bench:
    export = inputs.artifacts["export"]
    facts = device.facts()
    cases = list(_cases(profile, config, facts, device))
    seconds = config.seconds or profile.bench.seconds
    modes = config.modes or ("single-stream", "cold-start")
    with tempfile.TemporaryDirectory() as folder:
        samples = _samples(inputs.data.test, max(case.batch for case in cases))
        file = Path(folder) / "inputs.npy"
        np.save(file, samples)
        latencies, noise, conditions, warnings = [], [], [], []
        alone = cases if "single-stream" in modes else []
        for case in context.progress(alone, f"bench {profile.name}", total=len(alone), unit="comparison"):
            request = _request(case, profile, config, seconds, export, file)
            figures, check, met, said = _summary(case, _answers(device, request), context.seed, device.name)
            latencies += figures
            noise.append(check)
            conditions += met
            for it in met:
                if it.verdict != "claimable":
                    context.progress.say(f"bench {profile.name}, {case.title}: {'; '.join((it.told, *it.reasons))}")
            warnings += said
        throughputs, met, said = _throughputs(cases, config, seconds, export, file, device, facts, context) if "throughput" in modes else ([], [], [])
        conditions += met
        warnings += said
        starts = tuple(_starts(profile, config, context, export, file, device, cases)) if "cold-start" in modes else ()
        joules, no_energy = _energy(profile, cases, seconds, export, file, device)
        on_host = isinstance(device, LocalDevice)
        explanations = tuple(_explanations(profile, export, samples)) if on_host else ()
    warnings += [] if on_host else [f"why int8 is or is not faster on device {device.name} is not explained: explanations are made on this host"]
    return Bench(
        target=profile.name,
        device=facts,
        latencies=tuple(latencies),
        starts=starts,
        explanations=explanations,
        noise=tuple(noise),
        warnings=(*warnings, *_slower(latencies, explanations)),
        energy=joules,
        energy_not_measured=no_energy,
        conditions=tuple(conditions),
        throughputs=tuple(throughputs),
    )


def _cases(profile: Profile, config: BenchConfig, facts: DeviceFacts, device: Device) -> Iterator[Setting]:
    batches = (profile.static_batch,) if profile.batch == "static" else config.batches or profile.bench.batches
    threads = sorted({facts.cores if count == "all" else int(count) for count in config.threads or profile.bench.threads})
    for need in profile.runtimes_on_device:
        name = session_name(need.name, _version(need, profile, facts, device))
        for batch in sorted(set(batches)):
            for count in threads:
                yield Setting(f"{need.name}/batch-{batch}/threads-{count}", need, name, batch, count)


def _version(need: RuntimeNeed, profile: Profile, facts: DeviceFacts, device: Device) -> str:
    if isinstance(device, LocalDevice):
        return require_runtime(need.name, need.versions, at=f"profile {profile.name}")
    return require_runtime_there(facts, need.name, need.versions, at=f"profile {profile.name}")


def _samples(test: Split, largest_batch: int) -> Float32Array:
    """Real samples, evenly spaced over the test split."""
    count = min(len(test), max(64, largest_batch * _BATCHES_OF_INPUT))
    return test.read(np.linspace(0, len(test) - 1, count).astype(np.int64))


def _request(case: Setting, profile: Profile, config: BenchConfig, seconds: float, export: Path, inputs: Path) -> BenchRequest:
    names = (*FILES.items(), (_AGAIN, FILES["float"]))
    comparison = ComparisonRequest(
        id=case.id,
        runtime=case.need.name,
        threads=case.threads,
        batch=case.batch,
        hint=profile.bench.hint,
        inputs=inputs,
        models=tuple(ModelFile(name=name, path=export / file) for name, file in names),
    )
    runs = max(latency.runs_needed(percentile) for percentile in config.percentiles or profile.bench.percentiles)
    limit = max(60.0, 4 * seconds)
    return BenchRequest(comparisons=(comparison,), seconds=seconds, runs=runs, warmup_seconds=config.warmup_seconds, limit_seconds=limit)


def _answers(device: Device, request: BenchRequest) -> Iterable[Message]:
    # beside measuring: warming up, loading four models (a large one compiles for seconds), the last window of a slow model
    limit = 2 * (request.limit_seconds + request.warmup_seconds) + 60
    return watched(device.ask("bench", request, limit_seconds=limit), device=device.name)


def _summary(case: Setting, messages: Iterable[Message], seed: int, device: str) -> tuple[list[Latency], NoiseCheck, list[Conditions], list[str]]:
    windows: dict[str, latency.Windows] = {}
    inside: dict[str, latency.Windows | None] = {}
    watched_there: list[Watched] = []
    warnings = []
    for message in messages:
        if isinstance(message, Windows):
            windows[message.model], inside[message.model] = message.arrays, message.inside
        elif isinstance(message, ComparisonDone):
            restless = [name for name, warm in message.warm.items() if not warm]
            warnings += [f"{case.title}: not stable when the warm-up ended: {', '.join(restless)}"] if restless else []
            watched_there += [message.conditions] if message.conditions is not None else []
    require_all(windows, (*FILES, _AGAIN), device=device)
    models = latency.measured(windows, numpy_stream(seed, f"bench/{case.id}"))
    own_clock = {name: latency.median_inside(inside[name], numpy_stream(seed, f"bench/{case.id}/{name}/inside")) for name in FILES}
    figures = [latency_figure(case, name, models[name], models["float"] if name != "float" else None, own_clock[name]) for name in get_args(ModelName)]
    again = latency.ratio_of(models[_AGAIN], models["float"])
    check = NoiseCheck(runtime=case.runtime_name, batch=case.batch, threads=case.threads, ratio=again)
    said = latency.noise_warning(again, case.title), latency.drift_warning(windows["float"], case.title)
    drift = latency.drift_of(windows["float"])
    met = [judged(it, again, drift, runtime=case.runtime_name, batch=case.batch, threads=case.threads) for it in watched_there]
    warnings += [f"{case.title}: {it.told}" for it in met if it.verdict == "throttled"]
    return figures, check, met, warnings + [line for line in said if line]


def _throughputs(
    cases: Iterable[Setting], config: BenchConfig, seconds: float, export: Path, inputs: Path, device: Device, facts: DeviceFacts, context: Context
) -> tuple[list[Throughput], list[Conditions], list[str]]:
    """At the largest batch, one thread a caller, in each runtime."""
    cases = list(cases)
    batch = max(case.batch for case in cases)
    loads = list(throughput.loads(((case.need.name, case.runtime_name) for case in cases), batch=batch, threads=1, streams=config.streams or facts.cores))
    files: dict[str, Path] = {name: export / file for name, file in FILES.items()}
    figures: list[Throughput] = []
    met: list[Conditions] = []
    said: list[str] = []
    for load in context.progress(loads, "throughput", total=len(loads), unit="comparison"):
        found = throughput.measured(device, load, files, "float", inputs, seconds=seconds, warmup_seconds=config.warmup_seconds, seed=context.seed)
        figures += [found.figure(name, load, to_float=True) for name in files]
        met += [found.conditions] if found.conditions else []
        said += found.warnings
    return figures, met, said


def latency_figure(setting: Setting, name: ModelName, model: latency.Measured, baseline: latency.Measured | None, inside: Percentile | None = None) -> Latency:
    """All that is told of one model's samples; its ratio to `baseline`, None: it is the baseline. `inside`: its p50 by the runtime's own clock."""
    histogram = latency.histogram_of(model.samples)
    p50, p90, p95, p99 = (latency.percentile_of(model, percentile) for percentile in latency.PERCENTILES)
    return Latency(
        model=name,
        runtime=setting.runtime_name,
        batch=setting.batch,
        threads=setting.threads,
        runs=len(model.samples),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        p50_inside=inside,
        samples_per_second=latency.samples_per_second(model.samples, setting.batch),
        samples_per_second_bounds=latency.rate_interval(model, setting.batch),
        histogram_edges_ms=histogram.edges_ms,
        histogram_counts=histogram.counts,
        ratio_to_float=None if baseline is None else latency.ratio_of(model, baseline),
    )


def _starts(profile: Profile, config: BenchConfig, context: Context, export: Path, inputs: Path, device: Device, cases: Iterable[Setting]) -> Iterator[Start]:
    names = {case.need.name: case.runtime_name for case in cases}
    pairs = [(need, model) for need in profile.runtimes_on_device for model in FILES]
    for need, model in context.progress(pairs, f"cold start {profile.name}", total=len(pairs), unit="process"):
        batch = profile.static_batch if profile.batch == "static" else 1
        request = StartRequest(runtime=need.name, model=export / FILES[model], threads=1, batch=batch, hint=profile.bench.hint, inputs=inputs)
        yield cold_start(device, model, request, runtime_name=names[need.name], times=config.starts)


def _energy(profile: Profile, cases: Iterable[Setting], seconds: float, export: Path, inputs: Path, device: Device) -> tuple[tuple[Energy, ...], str | None]:
    """At the smallest batch with one thread, in each runtime; or why not."""
    found: list[Energy] = []
    for case in {case.need.name: case for case in sorted(cases, key=lambda case: (-case.batch, -case.threads))}.values():
        models = tuple(ModelFile(name=name, path=export / file) for name, file in FILES.items())
        each = min(2.0, max(0.2, seconds / 10))
        request = EnergyRequest(
            runtime=case.need.name, threads=case.threads, batch=case.batch, hint=profile.bench.hint, inputs=inputs, models=models, seconds=each
        )
        measured = energy(device, request, tuple(FILES), runtime_name=case.runtime_name)
        if isinstance(measured, str):
            return (), measured
        found += measured
    return tuple(found), None


def _explanations(profile: Profile, export: Path, samples: Float32Array) -> Iterator[Explanation]:
    for need in profile.runtimes_on_device:
        require_runtime(need.name, need.versions, at=f"profile {profile.name}")
        yield why_not_faster(need.name, export / FILES["int8"], export / FILES["float"], samples, hint=profile.bench.hint)


def _slower(latencies: Iterable[Latency], explanations: Iterable[Explanation]) -> Iterator[str]:
    weightiest = {it.runtime: it.findings[0] for it in explanations if it.findings}
    for figure in latencies:
        ratio = figure.ratio_to_float
        if figure.model != "int8" or ratio is None or ratio.value_ms is None or ratio.high_ms is None or ratio.high_ms < 1:
            continue
        where = f"{figure.runtime}, batch {figure.batch}, {figure.threads} thread{'s' if figure.threads > 1 else ''}"
        shown = f"{ratio.value_ms:.2f} [{ratio.low_ms:.2f}, {ratio.high_ms:.2f}]"
        cause = weightiest.get(figure.runtime)
        share = "" if cause is None or cause.share is None else f" ({100 * cause.share:.0f} % of the time)"
        why = "no cause was found" if cause is None else f"{cause.cause}{share}, see the explanation"
        yield f"{where}: int8 is not shown to be faster than float, it takes {shown} of its time: {why}"
