"""Which trials are attempts at the same point, and which of them counts?

What a killed worker left is done again by a new trial, marked by Optuna's own convention for retries. Workers that look
at once may queue the same trial twice, or both take the last place of a round, and be killed at any moment of it: the
studies of killed runs hold trials that nobody needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optuna.trial import FrozenTrial, TrialState

from playbook_plugins.optuna.indices import FAILED_TRIAL_KEY, sequence_indices

# Why a trial was ended before it trained.
NOT_NEEDED_KEY = "playbook:not needed"


def first_attempt(trial: FrozenTrial) -> int:
    """Return the number of the first attempt at a trial's point, the trial's own where it is the first."""
    first = int(trial.system_attrs.get(FAILED_TRIAL_KEY, trial.number))
    # The mark of a trial that was copied from another study may point nowhere.
    return first if 0 <= first < trial.number else trial.number


def group_attempts(trials: Sequence[FrozenTrial]) -> Mapping[int, list[FrozenTrial]]:
    """Return all attempts at each point, in the order of ``trials``, by the number of the first one."""
    groups: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        groups.setdefault(first_attempt(trial), []).append(trial)
    return groups


def is_overtaken(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    """Return whether an earlier attempt at the same point is done, runs or waits, so that this one is not needed."""
    root = first_attempt(trial)
    return any(
        other.number < trial.number and first_attempt(other) == root and other.state is not TrialState.FAIL
        for other in trials
    )


def final_attempts(trials: Sequence[FrozenTrial], n_trials: int | None = None) -> list[FrozenTrial]:
    """Return the trials that count: of each point those that run or have a result, else the last one that failed.

    Parameters
    ----------
    trials
        All trials of a study, ascending.
    n_trials
        How many points the study's round or plan has, where it has an end. A failed trial beyond it for which nothing
        was suggested was killed before it could say that nobody needs it.

    Returns
    -------
    list of FrozenTrial
        Ascending, without those that wait and the failed attempts at their points.
    """
    failed = {}
    kept = []
    for root, attempts in group_attempts([trial for trial in trials if NOT_NEEDED_KEY not in trial.user_attrs]).items():
        others = [attempt for attempt in attempts if attempt.state is not TrialState.FAIL]
        kept += [attempt for attempt in others if attempt.state is not TrialState.WAITING]
        if not others:
            failed[root] = attempts[-1]
    if n_trials is not None and not all(trial.params for trial in failed.values()):
        indices = sequence_indices(trials)
        failed = {
            root: trial for root, trial in failed.items() if trial.params or (indices[trial.number] or 0) < n_trials
        }
    return sorted([*kept, *failed.values()], key=lambda trial: trial.number)
