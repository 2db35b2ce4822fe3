"""How does a page keep up with a study that runs? It is written again whenever more trials have finished."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from playbook_plugins.cli.errors import describe_database_error, find_database_error, print_note
from playbook_plugins.cli.printing import working
from playbook_plugins.report.phrases import count_text

if TYPE_CHECKING:
    import optuna


@dataclass
class Watch:
    """A page and the study that it follows.

    Attributes
    ----------
    study
        The study.
    url
        Its storage, for messages.
    write
        Writes the page and returns where; None where the study has nothing to show yet.
    n_written
        How many trials had finished when the page was written; 0 before.
    is_read
        Whether the study could be read so far.
    """

    study: optuna.Study
    url: str
    write: Callable[[], Path | None]
    n_written: int = 0
    is_read: bool = False

    def follow(self, seconds: float, until: int | None) -> None:
        """Look at the study every so many seconds, until so many trials have finished or Ctrl-C.

        A storage that cannot be read at the first look is an error; later it may come back.
        """
        try:
            self._look()
            if not self.n_written:
                print_note("no trial has finished yet: the page is written when one has.", self.url)
            while until is None or self.n_written < until:
                time.sleep(seconds)
                self._look()
        except KeyboardInterrupt:
            print_note("stopped. The page stays as it was last written.", self.url)

    def _look(self) -> None:
        try:
            self._update()
        except Exception as error:
            from_database = find_database_error(error)
            if from_database is None or not self.is_read:
                raise
            print_note(f"{describe_database_error(from_database, self.url)} Trying again.", self.url)

    def _update(self) -> None:
        n_finished = sum(trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False))
        self.is_read = True
        if n_finished == self.n_written:
            return
        with working("Writing the page"):
            page = self.write()
        if page is not None:
            self.n_written = n_finished
            typer.echo(f"{time.strftime('%H:%M:%S')}  {count_text(n_finished, 'finished trial')}  {page}")
