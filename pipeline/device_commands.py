"""`kdpipe devices …`, and `kdpipe bench`: the machines on which files are measured."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdpipe.foundation.errors import BudgetError, ConfigError, UnavailableError
from kdpipe.pipeline.options import AsJson, Debug, Project
from kdpipe.pipeline.printing import print_json, print_table, table

if TYPE_CHECKING:
    from kdpipe.pipeline.benching import Benched
    from kdpipe.targets.measurements import Conditions, DeviceFacts

devices = typer.Typer(help="The machines on which files are measured: boards over SSH, emulated CPUs, this host.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The device's name in kdpipe.toml.")]


@devices.command("add")
def add(
    name: Name,
    host: Annotated[str | None, typer.Option("--host", help="A board over SSH: USER@HOST, or an alias of ~/.ssh/config.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Its SSH port.", show_default="22")] = None,
    identity_file: Annotated[Path | None, typer.Option("--identity-file", help="The private key that logs in there.", show_default="what ssh uses")] = None,
    python: Annotated[str | None, typer.Option("--python", help="The Python there that has numpy and the runtime.", show_default="python3")] = None,
    folder: Annotated[str | None, typer.Option("--folder", help="A folder there with room for models.", show_default="its temporary folder")] = None,
    cpu: Annotated[str | None, typer.Option("--cpu", help="An emulated CPU: cortex-a53, cortex-a72, cortex-a76, neoverse-n1 or Haswell.")] = None,
    userland: Annotated[Path | None, typer.Option("--userland", help="ARM programs for the emulator.", show_default="prepared here")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="ssh, emulated or local.", show_default="by the other options")] = None,
    expected: Annotated[str | None, typer.Option("--fingerprint", help="The host key's fingerprint, SHA256:…, in place of the question.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Let it take the place of the settings, host key or userland that are there.")] = False,
    project: Project = Path(),
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Add a device to kdpipe.toml: pin its host key, or prepare its emulator, and reach it once."""
    from kdpipe.pipeline.device_setup import add as run
    from kdpipe.pipeline.device_setup import likely_target

    options = {"host": host, "port": port, "identity_file": identity_file, "python": python, "folder": folder, "cpu": cpu, "userland": userland}
    given = {key: str(value) if isinstance(value, Path) else value for key, value in options.items() if value is not None}
    if given or kind:
        given = {"kind": kind or ("emulated" if cpu else "ssh"), **given}

    def confirmed(fingerprint: str) -> bool:
        if expected is not None:
            if expected not in (fingerprint, fingerprint.split()[0]):
                raise UnavailableError(
                    f"the host key is {fingerprint}, not {expected}", at=f"device {name}", do="check with the device: another machine may answer there"
                )
            return True
        if not sys.stdin.isatty():
            raise ConfigError("nobody is here to confirm the host key", at=f"device {name}", do=f"compare it, then give --fingerprint {fingerprint.split()[0]}")
        return typer.confirm("pin this host key?", err=True)

    facts = run(project, name, given, replace=replace, confirm=confirmed, say=_say)
    if as_json:
        print_json(facts.model_dump(mode="json"))
        return
    _show_facts(facts)
    _say(f'next: below [targets.{likely_target(facts)}] write device = "{name}"; kdpipe devices doctor {name} checks it for all that a measurement needs')


@devices.command("ls")
def ls(project: Project = Path(), as_json: AsJson = False, debug: Debug = False) -> None:
    """List the devices of kdpipe.toml and what was seen of each when it was last reached; none is reached now."""
    from kdpipe.pipeline.device_records import dumped, record_of
    from kdpipe.pipeline.device_sections import read_devices

    found = {name: (settings, record_of(project, name, settings)) for name, settings in read_devices(project).items()}
    if as_json:
        print_json(
            {"devices": {name: {"settings": dumped(settings), "last": record and record.model_dump(mode="json")} for name, (settings, record) in found.items()}}
        )
        return
    if not found:
        _say("no devices yet but this host; kdpipe devices add pi --host USER@HOST adds a board")
        return
    shown = table("device", "kind", "where", "CPU", "runtimes", "last reached")
    for name, (settings, record) in found.items():
        own = dumped(settings)
        runtimes = ", ".join(f"{key} {version}" for key, version in record.facts.runtimes.items() if key not in ("python", "numpy")) if record else ""
        shown.add_row(
            name,
            str(own["kind"]),
            str(own.get("host") or own.get("cpu") or "this host"),
            record.facts.cpu if record else "",
            runtimes,
            record.seen if record else "never",
        )
    print_table(shown)


@devices.command("probe")
def probe(name: Name, project: Project = Path(), as_json: AsJson = False, debug: Debug = False) -> None:
    """Reach a device: what it is now, and what changed since it was last reached."""
    from kdpipe.pipeline.device_setup import probe as run

    seen = run(project, name)
    if as_json:
        print_json({"facts": seen.facts.model_dump(mode="json"), "changes": list(seen.changes)})
        return
    _show_facts(seen.facts)
    for change in seen.changes:
        print(f"changed since it was last reached: {change}")


