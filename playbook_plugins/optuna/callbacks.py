"""How does each finished trial get to an experiment tracker, without the training code knowing of it?

Playbook: "Setting up experiment tracking": each trial of a study is tracked, the infeasible ones too.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from playbook_plugins.analysis.records import TrialRecord
from playbook_plugins.analysis.trials import Trials
from playbook_plugins.optuna.attempts import NOT_NEEDED_KEY
from playbook_plugins.optuna.exploitation import exploitation_config
from playbook_plugins.optuna.rounds import Round
from playbook_plugins.optuna.running import Callback
from playbook_plugins.optuna.trials import EXPLOITATION_KEY, ROUND_KEY, kept_record, tabulate


def trial_callback(log: Callable[..., Any], **arguments: Any) -> Callback:
    """Return an Optuna callback that hands each finished trial to a tracker.

    For any study, made by a `Round` or not, with ``n_jobs``, and in several processes. A tracker that fails is warned
    of, and the study goes on: the trial is in its storage whatever happens.

    Parameters
    ----------
    log
        ``log(record, config, study=, number=, **arguments)``, for instance `playbook_plugins.wandb.log_trial`.
        ``record`` is the `TrialRecord` kept with the trial, or, where there is none or Optuna knows another outcome,
        the table of this one trial; ``config`` the configuration that training got, fixed values included; ``study``
        the table of this one trial, which names the study and its search space; ``number`` the trial's number.
    **arguments
        Go to ``log`` as they are.

    Returns
    -------
    callable
        ``callback(study, trial)``, for ``callbacks=`` of `optuna.Study.optimize` and `Round.optimize`.

    Examples
    --------
    >>> study = optuna.create_study()
    >>> def log(record, config, study, number, folder):
    ...     print(folder, number, config, record.objective)
    >>> callback = trial_callback(log, folder="a")
    >>> study.optimize(lambda trial: trial.suggest_int("width", 8, 8) / 2, n_trials=1, callbacks=[callback])
    a 0 {'width': 8} [4.]
    """

    def callback(study: optuna.Study, trial: FrozenTrial) -> None:
        try:
            hand_over(study, trial, log, **arguments)
        except Exception as error:
            warnings.warn(
                f"Trial {trial.number} of {study.study_name!r} is in its storage, but was not logged: {error!r}",
                stacklevel=2,
            )

    return callback


def hand_over(study: optuna.Study, trial: FrozenTrial, log: Callable[..., Any], **arguments: Any) -> bool:
    """Hand one finished trial to a tracker, as `trial_callback` does; whatever the tracker raises goes on.

    Parameters
    ----------
    study, trial
        A finished trial of a study. One that another worker made superfluous is left out: it tells nothing.
    log, **arguments
        As `trial_callback`.

    Returns
    -------
    bool
        Whether the trial was handed over.
    """
    if NOT_NEEDED_KEY in trial.user_attrs:
        return False
    table = tabulate(study, [trial])
    log(_outcome(trial, table), read_config(study, trial), study=table, number=trial.number, **arguments)
    return True


def read_config(study: optuna.Study, trial: FrozenTrial) -> Mapping[str, Any]:
    """Return the configuration that training got, by the names that it knows.

    Parameters
    ----------
    study
        The study; the round kept in it, or its Bayesian phase, gives fixed values and the names within branches.
    trial
        A finished trial of it; one that broke before all was suggested has what was.
    """
    try:
        if EXPLOITATION_KEY in study.user_attrs:
            return exploitation_config(study, trial)
        if ROUND_KEY in study.user_attrs:
            return Round.from_study(study).suggest(trial)
    except ValueError:
        # A value is missing, or lies outside the range of a study that was changed since.
        pass
    return dict(trial.params)


def _outcome(trial: FrozenTrial, table: Trials) -> TrialRecord | Trials:
    record = kept_record(trial)
    if record is None or record.status is not table.status[0]:
        return table
    same = record.objective == table.objective[0] or (math.isnan(record.objective) and math.isnan(table.objective[0]))
    return record if same else table
