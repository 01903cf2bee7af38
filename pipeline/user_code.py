"""The user's own modules, which lie in the project's folder."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def importable(project: Path) -> Iterator[None]:
    """The user's own modules can be imported from the project's folder meanwhile."""
    place = str(project)
    sys.path.insert(0, place)
    try:
        yield
    finally:
        sys.path.remove(place)