@devices.command("doctor")
def doctor(name: Name, project: Project = Path(), as_json: AsJson = False, debug: Debug = False) -> None:
    """Check a device for all that a measurement needs, and say what mends each fault; exit 4 where something is missing."""
    from dataclasses import asdict

    from kdpipe.pipeline.device_setup import examine

    checks = []
    for check in examine(project, name):
        checks.append(check)
        if not as_json:
            print(f"{ {True: 'ok  ', False: 'BAD ', None: 'note'}[check.ok] } {check.name}: {check.told}")
            if check.do:
                print(f"     do: {check.do}")
    exit_code = UnavailableError.exit_code if any(check.ok is False for check in checks) else 0
    if as_json:
        print_json({"checks": [asdict(check) for check in checks], "exit_code": exit_code})
    raise typer.Exit(exit_code)


@devices.command("clean")
def clean(name: Name, project: Project = Path(), as_json: AsJson = False, debug: Debug = False) -> None:
    """Empty what a device keeps: leftovers of broken connections on a board, the programs of an emulated CPU on this host."""
    from kdpipe.pipeline.device_setup import clean as run

    told = run(project, name)
    print_json({"device": name, "told": told}) if as_json else print(f"{name}: {told}")


@devices.command("rm")
def rm(name: Name, project: Project = Path(), as_json: AsJson = False, debug: Debug = False) -> None:
    """Take a device out of kdpipe.toml, with its pinned host key; nothing has to be removed on the device itself."""
    from kdpipe.pipeline.device_setup import remove

    remove(project, name)
    print_json({"removed": name}) if as_json else print(f"removed {name}")


