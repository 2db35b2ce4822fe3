"""Do the goal, the roles, the branches and the budget of a round fit together?

Playbook: "Designing the next round of experiments". Each message names the argument, shows the value, states the rule
and says what to do.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from playbook_plugins.optuna.round_space import Branches, Space, finite_values, sampled_space

# From so many trials for each scientific value on, one more nuisance hyperparameter can be searched: the playbook's
# budgets for Adam's hyperparameters ("How should Adam's hyperparameters be tuned?").
_TRIALS_FOR = (1, 10, 25, 50)


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


def warn_of_few_trials(n_trials: int, scientific: Space, nuisance: Space, conditional: Branches) -> None:
    """Warn where a round has fewer trials than its number of nuisance hyperparameters asks for."""
    _, values = sampled_space(scientific, nuisance, conditional)
    each = n_trials // max(1, math.prod(map(len, values.values())))
    n_nuisances = len(nuisance) + sum(max(map(len, branches.values()), default=0) for branches in conditional.values())
    wanted = _TRIALS_FOR[min(n_nuisances, len(_TRIALS_FOR)) - 1] if n_nuisances else 1
    if each < wanted:
        warnings.warn(
            f"`n_trials` is {n_trials}, {each} for each combination of scientific values, and {n_nuisances} nuisance "
            f"hyperparameters are searched: the playbook's budgets ask for at least {wanted}. Run more trials, or fix "
            "a nuisance hyperparameter.",
            stacklevel=3,
        )


def _check_branches(scientific: Space, nuisance: Space, fixed: Mapping[str, Any], conditional: Branches) -> None:
    unconditional = {*scientific, *nuisance, *fixed}
    given: dict[str, str] = {}
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
                if given.setdefault(name, parent) != parent:
                    raise ValueError(
                        f"`conditional` has {name!r} in branches of {given[name]!r} and of {parent!r}, which can meet "
                        "in one trial: the configuration could hold only one of them. Rename one."
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
