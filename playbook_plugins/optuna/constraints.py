"""How is an infeasible trial marked in each supported Optuna? The one place that knows their differences.

Optuna 5 has `Trial.set_constraint` and `FrozenTrial.constraints`; 4.8 keeps a list under the system attribute
"constraints", which its samplers read and its storages hold.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import optuna
from optuna.trial import FrozenTrial

_NAME = "infeasible"
_OLD_KEY = "constraints"


def set_infeasible(trial: optuna.Trial, infeasible: bool) -> None:
    """Set the constraint "infeasible" of a running trial: +1 where it is violated, -1 where it holds."""
    value = _value(infeasible)
    if hasattr(trial, "set_constraint"):
        trial.set_constraint(_NAME, value)
    else:
        trial.storage.set_trial_system_attr(trial._trial_id, _OLD_KEY, [value])


def is_violated(trial: FrozenTrial) -> bool:
    """Return whether a trial, of this package or not, violates any constraint (a value above 0)."""
    constraints: Any = getattr(trial, _OLD_KEY, None)
    values: Iterable[float] = (
        constraints.values() if isinstance(constraints, dict) else trial.system_attrs.get(_OLD_KEY) or ()
    )
    return any(value > 0 for value in values)


def constraint_arguments(infeasible: bool) -> dict[str, Any]:
    """Return the arguments of `optuna.create_trial` that say what `set_infeasible` says of a running trial."""
    if hasattr(FrozenTrial, "set_constraint"):
        return {"constraints": {_NAME: _value(infeasible)}}
    return {"system_attrs": {_OLD_KEY: [_value(infeasible)]}}


def constrained_gp_sampler(seed: int | None) -> optuna.samplers.GPSampler:
    """Return a GP sampler that heeds the constraint; Optuna 5's finds it in the trials by itself."""
    if hasattr(FrozenTrial, "set_constraint"):
        return optuna.samplers.GPSampler(seed=seed)
    with warnings.catch_warnings():
        # The argument is experimental in Optuna 4.8, and the only way there.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.GPSampler(seed=seed, constraints_func=_kept_constraint)


def _kept_constraint(trial: FrozenTrial) -> tuple[float, ...]:
    """Return the constraint that Optuna 4.8 keeps with a trial; one without any counts as feasible."""
    return tuple(trial.system_attrs.get(_OLD_KEY) or (_value(infeasible=False),))


def _value(infeasible: bool) -> float:
    return 1.0 if infeasible else -1.0
