"""How did the best trials train? Their training curves, with the best step of each.

Playbook: "Examining the training curves".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from playbook_plugins.analysis import Curve, Trials
from playbook_plugins.analysis.objectives import is_training_minimized
from playbook_plugins.charts.chart import Chart
from playbook_plugins.charts.palette import STAR, TRIAL_COLOURS
from playbook_plugins.charts.scales import EARLY_SHARE, TINY, ObjectiveScale, objective_title, step_x, widen
from playbook_plugins.charts.theme import HEIGHT, SCHEMA, WIDTH, config, label

_MAX_POINTS = 500
_LOG_RATIO = 30.0


def training_curves(trials: Trials, n_best: int = 3) -> Chart:
    """Draw the validation and the training objective of the best trials over training.

    Solid lines are validation, dashed lines training; a star marks the best step of each trial. The axis shows what
    is reached after the first fifth of training, on a logarithmic axis where that is positive, minimized, and spans a
    factor of more than 30; the fall from the untrained model may leave the frame.

    Parameters
    ----------
    trials
        The study.
    n_best
        How many trials, the best first among those with a curve; from 1 to 8.

    Returns
    -------
    Chart
        Every mark of a trial carries its number in the field ``trial``.

    Raises
    ------
    ValueError
        When ``n_best`` is out of range, or no feasible trial has a curve.
    """
    if not 1 <= n_best <= len(TRIAL_COLOURS):
        raise ValueError(
            f"`n_best` is {n_best}: it must lie between 1 and {len(TRIAL_COLOURS)}, because more lines cannot be told "
            "apart. Pass a smaller number, or select other trials with trials.select(rows)."
        )
    chosen = best_with_curves(trials)[:n_best]
    if not chosen:
        raise ValueError(
            f"`trials` of the study {trials.name!r} has no feasible trial with a curve: training curves need at least "
            "one. Record the evaluations of each trial, for instance with TrialRecorder."
        )
    names = [f"trial {trials.number[row]}" for row, _ in chosen]
    points = [point for row, curve in chosen for point in _points(trials, row, curve)]
    best = [_best_point(trials, row, curve) for row, curve in chosen]
    has_training = any(point["split"] == "training" for point in points)
    is_other = any(np.isfinite(curve.train).any() and not _shares_unit(trials, curve) for _, curve in chosen)
    scale = _scale(trials, points, best)
    colour = {
        "field": "name",
        "type": "nominal",
        "scale": {"domain": names, "range": list(TRIAL_COLOURS[: len(chosen)])},
        "legend": {"title": None, "symbolType": "stroke", "symbolSize": 300},
    }
    # Room for a star at the last step.
    x = step_x(0, 1.02 * max(1, *(point["step"] for point in points)))
    y = scale.y("value", strip=False, title=objective_title(trials))
    # A line that leaves the frame is cut there; a clamped one would run along its edge.
    y["scale"] |= {"clamp": False}
    words = [
        {"field": "trial", "title": "trial", "type": "quantitative", "format": "d"},
        {"field": "split", "title": "objective on", "type": "nominal"},
        {"field": "step", "title": "step", "type": "quantitative", "format": ",d"},
        {"field": "value", "title": label(trials.objective_name), "type": "quantitative", "format": ".5~g"},
    ]
    dash = {
        "field": "split",
        "type": "nominal",
        "scale": {"domain": ["validation", "training"], "range": [[1, 0], [5, 4]]},
        # Below: two legends in one row would not fit a phone.
        "legend": {"title": None, "symbolType": "stroke", "symbolSize": 500, "orient": "bottom"}
        if has_training
        else None,
    }
    layers = [
        {
            "mark": {"type": "line", "clip": True, "strokeWidth": 1.8, "opacity": 0.9},
            "encoding": {
                "x": x,
                "y": y,
                "color": colour,
                "strokeDash": dash,
                "detail": {"field": "trial"},
                "tooltip": words,
            },
        },
        {
            "data": {"values": best},
            "mark": {"type": "point", "shape": STAR, "size": 190, "opacity": 1},
            "encoding": {"x": x, "y": y, "color": colour, "tooltip": words},
        },
    ]
    title = f"The best {len(chosen)} trials" if len(chosen) > 1 else "The best trial"
    spec = {
        "$schema": SCHEMA,
        "title": {"text": f"Training curves: {title[0].lower()}{title[1:]}", "subtitle": label(trials.name)},
        "width": WIDTH,
        "height": HEIGHT,
        "config": config(),
        "data": {"values": points},
        "layer": layers,
    }
    return Chart(spec=spec, title=title, help=_help(has_training, is_other), alt=_alt(trials, chosen))


def best_with_curves(trials: Trials) -> list[tuple[int, Curve]]:
    """Return row and curve of the feasible trials whose curve has a finite validation objective, the best first."""
    return [
        (int(row), curve)
        for row in trials.ranking()
        if (curve := trials.curves[row]) is not None and np.isfinite(curve.validation).any()
    ]


def best_evaluation(trials: Trials, curve: Curve) -> int:
    """Return the row of a curve's best finite validation objective, of which there is one."""
    cost = curve.validation if trials.direction == "minimize" else -curve.validation
    return int(np.nanargmin(np.where(np.isfinite(cost), cost, np.nan)))


