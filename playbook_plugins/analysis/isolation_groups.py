"""Which trials does an isolation compare, and in which groups? One trial a point and a value, retrains left out.

Playbook: "Detecting whether a change is useful with isolation plots": each value of a scientific hyperparameter is
compared at its best over all others. A trial is a witness of its own only where its point is its own: the trials of one
nuisance point under the values of another scientific hyperparameter are as alike as retrains of one configuration.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from playbook_plugins.analysis.parameters import Parameter, Role
from playbook_plugins.analysis.points import point_codes, point_coordinates
from playbook_plugins.analysis.trials import Trials

# Up to here an integer hyperparameter is taken value by value; beyond, in buckets.
_MAX_INTEGER_VALUES = 10
# Value, and the bounds of a bucket.
Label: TypeAlias = tuple[Any, float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Groups:
    """The trials that an isolation compares, of n rows in K groups.

    Attributes
    ----------
    rows
        Their rows in the table, shape (n,).
    place
        The group of each, in [0, K), shape (n,).
    point
        Which point each tries, shape (n,): two trials of different groups at one point differ in the isolated
        hyperparameters only. A number of its own for each trial where nothing else varies.
    labels
        (value, low, high) of each group: a bucket has no value, a value no bounds (NaN).
    """

    rows: NDArray[np.intp]
    place: NDArray[np.intp]
    point: NDArray[np.intp]
    labels: tuple[Label, ...]


def group_trials(trials: Trials, names: Sequence[str], *, combine: bool = False) -> Groups:
    """Group the judged trials that have some hyperparameters by their values.

    A retrained configuration counts once, by its first trial, which alone the search drew: by the best of its retrains
    the value that is retrained more would look better. A point that several values of other scientific hyperparameters
    share counts once a group, by the best of them. Where the hyperparameters to isolate are the whole configuration,
    each trial counts.

    Parameters
    ----------
    trials
        The study.
    names
        The hyperparameters to isolate: one, or several to combine, each then with finitely many values.
    combine
        Whether to take the combinations that are present, with tuples as values, also of a single name.
    """
    subjects = [trials.parameter(name) for name in names]
    rows = np.flatnonzero(trials.is_judged & np.logical_and.reduce([trials.has(name) for name in names]))
    if all(is_scientific(subject) for subject in subjects):
        rows, point = _witnesses(trials, subjects, rows)
    else:
        # Of a nuisance it is one question whichever scientific value was tried.
        rows = trials.distinct(rows)
        point = np.arange(len(rows))
    if combine:
        place, labels = _combine(trials, subjects, rows)
    else:
        place, labels = _split(subjects[0], trials.values[names[0]][rows])
    return Groups(rows=rows, place=place, point=point, labels=tuple(labels))


def _witnesses(
    trials: Trials, subjects: Sequence[Parameter], rows: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return one row a point and value of scientific hyperparameters, and its point, each of shape (n,)."""
    names = [subject.name for subject in subjects]
    others = [parameter for parameter in trials.parameters if parameter.name not in names]
    crossed = [parameter for parameter in others if is_scientific(parameter) and values_of(parameter) is not None]
    varied = [parameter for parameter in others if parameter not in crossed]
    if not varied and all(values_of(subject) is not None for subject in subjects):
        return rows, np.arange(len(rows))
    # The first of a configuration is the first that ran, whatever the order of the table.
    rows = rows[np.argsort(trials.number[rows], kind="stable")]
    point = point_codes(point_coordinates(trials, varied, rows), len(rows))
    asked = [trials.unit(subject.name)[rows] for subject in subjects]
    witness = point_codes([point.astype(np.float64), *asked], len(rows))
    _, first = np.unique(
        point_codes([witness.astype(np.float64), *point_coordinates(trials, crossed, rows)], len(rows)),
        return_index=True,
    )
    kept = _best_of_each(witness, trials.cost[rows], np.sort(first))
    return rows[kept], point[kept]


def is_scientific(parameter: Parameter) -> bool:
    """Return whether the round asks about a hyperparameter."""
    return parameter.role is Role.SCIENTIFIC


def values_of(parameter: Parameter) -> tuple[Any, ...] | None:
    """Return the values of a hyperparameter that is taken value by value, in order; None where it takes buckets."""
    if not parameter.is_numeric:
        return parameter.choices
    if parameter.kind == "int":
        spacing = parameter.step or 1
        n_values = int((parameter.high - parameter.low) // spacing) + 1
        if n_values <= _MAX_INTEGER_VALUES:
            return tuple(int(parameter.low + place * spacing) for place in range(n_values))
    return None


def split_range(parameter: Parameter, unit: NDArray[np.float64]) -> tuple[NDArray[np.intp], list[tuple[float, float]]]:
    """Split the range of a number into clip(n // 8, 2, 10) buckets of equal width in the search scale.

    Parameters
    ----------
    parameter
        The number.
    unit
        Places of n trials in its range, shape (n,); those beyond it count with the first or the last bucket.

    Returns
    -------
    tuple
        The bucket of each trial, shape (n,), and (low, high) of each bucket in the number's unit.
    """
    n_buckets = int(np.clip(len(unit) // 8, 2, 10))
    places = np.clip((unit * n_buckets).astype(np.intp), 0, n_buckets - 1)
    return places, list(itertools.pairwise(parameter.from_unit(end / n_buckets) for end in range(n_buckets + 1)))


def _best_of_each(code: NDArray[np.intp], cost: NDArray[np.float64], kept: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return, of the kept places, the one of lowest cost of each code; of equals the first."""
    best_first = kept[np.argsort(cost[kept], kind="stable")]
    _, first = np.unique(code[best_first], return_index=True)
    return np.sort(best_first[first])


def _split(parameter: Parameter, values: NDArray[Any]) -> tuple[NDArray[np.intp], list[Label]]:
    """Return the group of each value, shape (n,), and the groups."""
    finite = values_of(parameter)
    if finite is not None:
        return _place_of(parameter, values), [(value, math.nan, math.nan) for value in finite]
    places, edges = split_range(parameter, parameter.to_unit(values))
    return places, [(None, low, high) for low, high in edges]


def _combine(
    trials: Trials, parameters: Sequence[Parameter], rows: NDArray[np.intp]
) -> tuple[NDArray[np.intp], list[Label]]:
    """Return the combination of values of each row, shape (n,), and those that are present, in order."""
    places = np.column_stack([_place_of(parameter, trials.values[parameter.name][rows]) for parameter in parameters])
    present, place = np.unique(places, axis=0, return_inverse=True)
    values = [values_of(parameter) or () for parameter in parameters]
    labels = [
        (tuple(choices[index] for choices, index in zip(values, row, strict=True)), math.nan, math.nan)
        for row in present
    ]
    return place.reshape(-1), labels


def _place_of(parameter: Parameter, values: NDArray[Any]) -> NDArray[np.intp]:
    """Return which of its values each is, shape (n,)."""
    if not parameter.is_numeric:
        return parameter.ranks(values)
    place = np.rint((values - parameter.low) / (parameter.step or 1)).astype(np.intp)
    # An imported trial may lie beyond the bounds, as it may beyond the first and the last bucket.
    return np.clip(place, 0, len(values_of(parameter) or ()) - 1)
