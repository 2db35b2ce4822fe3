"""Which options do several commands share, and can the page be written where it is to go?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from playbook_plugins.cli.errors import CommandError

Output: TypeAlias = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page to write, .html.")]
Title: TypeAlias = Annotated[
    str | None, typer.Option(metavar="TEXT", help="The title of the page; by default the study.", show_default=False)
]
Debug: TypeAlias = Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")]


def check_output(output: Path) -> None:
    """Raise CommandError where no page can be written, before the work is done."""
    if output.suffix.lower() not in (".html", ".htm"):
        raise CommandError(f"{str(output)!r} is no name of a page. Give -o a name that ends in .html.")
    if not output.parent.is_dir():
        raise CommandError(f"{str(output)!r} cannot be written: there is no folder {str(output.parent)!r}.")
    if output.is_dir():
        raise CommandError(f"{str(output)!r} is a folder. Give -o the name of a file.")
