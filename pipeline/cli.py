"""The command line. A command parses, calls and prints; what it needs is imported when it runs, so that help is there at once."""

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from kdpipe.foundation.errors import ConfigError, KdpipeError, Problem, UnavailableError
from kdpipe.pipeline.advice_command import advise
from kdpipe.pipeline.build_commands import build, plan, report
from kdpipe.pipeline.cache_commands import cache
from kdpipe.pipeline.compare_command import compare
from kdpipe.pipeline.data_commands import data
from kdpipe.pipeline.device_commands import bench, devices
from kdpipe.pipeline.evaluate_command import evaluate
from kdpipe.pipeline.explain_command import explain
from kdpipe.pipeline.options import AsJson, Debug, Project, existing
from kdpipe.pipeline.printing import print_json, print_table, table
from kdpipe.pipeline.target_commands import targets

INTERRUPTED = 130

_DEFECT = 1
_FULL_BELOW_BYTES = 10_000_000
_USAGE_ERROR: Any = typer.BadParameter.__mro__[2]  # ClickException: typer brings click under a name of its own since 0.26

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Compress a network for an edge chip, and prove the int8 file.",
)


def init(
    folder: Annotated[Path, typer.Argument(help="The project's folder; made if missing.", show_default="the current folder")] = Path(),
    task: Annotated[str, typer.Option("--task", help="The kind of task.")] = "image-classification",
    data: Annotated[str | None, typer.Option("--data", help="A built-in name, a folder of class folders, an .npz file, or package.module:callable.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a commented kdpipe.toml, chosen from what the data looks like."""
    from kdpipe.pipeline.init import initialise

    written = initialise(folder, task=task, data=data)
    if as_json:
        rests_on = {choice.what: choice.evidence for choice in written.advice}
        told = [{"choice": choice, "because": why, "evidence": rests_on.get(choice)} for choice, why in written.choices]
        print_json({"path": str(written.path), "choices": told})
        return
    for choice, why in written.choices:
        _say(f"{choice}: {why}")
    _say("what each choice rests on, what the build will cost, other goals and budgets: kdpipe advise")
    print(f"wrote {written.path}")
    _say(f"next: kdpipe build{'' if folder.resolve() == Path().resolve() else f' --project {folder}'}")


def doctor(project: Project = Path(), as_json: AsJson = False, debug: Debug = False) -> None:
    """Tell what is installed, what this CPU can do, and which targets can be built and measured here."""
    from kdpipe.pipeline.doctor import diagnose

    found = diagnose(existing(project))
    if as_json:
        print_json(asdict(found))
        return
    facts = table("", "")
    facts.show_header = False
    facts.add_row("kdpipe", f"{found.kdpipe}, Python {found.python}, {found.system}")
    facts.add_row("CPU", f"{found.cpu}, {found.cores} cores, {found.memory_bytes / 1e9:.1f} GB memory")
    facts.add_row("instruction sets", ", ".join(found.instruction_sets))
    facts.add_row("installed", ", ".join(f"{name} {version}" for name, version in found.tools.items() if version))
    facts.add_row("not installed", ", ".join(name for name, version in found.tools.items() if version is None) or "–")
    facts.add_row("disk", f"{found.free_bytes / 1e9:.1f} GB free, {'writable' if found.writable else 'not writable'}: {found.project}")
    for target in found.targets:
        built = "can be built" if target.cannot_build is None else f"cannot be built ({target.cannot_build})"
        exact = "quality here is quality there" if target.exact else "this host's int8 arithmetic differs from the target's"
        facts.add_row(f"target {target.name}", f"{target.title}: {built}; {exact}; {target.cannot_measure or 'latency can be measured here'}")
    print_table(facts)
    for warning in found.warnings:
        _say(f"warning: {warning}")


def samples(
    half_width: Annotated[float | None, typer.Option("--half-width", help="Half the width of the 95 % interval, in percentage points.")] = None,
    rate: Annotated[float, typer.Option("--rate", help="The accuracy that is expected, as a share.")] = 0.5,
    difference: Annotated[float | None, typer.Option("--difference", help="Percentage points by which two models are to be told apart.")] = None,
    discordant: Annotated[float, typer.Option("--discordant", help="Share of samples that only one of the two models gets right.")] = 0.05,
    power: Annotated[float, typer.Option("--power", help="Chance that the difference is found.")] = 0.8,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Tell how many test samples a claim needs: an interval of a wanted width, or two models told apart at 95 %."""
    from kdpipe.robustness.sample_size import samples_for_difference, samples_for_half_width, samples_for_unpaired_difference

    if half_width is None and difference is None:
        raise ConfigError("nothing was asked", at="kdpipe samples", do="give --half-width 1.0, or --difference 1.0, in percentage points")
    found: dict[str, int] = {}
    if half_width is not None:
        found["half_width"] = samples_for_half_width(half_width / 100, rate)
    if difference is not None:
        found["paired_difference"] = samples_for_difference(difference / 100, discordant, power=power)
        found["unpaired_difference_each"] = samples_for_unpaired_difference(difference / 100, rate, power=power)
    if as_json:
        print_json(found)
        return
    if half_width is not None:
        print(f"±{half_width:g} points at {100 * rate:g} %: {found['half_width']:,} samples")
    if difference is not None:
        told = f"{difference:g} points between two models, found in {100 * power:g} of 100 cases"
        print(f"{told}: {found['paired_difference']:,} samples where {100 * discordant:g} % are right in one model alone, judged by both models")
        print(f"the same on two separate sets at {100 * rate:g} %: {found['unpaired_difference_each']:,} samples each")


def verify(
    bundle: Annotated[Path | None, typer.Argument(help="A bundle's folder.", show_default="every artifact of the project's store")] = None,
    project: Project = Path(),
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check a bundle: every digest of its manifest, and that the model loads and answers. Without BUNDLE: the project's store."""
    from kdpipe.pipeline.store import Store
    from kdpipe.pipeline.verify import require_sound_store, verify_bundle

    if bundle is None:
        number = require_sound_store(Store(existing(project).resolve()))
        print_json({"artifacts": number}) if as_json else print(f"{number} artifacts, every digest agrees")
        return
    found = verify_bundle(bundle)
    if as_json:
        print_json({**asdict(found), "folder": str(found.folder)})
    else:
        model = f"the models of {' and '.join(found.variants)} answer" if found.variants else "the model answers"
        print(f"{found.project} for {found.target}: {found.files} files agree with the manifest; {model} in {' and '.join(found.ran)}")


_COMMANDS: dict[str, Callable[..., None]] = {  # as one works: what --help lists
    "init": init,
    "advise": advise,
    "plan": plan,
    "build": build,
    "report": report,
    "eval": evaluate,
    "bench": bench,
    "compare": compare,
    "explain": explain,
    "samples": samples,
    "verify": verify,
    "doctor": doctor,
}
for name, command in _COMMANDS.items():
    app.command(name)(command)
for name, group in {"targets": targets, "devices": devices, "data": data, "cache": cache}.items():
    app.add_typer(group, name=name)


def main() -> NoReturn:
    """Run the command of this process and exit with its code. Every error is told here, once."""
    signal.signal(signal.SIGTERM, _interrupt)
    arguments = sys.argv[1:] or ["--help"]
    as_json, debug = "--json" in arguments, "--debug" in arguments
    sys.exit(told(lambda: app(args=arguments, prog_name="kdpipe", standalone_mode=False), as_json=as_json, debug=debug))


def told(command: Callable[[], Any], *, as_json: bool, debug: bool) -> int:
    """The exit code of `command`, its error told on stderr (and with `as_json` as an object on stdout)."""
    try:
        result = command()
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except KdpipeError as error:
        return _fail(error.exit_code, error.problems, as_json=as_json, debug=debug)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(INTERRUPTED, (), as_json=as_json, debug=debug)
    except BrokenPipeError:  # whoever read our output is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _DEFECT
    except Exception as error:  # the command line's own errors, and then ours to mend: told as such, never a traceback unless asked for
        if isinstance(error, _USAGE_ERROR):
            advice = "kdpipe --help lists the commands, kdpipe COMMAND --help its options"
            return _fail(ConfigError.exit_code, (Problem(error.format_message(), do=advice),), as_json=as_json, debug=debug)
        folder = _full_temporary_folder()
        if folder is not None:  # libraries tell a full disk in many ways: a short file, a number without words
            full = Problem(f"the disk of temporary files is full ({type(error).__name__})", str(folder), "free space there, or name another folder: TMPDIR=…")
            return _fail(UnavailableError.exit_code, (full,), as_json=as_json, debug=debug)
        advice = "please report it with what the same command prints with --debug"
        return _fail(_DEFECT, (Problem(f"a defect of kdpipe: {type(error).__name__}: {error}", do=advice),), as_json=as_json, debug=debug)


def _full_temporary_folder() -> Path | None:
    """The folder of temporary files, where its disk is full."""
    folder = Path(os.environ.get("TMPDIR", "/tmp"))  # not asked of tempfile, which raises where it cannot write
    return folder if folder.is_dir() and shutil.disk_usage(folder).free < _FULL_BELOW_BYTES else None


def _fail(exit_code: int, problems: Sequence[Problem], *, as_json: bool, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    for problem in problems:
        _say(str(problem))
    if exit_code == INTERRUPTED:
        _say("interrupted")
    if as_json:
        print_json({"error": {"exit_code": exit_code, "problems": [asdict(problem) for problem in problems]}})
    return exit_code


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
