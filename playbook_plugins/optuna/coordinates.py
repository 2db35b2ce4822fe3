"""Which coordinate does a hyperparameter take, and which value does the coordinate mean?

Playbook: "Why use quasi-random search instead of more sophisticated black box optimization algorithms during the
exploration phase of tuning?".

Every hyperparameter has a dimension of its own, except that those of exclusive branches may share one: they never meet
in a trial. A value is read off the unit interval by the distribution that the objective asks for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

# From a name to its distribution, or from the parent of exclusive branches to {value of the parent: space}.
SearchSpace: TypeAlias = Mapping[str, Any]


def assign_dimensions(search_space: SearchSpace, without: Collection[str]) -> dict[str, int]:
    """Give the names of a declared search space their dimensions, in its own order.

    Parameters
    ----------
    search_space
        As `HaltonSampler` takes it.
    without
        Names that take no dimension: the scientific ones.

    Returns
    -------
    dict
        From name to dimension, 0, 1, ...; the k-th hyperparameters of exclusive branches share one.

    Raises
    ------
    ValueError
        When an entry is neither a distribution nor branches, or a name would need two dimensions.
    """
    dimensions: dict[str, int] = {}
    _assign(search_space, without, 0, dimensions)
    return dimensions


def _assign(space: SearchSpace, without: Collection[str], start: int, dimensions: dict[str, int]) -> int:
    for name, entry in space.items():
        if not isinstance(name, str) or not isinstance(entry, BaseDistribution | Mapping):
            raise ValueError(
                f"`search_space` has the entry {name!r}: {entry!r}. An entry leads from a name to an Optuna "
                "distribution, or to the branches of that name as {value: {name: distribution}}. Pass for instance "
                "FloatDistribution(1e-5, 1e-1, log=True)."
            )
        if name not in without:
            if dimensions.setdefault(name, start) != start:
                raise ValueError(
                    f"`search_space` names {name!r} twice: a hyperparameter has one place in the order of importance, "
                    "and exclusive branches may share a name only at the same place. Rename one of them."
                )
            start += 1
        if isinstance(entry, Mapping):
            for value, branch in entry.items():
                if not isinstance(branch, Mapping):
                    raise ValueError(
                        f"`search_space` has the branch {name!r} = {value!r}: {branch!r}. A branch leads from names to "
                        "distributions. Pass {} for a branch without hyperparameters of its own."
                    )
            start = max([start, *(_assign(branch, without, start, dimensions) for branch in entry.values())])
    return start


def rank_claims(claims: Mapping[str, int], start: int) -> dict[str, int]:
    """Give the undeclared names that have claimed a place their dimensions, from ``start`` on.

    Workers claim without a lock, so two names may hold the same place in the order. Ranking settles that: any set of
    claims gives every name a dimension of its own, and all who see the same claims agree.
    """
    ranking = sorted(claims, key=lambda name: (claims[name], name))
    return {name: start + rank for rank, name in enumerate(ranking)}


def value_at(unit: float, distribution: BaseDistribution) -> Any:
    """Return the value of a distribution at a coordinate in [0, 1).

    A float runs over its range, evenly or by its logarithm. The values of a grid, of integers and of a categorical
    hyperparameter get an equal share each; integers on a logarithmic scale the share of [value - 1/2, value + 1/2].
    """
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(unit * len(distribution.choices))]
    if isinstance(distribution, IntDistribution):
        if distribution.log:
            number = round(_log_between(distribution.low - 0.5, distribution.high + 0.5, unit))
        else:
            # Whole numbers throughout: the range may hold more values than a float can count.
            n_values = (distribution.high - distribution.low) // distribution.step + 1
            number = distribution.low + int(unit * n_values) * distribution.step
        return min(max(number, distribution.low), distribution.high)
    if isinstance(distribution, FloatDistribution):
        low, high = distribution.low, distribution.high
        if distribution.log:
            value = _log_between(low, high, unit)
        elif distribution.step is not None:
            n_steps = round((high - low) / distribution.step)
            value = low + int(unit * (n_steps + 1)) * distribution.step
        else:
            # Not low + unit * (high - low): the width of the widest ranges overflows.
            value = low * (1.0 - unit) + high * unit
        return min(max(value, low), high)
    raise ValueError(
        f"`distribution` is {distribution!r}: the sampler draws floats, integers and categorical values. Suggest with "
        "suggest_float, suggest_int or suggest_categorical."
    )


def _log_between(low: float, high: float, unit: float) -> float:
    return math.exp(math.log(low) * (1.0 - unit) + math.log(high) * unit)


def check_scientific(scientific: Mapping[str, Sequence[Any]]) -> dict[str, tuple[Any, ...]]:
    """Return the values of the scientific hyperparameters as tuples.

    Raises
    ------
    ValueError
        When the values of a name are not a sequence of distinct numbers, strings, booleans or None.
    """
    checked: dict[str, tuple[Any, ...]] = {}
    for name, values in scientific.items():
        is_sequence = isinstance(values, Sequence) and not isinstance(values, str | bytes)
        if not is_sequence or not values or not all(_is_plain(value) for value in values):
            raise ValueError(
                f"`scientific` gives {name!r} the values {values!r}: they must be a sequence of at least one finite "
                "number, string, boolean or None. Pass for instance ['adam', 'nesterov']."
            )
        if len({json.dumps(value) for value in values}) != len(values):
            raise ValueError(
                f"`scientific` gives {name!r} the values {list(values)!r}: a value occurs twice, but every value gets "
                "an equal share of the trials. Name each once."
            )
        checked[name] = tuple(values)
    return checked


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def scientific_value(name: str, value: Any, values: Sequence[Any], distribution: BaseDistribution) -> Any:
    """Return a scientific value as the distribution that the objective asks for holds it.

    Parameters
    ----------
    name
        The scientific hyperparameter.
    value
        The one of ``values`` that is due.
    values
        All its values.
    distribution
        A categorical distribution, integers or a float grid that contains all of the values.

    Raises
    ------
    ValueError
        When it does not contain one of them, or is a continuous range.
    """
    is_range = isinstance(distribution, FloatDistribution) and distribution.step is None
    missing = [entry for entry in values if is_range or not contains(distribution, entry)]
    if missing:
        raise ValueError(
            f"`scientific` gives {name!r} the values {list(values)!r}, but the objective suggests it from "
            f"{distribution!r}, which lacks {missing!r}: every scientific value must be one of the values suggested. "
            f"Suggest it with trial.suggest_categorical({name!r}, {list(values)!r})."
        )
    if isinstance(distribution, IntDistribution):
        return int(value)
    if isinstance(distribution, FloatDistribution):
        return float(value)
    return value


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Return whether a value lies inside a distribution: within its bounds and on its grid, or among its choices."""
    if isinstance(distribution, CategoricalDistribution):
        # True is not 1: a choice must be of the value's own type.
        return any(type(choice) is type(value) and choice == value for choice in distribution.choices)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if not distribution.low <= value <= distribution.high:
        return False
    if isinstance(distribution, IntDistribution):
        return (value - distribution.low) % distribution.step == 0
    if distribution.step is None:
        return True
    steps = (value - distribution.low) / distribution.step
    return abs(steps - round(steps)) < 1e-8
