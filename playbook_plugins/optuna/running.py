"""How do the trials of a round get trained, each once, whoever is killed on the way?

Training code returns a record; what went wrong with the point itself becomes an infeasible trial, every other error
is the user's to see.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from playbook_plugins.analysis.infeasible import InfeasibleError, is_out_of_memory
from playbook_plugins.analysis.records import Curve, Status, TrialRecord
from playbook_plugins.optuna.attempts import NOT_NEEDED_KEY, first_attempt, is_overtaken
from playbook_plugins.optuna.indices import sequence_indices
from playbook_plugins.optuna.masking import mask_text
from playbook_plugins.optuna.recovery import is_unsigned, queue_lost, sign
from playbook_plugins.optuna.trials import ERROR_KEY, record_trial

Train: TypeAlias = Callable[[dict[str, Any], optuna.Trial], TrialRecord]
Suggest: TypeAlias = Callable[[optuna.Trial], dict[str, Any]]
Objective: TypeAlias = Callable[[optuna.Trial], float]
Callback: TypeAlias = Callable[[optuna.Study, FrozenTrial], None]

_POLL_SECONDS = 0.5
_LONGEST_ERROR = 300


class _NotNeededError(Exception):
    """Ends a trial that another worker made superfluous."""


def wrap_training(suggest: Suggest, train: Train, chance_level: float | None) -> Objective:
    """Return the Optuna objective of `Round.objective`."""

    def objective(trial: optuna.Trial) -> float:
        sign(trial)
        config = suggest(trial)
        try:
            record = train(config, trial)
        except InfeasibleError as error:
            record = error.record or _infeasible_record(trial, error.reason)
        except SystemExit:
            # Lightning ends an interrupted run with it, and Optuna lets it pass: the trial would seem to run for as
            # long as this process lives, which is long in a notebook.
            trial.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            record = _infeasible_record(trial, f"out of memory: {error}")
        if not isinstance(record, TrialRecord):
            raise TypeError(
                f"`train` returned {record!r}: it must return a TrialRecord. Return the `.record` of a TrialRecorder, "
                "or build one from the evaluations."
            )
        return record_trial(trial, record, chance_level=chance_level)

    return objective


def run_round(
    study: optuna.Study,
    objective: Objective,
    n_trials: int,
    *,
    n_jobs: int,
    timeout: float | None,
    callbacks: Sequence[Callback],
    catch: tuple[type[Exception], ...],
    older_than: datetime.timedelta | None,
) -> None:
    """Run trials until each of the first ``n_trials`` indices has a finished one: the work of `Round.optimize`.

    Workers that die meanwhile are found in the end, and their trials are run here.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    # The numbers of the trials that ended here and whose outcome the storage does not have yet.
    untold: set[int] = set()
    is_first_pass = True

    def note_told(_: optuna.Study, trial: FrozenTrial) -> None:
        untold.discard(trial.number)

    def stop_when_done(study: optuna.Study, _: FrozenTrial) -> None:
        if not _is_work_left(study, n_trials):
            study.stop()

    while True:
        # Later passes are for workers that died while this one was at work. What ended by an error is tried again once
        # a call; and by their age alone two workers would take a long trial from each other for ever.
        queue_lost(study, older_than if is_first_pass else None, n_indices=n_trials, errors_too=is_first_pass)
        is_first_pass = False
        seconds = None if deadline is None else deadline - time.monotonic()
        if seconds is not None and seconds <= 0:
            return
        if _is_work_left(study, n_trials):
            try:
                study.optimize(
                    _only_if_needed(objective, n_trials, untold),
                    n_jobs=n_jobs,
                    timeout=seconds,
                    callbacks=[note_told, *callbacks, stop_when_done],
                    catch=(*catch, _NotNeededError),
                )
            except Exception:
                # Optuna raises one of three kinds, as the case may be, when it cannot tell a trial.
                if not _is_taken_away(study, untold):
                    raise
                # Somebody held this worker for dead, and its trial is queued again, or has finished it: it goes on
                # with the next.
                untold.clear()
                continue
            if _is_work_left(study, n_trials):
                # The user's own callback called study.stop(), or time is out.
                return
            continue
        # A worker that was killed right after it made a trial could not sign it; only time tells it from one that
        # is about to.
        if not any(is_unsigned(trial) for trial in study.get_trials(deepcopy=False)):
            return
        time.sleep(_POLL_SECONDS)


def _is_work_left(study: optuna.Study, n_trials: int) -> bool:
    """Return whether a trial waits, or an index of the round has none yet."""
    # Fewer trials than indices: asked for by one number, because reading trials costs as much as all that now run.
    try:
        study._storage.get_trial_id_from_study_id_trial_number(study._study_id, n_trials - 1)
    except KeyError:
        return True
    trials = study.get_trials(deepcopy=False)
    indices = sequence_indices(trials)
    started = {index for index in indices.values() if index is not None and index < n_trials}
    return len(started) < n_trials or any(
        trial.state is TrialState.WAITING and (indices[trial.number] or 0) < n_trials for trial in trials
    )


def _is_taken_away(study: optuna.Study, untold: set[int]) -> bool:
    """Return whether another worker told a trial that this one was about to tell.

    Optuna's heartbeat tells it as failed when a living worker misses its beats, and so does `redo_lost` with
    ``older_than``; and on SQLite two workers can take the same waiting trial at once, of whom one finishes it first.
    """
    trials = study.get_trials(deepcopy=False)
    return any(trials[number].state.is_finished() for number in untold)


def _only_if_needed(objective: Objective, n_trials: int, untold: set[int]) -> Objective:
    """Return the objective, ended at once for a trial that the round does not need, and noted when it ends.

    Workers that look at once can both see the last index free, or both queue the same lost trial.
    """

    def guarded(trial: optuna.Trial) -> float:
        reason = _why_not_needed(trial, n_trials)
        if reason:
            trial.set_user_attr(NOT_NEEDED_KEY, reason)
            raise _NotNeededError(reason)
        try:
            value = objective(trial)
        except Exception as error:
            # A trial taken away refuses every write, and whatever ended this attempt, another one will show it.
            if _is_taken_away(trial.study, {trial.number}):
                untold.add(trial.number)
            elif not isinstance(error, optuna.TrialPruned):
                # A storage that is gone must not hide the error.
                with contextlib.suppress(Exception):
                    trial.set_user_attr(ERROR_KEY, mask_text(f"{type(error).__name__}: {error}")[:_LONGEST_ERROR])
            raise
        untold.add(trial.number)
        return value

    return guarded


def _why_not_needed(trial: optuna.Trial, n_trials: int) -> str:
    """Return why the round does not need a trial that is about to train, "" where it does."""
    frozen = trial.study._storage.get_trial(trial._trial_id)
    # An index is never larger than its number, and only a repeated attempt can be overtaken: nearly always the trial
    # itself tells enough, and the others, of which many may run, need not be read.
    if frozen.number < n_trials and first_attempt(frozen) == frozen.number:
        return ""
    trials = trial.study.get_trials(deepcopy=False)
    index = sequence_indices(trials)[trial.number]
    if index is not None and index >= n_trials:
        return f"beyond the {n_trials} trials of the round"
    if is_overtaken(trials[trial.number], trials):
        return "another attempt at this point is done or running"
    return ""


def _infeasible_record(trial: optuna.Trial, reason: str) -> TrialRecord:
    minimize = trial.study.direction is StudyDirection.MINIMIZE
    return TrialRecord(
        direction="minimize" if minimize else "maximize",
        status=Status.INFEASIBLE,
        reason=reason,
        curve=Curve.from_columns([], []),
    )
