"""How is an infeasible trial marked in each supported Optuna? The one place that knows their differences.

Optuna 5 has `Trial.set_constraint` and `FrozenTrial.constraints`; 4.8 keeps a list under the system attribute
"constraints", which its samplers read and its storages hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import optuna
from optuna.trial import FrozenTrial

_NAME = "infeasible"
_OLD_KEY = "constraints"


def set_infeasible(trial: optuna.Trial, infeasible: bool) -> None:
    """Set the constraint "infeasible" of a running trial: +1 where it is violated, -1 where it holds."""
    value = 1.0 if infeasible else -1.0
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
