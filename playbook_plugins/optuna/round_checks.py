"""Do the goal, the roles, the branches and the budget of a round fit together?

Playbook: "Designing the next round of experiments". Each message names the argument, shows the value, states the rule
and says what to do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

Space: TypeAlias = Mapping[str, BaseDistribution]
Branches: TypeAlias = Mapping[str, Mapping[Any, Space]]


def check_round(
    goal: str, scientific: Space, nuisance: Space, fixed: Mapping[str, Any], conditional: Branches, n_trials: int
) -> None:
    """Raise ValueError where a round's goal, roles, branches or budget do not fit together."""
    if not goal.strip():
        raise ValueError(
            f"`goal` is {goal!r}: a round needs a goal, because it decides which hyperparameters are "
            "scientific. Write the question that the round answers."
        )
    if not (scientific or nuisance or conditional):
        raise ValueError(
            "`scientific` and `nuisance` are {} and {}: the search space is empty. Give at least one "
            "hyperparameter a distribution."
        )
    roles = {"scientific": scientific, "nuisance": nuisance, "fixed": fixed}
    for first, second in (("scientific", "nuisance"), ("scientific", "fixed"), ("nuisance", "fixed")):
        both = sorted(set(roles[first]) & set(roles[second]))
        if both:
            raise ValueError(
                f"`{first}` and `{second}` both name {both}: a hyperparameter has one role in a round. Remove it "
                "from one of them."
            )
    for name, distribution in nuisance.items():
        _check_distribution("nuisance", name, distribution)
    if n_trials < 1:
        raise ValueError(f"`n_trials` is {n_trials}: a round needs at least 1 trial. Pass a positive number.")
    _check_branches(scientific, nuisance, fixed, conditional)
    try:
        json.dumps(fixed, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`fixed` is {fixed!r}: its values are kept in the study as JSON, and {error}. Use numbers, text, "
            "booleans, None, lists and dicts."
        ) from error


def _check_branches(scientific: Space, nuisance: Space, fixed: Mapping[str, Any], conditional: Branches) -> None:
    unconditional = {*scientific, *nuisance, *fixed}
    stored = list(unconditional)
    for parent, branches in conditional.items():
        distribution = scientific.get(parent) or nuisance.get(parent)
        choices = None if distribution is None else finite_values(distribution)
        if choices is None:
            raise ValueError(
                f"`conditional` has the parent {parent!r}: a parent must be a scientific or nuisance "
                f"hyperparameter with finitely many values. Parents here can be "
                f"{[name for name, space in {**scientific, **nuisance}.items() if finite_values(space)]}."
            )
        for value, space in branches.items():
            if value not in choices:
                raise ValueError(
                    f"`conditional` has a branch for {parent} = {value!r}: {parent!r} has only the values "
                    f"{list(choices)}. Use one of these."
                )
            for name, branch_distribution in space.items():
                _check_distribution(f"conditional[{parent!r}][{value!r}]", name, branch_distribution)
                if name in unconditional:
                    raise ValueError(
                        f"`conditional` has {name!r} in the branch {parent} = {value!r}, and the round has an "
                        "unconditional hyperparameter of that name: the configuration could hold only one of "
                        "them. Rename one."
                    )
                stored.append(f"{value}.{name}")
    repeated = sorted({name for name in stored if stored.count(name) > 1})
    if repeated:
        raise ValueError(
            f"`conditional` leads to the stored names {repeated} twice: each hyperparameter of a study needs its "
            "own name. Rename one of them."
        )


def scientific_distribution(name: str, values: Sequence[Any] | BaseDistribution) -> BaseDistribution:
    """Return the distribution of a scientific hyperparameter given as values or as a distribution."""
    if isinstance(values, BaseDistribution):
        _check_distribution("scientific", name, values)
        return values
    if isinstance(values, str) or not len(values):
        raise ValueError(
            f"`scientific` has {name!r} = {values!r}: a scientific hyperparameter needs at least one value to compare. "
            "Pass a list of values, or an Optuna distribution."
        )
    return CategoricalDistribution(list(values))


def _check_distribution(argument: str, name: str, distribution: Any) -> None:
    if not isinstance(distribution, FloatDistribution | IntDistribution | CategoricalDistribution):
        raise ValueError(
            f"`{argument}` has {name!r} = {distribution!r}: the range of a hyperparameter is an Optuna distribution. "
            "Use optuna.distributions.FloatDistribution, IntDistribution or CategoricalDistribution; constants belong "
            "into `fixed`."
        )


def finite_values(distribution: BaseDistribution) -> tuple[Any, ...] | None:
    """Return the values of a finite distribution, None for a continuous one."""
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return tuple(range(distribution.low, distribution.high + 1, distribution.step))
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        n_values = round((distribution.high - distribution.low) / distribution.step) + 1
        return tuple(float(value) for value in np.linspace(distribution.low, distribution.high, n_values))
    return None