def _points(trials: Trials, row: int, curve: Curve) -> list[dict[str, Any]]:
    curve = curve.thin(_MAX_POINTS, [best_evaluation(trials, curve)])
    return [
        _point(trials, row, split, step, value)
        for split, column in (("validation", curve.validation), ("training", curve.train))
        if split == "validation" or _shares_unit(trials, curve)
        for step, value in zip(curve.step, column, strict=True)
        if np.isfinite(value)
    ]


def _shares_unit(trials: Trials, curve: Curve) -> bool:
    """Return whether training and validation can stand on one axis: a loss and an accuracy cannot."""
    return trials.direction == "minimize" or not is_training_minimized(curve, trials.direction)


def _best_point(trials: Trials, row: int, curve: Curve) -> dict[str, Any]:
    best = best_evaluation(trials, curve)
    return _point(trials, row, "validation, best step", curve.step[best], curve.validation[best])


def _point(trials: Trials, row: int, split: str, step: np.int64, value: np.float64) -> dict[str, Any]:
    number = int(trials.number[row])
    # Six digits are more than a line can show, and half the size.
    return {
        "trial": number,
        "name": f"trial {number}",
        "split": split,
        "step": int(step),
        "value": float(f"{value:.6g}"),
    }


def _scale(trials: Trials, points: list[dict[str, Any]], best: list[dict[str, Any]]) -> ObjectiveScale:
    last = max(point["step"] for point in points)
    values = np.array(
        [point["value"] for point in points if point["step"] >= EARLY_SHARE * last] + [point["value"] for point in best]
    )
    low, high = float(values.min()), float(values.max())
    is_log = trials.direction == "minimize" and low > TINY and high > _LOG_RATIO * low
    low, high = widen(low, high, is_log)
    limit = high if trials.direction == "minimize" else low
    return ObjectiveScale(low=low, high=high, limit=limit, log=is_log, direction=trials.direction)


def _help(has_training: bool, is_other: bool) -> str:
    lines = "solid lines are validation, dashed training" if has_training else "lines are validation"
    text = f"Stars mark the best step; {lines}."
    if is_other and not has_training:
        return f"{text} The training objective is a loss, in a unit of its own, and is not drawn."
    return f"{text} Validation that worsens while training improves hints at overfitting."


def _alt(trials: Trials, chosen: list[tuple[int, Curve]]) -> str:
    parts = []
    for row, curve in chosen:
        best = best_evaluation(trials, curve)
        last = np.flatnonzero(np.isfinite(curve.validation))[-1]
        parts.append(
            f"trial {trials.number[row]} reaches {curve.validation[best]:.4g} at step {curve.step[best]} of "
            f"{curve.step[-1]} and ends at {curve.validation[last]:.4g}"
        )
    return f"Training curves of {label(trials.objective_name)}: " + "; ".join(parts) + "."
