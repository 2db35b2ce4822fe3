"""How does a record get into an Optuna study, and a study into the table that the analysis reads?

An infeasible trial is told as COMPLETE with the worst possible value and a violated constraint: a trial told as FAIL or
PRUNED is invisible to samplers that learn from results, which then propose divergent points again and again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from playbook_plugins.analysis.parameters import Parameter, Role
from playbook_plugins.analysis.records import Curve, Direction, Status, TrialRecord
from playbook_plugins.analysis.trials import Trials
from playbook_plugins.optuna.attempts import final_attempts
from playbook_plugins.optuna.constraints import is_violated, set_infeasible

RECORD_KEY = "playbook:record"
ROUND_KEY = "playbook:round"
PLAN_KEY = "playbook:plan"
EXPLOITATION_KEY = "playbook:exploitation"
ERROR_KEY = "playbook:error"


def record_trial(trial: optuna.Trial, record: TrialRecord, *, chance_level: float | None = None) -> float:
    """Keep a record with its trial and return what the objective function should return.

    Parameters
    ----------
    trial
        The running trial.
    record
        What training returned.
    chance_level
        The objective of guessing, in the objective's unit. A trial whose best objective is no better is infeasible.

    Returns
    -------
    float
        The best objective over training; the worst possible value, +inf when minimizing and -inf when maximizing, for
        an infeasible trial.

    Raises
    ------
    ValueError
        When the record's direction is not the study's, or the study has several objectives.
    RuntimeError
        When the record's status is FAILED or RUNNING: such a trial has no result.
    optuna.TrialPruned
        When the record's status is PRUNED.
    """
    direction = _direction(trial.study)
    if record.direction != direction:
        raise ValueError(
            f"`record` has the direction {record.direction!r}, but the study {trial.study.study_name!r} is to "
            f"{direction} its objective: both must agree. Create the study with direction={record.direction!r}, or "
            "record with the other mode."
        )
    if record.status in (Status.FAILED, Status.RUNNING):
        raise RuntimeError(
            f"`record` has the status {str(record.status)!r} ({record.reason or 'no reason given'}): only a finished "
            "training run has a result. Let the exception that ended training reach Optuna instead."
        )
    if chance_level is not None and record.status is Status.COMPLETE:
        gain = chance_level - record.objective if direction == "minimize" else record.objective - chance_level
        if not gain > 0:
            reason = f"no better than chance: {record.objective:.6g} against {chance_level:.6g}"
            record = replace(record, status=Status.INFEASIBLE, reason=reason)
    trial.set_user_attr(RECORD_KEY, record.to_json())
    if record.status is Status.PRUNED:
        raise optuna.TrialPruned(record.reason)
    set_infeasible(trial, record.status is Status.INFEASIBLE)
    return record.objective


def trials_from_study(study: optuna.Study) -> Trials:
    """Return the table of a study, made with this package or not, finished or still running.

    Parameters
    ----------
    study
        A study with one objective. Roles, conditions, fixed values and caveats come from the `Round` kept with it,
        where there is one; otherwise the search space is recovered from the distributions of the trials (the widest
        bounds that any trial saw), and every hyperparameter is a nuisance.

    Returns
    -------
    Trials
        Waiting trials are left out, failed attempts at points that were tried again, and trials that the round
        turned out not to need.

    Raises
    ------
    ValueError
        When the study has several objectives.
    """
    return tabulate(study, final_trials(study))


def final_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials of a study that are rows of its table, see `trials_from_study`."""
    attributes = study.user_attrs
    n_trials = None
    # The Bayesian phase has no end of its own.
    if EXPLOITATION_KEY not in attributes:
        design = kept_design(attributes)
        n_trials = len(design["points"]) if "points" in design else design.get("n_trials")
    return final_attempts(study.get_trials(deepcopy=False), n_trials)


def tabulate(study: optuna.Study, frozen: Sequence[FrozenTrial]) -> Trials:
    """Return the table of some trials of a study, as `trials_from_study` of all."""
    direction = _direction(study)
    design = kept_design(study.user_attrs)
    parameters = _parameters(frozen, design)
    records = [kept_record(trial) for trial in frozen]
    outcomes = [_outcome(trial, record) for trial, record in zip(frozen, records, strict=True)]
    # A run that broke before its first evaluation may not know the name.
    names = {record.objective_name for record in records if record is not None and len(record.curve)}
    return Trials.from_columns(
        study.study_name,
        parameters,
        {parameter.name: _column(parameter, frozen) for parameter in parameters},
        [_objective(trial, status) for trial, (status, _) in zip(frozen, outcomes, strict=True)],
        direction=direction,
        status=[status for status, _ in outcomes],
        reason=[reason for _, reason in outcomes],
        best_step=[-1 if record is None else record.best_step for record in records],
        max_steps=[-1 if record is None else record.max_steps for record in records],
        curves=[_curve(trial, record) for trial, record in zip(frozen, records, strict=True)],
        number=[trial.number for trial in frozen],
        objective_name=names.pop() if len(names) == 1 else "objective",
        fixed=design.get("fixed", {}),
        goal=design.get("goal", ""),
        caveats=tuple(design.get("caveats", ())),
    )


