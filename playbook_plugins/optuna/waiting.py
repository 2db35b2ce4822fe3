"""How does a worker wait for the trials that other workers have in hand?

A procedure's next stage follows from all runs of the one before, so each of its workers has to see them all finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import optuna

from playbook_plugins.analysis.records import Status
from playbook_plugins.analysis.trials import Trials

_OVER = (Status.COMPLETE, Status.INFEASIBLE, Status.PRUNED)
# Seconds. Runs of some seconds are not to wait long for each other; those of hours ask the storage seldom.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 5.0
_FIRST_WORD = 60.0


def finish_together(carry_out: Callable[[], Trials], n_trials: int, *, first_word: float = _FIRST_WORD) -> Trials:
    """Do one's share of a study, and wait until nothing of it is left to do, nor runs elsewhere.

    Parameters
    ----------
    carry_out
        Runs what is free to be run, redoes what dead workers left, and returns the study as it is then. It is called
        again and again, for a worker may die while this one waits for it.
    n_trials
        How many trials the study has in the end.
    first_word
        After so many seconds of waiting the log says for what, and again after twice as long, and so on.

    Returns
    -------
    Trials
        The study with all its trials over.
    """
    pause, next_word = _SHORTEST_PAUSE, time.monotonic() + first_word
    while True:
        trials = carry_out()
        running = [
            int(number)
            for number, status in zip(trials.number.tolist(), trials.status, strict=True)
            if status not in _OVER
        ]
        if len(trials) >= n_trials and not running:
            return trials
        if time.monotonic() >= next_word:
            optuna.logging.get_logger("optuna.playbook_plugins").info(
                f"Waiting for the trials {running} of the study {trials.name!r}, which other workers run. A worker "
                "that died on another machine is found by the heartbeat of the storage; without one, queue its trials "
                "again by redo_lost(study, older_than=...)."
            )
            first_word *= 2
            next_word = time.monotonic() + first_word
        time.sleep(pause)
        pause = min(1.25 * pause, _LONGEST_PAUSE)
