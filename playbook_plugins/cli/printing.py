"""How does the command print what it found? Tables for people on stdout, JSON for programs, progress on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import typer

from playbook_plugins.cli.secrets import printable


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Show on a terminal's stderr what takes so long."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{what} …"):
        yield


def print_json(data: Any) -> None:
    """Print strict JSON on stdout; numbers that are not finite are null."""
    typer.echo(json.dumps(_plain(data), indent=2, allow_nan=False))


def print_lines(lines: Sequence[str]) -> None:
    """Print lines of any length, as they are but for control characters."""
    for line in lines:
        typer.echo(printable(line))


def print_table(title: str, columns: Mapping[str, int], rows: Sequence[Sequence[str]]) -> None:
    """Print a table over the whole width of the terminal.

    Parameters
    ----------
    title
        What the table shows.
    columns
        The headings with the share of the width that each gets; 0 for as much as it needs.
    rows
        Their cells; the first line of a cell of several lines is bold.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(title)), title_justify="left", show_lines=True)
    for heading, share in columns.items():
        table.add_column(heading, overflow="fold", ratio=share or None)
    for row in rows:
        cells = []
        for cell in row:
            first, line_end, rest = printable(cell).partition("\n")
            # Text, because brackets in a name are no markup.
            cells.append(Text(first, style="bold" if line_end else "").append(line_end + rest, style="not bold"))
        table.add_row(*cells)
    Console(highlight=False).print(table)


def _plain(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    # Numbers of numpy.
    value = data.item() if hasattr(data, "item") else data
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
