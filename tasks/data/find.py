"""What `data = "…"` names: a built-in set, a user's callable, or a file or folder whose format is recognised."""

from pathlib import Path

from kdpipe.tasks.data import digits, npz
from kdpipe.tasks.data.checks import Layout
from kdpipe.tasks.data.source import Source

BUILT_IN = ("digits",)


def found(data: str, *, path: Path | None, project: Path, classes: tuple[str, ...] | None, layout: Layout | None) -> Source:
    """The source that `data` names. A built-in name wins over a file of that name: `./digits` is the file."""
    if data == digits.NAME:
        return digits.load(classes)
    return npz.load(project / data, classes=classes, layout=layout)