def kept_record(trial: FrozenTrial) -> TrialRecord | None:
    """Return what `record_trial` kept with a trial: its curves, its gradient norms, its checkpoints.

    `trials_from_study` gives the curves of all trials at once; this is all that is known of one.

    Parameters
    ----------
    trial
        One of ``study.trials``.

    Returns
    -------
    TrialRecord or None
        None where the trial has none: it was made without this package, or has not ended.
    """
    text = trial.user_attrs.get(RECORD_KEY)
    return TrialRecord.from_json(text) if text is not None else None


def _direction(study: optuna.Study) -> Direction:
    if len(study.directions) != 1:
        raise ValueError(
            f"`study` {study.study_name!r} has {len(study.directions)} objectives: the playbook compares trials by "
            "one. Use a study with one objective."
        )
    return "minimize" if study.direction is StudyDirection.MINIMIZE else "maximize"


def kept_design(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the round or the plan kept in a study's attributes, empty where there is none."""
    design: Mapping[str, Any] = json.loads(attributes.get(ROUND_KEY) or attributes.get(PLAN_KEY, "{}"))
    return design


def _parameters(trials: Sequence[FrozenTrial], design: Mapping[str, Any]) -> list[Parameter]:
    """Return the search space: the round's, in its order, then what other trials added, in order of appearance."""
    space = {
        entry["name"]: parameter_of(
            entry["name"],
            optuna.distributions.json_to_distribution(json.dumps(entry["distribution"])),
            Role(entry["role"]),
            tuple(entry["condition"]) if entry["condition"] else None,
        )
        for entry in design.get("space", [])
    }
    # Thousands of trials share a few distributions.
    ranges: dict[str, list[BaseDistribution]] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            seen = ranges.setdefault(name, [])
            if distribution not in seen:
                seen.append(distribution)
                later = parameter_of(name, distribution)
                space[name] = space[name].widen(later) if name in space else later
    return list(space.values())


def parameter_of(
    name: str,
    distribution: BaseDistribution,
    role: Role = Role.NUISANCE,
    condition: tuple[str, Any] | None = None,
) -> Parameter:
    """Return a hyperparameter as the analysis knows it, from its Optuna distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return Parameter(
            name=name, kind="categorical", choices=tuple(distribution.choices), role=role, condition=condition
        )
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        raise ValueError(
            f"`study` has the hyperparameter {name!r} with the distribution {distribution!r}: only float, int and "
            "categorical distributions are supported. Use one of these."
        )
    return Parameter(
        name=name,
        kind="float" if isinstance(distribution, FloatDistribution) else "int",
        low=float(distribution.low),
        high=float(distribution.high),
        log=distribution.log,
        step=distribution.step,
        role=role,
        condition=condition,
    )


def _column(parameter: Parameter, trials: Sequence[FrozenTrial]) -> list[Any]:
    missing = math.nan if parameter.is_numeric else None
    column = [trial.params.get(parameter.name, missing) for trial in trials]
    if parameter.is_numeric:
        return [value if isinstance(value, int | float) else math.nan for value in column]
    return column


def _outcome(trial: FrozenTrial, record: TrialRecord | None) -> tuple[Status, str]:
    """Return how a trial ended and why."""
    reason = record.reason if record is not None else ""
    if trial.state is TrialState.RUNNING:
        return Status.RUNNING, ""
    if trial.state is TrialState.PRUNED:
        return Status.PRUNED, reason
    if trial.state is TrialState.COMPLETE:
        if is_violated(trial):
            return Status.INFEASIBLE, reason or "a constraint is violated"
        if trial.value is None or not math.isfinite(trial.value):
            return Status.INFEASIBLE, reason or f"the objective is {trial.value}"
        return Status.COMPLETE, reason
    if record is not None and record.status is Status.INFEASIBLE:
        return Status.INFEASIBLE, reason
    known = reason or str(trial.system_attrs.get("fail_reason", ""))
    diverged = _divergence(trial, known)
    if diverged:
        return Status.INFEASIBLE, diverged
    return Status.FAILED, known or str(trial.user_attrs.get(ERROR_KEY, "ended without a result"))


def _divergence(trial: FrozenTrial, reason: str) -> str:
    """Return how a failed trial of another's making diverged: its last report, or its recorded reason, says so."""
    if trial.intermediate_values:
        step = max(trial.intermediate_values)
        value = trial.intermediate_values[step]
        if not math.isfinite(value):
            return f"diverged: reported {value} at step {step}"
    return reason if re.search(r"\b(nan|inf|infinity|non-finite)\b", reason, flags=re.IGNORECASE) else ""


def _objective(trial: FrozenTrial, status: Status) -> float:
    if status in (Status.COMPLETE, Status.PRUNED) and trial.value is not None:
        return float(trial.value)
    return math.nan


def _curve(trial: FrozenTrial, record: TrialRecord | None) -> Curve | None:
    if record is not None:
        return record.curve if len(record.curve) else None
    steps = sorted(step for step in trial.intermediate_values if step >= 0)
    if not steps:
        return None
    values = np.array([trial.intermediate_values[step] for step in steps], dtype=np.float64)
    return Curve.from_columns(steps, np.where(np.isfinite(values), values, np.nan))