def bench(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles that kdpipe build wrote; several are measured in turn.")],
    device: Annotated[list[str] | None, typer.Option("--device", help="A device of the project, or host; repeat for several.", show_default="host")] = None,
    project: Annotated[Path | None, typer.Option("--project", help="Whose devices and data.", show_default="the first bundle's")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Other data with the same classes.", show_default="the bundle's own")] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.05, max=600, help="Measured time of one comparison.")] = 10.0,
    batch: Annotated[int, typer.Option("--batch", min=1, max=4096, help="Batch size; a static file has its own.")] = 1,
    threads: Annotated[int, typer.Option("--threads", min=1, max=1024, help="Threads of the runtime; for throughput, of each caller.")] = 1,
    mode: Annotated[
        str, typer.Option("--mode", help="single-stream: the latency of each run; throughput: samples a second of several callers.")
    ] = "single-stream",
    streams: Annotated[int | None, typer.Option("--streams", min=1, max=1024, help="Callers at a time.", show_default="cores by threads")] = None,
    max_spread: Annotated[float | None, typer.Option("--max-spread", min=0, help="Percentage points that the accuracies of one file may lie apart.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure bundles on devices: accuracy on the whole test split, latency, start, memory, energy; exit 3 beyond --max-spread."""
    if mode not in ("single-stream", "throughput"):
        started = "; single-stream measures the cold start too" if mode == "cold-start" else ""
        raise ConfigError(f"unknown mode {mode!r}", at="--mode", do=f"name single-stream or throughput{started}")
    if streams is not None and mode != "throughput":
        raise ConfigError("several callers at a time have no latency that is one caller's", at="--streams", do="add --mode throughput, or leave it out")
    from kdpipe.pipeline.benching import Asked
    from kdpipe.pipeline.benching import bench as run
    from kdpipe.pipeline.progress import progress_for

    asked = Asked(tuple(device or ("host",)), project, data, seconds, batch, threads, "throughput" if mode == "throughput" else "single-stream", streams)
    with progress_for(as_json=as_json) as progress:
        result = run(bundles, asked, progress)
    exceeded = [spread.bundle for spread in result.spreads if max_spread is not None and spread.high > max_spread]
    exit_code = BudgetError.exit_code if exceeded else 0
    if as_json:
        print_json({**result.model_dump(mode="json"), "exit_code": exit_code})
    else:
        _show_bench(result)
        for name in exceeded:
            print(f"budget missed: the accuracies of {name} may lie more than {max_spread:g} points apart")
    raise typer.Exit(exit_code)


def _show_facts(facts: "DeviceFacts") -> None:
    shown = table("", "")
    shown.show_header = False
    rows: dict[str, Any] = {
        "device": f"{facts.name} ({facts.kind})",
        "CPU": f"{facts.cpu}, {facts.architecture}, {facts.cores} cores",
        **({"emulated by": f"{facts.emulator}: it gives accuracy, never latency"} if facts.emulator else {}),
        "instruction sets": ", ".join(facts.instruction_sets),
        "memory": f"{facts.memory_bytes / 1e9:.1f} GB",
        "governor": facts.governor or "not told",
        "clock": f"{facts.clock_mhz:.0f} MHz" if facts.clock_mhz else "not told",
        "temperature": f"{facts.temperature_celsius:.0f} °C" if facts.temperature_celsius is not None else "not told",
        "runtimes": ", ".join(f"{name} {version}" for name, version in facts.runtimes.items()),
    }
    for name, value in rows.items():
        shown.add_row(name, value)
    print_table(shown)


def _show_bench(result: "Benched") -> None:
    matrix = table("bundle", "device", "runtime", "accuracy %", "95 % interval", "n", "same answers as here %", "largest logit difference")
    for row in result.accuracies:
        clean, same = row.quality.clean, row.quality.agreement
        told = f"{same.value:.2f}" if same.value is not None else str(same.reason)
        matrix.add_row(
            row.bundle,
            row.quality.device.name,
            row.quality.runtime,
            f"{clean.value:.2f}",
            f"[{clean.low:.2f}, {clean.high:.2f}]",
            f"{clean.n:,}",
            told,
            "–" if row.quality.largest_difference is None else f"{row.quality.largest_difference:.3g}",
        )
    print_table(matrix)
    for spread in result.spreads:
        told = f"{spread.value:.2f} points [{spread.low:.2f}, {spread.high:.2f}], paired, {spread.places} places"
        print(f"{spread.bundle}: {spread.best} minus {spread.worst}: {told}")
    if result.latencies:
        times = table("bundle", "device", "runtime", "batch", "threads", "p50 ms", "p90 ms", "p50 over the first's", "runs")
        for it in result.latencies:
            ratio, figure = it.ratio_to_first, it.latency
            told = "–" if ratio is None else _with_interval(ratio)
            cells = [str(figure.batch), str(figure.threads), _with_interval(figure.p50), _with_interval(figure.p90), told, f"{figure.runs:,}"]
            times.add_row(it.bundle, it.device, figure.runtime, *cells)
        print_table(times)
        for it in result.latencies:
            inside = it.latency.p50_inside
            if inside is not None and inside.value_ms is not None:
                print(
                    f"{it.bundle} on {it.device}, {it.latency.runtime}: {_with_interval(inside)} ms of the p50 by the runtime's own clock, the rest is the call"
                )
        starts = table("bundle", "device", "runtime", "load ms", "first inference ms", "peak memory MB")
        for start in result.starts:
            cells = [f"{start.start.load_ms:.1f}", f"{start.start.first_inference_ms:.2f}", f"{start.start.peak_memory_bytes / 1e6:.0f}"]
            starts.add_row(start.bundle, start.device, start.start.runtime, *cells)
        print_table(starts)
    _show_throughputs(result)
    for met in result.conditions:
        print(f"{met.device}, {_conditions(met.conditions)}")
    for joules in result.energies:
        told = f"{joules.energy.millijoules:.3g} mJ a run, rounds from {joules.energy.lowest_millijoules:.3g} to {joules.energy.highest_millijoules:.3g}"
        print(f"energy of {joules.bundle} on {joules.device}: {told}; the machine at rest takes {joules.energy.rest_watts:.3g} W ({joules.energy.counter})")
    for line in (*result.not_measured, *result.warnings):
        print(line)


def _conditions(it: "Conditions") -> str:
    kept = f" on CPU {', '.join(map(str, it.cores))}" if it.cores else ""
    threads = f"{it.threads} thread{'' if it.threads == 1 else 's'}" + (f" for each of {it.streams} callers" if it.streams else "")
    return f"{it.runtime}, batch {it.batch}, {threads}{kept}: {'; '.join((it.told, *it.reasons))}"


def _show_throughputs(result: "Benched") -> None:
    if not result.throughputs:
        return
    rates = table("bundle", "device", "runtime", "batch", "callers", "threads each", "samples/s [95 %]", "over the first's")
    for it in result.throughputs:
        figure, rate = it.throughput, it.throughput.samples_per_second
        told = "–" if it.ratio_to_first is None else f"{it.ratio_to_first.value:.3f} [{it.ratio_to_first.low:.3f}, {it.ratio_to_first.high:.3f}]"
        cells = [str(figure.batch), str(figure.streams), str(figure.threads), f"{rate.value:,.0f} [{rate.low:,.0f}, {rate.high:,.0f}]", told]
        rates.add_row(it.bundle, it.device, figure.runtime, *cells)
    print_table(rates)


def _with_interval(percentile: Any) -> str:
    from kdpipe.pipeline.report.numbers import significant

    if percentile.value_ms is None:
        return str(percentile.reason)
    return f"{significant(percentile.value_ms)} [{significant(percentile.low_ms)}, {significant(percentile.high_ms)}]"


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
