"""Which trials lie at one point of the search space? Paired scientific values and retrains repeat points.

Playbook: "Designing the next round of experiments": each scientific value sees the same nuisance hyperparameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from playbook_plugins.analysis.parameters import Parameter

if TYPE_CHECKING:
    from playbook_plugins.analysis.trials import Trials


def point_coordinates(
    trials: Trials, parameters: Sequence[Parameter], rows: NDArray[np.intp]
) -> list[NDArray[np.float64]]:
    """Return the places of some trials along some hyperparameters, equal where the points are.

    Parameters
    ----------
    trials
        The study.
    parameters
        The dimensions that tell points apart.
    rows
        Row indices, shape (n,).

    Returns
    -------
    list of ndarray
        Of shape (n,) each, places in [0, 1], NaN where a trial has none. Exclusive branches of one parent share their
        dimensions, because paired branches get the same places of their own ranges.
    """
    columns: list[NDArray[np.float64]] = []
    branches: dict[str, dict[str, list[NDArray[np.float64]]]] = {}
    for parameter in parameters:
        unit = trials.unit(parameter.name)[rows]
        if parameter.condition is None:
            columns.append(unit)
        else:
            parent, value = parameter.condition
            branches.setdefault(parent, {}).setdefault(repr(value), []).append(unit)
    for of_parent in branches.values():
        for place in range(max(len(branch) for branch in of_parent.values())):
            column = np.full(len(rows), np.nan)
            for branch in of_parent.values():
                if place < len(branch):
                    column = np.where(np.isnan(branch[place]), column, branch[place])
            columns.append(column)
    return columns


def point_codes(coordinates: Sequence[NDArray[np.float64]], n_trials: int) -> NDArray[np.intp]:
    """Return a number for the point of each trial.

    Parameters
    ----------
    coordinates
        One array a dimension, shape (n_trials,), places in [0, 1]; NaN, where a trial has none, is a place of its own.
        Places that agree in 9 decimals are equal: computed from different ranges, they differ in their last bits.
    n_trials
        The number of trials, for a space without dimensions, which has a single point.

    Returns
    -------
    ndarray
        intp of shape (n_trials,): equal for trials at one point, from 0 up.
    """
    codes = np.zeros(n_trials, dtype=np.intp)
    for column in coordinates:
        # Sorting one column after the other beats sorting rows: the first continuous one tells nearly all apart.
        places, code = np.unique(np.nan_to_num(np.round(column, 9), nan=-1.0), return_inverse=True)
        _, codes = np.unique(codes * len(places) + code.reshape(-1), return_inverse=True)
        codes = codes.reshape(-1).astype(np.intp, copy=False)
        if codes.max(initial=-1) + 1 == n_trials:
            break
    return codes
