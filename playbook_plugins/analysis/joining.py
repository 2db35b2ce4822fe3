"""How do the studies of one round become one table? Which hyperparameters they share, and which belong to branches.

Playbook: "Designing the next round of experiments": one study a value of the scientific hyperparameters is one way to
run a round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from playbook_plugins.analysis.parameters import Parameter, Role

if TYPE_CHECKING:
    from playbook_plugins.analysis.trials import Trials


@dataclass(frozen=True, kw_only=True)
class JointSpace:
    """The search space of several studies, and where each of their trials lies in it.

    Attributes
    ----------
    parameters
        The scientific hyperparameters that tell the studies apart, then those of the studies.
    values
        One column a hyperparameter, shape (n_trials,) over all studies in their order; NaN or None where a trial
        lacks it.
    fixed
        What all studies fixed.
    """

    parameters: tuple[Parameter, ...]
    values: Mapping[str, list[Any]]
    fixed: Mapping[str, Any]


def join_search_spaces(tables: Sequence[Trials]) -> JointSpace:
    """Return the joint search space of the studies of one round.

    Parameters
    ----------
    tables
        At least one table.

    Returns
    -------
    JointSpace
        As `Trials.concat` describes it.

    Raises
    ------
    ValueError
        When studies of one scientific value disagree on a range.
    """
    varying = _varying(tables)
    prefixes = ["/".join(str(table.fixed[key]) for key in varying) for table in tables]
    known: dict[str, Parameter] = {
        key: Parameter(name=key, kind="categorical", choices=choices, role=Role.SCIENTIFIC)
        for key, choices in varying.items()
    }
    columns: dict[str, list[Any]] = {key: [] for key in known}
    n_before = 0
    for table, prefix in zip(tables, prefixes, strict=True):
        for key in varying:
            columns[key] += [table.fixed[key]] * len(table)
        for parameter in table.parameters:
            # By their text: a NaN that was pickled is not the NaN of another table.
            is_shared = all(repr(parameter) in map(repr, other.parameters) for other in tables)
            joint = parameter if is_shared else _as_branch(parameter, prefix, varying, table)
            if repr(known.setdefault(joint.name, joint)) != repr(joint):
                raise ValueError(
                    f"`tables` give {joint.name!r} different ranges: the studies of one scientific value share one "
                    "search space. Join studies that differ in a fixed hyperparameter, or review them one by one."
                )
            missing = math.nan if joint.is_numeric else None
            column = columns.setdefault(joint.name, [])
            column += [missing] * (n_before - len(column))
            column += list(table.values[parameter.name])
        n_before += len(table)
    for key, column in columns.items():
        column += [math.nan if known[key].is_numeric else None] * (n_before - len(column))
    return JointSpace(
        parameters=tuple(known.values()),
        values=columns,
        fixed={
            key: value
            for key, value in tables[0].fixed.items()
            if key not in varying and all(key in table.fixed for table in tables)
        },
    )


def _varying(tables: Sequence[Trials]) -> dict[str, tuple[Any, ...]]:
    """Return the fixed hyperparameters of all tables that differ between them, with their values in order."""
    varying: dict[str, tuple[Any, ...]] = {}
    for key in tables[0].fixed:
        if all(key in table.fixed for table in tables):
            # By their text: values of JSON need not be hashable, and True is not 1.
            values = {repr(table.fixed[key]): table.fixed[key] for table in tables}
            if len(values) > 1:
                varying[key] = tuple(values.values())
    return varying


def _as_branch(parameter: Parameter, prefix: str, varying: Mapping[str, Any], table: Trials) -> Parameter:
    """Return a hyperparameter under the name and the condition of its branch."""
    condition = parameter.condition
    if condition is None and len(varying) == 1:
        [key] = varying
        condition = (key, table.fixed[key])
    return replace(parameter, name=f"{prefix}.{parameter.name}" if prefix else parameter.name, condition=condition)
