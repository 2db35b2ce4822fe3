"""Which rows do the charts of a W&B report draw? The tables that the report's one run logs.

Playbook: "Extracting insight from experimental results". The columns of the trials have the names of the keys that
every run of a trial logs, so that the same presets draw the report's tables and the runs themselves.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from playbook_plugins.analysis import Curve, Parameter, Trials, tuning_curve
from playbook_plugins.analysis.objectives import is_training_minimized
from playbook_plugins.charts.curves import best_evaluation, best_with_curves
from playbook_plugins.charts.table import choice_labels, drawn_rows, finite
from playbook_plugins.charts.theme import label
from playbook_plugins.report.sheet import describe_sheet

Cell: TypeAlias = str | int | float | None

TRIAL_COLUMNS = (
    "trial",
    "playbook_objective",
    "playbook_status",
    "playbook_reason",
    "playbook_rank",
    "playbook_best_step",
    "playbook_max_steps",
)
N_CURVES = 3
# What W&B adds to each row of a chart.
_RUN_COLUMNS = ("id", "name")
_MAX_POINTS = 500
_MAX_REASON, _MAX_KEY = 200, 200
# W&B writes a column's name as it is into an expression, between double quotes, and fills in placeholders.
_MARKUP = re.compile(r'["\\\u2028\u2029]|\$(?=\{)')


@dataclass(frozen=True, kw_only=True)
class ReportTable:
    """A table to log.

    Attributes
    ----------
    columns
        Their names, all different.
    rows
        One cell a column; numbers are finite, what is unknown is None.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def is_plain_key(key: str) -> bool:
    """Return whether a preset can draw a key: whether it is a plain name, and none that W&B or a trial's row has."""
    is_text = bool(key) and label(key, _MAX_KEY) == key and not _MARKUP.search(key)
    return is_text and key not in (*TRIAL_COLUMNS, *_RUN_COLUMNS)


def name_columns(trials: Trials) -> dict[str, str]:
    """Return the column of each hyperparameter in the table of the trials.

    It is the stored name. Where a preset could not draw that, other signs are replaced and a number stands behind it.

    Parameters
    ----------
    trials
        The study.
    """
    names = [parameter.name for parameter in trials.parameters]
    columns: dict[str, str] = {}
    taken = {*TRIAL_COLUMNS, *_RUN_COLUMNS, *names}
    for name in names:
        columns[name] = name
        if not is_plain_key(name):
            stem = _MARKUP.sub("_", label(name))
            columns[name] = next(column for count in itertools.count(2) if (column := f"{stem}_{count}") not in taken)
            taken.add(columns[name])
    return columns


def label_choices(parameter: Parameter) -> list[str] | list[int | float]:
    """Return what stands for each category: finite numbers themselves, so that they are sorted as such, else labels."""
    numbers = [choice for choice in parameter.choices if type(choice) in (int, float) and math.isfinite(choice)]
    if len(numbers) == len(parameter.choices) == len(set(numbers)):
        return numbers
    return choice_labels(parameter)


def tabulate_trials(trials: Trials, columns: Mapping[str, str]) -> ReportTable:
    """Return one row a trial that is not running: at most 10,000, see `playbook_plugins.charts.table.drawn_rows`.

    Parameters
    ----------
    trials
        The study.
    columns
        Of `name_columns`.

    Returns
    -------
    ReportTable
        The columns `TRIAL_COLUMNS` and one a hyperparameter; categories are those of `label_choices`.
    """
    ranking = trials.ranking()
    ranks = np.zeros(len(trials), dtype=np.intp)
    ranks[ranking] = np.arange(1, len(ranking) + 1)
    drawn = drawn_rows(trials)
    outcome: list[Sequence[Cell]] = [
        [int(number) for number in trials.number[drawn]],
        [finite(objective) for objective in trials.objective[drawn]],
        [str(status) for status in trials.status[drawn]],
        [label(trials.reason[row], _MAX_REASON) for row in drawn],
        [int(rank) or None for rank in ranks[drawn]],
        [int(step) for step in trials.best_step[drawn]],
        [int(step) for step in trials.max_steps[drawn]],
    ]
    for parameter in trials.parameters:
        if parameter.is_numeric:
            numbers = [finite(value) for value in trials.values[parameter.name][drawn]]
            is_whole = parameter.kind == "int"
            outcome.append([int(value) if is_whole and value is not None else value for value in numbers])
        else:
            labels = label_choices(parameter)
            outcome.append([None if rank < 0 else labels[rank] for rank in trials.ranks(parameter.name)[drawn]])
    return ReportTable(
        columns=(*TRIAL_COLUMNS, *(columns[parameter.name] for parameter in trials.parameters)),
        rows=tuple(zip(*outcome, strict=True)),
    )


