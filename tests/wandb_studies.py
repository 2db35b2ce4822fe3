"""Optuna studies of every kind for the tests that send them through W&B and read them back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from playbook_plugins.analysis import Curve, InfeasibleError, Status, TrialRecord
from playbook_plugins.optuna import Round, record_trial

CHOICES = (True, 1, "1", None, 0.5, 1.0, "adam", False, 0)


def make_record(number: int, direction: str = "minimize", **more: Any) -> TrialRecord:
    """Return a record whose curve holds all that a curve may hold."""
    generator = np.random.default_rng(number)
    validation = 0.1 + generator.random(12) / 3
    validation[[3, 7]] = np.nan
    train = generator.random(12)
    train[0], train[5] = np.nan, np.inf
    return TrialRecord(
        **{
            "direction": direction,
            "objective_name": "val_error",
            "curve": Curve.from_columns(
                np.arange(12) * 50,
                validation,
                train,
                learning_rate=generator.random(12),
                gradient_norm=np.where(np.arange(12) % 2, generator.random(12), np.nan),
                gradient_norm_max=generator.random(12) * 1e300,
                metrics={"acc/top.1": generator.random(12), "never known": np.full(12, np.nan)},
            ),
            "max_steps": 600,
            "seconds": 1.5,
            **more,
        }
    )


def train(config: dict[str, Any], trial: optuna.Trial) -> TrialRecord:
    """Train as real code does: some trials diverge, some are pruned, one record is long."""
    number = trial.number
    if number == 2:
        raise InfeasibleError("diverged: the loss is nan at step 7")
    if number == 3:
        return make_record(number, status=Status.INFEASIBLE, reason="diverged")
    if number == 4:
        return make_record(number, status=Status.PRUNED, reason="hopeless")
    if number == 5:
        raise MemoryError
    if number == 6:
        for step in (0, 50):
            trial.report(0.7 + step, step)
        return make_record(number, status=Status.PRUNED, reason="hopeless after reports")
    if number == 7:
        steps = np.arange(2000)
        return make_record(number, curve=Curve.from_columns(steps, 1 / (1 + steps), 1 / (2 + steps)))
    return make_record(number)


def make_round(n_trials: int = 12) -> Round:
    return Round(
        "Does Adam or Nesterov reach the lower error?",
        scientific={"optimizer": ["adam", "nesterov"]},
        nuisance={
            "width": IntDistribution(8, 64, log=True),
            "kind": CategoricalDistribution(CHOICES),
            "dropout": FloatDistribution(0.0, 0.5, step=0.25),
        },
        conditional={
            "optimizer": {
                "adam": {"learning_rate": FloatDistribution(1e-4, 1e-1, log=True)},
                "nesterov": {
                    "learning_rate": FloatDistribution(1e-3, 1.0, log=True),
                    "momentum": FloatDistribution(0.0, 0.99),
                },
            }
        },
        fixed={"batch_size": 64, "weight_decay": 1e-4, "schedule": "cosine", "nesterov": True},
        n_trials=n_trials,
        seed=1,
    )


def plain_objective(trial: optuna.Trial) -> float:
    """Be an objective that knows nothing of this package, and ends in every way."""
    rate = trial.suggest_float("rate", 1e-4, 1e-1 * (1 + trial.number), log=True)
    if trial.suggest_categorical("kind", ["a", "b"]) == "b":
        trial.suggest_int("width", 1, 8)
    if trial.number == 1:
        trial.report(0.1, 0)
        trial.report(rate, 10)
        raise optuna.TrialPruned
    if trial.number == 2:
        raise RuntimeError("a bug")
    if trial.number == 3:
        return -math.inf
    if trial.number == 4:
        return record_trial(trial, make_record(4, "maximize"))
    if trial.number == 5:
        trial.report(math.nan, 3)
        raise RuntimeError("stopped")
    return rate
