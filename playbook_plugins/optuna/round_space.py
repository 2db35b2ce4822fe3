"""Which hyperparameters does a round search, under which names, and in which order?

Playbook: "Identifying scientific, nuisance, and fixed hyperparameters": conditional hyperparameters that share a name
(the learning rates of two optimizers) are still two hyperparameters. They are stored as ``adam.learning_rate`` and
handed over as ``learning_rate``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from playbook_plugins.analysis.parameters import Role

Space: TypeAlias = Mapping[str, BaseDistribution]
Branches: TypeAlias = Mapping[str, Mapping[Any, Space]]


@dataclass(frozen=True)
class Entry:
    """One searched hyperparameter of a round.

    Attributes
    ----------
    stored, given
        Its name in the study, and in the configuration that training gets.
    distribution
        Its range.
    role
        Scientific or nuisance.
    condition
        ``(parent, value)`` of its branch, or None.
    """

    stored: str
    given: str
    distribution: BaseDistribution
    role: Role
    condition: tuple[str, Any] | None = None

    def suggest(self, trial: optuna.trial.BaseTrial) -> Any:
        """Return a trial's value."""
        match self.distribution:
            case CategoricalDistribution() as space:
                return trial.suggest_categorical(self.stored, space.choices)
            case IntDistribution() as space:
                return trial.suggest_int(self.stored, space.low, space.high, step=space.step, log=space.log)
            case FloatDistribution() as space:
                return trial.suggest_float(self.stored, space.low, space.high, step=space.step, log=space.log)
        raise TypeError(f"{self.distribution!r} is no distribution that a trial can suggest from.")

    def to_plain(self) -> dict[str, Any]:
        """Return the hyperparameter as JSON values."""
        return {
            "name": self.stored,
            "given": self.given,
            "distribution": json.loads(optuna.distributions.distribution_to_json(self.distribution)),
            "role": str(self.role),
            "condition": list(self.condition) if self.condition else None,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Entry:
        """Rebuild a hyperparameter from `to_plain`."""
        distribution = optuna.distributions.json_to_distribution(json.dumps(plain["distribution"]))
        condition = tuple(plain["condition"]) if plain["condition"] else None
        return cls(plain["name"], plain["given"], distribution, Role(plain["role"]), condition)


def list_entries(scientific: Space, nuisance: Space, conditional: Branches) -> Iterator[Entry]:
    """Yield the searched hyperparameters, parents before their branches."""
    for name, distribution in scientific.items():
        yield Entry(name, name, distribution, Role.SCIENTIFIC)
    for name, distribution in nuisance.items():
        yield Entry(name, name, distribution, Role.NUISANCE)
    for parent, branches in conditional.items():
        for value, space in branches.items():
            for name, distribution in space.items():
                yield Entry(f"{value}.{name}", name, distribution, Role.NUISANCE, (parent, value))


def sort_entries(
    entries: Iterable[Entry],
) -> tuple[dict[str, BaseDistribution], dict[str, BaseDistribution], dict[str, dict[Any, dict[str, BaseDistribution]]]]:
    """Return scientific, nuisance and conditional hyperparameters: the inverse of `list_entries`."""
    scientific: dict[str, BaseDistribution] = {}
    nuisance: dict[str, BaseDistribution] = {}
    conditional: dict[str, dict[Any, dict[str, BaseDistribution]]] = {}
    for entry in entries:
        if entry.condition is not None:
            parent, value = entry.condition
            conditional.setdefault(parent, {}).setdefault(value, {})[entry.given] = entry.distribution
        elif entry.role is Role.SCIENTIFIC:
            scientific[entry.given] = entry.distribution
        else:
            nuisance[entry.given] = entry.distribution
    return scientific, nuisance, conditional


def sampled_space(
    scientific: Space, nuisance: Space, conditional: Branches
) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
    """Return the arguments ``search_space`` and ``scientific`` of the round's HaltonSampler.

    A continuous scientific hyperparameter takes a dimension like a nuisance, the first ones. Branches share
    dimensions, as they never meet in one trial.
    """
    finite = {name: finite_values(distribution) for name, distribution in scientific.items()}
    space: dict[str, Any] = {name: scientific[name] for name, values in finite.items() if values is None}
    space |= nuisance
    for parent, branches in conditional.items():
        space[parent] = {
            value: {f"{value}.{name}": distribution for name, distribution in branch.items()}
            for value, branch in branches.items()
        }
    return space, {name: values for name, values in finite.items() if values is not None}


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
