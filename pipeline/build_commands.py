"""`kdpipe build`, `plan` and `report`: each parses, calls and prints."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from kdpipe.pipeline.options import AsJson, Debug, Device, Project, Settings, Targets, Until
from kdpipe.pipeline.printing import print_json, print_table, table

if TYPE_CHECKING:
    from kdpipe.pipeline.steps import BuildResult


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
        print_json(_build_json(result))
    else:
        _show_build(result)
    raise typer.Exit(result.exit_code)


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
        print_json({"project": made.config.name, "threads": made.threads, **labels, **variants, "expectations": foreseen, "steps": rows})
        return
    steps = table("step", "", "why", "fingerprint")
    for it in made.steps:
        steps.add_row(it.step.name, it.state, "; ".join(it.why), it.step.fingerprint[:12])
    print_table(steps)
    for line in (*(choice.told for choice in made.variants), *(each.told for each in expectations(made))):
        print(line)
    if made.data.relabelled is not None:
        print(made.data.relabelled.told)


def report(project: Project = Path(), target: Targets = None, settings: Settings = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """Write the bundles and the report of a finished build again; exit 2 where steps are missing."""
    from kdpipe.pipeline.building import rewritten

    result = rewritten(project, targets=target or (), overrides=settings or ())
    if as_json:
        print_json(_build_json(result))
    else:
        print(result.report)


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

    print_table(table_of(cast("list[Row]", result.rows)))
    for verdict in result.verdicts:
        print(f"budget {verdict.name} of {verdict.target}: {verdict.state} (limit {verdict.limit:g} {verdict.unit}): {verdict.reason}")
    for target, path in result.bundles.items():
        print(f"bundle {target}: {path}")
    if result.report:
        print(f"report: {result.report}")
