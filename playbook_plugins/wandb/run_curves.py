"""How does a history that others logged become a curve? Rows at many steps, gathered at the evaluations.

Playbook: "Examining the training curves".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from playbook_plugins.analysis.records import Curve
from playbook_plugins.wandb.run_layout import read_curve, read_number


def check_curve_keys(curves: Mapping[str, str] | None) -> None:
    """Refuse a mapping that names no validation objective.

    Raises
    ------
    ValueError
        When ``"validation"`` is missing.
    """
    if curves is not None and "validation" not in curves:
        raise ValueError(
            f"`curves` is {dict(curves)!r}: it does not say which key of the history is the validation objective. Pass "
            "for instance {'validation': 'val_loss', 'train': 'train_loss', 'step': 'trainer/global_step'}."
        )


def check_curves_found(curves: Mapping[str, str] | None, read: Collection[Curve | None]) -> None:
    """Refuse keys under which no run logged anything.

    Raises
    ------
    ValueError
        When histories were read by these keys, and none gave a curve.
    """
    if curves is not None and read and all(curve is None for curve in read):
        step = f" together with the step {curves['step']!r}" if "step" in curves else ""
        raise ValueError(
            f"`curves` names {curves['validation']!r} as the validation objective: no run that was read has it in its "
            f"history{step}. Pass the keys as W&B's charts show them, or leave `curves` out."
        )


def gather_curve(rows: Iterable[Mapping[str, Any]], curves: Mapping[str, str] | None) -> Curve | None:
    """Return the curve in the history of a run; None where it has no evaluation.

    Parameters
    ----------
    rows
        The rows of the history in their order, as W&B hands them over.
    curves
        The keys of the history: ``"validation"``; perhaps ``"step"``, in optimizer steps (otherwise ``_step``),
        ``"train"``, ``"learning_rate"``, ``"gradient_norm"``, ``"gradient_norm_max"`` and ``"clip_threshold"``; any
        other name stands for another metric. None for histories that `log_trial` wrote.

    Returns
    -------
    Curve or None
        One entry at each step where the validation objective was logged. What was logged in between is gathered at
        the next evaluation, as the columns of `Curve` are meant: the mean of the training objectives, the median and
        the largest of the gradient norms, and the last learning rate and threshold. Other metrics count at
        evaluations only, the last one logged at that step.

    Raises
    ------
    ValueError
        When a step is not a whole number from 0, or steps go backwards.
    """
    if curves is None:
        return read_curve(rows)
    history = list(rows)
    series = {name: _series(history, key, curves.get("step", "_step")) for name, key in curves.items()}
    evaluations = dict(series["validation"])
    if not evaluations:
        return None
    steps = sorted(evaluations)
    columns: dict[str, list[float]] = {"validation": [evaluations[step] for step in steps]}
    columns["validation"] = [value if math.isfinite(value) else math.nan for value in columns["validation"]]
    metrics: dict[str, list[float]] = {}
    for name, points in series.items():
        if name in _GATHERED:
            columns[name] = _gather(points, steps, _GATHERED[name])
        elif name not in ("validation", "step"):
            known = dict(points)
            metrics[name] = [known.get(step, math.nan) for step in steps]
    return Curve.from_columns(steps, **columns, metrics=metrics)


def _series(rows: Sequence[Mapping[str, Any]], key: str, step_key: str) -> list[tuple[int, float]]:
    """Return what was logged under a key, by step, in the order of logging."""
    points = []
    for row in rows:
        # A key whose value is unknown is there all the same: a NaN may come as None.
        if key not in row or step_key not in row:
            continue
        step = read_number(row[step_key])
        if not (step >= 0 and step.is_integer()):
            raise ValueError(
                f"`curves` names {step_key!r} as the step, where the history has {row[step_key]!r}: steps are whole "
                "numbers from 0. Name the key that counts optimizer steps, or leave 'step' out."
            )
        points.append((int(step), read_number(row[key])))
    return points


def _gather(
    points: Sequence[tuple[int, float]], steps: Sequence[int], reduce: Callable[[Sequence[float]], float]
) -> list[float]:
    """Return a value an evaluation: of the finite points after the evaluation before, up to and with this step."""
    known = sorted((step, value) for step, value in points if math.isfinite(value))
    places = np.searchsorted([step for step, _ in known], steps, side="right")
    bounds = [0, *places.tolist()]
    parts = [[value for _, value in known[start:stop]] for start, stop in itertools.pairwise(bounds)]
    return [reduce(part) if part else math.nan for part in parts]


def _last(values: Sequence[float]) -> float:
    return values[-1]


_GATHERED: dict[str, Callable[[Sequence[float]], float]] = {
    "train": lambda values: float(np.mean(values)),
    "learning_rate": _last,
    "gradient_norm": lambda values: float(np.median(values)),
    "gradient_norm_max": max,
    "clip_threshold": _last,
}
