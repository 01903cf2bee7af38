"""`kdpipe compare`: two int8 files on the same samples, or with `--latency` two files by their speed."""

from pathlib import Path
from typing import Annotated

import typer

from kdpipe.foundation.errors import ConfigError
from kdpipe.pipeline.options import AsJson, Debug
from kdpipe.pipeline.printing import print_json, print_table

_LATENCY_ALONE = ("--device", "--runtime", "--threads", "--batch", "--slower-than", "--limit", "--project", "--data")


def compare(
    a: Annotated[Path, typer.Argument(help="A bundle's folder, or a project's; with --latency OLD: a bundle or an .onnx file.")],
    b: Annotated[Path, typer.Argument(help="What is compared with it: every difference is B less A; with --latency NEW.")],
    margin: Annotated[float | None, typer.Option("--margin", help="Percentage points that B may lose.", show_default="0")] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Compare this target alone; of one with variants, each of them.", show_default="all that both have")
    ] = None,
    latency: Annotated[
        bool, typer.Option("--latency", help="Compare the speed, and nothing else: is B slower than A? Exit 4 where it cannot be told.")
    ] = False,
    slower_than: Annotated[float | None, typer.Option("--slower-than", help="Per cent that B may be slower.", show_default="5")] = None,
    limit: Annotated[float | None, typer.Option("--limit", help="Most seconds to measure; mostly a few are enough.", show_default="120")] = None,
    device: Annotated[str | None, typer.Option("--device", help="Measure on this device of the project.", show_default="host")] = None,
    runtime: Annotated[str | None, typer.Option("--runtime", help="The runtime.", show_default="A's first, else onnxruntime")] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="Threads of the runtime.", show_default="1")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, max=4096, help="Batch size; a static file has its own.", show_default="1")] = None,
    project: Annotated[Path | None, typer.Option("--project", help="Whose devices and data.", show_default="A's data, devices of this folder")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Other data to run on.", show_default="A's own")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare two int8 files on the same samples, with paired 95 % intervals, or with --latency by their speed; exit 3 on a regression."""
    given = (device, runtime, threads, batch, slower_than, limit, project, data)
    if latency:
        if margin is not None or target is not None:
            raise ConfigError("--margin and --target are for accuracies", at="--latency", do="leave them out, or leave --latency out")
        from kdpipe.pipeline.latency_comparing import Asked, compare_latency
        from kdpipe.pipeline.progress import progress_for

        chosen = {"device": device, "runtime": runtime, "threads": threads, "batch": batch, "slower_than": slower_than, "limit_seconds": limit}
        asked = Asked(project=project, data=data, **{name: value for name, value in chosen.items() if value is not None})  # type: ignore[arg-type]
        with progress_for(as_json=as_json) as progress:
            found = compare_latency(a, b, asked, progress)
        print_json(found.model_dump(mode="json")) if as_json else print(*found.told, sep="\n")
        raise typer.Exit(found.exit_code)
    named = [option for option, value in zip(_LATENCY_ALONE, given, strict=True) if value is not None]
    if named:
        raise ConfigError(f"{named[0]} is for comparing speed", at=named[0], do="add --latency, or leave it out")
    from kdpipe.pipeline.comparing import compare as compared
    from kdpipe.pipeline.comparison_table import as_json_value, shown

    comparisons = compared(a, b, margin=margin or 0.0, target=target)
    if as_json:
        print_json(as_json_value(comparisons))
    else:
        for each in comparisons:
            title, rows, verdict = shown(each)
            print(title)
            print_table(rows)
            print(verdict)
    raise typer.Exit(max(each.exit_code for each in comparisons))
