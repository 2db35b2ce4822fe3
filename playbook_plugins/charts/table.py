"""What does a chart know of each trial? The one table of rows that every chart of a study carries as its data.

All charts of one study carry equal rows, so that a page can store them once. Hyperparameters stand under ``p0``,
``p1``, ... in the order of the search space: a field name that comes from a user would have to be escaped in every
expression. Only finite numbers travel; what is unknown is null.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playbook_plugins.analysis import Parameter, Status, Trials
from playbook_plugins.charts.palette import BEST, FAILED, FEASIBLE, INFEASIBLE, PRUNED
from playbook_plugins.charts.theme import label

N_BEST = 3
# More marks are neither drawn quickly nor told apart.
MAX_ROWS = 10_000
_N_BEST_KEPT = 1_000
_KINDS = {Status.INFEASIBLE: INFEASIBLE, Status.PRUNED: PRUNED, Status.FAILED: FAILED, Status.COMPLETE: FAILED}


def trial_rows(trials: Trials) -> list[dict[str, Any]]:
    """Return one row a trial that is not running, the best last, so that it is drawn on top.

    Of more than 10,000 trials, which no browser draws well, the best 1,000 and an even selection of the others.

    Parameters
    ----------
    trials
        The study.

    Returns
    -------
    list of dict
        Keys: ``trial`` (its number), ``objective`` (null unless finite), ``status``, ``reason``, ``rank`` (1 is best;
        null unless feasible), ``kind`` (which mark it gets) and ``p0``, ``p1``, ... (null where the trial lacks the
        hyperparameter).
    """
    ranking = trials.ranking()
    ranks = np.zeros(len(trials), dtype=np.intp)
    ranks[ranking] = np.arange(1, len(ranking) + 1)
    drawn = drawn_rows(trials)
    # Those without a rank come first.
    drawn = drawn[np.argsort(np.where(ranks[drawn], -ranks[drawn], -len(trials) - 1), kind="stable")]
    columns = [
        dict(zip(drawn.tolist(), _column(trials, parameter, drawn), strict=True)) for parameter in trials.parameters
    ]
    rows = []
    for row in drawn.tolist():
        place = int(ranks[row]) or None
        kind = _KINDS[trials.status[row]] if place is None else BEST if place <= N_BEST else FEASIBLE
        rows.append(
            {
                "trial": int(trials.number[row]),
                "objective": finite(trials.objective[row]),
                "status": str(trials.status[row]),
                "reason": label(trials.reason[row], 200),
                "rank": place,
                "kind": kind,
                **{field(place): column[row] for place, column in enumerate(columns)},
            }
        )
    return rows


def drawn_rows(trials: Trials) -> NDArray[np.intp]:
    """Return the rows of the trials that charts draw, ascending: none that is running, and at most 10,000."""
    rows = np.flatnonzero(trials.status != Status.RUNNING)
    if len(rows) <= MAX_ROWS:
        return rows
    best = trials.ranking()[:_N_BEST_KEPT]
    others = np.setdiff1d(rows, best)
    # Evenly by number: as they come, whichever way the search or the noise drifts.
    even = np.linspace(0, len(others) - 1, MAX_ROWS - len(best)).round().astype(np.intp)
    return np.sort(np.concatenate([best, others[even]]))


def describe_drawn(trials: Trials) -> str:
    """Return a sentence that says which trials are drawn; "" where it is all of them."""
    n_rows = int(np.sum(trials.status != Status.RUNNING))
    if n_rows <= MAX_ROWS:
        return ""
    return (
        f"Single marks stand for {MAX_ROWS:,} of {n_rows:,} trials: the best {_N_BEST_KEPT:,} and an even selection of "
        "the others. Findings, tables and counts are of all."
    )


def field(place: int) -> str:
    """Return the key of a hyperparameter in the rows, from its place in the search space."""
    return f"p{place}"


def place_of(trials: Trials, parameter: str) -> int:
    """Return the place of a hyperparameter in the search space.

    Raises
    ------
    ValueError
        When the study has no such hyperparameter.
    """
    return trials.parameters.index(trials.parameter(parameter))


def finite(value: float) -> float | None:
    """Return a number for JSON, which knows neither NaN nor infinities: None for those."""
    return float(value) if math.isfinite(value) else None


def choice_labels(parameter: Parameter) -> list[str]:
    """Return one label a category, all different: 1, 1.0, True and "1" are four categories."""
    labels = [label(choice, 30) for choice in parameter.choices]
    if len(set(labels)) < len(labels):
        labels = [label(repr(choice), 30) for choice in parameter.choices]
    if len(set(labels)) < len(labels):
        labels = [f"{text} ({place})" for place, text in enumerate(labels)]
    return labels


def parameters_shown(trials: Trials, parameter: Parameter | None = None) -> list[int]:
    """Return the places of the hyperparameters that can exist together with one of them, in order.

    Of the branches of a conditional search space only the one that ``parameter`` belongs to.
    """
    return [
        place
        for place, other in enumerate(trials.parameters)
        if parameter is None
        or parameter.condition is None
        or other.condition is None
        or other.condition[0] != parameter.condition[0]
        or other.condition == parameter.condition
    ]


def tooltip_transforms(trials: Trials, places: list[int]) -> list[dict[str, Any]]:
    """Return the transforms that make the texts of `tooltip`: a dash where a trial lacks a hyperparameter."""
    transforms: list[dict[str, Any]] = [
        {"calculate": "isValid(datum.objective) ? format(datum.objective, '.5~g') : 'none'", "as": "objective_text"}
    ]
    for place in places:
        value = f"datum.{field(place)}"
        shown = f"format({value}, '.4~g')" if trials.parameters[place].is_numeric else value
        transforms.append({"calculate": f"isValid({value}) ? {shown} : '–'", "as": f"{field(place)}_text"})
    return transforms


def tooltip(trials: Trials, places: list[int]) -> list[dict[str, Any]]:
    """Return the tooltip of a mark that stands for a trial: number, objective, status, reason and configuration."""
    return [
        {"field": "trial", "title": "trial", "type": "quantitative", "format": "d"},
        {"field": "objective_text", "title": label(trials.objective_name), "type": "nominal"},
        {"field": "status", "title": "status", "type": "nominal"},
        *([{"field": "reason", "title": "reason", "type": "nominal"}] if any(trials.reason) else []),
        *(
            {"field": f"{field(place)}_text", "title": label(trials.parameters[place].name), "type": "nominal"}
            for place in places
        ),
    ]


def _column(trials: Trials, parameter: Parameter, rows: NDArray[np.intp]) -> list[Any]:
    values = trials.values[parameter.name][rows]
    if parameter.is_numeric:
        numbers = [finite(value) for value in values]
        if parameter.kind == "int":
            return [None if number is None else int(number) for number in numbers]
        return list(numbers)
    labels = choice_labels(parameter)
    return [None if rank < 0 else labels[rank] for rank in trials.ranks(parameter.name)[rows]]
