"""Which earlier trials lie inside a new study's search space, and how do they get into it, each once?

Playbook: "After exploration concludes": Bayesian optimization starts from what the exploration found. Samplers that
model the objective cannot take an infinite value: an infeasible trial comes in with the worst finite value seen and
the violated constraint, by which they learn where not to look.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from playbook_plugins.analysis.parameters import Parameter
from playbook_plugins.analysis.trials import Trials
from playbook_plugins.optuna.constraints import constraint_arguments
from playbook_plugins.optuna.coordinates import contains
from playbook_plugins.optuna.trials import RECORD_KEY

IMPORTED_KEY = "playbook:imported from"


def rows_with(trials: Trials, values: Mapping[str, Any]) -> list[int]:
    """Return the rows of the finished trials, feasible or infeasible, that have all of these values, types included."""
    judged = np.flatnonzero(trials.is_judged)
    return [int(row) for row in judged if _has_all(trials.config(int(row)), values)]


def _has_all(config: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    return all(
        name in config and type(config[name]) is type(value) and config[name] == value for name, value in values.items()
    )


def distribution_of(parameter: Parameter) -> BaseDistribution:
    """Return the Optuna distribution of a hyperparameter that was recovered from the trials."""
    if parameter.kind == "categorical":
        return CategoricalDistribution(parameter.choices)
    if parameter.kind == "int":
        step = int(parameter.step or 1)
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log, step=step)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def worst_finite(values: Sequence[float | None], direction: str) -> float:
    """Return the worst finite value, which stands in for an infinite one; 0 where there is none."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return 0.0
    return max(finite) if direction == "minimize" else min(finite)


def import_trials(
    study: optuna.Study,
    trials: Trials,
    source: Mapping[int, FrozenTrial],
    space: Mapping[str, BaseDistribution],
    stored: Mapping[str, str],
    values: Mapping[str, Any],
) -> None:
    """Create the trials of ``trials`` that lie inside ``space`` again in ``study``, except those already there.

    Parameters
    ----------
    study
        The new study. A call that is killed half-way is completed by the next one.
    trials
        Finished trials of the earlier study.
    source
        The same trials as Optuna keeps them, by number.
    space
        The new search space, by the names in the new study.
    stored
        The names in the earlier study, by the names in the new one, where they differ.
    values
        What every earlier trial had without searching it (its fixed values).
    """
    present = {trial.user_attrs.get(IMPORTED_KEY) for trial in study.get_trials(deepcopy=False)}
    points = {}
    for row in range(len(trials)):
        config = {**values, **trials.config(row)}
        point = {name: config.get(stored.get(name, name)) for name in space}
        if all(contains(space[name], value) for name, value in point.items()):
            points[row] = point
    worst = worst_finite([float(trials.objective[row]) for row in points], trials.direction)
    for row, point in points.items():
        number = int(trials.number[row])
        if number in present:
            continue
        is_infeasible = bool(trials.is_infeasible[row])
        record = source[number].user_attrs.get(RECORD_KEY)
        study.add_trial(
            optuna.create_trial(
                state=TrialState.COMPLETE,
                value=worst if is_infeasible else float(trials.objective[row]),
                params=point,
                distributions=dict(space),
                user_attrs={IMPORTED_KEY: number} | ({} if record is None else {RECORD_KEY: record}),
                **constraint_arguments(is_infeasible),
            )
        )
