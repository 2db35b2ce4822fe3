"""Which point of the sequence does a trial take? Its number, less the trials before it that take none of their own.

Playbook: "Why use quasi-random search instead of more sophisticated black box optimization algorithms during the
exploration phase of tuning?" (its points do not depend on what other trials found, so any order and any number of
workers give the same search).

A trial takes no point of its own when the user enqueued it, or when it does again what a lost trial was to do. Both
are written into a trial's system attributes by the very call that creates it, so every worker counts the same, whenever
it looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

# The system attributes that `Study.enqueue_trial` and Optuna's retries (and `redo_lost`) write.
FIXED_PARAMS_KEY = "fixed_params"
FAILED_TRIAL_KEY = "failed_trial"

# The free hyperparameters of enqueued trials take points from here on, which no study reaches by counting. The number
# is 2^39 over the golden ratio: a round one would end in zeros in base 2, and land on the first points once more.
FAR_INDEX = 339_770_223_431


def sequence_indices(trials: Sequence[FrozenTrial]) -> dict[int, int | None]:
    """Return the index in the sequence of each trial of a study.

    Parameters
    ----------
    trials
        All trials of the study, in any order and in any state.

    Returns
    -------
    dict
        From the trial's number to its index: None for a trial enqueued by the user; for a retry, the index of the
        trial that it does again; for any other, its number less the enqueued trials and retries before it.

    Raises
    ------
    ValueError
        When trials are missing: the index of a trial depends on all trials before it.

    Examples
    --------
    >>> import optuna
    >>> study = optuna.create_study()
    >>> study.enqueue_trial({"x": 0.5})
    >>> trials = [study.ask(), study.ask()]
    >>> sequence_indices(study.get_trials())
    {0: None, 1: 0}
    """
    ordered = sorted(trials, key=lambda trial: trial.number)
    for place, trial in enumerate(ordered):
        if trial.number != place:
            raise ValueError(
                f"`trials` has trial {trial.number} where trial {place} should be: an index depends on all trials "
                "before it. Pass all trials of the study, for instance study.get_trials(deepcopy=False)."
            )
    indices = TrialIndices()
    for trial in ordered:
        indices.append(trial.system_attrs)
    return {number: indices.index(number) for number in range(len(indices))}


class TrialIndices:
    """The indices of a study's trials so far; it grows by the new trials only and pickles as plain lists."""

    def __init__(self) -> None:
        self._indices: list[int | None] = []
        self._n_foreign = 0
        # From the number of a retry to the number of the trial that it does again.
        self._originals: dict[int, int] = {}

    def __len__(self) -> int:
        """Return the number of trials counted so far, which is the number of the next."""
        return len(self._indices)

    def append(self, system_attrs: Mapping[str, Any]) -> None:
        """Count the next trial, in the order of the numbers, by its system attributes."""
        number = len(self._indices)
        if FAILED_TRIAL_KEY in system_attrs:
            original = self.original(int(system_attrs[FAILED_TRIAL_KEY]))
            self._originals[number] = original
            # A mark that points nowhere, as in trials copied from another study, has no point to take over.
            self._indices.append(self._indices[original] if 0 <= original < number else None)
            self._n_foreign += 1
        elif FIXED_PARAMS_KEY in system_attrs:
            self._indices.append(None)
            self._n_foreign += 1
        else:
            self._indices.append(number - self._n_foreign)

    def index(self, number: int) -> int | None:
        """Return the index of a trial that was counted; None for an enqueued trial and its retries."""
        return self._indices[number]

    def point(self, number: int) -> int:
        """Return the index that a trial draws from: its own, or else one from the far part of the sequence.

        A retry of an enqueued trial draws the same point again.
        """
        index = self._indices[number]
        return FAR_INDEX + self.original(number) if index is None else index

    def original(self, number: int) -> int:
        """Return the number of the trial that a retry does again, or the trial's own."""
        return self._originals.get(number, number)
