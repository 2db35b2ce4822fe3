"""How long should training be, to begin with? A sweep of constant learning rates, until the fastest fits the data.

Playbook: "Algorithm for picking an initial candidate for max_train_steps using a learning rate sweep". The sweep is
trained here; what it says is judged in analysis/max_train_steps.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.storages import BaseStorage

from playbook_plugins.analysis.findings import Verdict
from playbook_plugins.analysis.max_train_steps import check_max_train_steps
from playbook_plugins.analysis.max_train_steps import pick_max_train_steps as judge_sweep
from playbook_plugins.analysis.records import Direction
from playbook_plugins.optuna.plans import Plan, TrainConfig
from playbook_plugins.optuna.protocols import ProtocolResult
from playbook_plugins.optuna.stages import check_config, train_stage


def pick_max_train_steps(
    train: TrainConfig,
    config: Mapping[str, Any],
    *,
    learning_rates: Sequence[float],
    goal: float,
    max_train_steps: int,
    training_metric: str | None = None,
    training_direction: Direction = "minimize",
    n_consecutive: int = 2,
    learning_rate: str = "learning_rate",
    max_train_steps_name: str = "max_train_steps",
    study_name: str,
    storage: str | BaseStorage | None = None,
    direction: Direction = "minimize",
    n_jobs: int = 1,
) -> ProtocolResult:
    """Sweep constant learning rates and return in how many steps the fastest fits the training set perfectly.

    Parameters
    ----------
    train
        ``train(config) -> TrialRecord``, at a constant learning rate, with the training objective in its curve. The
        answer is known to the evaluations only: evaluate often.
    config
        What all runs share: without regularization and without data augmentation, which a finding asks for.
    learning_rates
        The grid, at least 3 distinct positive rates.
    goal
        The training objective that counts as a perfect fit, in its unit; for instance an error of 0.
    max_train_steps
        How long each run is: enough for some configuration to fit perfectly.
    training_metric, training_direction, n_consecutive
        As ``metric``, ``direction`` and ``n_consecutive`` of `pick_max_train_steps` of playbook_plugins.analysis.
    learning_rate, max_train_steps_name
        The entries of the configuration that take the learning rate and the length of training.
    study_name
        The beginning of the name of the study, ``"<study_name>/constant rates"``.
    storage, direction, n_jobs
        As in `run_plan`; the direction is that of the validation objective.

    Returns
    -------
    ProtocolResult
        Findings as of `check_max_train_steps`. ``recommendation`` has the number of steps (by the name of the entry);
        it is empty where no run fits, or the fastest fits at the first evaluation already, so that the goal may be
        wrong. Where the fastest rate is at the boundary of the sweep, which a finding tells, fewer may be enough.

    Raises
    ------
    ValueError
        When the grid has fewer than 3 rates, one twice, or one that is not positive; when a number is out of its range;
        when ``config`` holds the learning rate or another length; or a study of this name was begun with other runs.
    """
    rates = [float(rate) for rate in learning_rates]
    _check(rates, goal, max_train_steps, n_consecutive)
    entries = {"learning_rate": learning_rate}
    if config.get(max_train_steps_name) != max_train_steps:
        entries["max_train_steps_name"] = max_train_steps_name
    check_config(config, entries)
    plan = Plan(
        goal="In how many steps does the fastest constant learning rate fit the training set?",
        points=tuple({learning_rate: rate} for rate in sorted(rates)),
        fixed={**config, max_train_steps_name: max_train_steps},
        log=(learning_rate,),
    )
    trials, _ = train_stage(
        plan,
        train,
        study_name=f"{study_name}/constant rates",
        storage=optuna.storages.get_storage(storage),
        direction=direction,
        n_jobs=n_jobs,
    )
    result = judge_sweep(
        trials,
        goal,
        direction=training_direction,
        learning_rate=learning_rate,
        metric=training_metric,
        n_consecutive=n_consecutive,
    )
    findings = tuple(check_max_train_steps(result))
    is_answer = result.max_train_steps is not None and findings[0].verdict is not Verdict.FLAG
    return ProtocolResult(
        findings=findings,
        recommendation={max_train_steps_name: result.max_train_steps} if is_answer else {},
        trials={"constant rates": trials},
    )


def _check(rates: Sequence[float], goal: float, max_train_steps: int, n_consecutive: int) -> None:
    if len(set(rates)) < max(3, len(rates)) or not all(0 < rate < math.inf for rate in rates):
        raise ValueError(
            f"`learning_rates` is {list(rates)}: a sweep has at least 3 distinct positive rates, because the fastest "
            "of fewer is always at its boundary. Pass a grid over several orders of magnitude."
        )
    if not math.isfinite(goal):
        raise ValueError(
            f"`goal` is {goal}: a goal must be finite. Pass the training objective that counts as a perfect fit."
        )
    for argument, value in (("max_train_steps", max_train_steps), ("n_consecutive", n_consecutive)):
        if value < 1:
            raise ValueError(f"`{argument}` is {value}: it must be at least 1. Pass a larger number.")
