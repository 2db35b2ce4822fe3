"""Which trials have each scientific value? Questions are asked of the study, and of each of these by itself.

Playbook: "Identifying scientific, nuisance, and fixed hyperparameters".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from playbook_plugins.analysis.parameters import Parameter, Role
from playbook_plugins.analysis.trials import Trials


def scientific_categories(trials: Trials) -> list[Parameter]:
    """Return the categorical scientific hyperparameters with at least two values, in the order of the study."""
    return [
        parameter
        for parameter in trials.parameters
        if parameter.role is Role.SCIENTIFIC and not parameter.is_numeric and len(parameter.choices) > 1
    ]


def groups_by_value(trials: Trials, rows: ArrayLike) -> list[tuple[str | None, NDArray[np.intp]]]:
    """Return all of some trials, then those of each categorical scientific value.

    Parameters
    ----------
    trials
        The study.
    rows
        Row indices, shape (n,).

    Returns
    -------
    list of tuple
        ``(None, rows)``, then ``("optimizer=adam", its rows)`` for each value, those without a trial included.
    """
    chosen = np.asarray(rows, dtype=np.intp)
    groups: list[tuple[str | None, NDArray[np.intp]]] = [(None, chosen)]
    for parameter in scientific_categories(trials):
        ranks = trials.ranks(parameter.name)[chosen]
        groups += [
            (f"{parameter.name}={choice}", chosen[ranks == rank]) for rank, choice in enumerate(parameter.choices)
        ]
    return groups
