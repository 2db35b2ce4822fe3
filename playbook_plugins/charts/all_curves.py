"""How did all trials train? Every validation curve at once, the best ones in front, and where training broke.

Playbook: "Examining the training curves": looking at the best trials only hides what the others show.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playbook_plugins.analysis import Trials
from playbook_plugins.charts.chart import Chart
from playbook_plugins.charts.legend import mark_legend
from playbook_plugins.charts.palette import BEST, CROSS, GREEN, GREY, INFEASIBLE, RED
from playbook_plugins.charts.scales import (
    EARLY_SHARE,
    ObjectiveScale,
    objective_scale,
    objective_title,
    step_x,
    widen,
)
from playbook_plugins.charts.table import N_BEST
from playbook_plugins.charts.theme import HEIGHT, SCHEMA, WIDTH, config, label

OTHER = "other trials"
# More lines are a grey cloud, and more points than pixels of a line are not seen.
_MAX_LINES, _N_BEST_LINES = 200, 60
_MAX_POINTS = 40
_LOOKS = {BEST: (GREEN, "stroke"), OTHER: (GREY, "stroke"), INFEASIBLE: (RED, CROSS)}


def all_training_curves(trials: Trials) -> Chart:
    """Draw the validation objective of all trials over training.

    The best three are green and in front; a red cross marks where an infeasible trial was evaluated for the last time
    before it broke, at the edge of the frame if that lies beyond it. The axis is that of the axis plots, which
    separates the good trials, and reaches at least to where the best three were after a fifth of training. Lines that
    leave it are cut. Of more than 200 trials the best 60 and an even selection of the others are drawn, with 40 points
    a line.

    Parameters
    ----------
    trials
        The study.

    Returns
    -------
    Chart
        Every mark of a trial carries its number in the field ``trial``.

    Raises
    ------
    ValueError
        When no trial has a curve with a finite validation objective.
    """
    known = _rows_with_curves(trials)
    if not len(known):
        raise ValueError(
            f"`trials` of the study {trials.name!r} has no curve with a finite validation objective: training curves "
            "need at least one. Record the evaluations of each trial, for instance with TrialRecorder."
        )
    drawn = _choose(trials, known)
    best = set(trials.ranking()[:N_BEST].tolist())
    # The best last, so that they are drawn on top.
    points = [point for row in drawn if row not in best for point in _points(trials, row, OTHER)]
    points += [point for row in drawn if row in best for point in _points(trials, row, BEST)]
    scale = _scale(trials, points)
    ends = [_points(trials, row, INFEASIBLE)[-1] for row in drawn if trials.is_infeasible[row]]
    broken = [end | {"place": min(max(end["value"], scale.low), scale.high)} for end in ends]
    occurs = {point["mark"] for point in points} | ({INFEASIBLE} if broken else set())
    looks = mark_legend({kind: look for kind, look in _LOOKS.items() if kind in occurs})
    x = step_x(0, 1.02 * max(1, *(point["step"] for point in points)))
    y = scale.y("value", strip=False, title=objective_title(trials))
    # A line that leaves the frame is cut there; a clamped one would run along its edge.
    y["scale"] |= {"clamp": False}
    words = [
        {"field": "trial", "title": "trial", "type": "quantitative", "format": "d"},
        {"field": "step", "title": "step", "type": "quantitative", "format": ",d"},
        {"field": "value", "title": label(trials.objective_name), "type": "quantitative", "format": ".5~g"},
    ]
    layers: list[dict[str, Any]] = [
        {
            "transform": [{"filter": f"datum.mark === '{kind}'"}],
            "mark": {"type": "line", "clip": True, "strokeWidth": width, "opacity": opacity},
            "encoding": {"x": x, "y": y, "color": looks["color"], "detail": {"field": "trial"}, "tooltip": words},
        }
        for kind, width, opacity in ((OTHER, 1.0, 0.35), (BEST, 1.8, 0.95))
        if kind in occurs
    ]
    if broken:
        layers.append(
            {
                "data": {"values": broken},
                "mark": {"type": "point", "size": 40, "opacity": 0.8},
                "encoding": looks | {"x": x, "y": y | {"field": "place"}, "tooltip": words},
            }
        )
    spec = {
        "$schema": SCHEMA,
        "title": {"text": "Training curves of all trials", "subtitle": _counts(trials, known, drawn)},
        "width": WIDTH,
        "height": HEIGHT,
        "config": config(),
        "data": {"values": points},
        "layer": layers,
    }
    help = f"The validation objective of all trials, the best {N_BEST} in front."
    if broken:
        help += " Crosses mark the last evaluation before a trial broke"
        help += "; those at the edge lie beyond it." if any(end["value"] != end["place"] for end in broken) else "."
    return Chart(spec=spec, title="All trials", help=help, alt=f"{_counts(trials, known, drawn)}.")


def _rows_with_curves(trials: Trials) -> NDArray[np.intp]:
    return np.array(
        [row for row, curve in enumerate(trials.curves) if curve is not None and np.isfinite(curve.validation).any()],
        dtype=np.intp,
    )


def _choose(trials: Trials, known: NDArray[np.intp]) -> list[int]:
    """Return which of the trials with a curve are drawn, ascending."""
    if len(known) <= _MAX_LINES:
        return [int(row) for row in known]
    ranking = trials.ranking()
    best = ranking[np.isin(ranking, known)][:_N_BEST_LINES]
    others = np.setdiff1d(known, best)
    even = np.linspace(0, len(others) - 1, _MAX_LINES - len(best)).round().astype(np.intp)
    return [int(row) for row in np.sort(np.concatenate([best, others[even]]))]


def _points(trials: Trials, row: int, mark: str) -> list[dict[str, Any]]:
    curve = trials.curves[row]
    if curve is None:
        return []
    known = np.flatnonzero(np.isfinite(curve.validation))
    kept = known[np.unique(np.linspace(0, len(known) - 1, _MAX_POINTS).round().astype(np.intp))]
    number = int(trials.number[row])
    return [
        {
            "trial": number,
            "mark": mark,
            "step": int(curve.step[place]),
            "value": float(f"{curve.validation[place]:.5g}"),
        }
        for place in kept
    ]


def _scale(trials: Trials, points: list[dict[str, Any]]) -> ObjectiveScale:
    """Return the axis of the axis plots, widened: where few trials are feasible, their last values span too little."""
    scale = objective_scale(trials)
    early = EARLY_SHARE * max(point["step"] for point in points)
    # One evaluation a trial, so that a later spike does not choose the axis.
    first = {
        point["trial"]: point["value"] for point in reversed(points) if point["mark"] == BEST and point["step"] >= early
    }
    if trials.direction == "minimize":
        worst = max(first.values(), default=scale.limit)
        return replace(scale, high=widen(scale.low, worst, scale.log)[1]) if worst > scale.high else scale
    worst = min(first.values(), default=scale.limit)
    return replace(scale, low=widen(worst, scale.high, scale.log)[0]) if worst < scale.low else scale


def _counts(trials: Trials, known: NDArray[np.intp], drawn: list[int]) -> str:
    n_broken = int(trials.is_infeasible[known].sum())
    text = f"{label(trials.name)}: {len(known):,} {'trial' if len(known) == 1 else 'trials'} with a curve"
    if n_broken:
        text += f", {n_broken:,} of them infeasible"
    return text if len(drawn) == len(known) else f"{text}; {len(drawn):,} of them drawn"
