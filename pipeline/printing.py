"""What commands print to stdout: tables for people, JSON for machines."""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def table(*columns: str) -> "Table":
    """An empty table of these columns."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def print_table(value: "Table") -> None:
    """The table, as wide as the terminal; in a log 160 columns, which wraps its own lines."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    console.print(value)


def print_json(value: Any) -> None:
    """One JSON object; NaN and infinity are a ValueError."""
    print(json.dumps(value, indent=2, allow_nan=False))
