"""One build from the project's folder to its bundles and report: what `kdpipe build` and `kdpipe plan` do, as functions."""

import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdpipe.foundation.errors import ConfigError
from kdpipe.pipeline.memo import Watch, memo_key, profile_digest, recalled, remember, watch
from kdpipe.pipeline.progress import SilentProgress
from kdpipe.pipeline.steps import BuildResult
from kdpipe.pipeline.store import Store
from kdpipe.pipeline.user_code import importable

if TYPE_CHECKING:
    from kdpipe.pipeline.config import Config
    from kdpipe.pipeline.planning import Plan
    from kdpipe.stages.stage import Progress

BUNDLES = "dist"
"""The project's folder of bundles: `dist/<name>/<target>/`, and `dist/<name>/report.html`."""


def build(
    project: Path | str = ".",
    *,
    targets: Sequence[str] = (),
    until: str | None = None,
    device: str | None = None,
    overrides: Sequence[str] = (),
    progress: "Progress | None" = None,
) -> BuildResult:
    """The build of the project for `targets` (none: those of the file), as far as the stage `until` (none: all), and all that it wrote.

    `device`: a name of [devices] that measures the one target in place of its own. `overrides`: `distill.epochs=3`.
    Missed budgets do not raise: see `verdicts` and `exit_code`. Raises KdpipeError for
    everything that a user can mend; finished steps stay in the store, and the same call goes on from there.
    """
    _let_idle_threads_sleep()
    folder = _project_folder(project)
    say = progress or SilentProgress()
    store = Store(folder)
    if device is not None:
        overrides = (*overrides, _measured_on(folder, device, targets))
    command = command_line("build", targets, until, overrides)
    key = memo_key(folder, command, _toml(folder))
    known = recalled(store, key, folder)
    if known is not None:
        say.say(f"nothing to do: {len(known.results)} steps kept")
        return known
    with importable(folder):
        return _build(folder, store, command, key, targets, until, overrides, say)


def plan(
    project: Path | str = ".", *, targets: Sequence[str] = (), until: str | None = None, device: str | None = None, overrides: Sequence[str] = ()
) -> "Plan":
    """What `build` with the same arguments would run and why; nothing is changed."""
    folder = _project_folder(project)
    _toml(folder)  # before torch is imported for nothing
    if device is not None:
        overrides = (*overrides, _measured_on(folder, device, targets))
    _let_idle_threads_sleep()
    from kdpipe.pipeline.config import read_config
    from kdpipe.pipeline.planning import make_plan
    from kdpipe.pipeline.stages import load_stages

    with importable(folder):
        stages = load_stages()
        return make_plan(read_config(folder, stages, settings=overrides, targets=targets), stages, Store(folder), until=until)


def rewritten(project: Path | str = ".", *, targets: Sequence[str] = (), overrides: Sequence[str] = ()) -> BuildResult:
    """The finished build with its bundles and report written again; ConfigError where a step of it is not in the store."""
    folder = _project_folder(project)
    made = plan(folder, targets=targets, overrides=overrides)
    from kdpipe.pipeline.expectations import expectations
    from kdpipe.pipeline.runner import kept_results

    missing = [planned.step.name for planned in made.steps if planned.state == "run"]
    if missing:
        raise ConfigError(f"the build is not finished: {len(missing)} steps are missing, first {missing[0]}", at=folder, do="run kdpipe build")
    store = Store(folder)
    command = command_line("build", targets, None, overrides)
    foreseen = tuple(map(asdict, expectations(made)))
    result = BuildResult(folder, made.config.name, made.config.resolved, command, tuple(made.config.targets), kept_results(made, store), expectations=foreseen)
    return _finished(result, made.config, store, SilentProgress(), whole=True)


def command_line(command: str, targets: Sequence[str], until: str | None, overrides: Sequence[str]) -> str:
    """The command that does the same from the project's folder; it is written into bundles, so it holds no path."""
    words = ["kdpipe", command]
    words += [word for target in targets for word in ("--target", target)]
    words += ["--until", until] if until else []
    words += [word for setting in overrides for word in ("--set", setting)]
    return shlex.join(words)


def _build(
    folder: Path, store: Store, command: str, key: str, targets: Sequence[str], until: str | None, overrides: Sequence[str], progress: "Progress"
) -> BuildResult:
    from kdpipe.pipeline.cache import note_build
    from kdpipe.pipeline.config import read_config
    from kdpipe.pipeline.device_records import keep
    from kdpipe.pipeline.expectations import expectations
    from kdpipe.pipeline.planning import make_plan
    from kdpipe.pipeline.runner import run_plan
    from kdpipe.pipeline.stages import load_stages

    stages = load_stages()
    config = read_config(folder, stages, settings=overrides, targets=targets)
    watched = _watched(config)
    made = make_plan(config, stages, store, until=until)
    config = made.config
    for choice in made.variants:
        progress.say(choice.told)
    for name, seen in made.seen.items():
        if seen.changes:
            progress.say(f"device {name} changed since it was last reached: {'; '.join(seen.changes)}")
        keep(folder, name, config.devices[name], seen.facts)
    foreseen = expectations(made)
    running = [planned.step.name for planned in made.steps if planned.state == "run"]
    progress.say(f"{len(made.steps)} steps: {len(running)} to run, {len(made.steps) - len(running)} kept")
    if running and made.data.relabelled is not None:
        progress.say(made.data.relabelled.told)
    if running:
        for each in foreseen:
            progress.say(each.told)
        _say_if_busy(made.threads, progress)
        note_build(store, [planned.step for planned in made.steps], finished=False)
    results = run_plan(made, stages, store, progress)
    result = BuildResult(folder, config.name, config.resolved, command, tuple(config.targets), results, expectations=tuple(map(asdict, foreseen)))
    result = _finished(result, config, store, progress, whole=until in (None, "bench"))
    note_build(store, [planned.step for planned in made.steps], finished=True)
    if watched is not None:
        remember(store, key, watched, result, [*result.bundles.values(), *([result.report] if result.report else [])])
    return result


