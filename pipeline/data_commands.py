"""`kdpipe data …`: look for what is wrong with the data, and leave it out without touching the original."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdpipe.foundation.errors import BudgetError, ConfigError
from kdpipe.pipeline.options import AsJson, Debug, Project, Settings
from kdpipe.pipeline.printing import print_json, print_table, table

if TYPE_CHECKING:
    from kdpipe.tasks.data.inspection.findings import Inspection

data = typer.Typer(help="Check the data for copies, leaks, damage and wrong labels; clean them without touching the original.")


@data.command("check")
def check(
    project: Project = Path(),
    source: Annotated[
        str | None, typer.Option("--data", help="Check this instead of the project's: a built-in name, folder, file or package.module:callable.")
    ] = None,
    settings: Settings = None,
    labels: Annotated[bool, typer.Option("--labels/--no-labels", help="Whether to look for wrong labels, which takes most of the time.")] = True,
    sheet: Annotated[
        Path | None, typer.Option("--report", help="Where to write the page to look at.", show_default="dist/NAME/data-report.html, or data-report.html")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Look for copies, leaks, damage, outliers, imbalance and wrong labels; exit 3 where something is serious."""
    from kdpipe.pipeline.data_check import check as run
    from kdpipe.pipeline.progress import progress_for

    with progress_for(as_json=as_json) as progress:
        result = run(project, data=source, overrides=settings or (), labels=labels, sheet=sheet, progress=progress)
    exit_code = BudgetError.exit_code if result.inspection.serious else 0
    if as_json:
        print_json({**result.inspection.model_dump(mode="json"), "report": str(result.sheet), "exit_code": exit_code})
    else:
        _show(result.inspection)
        print(f"report: {result.sheet}")
    raise typer.Exit(exit_code)


@data.command("clean")
def clean(
    project: Project = Path(),
    settings: Settings = None,
    drop_suspected: Annotated[bool, typer.Option("--drop-suspected", help="Also leave out samples whose label is suspected.")] = False,
    relabel: Annotated[bool, typer.Option("--relabel", help="Also give samples whose label is suspected the suggested one.")] = False,
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="Where to act on suspected labels: train, validation or test; repeat for several.", show_default="train alone"),
    ] = None,
    least_margin: Annotated[
        float, typer.Option("--least-margin", min=0, max=1, help="How much likelier than the given label the suggested one must be, a probability.")
    ] = 0.5,
    out: Annotated[str, typer.Option("--out", help="The manifest's file, in the project's folder.")] = "cleaned.json",
    undo: Annotated[bool, typer.Option("--undo", help="Write a manifest without decisions: the data are as they were.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be left out or relabelled.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a manifest of what to leave out: unusable samples, copies in training, leaks; suspected labels only when asked to."""
    if drop_suspected and relabel:
        raise ConfigError("--drop-suspected and --relabel exclude each other", at="kdpipe data clean", do="choose one")
    if split and not (drop_suspected or relabel):
        raise ConfigError("--split says where to act on suspected labels", at="kdpipe data clean", do="add --drop-suspected or --relabel")
    splits = _splits(split)
    from kdpipe.pipeline.data_check import clean as run
    from kdpipe.pipeline.progress import progress_for
    from kdpipe.tasks.data.cleaning import Wanted

    wanted = Wanted("drop" if drop_suspected else "relabel" if relabel else "keep", splits, least_margin)
    with progress_for(as_json=as_json) as progress:
        result = run(project, wanted=wanted, overrides=settings or (), out=out, undo=undo, dry_run=dry_run, progress=progress)
    decisions = result.manifest.decisions
    if as_json:
        told = {"path": str(result.path), "digest": result.digest, "in_use": result.in_use, "dry_run": dry_run}
        print_json({**told, "manifest": result.manifest.model_dump(mode="json")})
        return
    made = table("split", "left out", "relabelled", "why")
    for name in ("train", "validation", "test"):
        own = [it for it in decisions if it.split == name]
        if own:
            dropped = sum(it.label is None for it in own)
            made.add_row(name, f"{dropped:,}", f"{len(own) - dropped:,}", ", ".join(sorted({it.why for it in own})))
    print_table(made) if decisions else print("nothing is left out or relabelled")
    print(f"{'would write' if dry_run else 'wrote'} {result.path}: {len(decisions):,} decisions")
    if not result.in_use and not undo:
        print(f'to use it: cleaned = "{out}" in [task]; to undo it: take the line out, or kdpipe data clean --undo')


def _splits(names: list[str] | None) -> Any:
    from kdpipe.tasks.data.inspection.findings import SPLITS

    for name in names or ():
        if name not in SPLITS:
            raise ConfigError(f"there is no split {name!r}", at=f"--split {name}", do=f"splits: {', '.join(SPLITS)}")
    return tuple(name for name in SPLITS if name in (names or ("train",)))


def _show(inspection: "Inspection") -> None:
    from kdpipe.pipeline.report.data_sheet import summary_rows

    counts = ", ".join(f"{name} {sum(own):,}" for name, own in inspection.counts.items())
    print(f"{inspection.name}: {counts}; {len(inspection.classes)} classes; digest {inspection.digest[:12]}")
    made = table("", "found", "what", "for example", "what to do")
    for row in summary_rows(inspection):
        made.add_row(row.severity, f"{row.findings:,}", row.title, row.example, row.do)
    print_table(made) if inspection.findings else print("nothing was found")
    if inspection.label_model is not None:
        model = inspection.label_model
        print(
            f"labels: {model.what}; {model.folds} folds agree with {100 * model.accuracy:.1f} % of the training labels; "
            f"estimated share of wrong ones {100 * model.noise_rate:.1f} %"
        )
    for reason in inspection.skipped:
        print(reason)
