"""Runs the `playbook` command in the process of a test, in an empty folder, and keeps what it prints."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from playbook_plugins.cli import main


@dataclass(frozen=True)
class Output:
    status: int
    stdout: str
    stderr: str


def make_runner(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> Callable[..., Output]:
    """Return a function that runs the command with its arguments; `folder` is the working directory."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: Any) -> Output:
        monkeypatch.setattr(sys, "argv", ["playbook", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Output(int(ended.value.code or 0), captured.out, captured.err)

    return run
