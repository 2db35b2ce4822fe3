"""After how many steps is a goal reached? Steps to target, of a curve and of each batch size at its best.

Playbook: "Choosing the batch size to minimize training time": training takes the time of a step times the number of
steps needed to reach a fixed performance goal, with all relevant hyperparameters tuned again for each batch size. The
measure is that of Shallue et al., "Measuring the Effects of Data Parallelism on Neural Network Training" (2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from playbook_plugins.analysis.records import Curve, Direction, Status
from playbook_plugins.analysis.trials import Trials

# Lengths of training that differ by less are the same budget.
_SAME = 0.01


class Budget(StrEnum):
    """What the compared batch sizes had in common; `held_budget` states the rules."""

    STEP = "step budget"
    EPOCH = "epoch budget"
    MIXED = "mixed budgets"
    UNKNOWN = "unknown budget"


@dataclass(frozen=True, kw_only=True)
class StepsToTarget:
    """When one run reached its goal.

    Attributes
    ----------
    steps
        Optimizer steps, at least 0; +inf where the goal was not reached (censored).
    last_step
        The last step at which the objective is known: the run was watched for so long. -1 without any evaluation.
    """

    steps: float
    last_step: int

    @property
    def is_censored(self) -> bool:
        """Whether the run ended before its goal: it needs more than ``last_step`` steps, or never gets there."""
        return math.isinf(self.steps)


@dataclass(frozen=True, kw_only=True, eq=False)
class FewestSteps:
    """The fewest steps to the goal at each batch size, one row a size, the smallest first.

    Attributes
    ----------
    batch_size
        int64 of shape (n_sizes,), examples per step over all devices, strictly increasing.
    steps
        float64 of shape (n_sizes,), in optimizer steps; +inf where no trial reached the goal.
    last_step
        int64 of shape (n_sizes,): the largest step to which a trial of this size was watched.
    n_trials
        int64 of shape (n_sizes,): how many trials were watched. A size that was tuned with fewer looks worse.
    best_row
        int64 of shape (n_sizes,): the row of the trial with the fewest steps, -1 where none reached the goal.
    budget
        What the trials of different sizes had in common.
    """

    batch_size: NDArray[np.int64]
    steps: NDArray[np.float64]
    last_step: NDArray[np.int64]
    n_trials: NDArray[np.int64]
    best_row: NDArray[np.int64]
    budget: Budget


def steps_to_target(curve: Curve, goal: float, direction: Direction) -> StepsToTarget:
    """Return the first step after which the validation objective is strictly better than the goal.

    The first evaluation that is strictly better is looked for (equal is not better, NaN is never better), and the
    straight line between it and the evaluation before is followed to where it crosses the goal. Without this, the
    answer would be late by half the time between evaluations: that matters most for large batches, which need the
    fewest steps, and would make the critical batch size look smaller. Where no finite evaluation lies just before, the
    answer is the step of the evaluation itself. A curve that touches the goal by luck of its noise has reached it.

    Parameters
    ----------
    curve
        The run.
    goal
        In the objective's unit.
    direction
        ``"minimize"`` (better is below the goal) or ``"maximize"`` (above).

    Returns
    -------
    StepsToTarget
        In optimizer steps; censored where no evaluation is strictly better.

    Raises
    ------
    ValueError
        When the goal is not finite or the direction is unknown.
    """
    if not math.isfinite(goal):
        raise ValueError(
            f"`goal` is {goal}: a goal must be finite. Pass the value of the objective that is to be beaten."
        )
    if direction not in ("minimize", "maximize"):
        raise ValueError(
            f"`direction` is {direction!r}: it must be 'minimize' or 'maximize'. Pass the direction in which the "
            "objective gets better."
        )
    # What lies above the goal, lower is better: below 0 it is reached.
    excess = curve.validation - goal if direction == "minimize" else goal - curve.validation
    known = np.flatnonzero(~np.isnan(excess))
    last_step = int(curve.step[known[-1]]) if len(known) else -1
    reached = np.flatnonzero(excess < 0)
    if not len(reached):
        return StepsToTarget(steps=math.inf, last_step=last_step)
    row = int(reached[0])
    steps = float(curve.step[row])
    if row and np.isfinite(excess[row - 1]) and np.isfinite(excess[row]):
        before = float(curve.step[row - 1])
        steps = before + (steps - before) * float(excess[row - 1] / (excess[row - 1] - excess[row]))
    return StepsToTarget(steps=steps, last_step=last_step)


def fewest_steps(trials: Trials, goal: float, parameter: str = "batch_size") -> FewestSteps:
    """Return the fewest steps with which a trial of each batch size reaches the goal.

    Pruned, running and failed trials count as far as they were watched; infeasible trials do not, whatever they
    reached before they broke, and neither do trials without a curve.

    Parameters
    ----------
    trials
        The study: all relevant hyperparameters tuned again at each batch size.
    goal
        In the objective's unit; it has to be beaten strictly.
    parameter
        The hyperparameter that holds the batch size, in examples per step over all devices.

    Returns
    -------
    FewestSteps
        One row a batch size that was watched.

    Raises
    ------
    ValueError
        When the study has no such hyperparameter, or the goal is not finite.
    """
    trials.parameter(parameter)
    column = np.array([math.nan if value is None else float(value) for value in trials.values[parameter]])
    watched = [
        (row, curve)
        for row, curve in enumerate(trials.curves)
        if curve is not None and trials.status[row] is not Status.INFEASIBLE and not math.isnan(column[row])
    ]
    reached = {row: steps_to_target(curve, goal, trials.direction) for row, curve in watched}
    rows = np.array([row for row, one in reached.items() if one.last_step >= 0], dtype=np.intp)
    sizes = np.unique(column[rows])
    members = [rows[column[rows] == size] for size in sizes]
    best = [min(member, key=lambda row: reached[int(row)].steps) for member in members]
    steps = np.array([reached[int(row)].steps for row in best], dtype=np.float64)
    return FewestSteps(
        batch_size=sizes.astype(np.int64),
        steps=steps,
        last_step=np.array([max(reached[int(row)].last_step for row in member) for member in members], dtype=np.int64),
        n_trials=np.array([len(member) for member in members], dtype=np.int64),
        best_row=np.where(np.isfinite(steps), np.array(best, dtype=np.int64), -1),
        budget=held_budget(column[rows], trials.max_steps[rows]),
    )


def held_budget(batch_sizes: ArrayLike, max_steps: ArrayLike) -> Budget:
    """Return what runs of different batch sizes had in common: the number of steps or the number of epochs.

    The playbook warns that a comparison of batch sizes depends on it: a step budget favours large batches, an epoch
    budget small ones. Under an epoch budget, a large batch that misses the goal may just have had too few steps.

    Parameters
    ----------
    batch_sizes
        Shape (n_runs,), positive, in examples per step.
    max_steps
        Shape (n_runs,), the planned length of each run, in optimizer steps; -1 where unknown.

    Returns
    -------
    Budget
        STEP where the steps agree within 1%; else EPOCH where steps times batch size do, up to one step more or less;
        else MIXED. UNKNOWN where fewer than two batch sizes have a known length.
    """
    sizes, steps = np.asarray(batch_sizes, dtype=np.float64), np.asarray(max_steps, dtype=np.float64)
    sizes, steps = sizes[steps > 0], steps[steps > 0]
    if len(np.unique(sizes)) < 2:
        return Budget.UNKNOWN
    if steps.max() <= (1 + _SAME) * steps.min():
        return Budget.STEP
    # A number of epochs is rarely a whole number of batches: the last one may be dropped or padded.
    same_epochs = np.max((steps - 1) * sizes) <= (1 + _SAME) * np.min((steps + 1) * sizes)
    return Budget.EPOCH if same_epochs else Budget.MIXED
