"""A realistic study for the tests of charts and pages: two optimizers, divergences, curves, conditional branches."""

from __future__ import annotations

from typing import Any

import numpy as np

from playbook_plugins.analysis import Curve, Parameter, Role, Status, Trials

ADAM, NESTEROV = ("optimizer", "adam"), ("optimizer", "nesterov")
PARAMETERS = (
    Parameter(name="optimizer", kind="categorical", choices=("adam", "nesterov"), role=Role.SCIENTIFIC),
    Parameter(name="adam.learning_rate", kind="float", low=1e-4, high=1.0, log=True, condition=ADAM),
    Parameter(name="adam.one_minus_beta1", kind="float", low=1e-2, high=1.0, log=True, condition=ADAM),
    Parameter(name="nesterov.learning_rate", kind="float", low=1e-3, high=10.0, log=True, condition=NESTEROV),
    Parameter(name="nesterov.one_minus_momentum", kind="float", low=1e-2, high=1.0, log=True, condition=NESTEROV),
)


def two_optimizers(
    n_trials: int = 48,
    *,
    seed: int = 0,
    name: str = "digits: adam or nesterov",
    n_evaluations: int = 25,
    max_steps: int = 600,
    **more: Any,
) -> Trials:
    """Build a study whose learning rates diverge from about a third of the range below the upper bound."""
    generator = np.random.default_rng(seed)
    nan = np.full(n_trials, np.nan)
    is_adam = np.arange(n_trials) % 2 == 0
    values: dict[str, Any] = {"optimizer": ["adam" if adam else "nesterov" for adam in is_adam]}
    rate, momentum = generator.random(n_trials), generator.random(n_trials)
    for parameter in PARAMETERS[1:]:
        unit = rate if "rate" in parameter.name else momentum
        numbers = np.array([parameter.from_unit(place) for place in unit])
        values[parameter.name] = np.where(is_adam == (parameter.condition == ADAM), numbers, nan)
    distance = (rate - np.where(is_adam, 0.42, 0.5)) ** 2 * 9 + (momentum - 0.4) ** 2
    error = (
        np.where(is_adam, 0.024, 0.019) * 10 ** (1.4 * distance) * np.exp(0.08 * generator.standard_normal(n_trials))
    )
    error = np.minimum(np.round(error * 450) / 450, 0.91)
    diverges = rate + 0.15 * generator.standard_normal(n_trials) > 0.86
    steps = np.unique(np.linspace(0, max_steps, n_evaluations).astype(int))
    curves: list[Curve | None] = []
    best_step = np.full(n_trials, -1)
    for row in range(n_trials):
        if diverges[row]:
            curves.append(Curve.from_columns([0, max_steps // 10], [0.9, np.nan]))
            continue
        decay = np.exp(-steps / (30 + 200 * generator.random()))
        noise = 1 + 0.06 * generator.standard_normal(len(steps))
        validation = (error[row] + (0.9 - error[row]) * decay) * noise
        train = 0.6 * error[row] * (1 - steps / (2 * max_steps)) + 0.85 * decay
        train[0] = np.nan
        curves.append(Curve.from_columns(steps, validation, train))
        best_step[row] = steps[int(np.argmin(validation))]
        error[row] = validation.min()
    status = [Status.INFEASIBLE if bad else Status.COMPLETE for bad in diverges]
    return Trials.from_columns(
        name,
        PARAMETERS,
        values,
        error,
        status=status,
        reason=[f"diverged at step {max_steps // 10}: the loss was NaN" if bad else "" for bad in diverges],
        best_step=best_step,
        max_steps=np.full(n_trials, max_steps),
        curves=curves,
        **{
            "objective_name": "validation error",
            "goal": "Does Adam or Nesterov momentum reach the lower validation error, each at its best?",
            "fixed": {"batch_size": 64, "weight_decay": 1e-4, "max_train_steps": max_steps},
            "caveats": (
                "Every conclusion holds at batch_size=64; most hyperparameters must be tuned again at another.",
            ),
            **more,
        },
    )
