"""What do the charts of a W&B report have to know of a study? The same of one that has run and of one only planned.

Playbook: "Extracting insight from experimental results".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from playbook_plugins.analysis import Curve, Finding, Parameter, Trials, isolate
from playbook_plugins.analysis.isolation_groups import values_of
from playbook_plugins.analysis.records import Direction
from playbook_plugins.charts.curves import best_with_curves
from playbook_plugins.charts.scales import TINY, objective_scale
from playbook_plugins.wandb.report_tables import N_CURVES, name_columns

_LOG_RATIO = 30.0


@dataclass(frozen=True, kw_only=True)
class ChartedStudy:
    """What the charts have to know of a study, run or only planned.

    Attributes
    ----------
    direction, objective_name, parameters
        As in `Trials`.
    keys
        The column, or the key in the runs' config, of each hyperparameter.
    n_buckets
        Into how many buckets its isolation plot splits it; what is missing is left to the chart.
    is_log, are_curves_log
        Whether the axis of the objective is logarithmic, of the trials and over training.
    gathers
        The hyperparameters along which infeasible trials gather.
    has_budget, has_curves, has_norms, has_steps
        Whether there is anything to draw of it.
    """

    direction: Direction
    objective_name: str
    parameters: tuple[Parameter, ...]
    keys: Mapping[str, str]
    n_buckets: Mapping[str, int]
    is_log: bool = False
    are_curves_log: bool = False
    gathers: frozenset[str] = frozenset()
    has_budget: bool = True
    has_curves: bool = True
    has_norms: bool = True
    has_steps: bool = True


def chart_study(trials: Trials, findings: Sequence[Finding], *, is_live: bool) -> ChartedStudy:
    """Return what the charts have to know of a study.

    Parameters
    ----------
    trials
        The study.
    findings
        Of this study.
    is_live
        Whether the charts read the runs of the trials instead of tables.
    """
    curves = [curve for _, curve in best_with_curves(trials)]
    gathers = {str(finding.numbers.get("explained_by")) for finding in findings if finding.check == "feasibility"}
    searched = [parameter for parameter in trials.parameters if is_bucketed(parameter)]
    return ChartedStudy(
        direction=trials.direction,
        objective_name=trials.objective_name,
        parameters=trials.parameters,
        keys=given_names(trials.parameters) if is_live else name_columns(trials),
        n_buckets={} if is_live else {one.name: len(isolate(trials, one.name).groups) for one in searched},
        is_log=objective_scale(trials).log,
        are_curves_log=_are_wide(trials, curves[:N_CURVES]),
        gathers=frozenset(gathers),
        has_budget=bool(trials.is_feasible.any()),
        has_curves=bool(curves),
        has_norms=any(np.isfinite(curve.gradient_norm).any() for curve in curves),
        has_steps=bool((trials.is_feasible & (trials.best_step >= 0) & (trials.max_steps > 0)).any()),
    )


def given_names(parameters: Iterable[Parameter]) -> dict[str, str]:
    """Return under which key of the config training got each hyperparameter."""
    return {parameter.name: parameter.given_name for parameter in parameters}


def is_bucketed(parameter: Parameter) -> bool:
    """Return whether an isolation takes a hyperparameter in buckets, and not value by value."""
    return parameter.is_numeric and parameter.low < parameter.high and values_of(parameter) is None


def _are_wide(trials: Trials, curves: Sequence[Curve]) -> bool:
    """Return whether lines span so much that only a logarithmic axis separates them where they end."""
    if trials.direction == "maximize" or not curves:
        return False
    values = np.concatenate([column for curve in curves for column in (curve.validation, curve.train)])
    values = values[np.isfinite(values)]
    return bool(values.min() > TINY and values.max() > _LOG_RATIO * values.min())