def _finished(result: BuildResult, config: "Config", store: Store, progress: "Progress", *, whole: bool) -> BuildResult:
    """The result with rows, verdicts, bundles and report; of a build that stopped early there is nothing to hand out but the rows."""
    from kdpipe.pipeline.budgets import check_budgets, exit_code
    from kdpipe.pipeline.bundle import write_bundle
    from kdpipe.pipeline.report.render import write_report
    from kdpipe.pipeline.table import summary_rows
    from kdpipe.pipeline.variant_bundle import write_variants

    result = replace(result, rows=tuple(summary_rows(result)))
    if not whole:
        return result

    verdicts = check_budgets(result, {name: target.budgets for name, target in config.targets.items()})
    result = replace(result, verdicts=verdicts, exit_code=exit_code(verdicts))
    destination = result.project / BUNDLES / result.name
    with store.lock("bundles", _told(progress, "another build of this project writes its bundles, waiting")):
        bundles = {}
        for name, members in _bundles(config).items():
            if members:
                bundles[name] = write_variants(result, name, members, verdicts, destination / name)
            else:
                bundles[name] = write_bundle(result, name, verdicts, destination / name)
        result = replace(result, bundles=bundles)
        return replace(result, report=write_report(result, verdicts, destination / "report.html", None))


def _bundles(config: "Config") -> dict[str, dict[str, str]]:
    """The bundles of a build, each with its members, variant to target; a target by itself has none."""
    bundles: dict[str, dict[str, str]] = {}
    for name, target in config.targets.items():
        if target.bundle is None:
            bundles[name] = {}
        else:
            bundles.setdefault(target.bundle, {})[target.profile.variant_name] = name
    return bundles


def _watched(config: "Config") -> Watch | None:
    from kdpipe.pipeline.fingerprint import code_files

    code = [path for _, paths in code_files(config.resolved, config.project).values() for path in paths]
    own = {name: (str(target.profile_path), target.variant) for name, target in config.targets.items() if target.profile_path}
    profiles = {name: (path, variant, profile_digest(path, variant)) for name, (path, variant) in own.items()}
    return watch(config.project, config.resolved, code, profiles)


def _let_idle_threads_sleep() -> None:
    """Torch's threads wait for each other without spinning; takes effect where torch is not loaded yet.

    Measured on 2 cores with 5 other busy processes: an epoch of a ResNet-20 teacher took 185 s with spinning threads, 5 s with sleeping ones.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _say_if_busy(threads: int, progress: "Progress") -> None:
    """A word of warning where threads will wait for a core: together they are then many times slower than one."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if threads > 1 and load > cores:
        progress.say(
            f"this machine is busy (load {load:.1f} on {cores} cores): {threads} threads will be slow together; [project] threads = 1 may be much faster"
        )


def _told(progress: "Progress", message: str) -> Callable[[], None]:
    return lambda: progress.say(message)


def _measured_on(folder: Path, device: str, targets: Sequence[str]) -> str:
    """The `--set` text that gives the one target of the build this device; ConfigError where there are several."""
    from kdpipe.pipeline.device_sections import DEFAULT_TARGET, FILE
    from kdpipe.pipeline.toml_source import read_toml

    tables = read_toml(folder / FILE).values.get("targets", {})
    chosen = list(dict.fromkeys(targets)) or (list(tables) if isinstance(tables, dict) else []) or [DEFAULT_TARGET]
    if len(chosen) > 1:
        raise ConfigError(
            f"one device for {len(chosen)} targets: {', '.join(chosen)}",
            at=f"--device {device}",
            do=f"name the one that it measures, e.g. --target {chosen[0]}",
        )
    if isinstance(tables, dict) and chosen[0] not in tables:  # one variant of a section: the device is the section's
        several = {name: table["variants"] for name, table in tables.items() if isinstance(table, dict) and isinstance(table.get("variants"), list)}
        chosen = [next((name for name, variants in several.items() if chosen[0] in [f"{name}-{each}" for each in variants]), chosen[0])]
    key = json.dumps(chosen[0]) if "." in chosen[0] else chosen[0]
    return f"targets.{key}.device={json.dumps(device)}"


def _project_folder(project: Path | str) -> Path:
    folder = Path(project).resolve()
    if not folder.is_dir():
        raise ConfigError("no such folder", at=folder, do="give the folder that holds kdpipe.toml")
    return folder


def _toml(folder: Path) -> bytes:
    path = folder / "kdpipe.toml"
    if not path.is_file():
        raise ConfigError("no kdpipe.toml here", at=folder, do="write one with: kdpipe init")
    return path.read_bytes()
