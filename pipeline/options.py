"""Options that several commands have, and what they share with them."""

from pathlib import Path
from typing import Annotated

import typer

from kdpipe.foundation.errors import ConfigError

Project = Annotated[Path, typer.Option("--project", help="The project's folder, with kdpipe.toml.", show_default="the current folder")]
Targets = Annotated[list[str] | None, typer.Option("--target", help="A target to build for; repeat for several.", show_default="all of kdpipe.toml")]
Until = Annotated[str | None, typer.Option("--until", help="Stop after this stage: teacher, distill, prune, qat, export or bench.")]
Device = Annotated[str | None, typer.Option("--device", help="Measure the target on this device of kdpipe.toml.", show_default="the target's own")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Override a key, e.g. distill.epochs=3; repeat for several.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, and no progress.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def existing(project: Path) -> Path:
    """The folder that `--project` names; ConfigError where there is none."""
    if not project.is_dir():
        raise ConfigError("no such folder", at=project, do="give the project's folder")
    return project
