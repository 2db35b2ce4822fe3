"""How long should training be, to begin with? The steps in which the fastest constant learning rate fits the data.

Playbook: "Algorithm for picking an initial candidate for max_train_steps using a learning rate sweep": sweep constant
learning rates without data augmentation and without regularization; the steps that the fastest trial needs to fit the
training set perfectly are the first guess. A bad search space makes it self-deception: where all learning rates are too
small, training seems to need very many steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.records import Curve, Direction, Status
from playbook_plugins.analysis.regularizers import is_on, is_regularizer
from playbook_plugins.analysis.steps import is_constant_rate
from playbook_plugins.analysis.trials import Trials

Side: TypeAlias = Literal["lower", "upper", "both"]
SECTION = "Algorithm for picking an initial candidate for max_train_steps using a learning rate sweep"
# Learning rates that differ by less are one: grids are computed in floating point.
_SAME = 1e-9


class SweepRefusal(StrEnum):
    """Why a sweep gives no max_train_steps; `pick_max_train_steps` states the rules."""

    NOT_WATCHED = "no trial with a learning rate and a training objective"
    NOT_CONSTANT = "the learning rates decay"
    NONE_FITS = "no trial fits"


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxTrainSteps:
    """The first guess at max_train_steps, and what it rests on.

    Attributes
    ----------
    parameter, goal
        The hyperparameter that holds the learning rate; the training objective that counts as a perfect fit.
    steps_to_fit
        float64 of shape (n_trials,), in optimizer steps: at which evaluation each trial was found to fit; +inf where it
        was not while it was watched, NaN where the trial is not of the sweep.
    last_step
        int64 of shape (n_trials,): the last step at which the training objective is known; -1 without one.
    max_train_steps
        The step of the evaluation at which the fastest trial was found to fit, in optimizer steps. This and what
        follows is None or 0 where the sweep gives no answer.
    low
        The sweep began to fit after more than ``low`` steps and at ``max_train_steps`` at the latest.
    refusal
        Why there is no answer; None where there is one.
    row, trial, learning_rate
        The fastest trial: its row in the table, its number in the study, its rate.
    at_boundary
        On which side there is no rate to compare the fastest with: ``"lower"``, ``"upper"``, ``"both"`` (a single
        rate), or None.
    n_tied
        How many trials were found to fit at the very step of the fastest: closer than the time between evaluations.
    n_smaller, n_larger, n_larger_diverged
        The trials at smaller and at larger learning rates than the fastest that diverged (are infeasible), completed
        or were watched for as long; and how many of the larger diverged.
    n_not_constant, n_unknown_schedule
        The trials that were left out because their learning rate decays; and those of the sweep whose schedule no
        curve tells, which are taken to be constant.
    at_first_evaluation
        Whether the fastest trial fits at the first evaluation of its training objective: when it began to is unknown.
    regularizers
        The names of the hyperparameters of regularization and data augmentation that are not off: in the fastest
        trial, and without an answer in any trial of the sweep.
    """

    parameter: str
    goal: float
    steps_to_fit: NDArray[np.float64]
    last_step: NDArray[np.int64]
    max_train_steps: int | None = None
    low: int | None = None
    refusal: SweepRefusal | None = None
    row: int | None = None
    trial: int | None = None
    learning_rate: float | None = None
    at_boundary: Side | None = None
    n_tied: int = 0
    n_smaller: int = 0
    n_larger: int = 0
    n_larger_diverged: int = 0
    n_not_constant: int = 0
    n_unknown_schedule: int = 0
    at_first_evaluation: bool = False
    regularizers: tuple[str, ...] = ()

    @property
    def is_at_stability_edge(self) -> bool:
        """Whether all trials at larger learning rates diverged: instability limits the rate, not the search space."""
        return 0 < self.n_larger == self.n_larger_diverged


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """When one trial fits: the step, the last step before which it surely did not, and how well it fits there."""

    steps: float = math.inf
    low: int = 0
    excess: float = math.inf
    is_first: bool = False


def pick_max_train_steps(
    trials: Trials,
    goal: float,
    *,
    direction: Direction = "minimize",
    learning_rate: str = "learning_rate",
    metric: str | None = None,
    n_consecutive: int = 2,
) -> MaxTrainSteps:
    """Return in how many steps the fastest trial of a sweep of constant learning rates fits the training set.

    A trial fits from the first of ``n_consecutive`` evaluations on end whose training objective is at least as good as
    the goal (equal is good enough: no error is below 0). A single one may be luck: where the training objective levels
    off one standard deviation of its noise short of the goal, all trials with 50 evaluations seem to fit by a single
    one, 65% by two on end, and 16% by three.

    The answer is known to the evaluations only. The training objective of a `Curve` is the mean since the evaluation
    before. If it misses the goal at one evaluation and meets it at the next, and gets better steadily, then it passed
    the goal after the evaluation before these two, ``low``, and by that which met it, ``max_train_steps``; of all
    trials that fit, the earliest of both ends. When in doubt, train longer: take the upper end.

    Of several trials at one rate the fastest counts. Infeasible trials never fit, whatever they reached before; pruned,
    running and failed ones count as far as they were watched. Trials whose learning rate falls by more than 1% after
    its peak (warmup is no fall), before they fit, are left out. Of trials that fit at the same evaluation, the fastest
    is the one that fits better there; if they are equal, one that is not at the boundary, then the smallest rate.

    The fastest trial is at the boundary where no trial at a larger, or at a smaller, learning rate diverged, completed
    or was watched for as long. Where all at larger rates diverged, instability limits the rate and the search space is
    wide enough: a stability edge, no boundary. Where each step of a grid of nine rates away from the best doubles the
    steps, which seeds vary by 10%, a boundary is found in less than 1% of sweeps whose best rate is the second or one
    further in, and in more than 99% of those whose best rate is the outermost or lies beyond.

    Parameters
    ----------
    trials
        The sweep: curves with the training objective, one or more trials a learning rate, all else equal, without data
        augmentation and regularization.
    goal
        The training objective that counts as a perfect fit, in its unit; for instance an error of 0, or a loss of 0.01.
    direction
        Which way the *training* objective gets better; it need not be that of the study.
    learning_rate
        The hyperparameter that holds the learning rate.
    metric
        One of the curves' other metrics, to read instead of their training objective: for instance a training error
        that was evaluated next to the loss.
    n_consecutive
        At least 1.

    Returns
    -------
    MaxTrainSteps
        Without an answer, and with the refusal, where no trial fits, none was watched, or none is constant.

    Raises
    ------
    ValueError
        When the study has no such hyperparameter or it is categorical, no curve holds the metric, the goal is not
        finite, the direction is unknown, or ``n_consecutive`` is below 1.
    """
    _check_arguments(trials, goal, direction, learning_rate, metric, n_consecutive)
    rates = trials.values[learning_rate]
    sign = 1.0 if direction == "minimize" else -1.0
    steps_to_fit = np.full(len(trials), np.nan)
    last_step = np.full(len(trials), -1, dtype=np.int64)
    fits: dict[int, _Fit] = {}
    n_not_constant = n_unknown = 0
    for row in np.flatnonzero(np.isfinite(rates)):
        curve, is_infeasible = trials.curves[row], trials.status[row] is Status.INFEASIBLE
        train = _training_objective(curve, metric)
        known = np.flatnonzero(np.isfinite(train))
        if not len(known) and not is_infeasible:
            continue
        fit, end = _Fit(), len(train)
        if curve is not None and not is_infeasible:
            fit, end = _find_fit(curve, sign * (train - goal), n_consecutive)
        is_constant = None if curve is None else is_constant_rate(curve.learning_rate[:end])
        if is_constant is False:
            n_not_constant += 1
            continue
        n_unknown += is_constant is None
        if curve is not None and len(known):
            last_step[row] = curve.step[known[-1]]
        steps_to_fit[row] = fit.steps
        fits[int(row)] = fit
    in_sweep = np.array(sorted(fits), dtype=np.intp)
    common: dict[str, Any] = {
        "parameter": learning_rate,
        "goal": goal,
        "steps_to_fit": steps_to_fit,
        "last_step": last_step,
        "n_not_constant": n_not_constant,
        "n_unknown_schedule": n_unknown,
    }
    fitting = [row for row in fits if math.isfinite(fits[row].steps)]
    if not fitting:
        refusal = SweepRefusal.NONE_FITS if fits else SweepRefusal.NOT_WATCHED
        # Trials that diverged before their rate could decay make no sweep of constant rates.
        if n_not_constant and trials.is_infeasible[in_sweep].all():
            refusal = SweepRefusal.NOT_CONSTANT
        return MaxTrainSteps(refusal=refusal, regularizers=_regularizers(trials, in_sweep), **common)
    least = min(fits[row].steps for row in fitting)
    tied = [row for row in fitting if fits[row].steps == least]
    asked = _asked(trials, in_sweep, last_step, least)
    sides = {row: _compare(rates, row, asked, trials.is_infeasible) for row in tied}
    best = min(tied, key=lambda row: (fits[row].excess, _boundary(sides[row]) is not None, float(rates[row]), row))
    n_smaller, n_larger, n_larger_diverged = sides[best]
    return MaxTrainSteps(
        max_train_steps=int(least),
        low=min(fits[row].low for row in fitting),
        row=best,
        trial=int(trials.number[best]),
        learning_rate=float(rates[best]),
        at_boundary=_boundary(sides[best]),
        n_tied=len(tied),
        n_smaller=n_smaller,
        n_larger=n_larger,
        n_larger_diverged=n_larger_diverged,
        at_first_evaluation=fits[best].is_first,
        regularizers=_regularizers(trials, np.array([best])),
        **common,
    )


def check_max_train_steps(result: MaxTrainSteps) -> list[Finding]:
    """Ask what speaks against the max_train_steps that a learning rate sweep gave.

    Parameters
    ----------
    result
        Of `pick_max_train_steps`.

    Returns
    -------
    list of Finding
        Four, ``check`` being ``"max_train_steps"``:

        - ``"fit"``: FLAG where no trial fits (the sweep is too short, the goal out of reach, or the rates are wrong),
          or the fastest fits at the first evaluation already (evaluate more often; or the goal or the direction is
          wrong). Numbers: ``n_watched``, ``n_fit``, ``goal``, ``max_train_steps`` and ``low`` (optimizer steps; see
          `MaxTrainSteps`), ``last_step`` (the largest step of the sweep), ``trial``, ``n_tied``,
          ``at_first_evaluation`` (1 or 0), ``refusal``.
        - the name of the learning rate: FLAG where that of the fastest trial is at the boundary of the sweep. Numbers:
          ``learning_rate``, ``at_boundary`` (``"lower"``, ``"upper"``, ``"both"`` or None), ``n_smaller``,
          ``n_larger``, ``n_larger_diverged``, ``stability_edge`` (1 where all larger rates diverged: more stable
          training, as with warmup, may need fewer steps).
        - ``"schedule"``: FLAG where trials had to be left out because their learning rate decays. Numbers:
          ``n_not_constant``, ``n_watched``, ``n_unknown_schedule``. TOO_LITTLE_DATA where no curve holds learning
          rates.
        - ``"regularization"``: FLAG where hyperparameters of regularization or data augmentation are not off, which
          slow fitting down. Numbers: ``n_regularizers``, ``regularizers`` (their names). What the study does not name
          cannot be seen.

        The first two have TOO_LITTLE_DATA where no trial was watched, or none was constant.
    """
    n_watched = int(np.sum(~np.isnan(result.steps_to_fit)))
    n_constant = n_watched - result.n_unknown_schedule
    is_asked = result.refusal in (None, SweepRefusal.NONE_FITS)
    fit: dict[str, Number] = {
        "n_watched": n_watched,
        "n_fit": int(np.sum(np.isfinite(result.steps_to_fit))),
        "goal": result.goal,
        "max_train_steps": result.max_train_steps,
        "low": result.low,
        "last_step": int(result.last_step.max(initial=-1)),
        "trial": result.trial,
        "n_tied": result.n_tied,
        "at_first_evaluation": int(result.at_first_evaluation),
        "refusal": None if result.refusal is None else str(result.refusal),
    }
    rate: dict[str, Number] = {
        "learning_rate": result.learning_rate,
        "at_boundary": result.at_boundary,
        "n_smaller": result.n_smaller,
        "n_larger": result.n_larger,
        "n_larger_diverged": result.n_larger_diverged,
        "stability_edge": int(result.is_at_stability_edge),
    }
    schedule: dict[str, Number] = {
        "n_not_constant": result.n_not_constant,
        "n_watched": n_watched,
        "n_unknown_schedule": result.n_unknown_schedule,
    }
    regularization: dict[str, Number] = {
        "n_regularizers": len(result.regularizers),
        "regularizers": ", ".join(result.regularizers) or None,
    }
    answers = (
        ("fit", fit, result.refusal is SweepRefusal.NONE_FITS or result.at_first_evaluation, is_asked),
        (result.parameter, rate, result.at_boundary is not None, result.refusal is None),
        ("schedule", schedule, result.n_not_constant > 0, n_constant > 0),
        ("regularization", regularization, len(result.regularizers) > 0, n_watched > 0),
    )
    return [
        Finding(
            check="max_train_steps",
            subject=subject,
            verdict=Verdict.FLAG if flagged else Verdict.NO_EVIDENCE if is_known else Verdict.TOO_LITTLE_DATA,
            numbers=numbers,
            section=SECTION,
        )
        for subject, numbers, flagged, is_known in answers
    ]


def _check_arguments(
    trials: Trials, goal: float, direction: Direction, learning_rate: str, metric: str | None, n_consecutive: int
) -> None:
    if not trials.parameter(learning_rate).is_numeric:
        raise ValueError(
            f"`learning_rate` is {learning_rate!r}, which is categorical: learning rates have an order. Pass the "
            "hyperparameter that holds the learning rate as a number."
        )
    if not math.isfinite(goal):
        raise ValueError(
            f"`goal` is {goal}: a goal must be finite. Pass the training objective that counts as a perfect fit."
        )
    if direction not in ("minimize", "maximize"):
        raise ValueError(
            f"`direction` is {direction!r}: it must be 'minimize' or 'maximize'. Pass the direction in which the "
            "training objective gets better."
        )
    metrics = sorted({name for curve in trials.curves if curve is not None for name in curve.metrics})
    if metric is not None and metric not in metrics and any(curve is not None for curve in trials.curves):
        raise ValueError(
            f"`metric` is {metric!r}: no curve holds it. Pass one of {metrics}, or None for the training objective."
        )
    if n_consecutive < 1:
        raise ValueError(
            f"`n_consecutive` is {n_consecutive}: it is a number of evaluations on end and must be at least 1. Pass 1 "
            "to take a single evaluation for a fit."
        )


def _training_objective(curve: Curve | None, metric: str | None) -> NDArray[np.float64]:
    """Return the training objective, shape (n_evaluations,); NaN where unknown, empty without a curve."""
    if curve is None:
        return np.empty(0)
    return curve.train if metric is None else curve.metrics.get(metric, np.full(len(curve), np.nan))


def _find_fit(curve: Curve, excess: NDArray[np.float64], n_consecutive: int) -> tuple[_Fit, int]:
    """Return when a trial fits, and how many evaluations tell so; ``excess`` is above 0 where it does not.

    An unknown value ends the evaluations on end, as far as anyone knows.
    """
    in_a_row = 0
    for place, fits in enumerate((np.isfinite(excess) & (excess <= 0)).tolist()):
        in_a_row = in_a_row + 1 if fits else 0
        if in_a_row < n_consecutive:
            continue
        first = place + 1 - n_consecutive
        before = np.flatnonzero(excess[:first] > 0)
        # The mean over the steps before evaluation j misses the goal: at the evaluation before j, so did the objective.
        low = int(curve.step[before[-1] - 1]) if len(before) and before[-1] > 0 else 0
        is_first = not np.isfinite(excess[:first]).any()
        return _Fit(steps=float(curve.step[first]), low=low, excess=float(excess[first]), is_first=is_first), place + 1
    return _Fit(), len(excess)


def _asked(trials: Trials, in_sweep: NDArray[np.intp], last_step: NDArray[np.int64], least: float) -> NDArray[np.intp]:
    """Return the rows that tell how fast their rate is, next to a trial that took so many steps."""
    # A run that completed was meant to be as long, even if its training objective ceased to be finite.
    ended = np.array([trials.status[row] is Status.COMPLETE for row in in_sweep], dtype=np.bool_)
    return in_sweep[ended | trials.is_infeasible[in_sweep] | (last_step[in_sweep] >= least)]


def _compare(
    rates: NDArray[np.float64], row: int, asked: NDArray[np.intp], diverged: NDArray[np.bool_]
) -> tuple[int, int, int]:
    """Return how many trials have a smaller learning rate, how many a larger one, and how many of these diverged."""
    margin = _SAME * abs(float(rates[row]))
    larger = rates[asked] > rates[row] + margin
    return int((rates[asked] < rates[row] - margin).sum()), int(larger.sum()), int(diverged[asked[larger]].sum())


def _boundary(sides: tuple[int, int, int]) -> Side | None:
    n_smaller, n_larger, _ = sides
    if not n_smaller and not n_larger:
        return "both"
    return "lower" if not n_smaller else "upper" if not n_larger else None


def _regularizers(trials: Trials, rows: NDArray[np.intp]) -> tuple[str, ...]:
    """Return the names of the regularizers that are on in any of these trials, the fixed ones first."""
    settings: list[Mapping[str, Any]] = [trials.fixed, *(trials.config(int(row)) for row in rows)]
    return tuple(
        dict.fromkeys(
            name for setting in settings for name, value in setting.items() if is_regularizer(name) and is_on(value)
        )
    )
