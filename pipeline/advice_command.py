"""`kdpipe advise`: parses, calls and prints."""

from pathlib import Path
from typing import Annotated

import typer

from kdpipe.pipeline.options import AsJson, Debug
from kdpipe.pipeline.printing import print_json, print_table


def advise(
    folder: Annotated[Path, typer.Argument(help="The project's folder; with --write made if missing.", show_default="the current folder")] = Path(),
    data: Annotated[str | None, typer.Option("--data", help="As in kdpipe init.", show_default="those of kdpipe.toml, else the digits")] = None,
    goal: Annotated[str, typer.Option("--goal", help="What the file is to be good at: attacks, corruptions or clean.")] = "attacks",
    minutes: Annotated[float | None, typer.Option("--minutes", help="Time for the whole build, in minutes.", show_default="whatever it takes")] = None,
    write: Annotated[bool, typer.Option("--write", help="Write the proposal as kdpipe.toml, where there is none.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Propose objective, attack and schedule for these data, this machine and this much time, with reasons, figures and cost; change nothing."""
    from kdpipe.pipeline.advice import advise as advised
    from kdpipe.pipeline.advice_table import as_json_value, choices_table, cost_table, notes
    from kdpipe.pipeline.progress import progress_for

    with progress_for(as_json=as_json) as progress:
        advice = advised(folder, data=data, goal=goal, minutes=minutes, write=write, progress=progress)
    if as_json:
        print_json(as_json_value(advice))
        return
    print_table(choices_table(advice))
    print_table(cost_table(advice))
    for note in notes(advice):
        print(note)
    print("the proposed file is in --json as 'toml'; --write writes it" if advice.written is None else f"wrote {advice.written}")
