"""How do the same trials look by another objective? What each curve says of it, read after the fact.

Playbook: "Why use quasi-random search instead of more sophisticated black box optimization algorithms during the
exploration phase of tuning?": a search that does not look at results can change the objective in retrospect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import scipy
from numpy.typing import NDArray

from playbook_plugins.analysis.records import Curve, Direction

if TYPE_CHECKING:
    from playbook_plugins.analysis.trials import Trials

Moment: TypeAlias = Literal["best", "best step", "final"]
MOMENTS: tuple[Moment, ...] = ("best", "best step", "final")
# What the name of a metric says of its direction; the first is asked first.
_LOWER = ("loss", "error", "perplexity")
_HIGHER = ("acc", "auc", "f1", "bleu", "rouge", "iou", "dice", "precision", "recall", "psnr", "ssim", "score", "reward")


def judge_by(trials: Trials, objective: str, direction: Direction | None, moment: Moment | None) -> dict[str, Any]:
    """Return the columns of a study that change with its objective; see `Trials.with_objective`."""
    column = "validation" if objective == "final" else objective
    when: Moment = moment or ("final" if objective == "final" else "best")
    if when not in MOMENTS:
        raise ValueError(f"`moment` is {moment!r}: it must be one of {list(MOMENTS)}. Leave it out for the best.")
    curves = [curve for curve in trials.curves if curve is not None]
    if not any(np.isfinite(_column(curve, column)).any() for curve in curves):
        metrics = sorted({name for curve in curves for name in curve.metrics})
        raise ValueError(
            f"`objective` is {objective!r}: no curve of the study {trials.name!r} knows it. Pass 'final', "
            f"'validation', 'train' or one of the metrics {metrics}, or record it during training."
        )
    if direction is None:
        direction = trials.direction if column == "validation" else guess_direction(curves, column, trials.direction)
    values = np.full(len(trials), np.nan)
    steps = np.full(len(trials), -1, dtype=np.int64)
    for row, curve in enumerate(trials.curves):
        place = None if curve is None else _place(curve, column, direction, when, int(trials.best_step[row]))
        if curve is not None and place is not None:
            values[row], steps[row] = _column(curve, column)[place], curve.step[place]
    values[trials.is_infeasible] = np.inf if direction == "minimize" else -np.inf
    name = trials.objective_name if column == "validation" else column
    old_name = "validation" if trials.objective_name in ("objective", column) else trials.objective_name
    return {
        "objective": values,
        "direction": direction,
        "best_step": steps,
        "curves": tuple(None if curve is None else _turned(curve, column, old_name) for curve in trials.curves),
        "objective_name": f"final {name}" if when == "final" else name,
    }


def _column(curve: Curve, column: str) -> NDArray[np.float64]:
    """Return a column of a curve, shape (n_evaluations,); NaN where it lacks the metric."""
    if column in ("validation", "train"):
        return curve.validation if column == "validation" else curve.train
    return curve.metrics.get(column, np.full(len(curve), np.nan))


def _place(curve: Curve, column: str, direction: Direction, moment: Moment, best_step: int) -> int | None:
    """Return the evaluation that counts, None where the objective is unknown or not finite."""
    values = _column(curve, column)
    known = np.flatnonzero(np.isfinite(values))
    if moment == "best step":
        known = known[curve.step[known] == best_step]
    if not len(known):
        return None
    if moment == "best":
        return int(known[np.argmin(values[known] if direction == "minimize" else -values[known])])
    return int(known[-1])


def _turned(curve: Curve, column: str, old_name: str) -> Curve:
    """Return the curve with a column as its validation objective, the old one among its metrics."""
    if column == "validation":
        return curve
    metrics = {name: values for name, values in curve.metrics.items() if name != column}
    return replace(curve, validation=_column(curve, column), metrics={old_name: curve.validation, **metrics})


def guess_direction(curves: Sequence[Curve], column: str, direction: Direction) -> Direction:
    """Return in which direction a column gets better, as its name, its course or else the study says.

    Parameters
    ----------
    curves
        Of the study.
    column
        ``"train"`` or the name of a metric.
    direction
        In which the study's objective gets better.

    Returns
    -------
    str
        ``"minimize"`` where the name has one of "loss", "error" and "perplexity"; ``"maximize"`` where it has one of
        "acc", "auc", "f1", "bleu", "rouge", "iou", "dice", "precision", "recall", "psnr", "ssim", "score" and
        "reward"; for the training objective, what `is_training_minimized` says of most trials;
        otherwise ``direction``.
    """
    if column == "train":
        votes = [
            1 if is_training_minimized(curve, direction) else -1 for curve in curves if np.isfinite(curve.train).any()
        ]
        return "minimize" if sum(votes) >= 0 else "maximize"
    name = column.lower()
    if any(word in name for word in _LOWER):
        return "minimize"
    return "maximize" if any(word in name for word in _HIGHER) else direction


def is_training_minimized(curve: Curve, direction: Direction) -> bool:
    """Return whether the training objective of a run gets better when it is lower.

    Parameters
    ----------
    curve
        The run.
    direction
        In which its validation objective gets better.

    Returns
    -------
    bool
        False where the validation objective is maximized and the training objective rises with it, as an accuracy
        does: it ends higher than it began, and the ranks of the two move together. A loss that rises does not.
    """
    known = np.isfinite(curve.train) & np.isfinite(curve.validation)
    if direction == "minimize" or not known.any():
        return True
    if curve.train[known][-1] <= curve.train[known][0]:
        return True
    train, validation = scipy.stats.rankdata(curve.train[known]), scipy.stats.rankdata(curve.validation[known])
    return float((train - train.mean()) @ (validation - validation.mean())) <= 0
