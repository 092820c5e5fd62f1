"""Rows for a person: columns that fit a terminal, and are not cut in a pipe."""

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime

from composer_tui.numbers import DASH
from composer_tui.runs.sanitise import clean


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], right: str = "") -> None:
    """Cells are cleaned here. ``right`` names the headings whose columns stand to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for heading in headings:
        justify = "right" if heading in right.split() else "left"
        table.add_column(heading, justify=justify, no_wrap=True, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    console = Console() if sys.stdout.isatty() else Console(width=250)
    console.print(table)


def local_time(moment: float | None) -> str:
    """Unix seconds as a date and a time of this place."""
    if not moment:
        return DASH
    return datetime.fromtimestamp(moment).astimezone().strftime("%Y-%m-%d %H:%M")
