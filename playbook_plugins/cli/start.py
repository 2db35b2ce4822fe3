"""How does the `playbook` command begin? Also where the extra that it needs is not installed."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Run the `playbook` command with the arguments of this process, and end the process.

    Raises
    ------
    SystemExit
        Always: 0 when all went well, 1 when `playbook review` raised a flag, 2 on errors.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a sign shows another one; it is no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        from playbook_plugins.cli.commands import app
    except ImportError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.stderr.write(
            f"playbook: the command needs {error.name}, which is not installed. Run: pip install "
            "'playbook-plugins[report,optuna]'\n"
        )
        raise SystemExit(2) from None
    app(prog_name="playbook")