def tabulate_curves(trials: Trials, n_best: int = N_CURVES) -> ReportTable:
    """Return one row an evaluation of the best trials with a curve, at most about 500 a trial.

    Parameters
    ----------
    trials
        The study.
    n_best
        How many trials.

    Returns
    -------
    ReportTable
        Without a row where no feasible trial has a curve. ``rank`` is 1 for the best trial that has one; ``train`` is
        None where its unit is not that of the validation objective.
    """
    rows: list[tuple[Cell, ...]] = []
    for place, (row, curve) in enumerate(best_with_curves(trials)[:n_best], start=1):
        curve = curve.thin(_MAX_POINTS, [best_evaluation(trials, curve)])
        number = int(trials.number[row])
        name = f"trial {number} (best)" if place == 1 else f"trial {number}"
        columns = [
            [int(step) for step in curve.step],
            *([_short(value) for value in column] for column in _columns(trials, curve)),
        ]
        rows += [(number, place, *cells, name) for cells in zip(*columns, strict=True)]
    names = ("step", "validation", "train", "learning_rate", "gradient_norm", "gradient_norm_max", "clip_threshold")
    return ReportTable(columns=("trial", "rank", *names, "label"), rows=tuple(rows))


def tabulate_budget(trials: Trials) -> ReportTable:
    """Return what the best of m trials reaches, one row an m.

    Parameters
    ----------
    trials
        The study.

    Returns
    -------
    ReportTable
        ``n_trials`` is m; ``median``, and ``lower`` <= ``upper``, between which the middle half lies, are in the
        objective's unit, None where so many draws are likely to be all infeasible. Without a row where no trial is
        feasible.
    """
    curve = tuning_curve(trials)
    ends = [curve.better_quartile, curve.worse_quartile]
    lower, upper = ends if trials.direction == "minimize" else ends[::-1]
    return ReportTable(
        columns=("n_trials", "median", "lower", "upper"),
        rows=tuple(
            (int(m), finite(middle), finite(low), finite(high))
            for m, middle, low, high in zip(curve.m, curve.median, lower, upper, strict=True)
            if trials.is_feasible.any()
        ),
    )


def tabulate_sheet(sheet: Sequence[Mapping[str, Any]]) -> ReportTable:
    """Return the study sheet as texts, one row a study."""
    described = describe_sheet(sheet)
    return ReportTable(
        columns=tuple(described["names"]),
        rows=tuple(tuple(label(text, _MAX_REASON) for text in row) for row in described["rows"]),
    )


def _columns(trials: Trials, curve: Curve) -> list[Any]:
    # A loss and an accuracy cannot stand on one axis.
    shares_unit = trials.direction == "minimize" or not is_training_minimized(curve, trials.direction)
    return [
        curve.validation,
        curve.train if shares_unit else np.full(len(curve), math.nan),
        curve.learning_rate,
        curve.gradient_norm,
        curve.gradient_norm_max,
        curve.clip_threshold,
    ]


def _short(value: float) -> float | None:
    """Return a number of six digits, which are more than a line can show."""
    number = finite(value)
    return None if number is None else float(f"{number:.6g}")
