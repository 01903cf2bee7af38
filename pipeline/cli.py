"""The command line. A command parses, calls and prints; what it needs is imported when it runs, so that help is there at once."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer

from kdpipe.foundation.errors import ConfigError, KdpipeError, Problem
from kdpipe.pipeline.advice_command import advise
from kdpipe.pipeline.compare_command import compare
from kdpipe.pipeline.data_commands import data
from kdpipe.pipeline.device_commands import bench, devices
from kdpipe.pipeline.explain_command import explain
from kdpipe.pipeline.printing import print_json as _print_json
from kdpipe.pipeline.printing import print_table as _print_table
from kdpipe.pipeline.printing import table as _table
from kdpipe.pipeline.target_commands import targets

if TYPE_CHECKING:
    from kdpipe.pipeline.steps import BuildResult

INTERRUPTED = 130

_DEFECT = 1
_USAGE_ERROR: Any = typer.BadParameter.__mro__[2]  # ClickException: typer brings click under a name of its own since 0.26

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Compress a network for an edge chip, and prove the int8 file.",
)
cache = typer.Typer(help="The store of finished steps: list it, clean it up.")
app.add_typer(cache, name="cache")
app.add_typer(data, name="data")
app.add_typer(devices, name="devices")
app.add_typer(targets, name="targets")
app.command()(bench)
app.command()(compare)
app.command()(explain)
app.command()(advise)

Project = Annotated[Path, typer.Option("--project", help="The project's folder, with kdpipe.toml.", show_default="the current folder")]
Targets = Annotated[list[str] | None, typer.Option("--target", help="A target to build for; repeat for several.", show_default="all of kdpipe.toml")]
Until = Annotated[str | None, typer.Option("--until", help="Stop after this stage: teacher, distill, prune, qat, export or bench.")]
Device = Annotated[str | None, typer.Option("--device", help="Measure the target on this device of kdpipe.toml.", show_default="the target's own")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Override a key, e.g. distill.epochs=3; repeat for several.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, and no progress.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.command()
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
        _print_json({"path": str(written.path), "choices": told})
        return
    for choice, why in written.choices:
        _say(f"{choice}: {why}")
    _say("what each choice rests on, what the build will cost, other goals and budgets: kdpipe advise")
    print(f"wrote {written.path}")
    _say(f"next: kdpipe build{'' if folder.resolve() == Path().resolve() else f' --project {folder}'}")


@app.command()
def build(
    project: Project = Path(),
    target: Targets = None,
    until: Until = None,
    device: Device = None,
    settings: Settings = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run what is not done yet, write a bundle for each target and the report; exit 3 where a budget is missed."""
    from kdpipe.pipeline.building import build as run
    from kdpipe.pipeline.progress import progress_for

    with progress_for(as_json=as_json) as progress:
        result = run(project, targets=target or (), until=until, device=device, overrides=settings or (), progress=progress)
    if as_json:
        _print_json(_build_json(result))
    else:
        _show_build(result)
    raise typer.Exit(result.exit_code)


@app.command()
def plan(
    project: Project = Path(),
    target: Targets = None,
    until: Until = None,
    device: Device = None,
    settings: Settings = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what a build would run, and why; change nothing."""
    from kdpipe.pipeline.building import plan as make
    from kdpipe.pipeline.expectations import expectations

    made = make(project, targets=target or (), until=until, device=device, overrides=settings or ())
    if as_json:
        rows = [{"step": it.step.name, "state": it.state, "why": list(it.why), "fingerprint": it.step.fingerprint} for it in made.steps]
        labels = {} if made.data.relabelled is None else {"labels": made.data.relabelled.as_json()}
        variants = {"variants": [asdict(choice) for choice in made.variants]} if made.variants else {}
        foreseen = [{**asdict(each), "told": each.told} for each in expectations(made)]
        _print_json({"project": made.config.name, "threads": made.threads, **labels, **variants, "expectations": foreseen, "steps": rows})
        return
    table = _table("step", "", "why", "fingerprint")
    for it in made.steps:
        table.add_row(it.step.name, it.state, "; ".join(it.why), it.step.fingerprint[:12])
    _print_table(table)
    for line in (*(choice.told for choice in made.variants), *(each.told for each in expectations(made))):
        print(line)
    if made.data.relabelled is not None:
        print(made.data.relabelled.told)


@app.command()
def doctor(project: Project = Path(), as_json: AsJson = False, debug: Debug = False) -> None:
    """Tell what is installed, what this CPU can do, and which targets can be built and measured here."""
    from kdpipe.pipeline.doctor import diagnose

    found = diagnose(_existing(project))
    if as_json:
        _print_json(asdict(found))
        return
    table = _table("", "")
    table.show_header = False
    table.add_row("kdpipe", f"{found.kdpipe}, Python {found.python}, {found.system}")
    table.add_row("CPU", f"{found.cpu}, {found.cores} cores, {found.memory_bytes / 1e9:.1f} GB memory")
    table.add_row("instruction sets", ", ".join(found.instruction_sets))
    table.add_row("installed", ", ".join(f"{name} {version}" for name, version in found.tools.items() if version))
    table.add_row("not installed", ", ".join(name for name, version in found.tools.items() if version is None) or "–")
    table.add_row("disk", f"{found.free_bytes / 1e9:.1f} GB free, {'writable' if found.writable else 'not writable'}: {found.project}")
    for target in found.targets:
        built = "can be built" if target.cannot_build is None else f"cannot be built ({target.cannot_build})"
        exact = "quality here is quality there" if target.exact else "this host's int8 arithmetic differs from the target's"
        table.add_row(f"target {target.name}", f"{target.title}: {built}; {exact}; {target.cannot_measure or 'latency can be measured here'}")
    _print_table(table)
    for warning in found.warnings:
        _say(f"warning: {warning}")


@cache.command("ls")
def cache_ls(project: Project = Path(), as_json: AsJson = False, debug: Debug = False) -> None:
    """List the finished steps in the store, oldest first, and the teachers' kept logits."""
    from kdpipe.pipeline.cache import entries, kept_logits
    from kdpipe.pipeline.progress import duration
    from kdpipe.pipeline.store import Store

    store = Store(_existing(project).resolve())
    found, tables = entries(store), kept_logits(store)
    if as_json:
        _print_json({"artifacts": [asdict(entry) for entry in found], "teacher_logits": [asdict(each) for each in tables]})
        return
    table = _table("step", "size", "took", "finished", "used", "fingerprint")
    for entry in found:
        table.add_row(entry.step, _size(entry.size_bytes), duration(entry.seconds), entry.finished, "yes" if entry.used else "no", entry.fingerprint[:12])
    _print_table(table)
    if tables:
        print(f"teachers' logits of [distill.cache]: {len(tables)} tables, {_size(sum(each.size_bytes for each in tables))}, last used {tables[-1].used}")


@cache.command("gc")
def cache_gc(
    project: Project = Path(),
    keep_days: Annotated[float, typer.Option("--keep-days", min=0, help="Keep what is younger than this, in days.")] = 7.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Remove what the latest builds do not use: artifacts, interrupted work, damaged artifacts, teachers' kept logits."""
    from kdpipe.pipeline.cache import collect, removable
    from kdpipe.pipeline.store import Store

    store = Store(_existing(project).resolve())
    removals = (removable if dry_run else collect)(store, keep_days=keep_days)
    total = sum(removal.size_bytes for removal in removals)
    if as_json:
        _print_json({"dry_run": dry_run, "freed_bytes": total, "removed": [{**asdict(removal), "folder": str(removal.folder)} for removal in removals]})
        return
    for removal in removals:
        print(f"{removal.what}  {_size(removal.size_bytes)}  {removal.folder.name[:16]}")
    print(f"{'would free' if dry_run else 'freed'} {_size(total)}: {len(removals)} {'place' if len(removals) == 1 else 'places'}")


@app.command()
def report(project: Project = Path(), target: Targets = None, settings: Settings = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """Write the bundles and the report of a finished build again; exit 2 where steps are missing."""
    from kdpipe.pipeline.building import rewritten

    result = rewritten(project, targets=target or (), overrides=settings or ())
    if as_json:
        _print_json(_build_json(result))
    else:
        print(result.report)


@app.command()
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
        _print_json(found)
        return
    if half_width is not None:
        print(f"±{half_width:g} points at {100 * rate:g} %: {found['half_width']:,} samples")
    if difference is not None:
        told = f"{difference:g} points between two models, found in {100 * power:g} of 100 cases"
        print(f"{told}: {found['paired_difference']:,} samples where {100 * discordant:g} % are right in one model alone, judged by both models")
        print(f"the same on two separate sets at {100 * rate:g} %: {found['unpaired_difference_each']:,} samples each")


@app.command("eval")
def evaluate(
    subject: Annotated[Path, typer.Argument(help="A bundle's folder, a folder with network.json, or an .onnx file with contract.json beside it.")],
    project: Annotated[
        Path | None, typer.Option("--project", help="The project whose test split and [evaluate] count.", show_default="the one around SUBJECT")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="Other data: a built-in name, an .npz, a folder of class folders.", show_default=False)] = None,
    attacks: Annotated[
        str | None, typer.Option("--attacks", help="By commas: autoattack,pgd-20; '' for none.", show_default="the bundle's or project's own, else fgsm,pgd-20")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help="Test samples that are attacked, and corrupted.", show_default="as above, else 1000")] = None,
    norm: Annotated[str | None, typer.Option("--norm", help="linf or l2.", show_default="as above, else linf")] = None,
    epsilon: Annotated[float | None, typer.Option("--epsilon", help="In the data's value range, [0, 1].", show_default="as above, else 8/255; l2: 0.5")] = None,
    corruptions: Annotated[
        str | None, typer.Option("--corruptions", help="By commas, or standard; '' for none.", show_default="as above, else standard")
    ] = None,
    decision_queries: Annotated[
        int | None, typer.Option("--decision-queries", min=0, help="Of the attack on files that asks for the class alone.", show_default="500 for files")
    ] = None,
    runtime: Annotated[list[str] | None, typer.Option("--runtime", help="Where a file is run; repeat for several.", show_default="the target's")] = None,
    contract: Annotated[Path | None, typer.Option("--contract", help="The file's contract.", show_default="contract.json beside it")] = None,
    surrogate: Annotated[
        list[Path] | None, typer.Option("--surrogate", help="A network's folder that lends its gradients; repeat.", show_default="the project's")
    ] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Keep finished batches here until all is done.", show_default="the project's work")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write the scorecard as one HTML file.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of samples and noise.", show_default="as above, else 0")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Judge a bundle, a network or any ONNX classifier: the scorecard, under attack, with its intervals and its doubts."""
    from kdpipe.pipeline.evaluating import evaluate as judged
    from kdpipe.pipeline.evaluation_basis import Asked
    from kdpipe.pipeline.evaluation_table import as_json_value, figures_table, notes
    from kdpipe.pipeline.progress import progress_for

    asked = Asked(project, data, _listed(attacks), n, norm, epsilon, _listed(corruptions), decision_queries, seed)
    with progress_for(as_json=as_json) as progress:
        result = judged(
            subject, asked=asked, contract=contract, runtimes=runtime or (), surrogates=surrogate or (), resume=resume, report=report, progress=progress
        )
    if as_json:
        _print_json(as_json_value(result))
        return
    _print_table(figures_table(result))
    for note in notes(result):
        print(note)
    if report:
        print(f"report: {report}")


@app.command()
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
        number = require_sound_store(Store(_existing(project).resolve()))
        _print_json({"artifacts": number}) if as_json else print(f"{number} artifacts, every digest agrees")
        return
    found = verify_bundle(bundle)
    if as_json:
        _print_json({**asdict(found), "folder": str(found.folder)})
    else:
        model = f"the models of {' and '.join(found.variants)} answer" if found.variants else "the model answers"
        print(f"{found.project} for {found.target}: {found.files} files agree with the manifest; {model} in {' and '.join(found.ran)}")


def main() -> NoReturn:
    """Run the command of this process and exit with its code. Every error is told here, once."""
    signal.signal(signal.SIGTERM, _interrupt)
    arguments = sys.argv[1:] or ["--help"]
    as_json, debug = "--json" in arguments, "--debug" in arguments
    sys.exit(_told(lambda: app(args=arguments, prog_name="kdpipe", standalone_mode=False), as_json=as_json, debug=debug))


def _told(command: Callable[[], Any], *, as_json: bool, debug: bool) -> int:
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
        advice = "please report it with what the same command prints with --debug"
        return _fail(_DEFECT, (Problem(f"a defect of kdpipe: {type(error).__name__}: {error}", do=advice),), as_json=as_json, debug=debug)


def _fail(exit_code: int, problems: Sequence[Problem], *, as_json: bool, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    for problem in problems:
        _say(str(problem))
    if exit_code == INTERRUPTED:
        _say("interrupted")
    if as_json:
        _print_json({"error": {"exit_code": exit_code, "problems": [asdict(problem) for problem in problems]}})
    return exit_code


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _build_json(result: "BuildResult") -> dict[str, Any]:
    return {
        "project": result.name,
        "targets": list(result.targets),
        "steps": [
            {
                "step": name,
                "state": it.state,
                "seconds": it.seconds,
                "peak_memory_bytes": it.peak_memory_bytes,
                "fingerprint": it.step.fingerprint,
                "folder": str(it.folder),
            }
            for name, it in result.results.items()
        ],
        "rows": list(result.rows),
        "budgets": [asdict(verdict) for verdict in result.verdicts],
        "expectations": list(result.expectations),
        "bundles": {target: str(path) for target, path in result.bundles.items()},
        "report": str(result.report) if result.report else None,
        "exit_code": result.exit_code,
    }


def _show_build(result: "BuildResult") -> None:
    from kdpipe.pipeline.table import Row, table_of

    _print_table(table_of(cast("list[Row]", result.rows)))
    for verdict in result.verdicts:
        print(f"budget {verdict.name} of {verdict.target}: {verdict.state} (limit {verdict.limit:g} {verdict.unit}): {verdict.reason}")
    for target, path in result.bundles.items():
        print(f"bundle {target}: {path}")
    if result.report:
        print(f"report: {result.report}")


def _listed(names: str | None) -> tuple[str, ...] | None:
    """What stands between commas; `''` is nothing, which is not the same as not asked."""
    return None if names is None else tuple(name.strip() for name in names.split(",") if name.strip())


def _existing(project: Path) -> Path:
    if not project.is_dir():
        raise ConfigError("no such folder", at=project, do="give the project's folder")
    return project


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB" if size_bytes >= 100_000 else f"{size_bytes / 1e3:,.1f} kB"


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
