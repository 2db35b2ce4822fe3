"""Up to which batch size does a larger batch save steps? Steps to target against the batch size, both logarithmic.

Playbook: "Choosing the batch size to minimize training time": perfect scaling up to a critical batch size, then
diminishing returns, in the end none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from playbook_plugins.analysis import (
    Budget,
    CriticalBatchSize,
    FewestSteps,
    Refusal,
    ScalingRegime,
    critical_batch_size,
)
from playbook_plugins.charts.chart import Chart
from playbook_plugins.charts.legend import mark_legend
from playbook_plugins.charts.palette import BAR, BLUE, GREEN, GREY, ORANGE, PURPLE, RED
from playbook_plugins.charts.scales import log_ticks
from playbook_plugins.charts.theme import HEIGHT, SCHEMA, WIDTH, config

UNKNOWN, IDEAL, CURVE, CRITICAL, MISSED = (
    "regime unknown",
    "ideal scaling",
    "fitted curve",
    "critical batch size",
    "goal not reached",
)
_DASHES = "M-1.2,-.12L-.2,-.12L-.2,.12L-1.2,.12ZM.2,-.12L1.2,-.12L1.2,.12L.2,.12Z"
_POST = "M-.14,-1L.14,-1L.14,1L-.14,1Z"
_ARROW = "M0,-1L.6,-.2L.16,-.2L.16,1L-.16,1L-.16,-.2L-.6,-.2Z"
# In the order of the legend: colour, shape.
_LOOKS: dict[str, tuple[str, str]] = {
    ScalingRegime.PERFECT: (BLUE, "circle"),
    ScalingRegime.DIMINISHING: (ORANGE, "diamond"),
    ScalingRegime.MAXIMAL: (PURPLE, "square"),
    UNKNOWN: (GREY, "circle"),
    MISSED: (RED, _ARROW),
    IDEAL: (GREY, _DASHES),
    CURVE: (GREEN, BAR),
    CRITICAL: (GREEN, _POST),
}
_REFUSALS = {
    Refusal.NOT_MONOTONE: "a larger batch size took more steps",
    Refusal.FEW_SIZES: "too few batch sizes reached the goal",
    Refusal.NOT_REACHED: "it would lie above every size that reached the goal",
    Refusal.NOT_BELOW: "it would lie below every size that reached the goal",
}
# Room beyond the outermost sizes and steps, as factors.
_SIDE, _ABOVE, _BELOW = 2**0.4, 1.6, 1.6
# Less than a decade would blow noise up to mountains.
_LEAST_SPAN = 10.0
_N_POINTS = 65
_LABEL = "format(datum.value, datum.value < 10 ? '~g' : '~s')"
_ARROW_PLACE = 13


def steps_to_target_chart(steps: FewestSteps | CriticalBatchSize) -> Chart:
    """Draw the steps to target against the batch size, with what follows from them.

    Colour and shape tell the scaling regime of each size. The dashed line is perfect scaling, half the steps with twice
    the batch, from the smallest size that reached the goal. Where there is a critical batch size, the fitted curve
    S_min (1 + B_crit / B) is drawn, a post at B_crit and a band over its interval. A size that missed the goal is an
    arrow upwards at the last step that was watched: it takes more. A `CriticalBatchSize` does not know that step; then
    the arrow stands at the upper edge.

    Parameters
    ----------
    steps
        From `fewest_steps`, of which `critical_batch_size` is asked, or from `critical_batch_size` itself.

    Returns
    -------
    Chart
        The data hold one row a batch size.

    Raises
    ------
    ValueError
        When there is no batch size.
    """
    if not len(steps.batch_size):
        raise ValueError(
            "`steps` is empty: there is no batch size to show. Train with a curve at each batch size, and pass what "
            "fewest_steps or critical_batch_size makes of them."
        )
    result, rows = _read(steps)
    sizes = [row["batch_size"] for row in rows]
    known = [row["at"] for row in rows if row["at"] is not None]
    low, high = min(known, default=1.0) / _BELOW, max(known, default=1.0) * _ABOVE
    spread = max(1.0, _LEAST_SPAN / (high / low)) ** 0.5
    low, high = low / spread, high * spread
    left, right = min(sizes) / _SIDE, max(sizes) * _SIDE
    x: dict[str, Any] = {
        "field": "batch_size",
        "type": "quantitative",
        "scale": {"type": "log", "base": 2, "domain": [left, right], "nice": False, "clamp": True},
        "axis": {"title": "batch size", "values": sizes, "format": ",~r", "labelOverlap": True},
    }
    y: dict[str, Any] = {
        "field": "at",
        "type": "quantitative",
        "scale": {"type": "log", "domain": [low, high], "nice": False},
        "axis": {"title": "steps to target (fewer is better)", "values": log_ticks(low, high), "labelExpr": _LABEL}
        if known
        else {"title": "steps to target (fewer is better)", "labels": False, "grid": False},
    }
    reached = [row for row in rows if row["steps"] is not None]
    has_curve = result.value is not None and result.minimal_steps is not None
    occurs = {row["mark"] for row in rows} | ({IDEAL} if len(reached) > 1 else set())
    shown = occurs | ({CURVE, CRITICAL} if has_curve else set())
    legend = mark_legend({kind: look for kind, look in _LOOKS.items() if kind in shown}, columns=3)
    layers: list[dict[str, Any]] = []
    if has_curve:
        layers += _critical_layers(result, x)
    if len(reached) > 1:
        layers.append(_line_layer(_ideal(reached[0], right), x, y, {"color": GREY, "strokeDash": [5, 4]}))
    if has_curve:
        layers.append(_line_layer(_fitted(result, left, right), x, y, {"color": GREEN}))
    marks = legend | {"x": x, "tooltip": _TOOLTIP}
    layers += [
        {
            "transform": [{"filter": "isValid(datum.at)"}],
            "mark": {"type": "point", "opacity": 1, "clip": False},
            "encoding": marks | {"y": y, "size": _SIZE},
        },
        {
            "transform": [{"filter": "!isValid(datum.at)"}],
            "mark": {"type": "point", "opacity": 1},
            "encoding": marks | {"y": {"value": _ARROW_PLACE}, "size": _SIZE},
        },
    ]
    spec = {
        "$schema": SCHEMA,
        "title": {"text": "Steps to target", "subtitle": _headline(result)},
        "width": WIDTH,
        "height": HEIGHT,
        "config": config(),
        "data": {"values": rows},
        "layer": layers,
    }
    return Chart(spec=spec, title="Steps to target", help=_help(result), alt=_alt(result, rows))


def _read(steps: FewestSteps | CriticalBatchSize) -> tuple[CriticalBatchSize, list[dict[str, Any]]]:
    """Return what follows from the steps, and one row a batch size."""
    if isinstance(steps, CriticalBatchSize):
        result, last_steps, n_trials = steps, [-1] * len(steps), None
    else:
        last_steps, n_trials = steps.last_step.tolist(), steps.n_trials.tolist()
        result = critical_batch_size(steps.batch_size, steps.steps, last_steps=last_steps, budget=steps.budget)
    rows = []
    for place, size in enumerate(result.batch_size.tolist()):
        count, last, regime = float(result.steps[place]), last_steps[place], result.regimes[place]
        is_reached = math.isfinite(count)
        at = count if is_reached else last if last > 0 else None
        kind = MISSED if not is_reached else UNKNOWN if regime is None else str(regime)
        rows.append(
            {
                "batch_size": size,
                "steps": float(f"{count:.6g}") if is_reached else None,
                "at": None if at is None else float(f"{at:.6g}"),
                "words": _more_than(last) if not is_reached else f"{count:.4g}" if count < 1000 else f"{count:,.0f}",
                "gain": f"{gain:.2f}" if math.isfinite(gain := float(result.gain[place])) else "unknown",
                "n_trials": "unknown" if n_trials is None else str(n_trials[place]),
                "mark": kind,
                "area": 60 if is_reached else 170,
            }
        )
    return result, rows


def _more_than(last: int) -> str:
    return f"more than {last:,}" if last > 0 else "not reached"


def _line_layer(
    points: list[dict[str, float]], x: dict[str, Any], y: dict[str, Any], look: dict[str, Any]
) -> dict[str, Any]:
    return {
        "data": {"values": points},
        "mark": {"type": "line", "strokeWidth": 1.6, "clip": True, "aria": False} | look,
        "encoding": {"x": x, "y": y},
    }


def _ideal(first: dict[str, Any], right: float) -> list[dict[str, float]]:
    """Return both ends of the line of half the steps with twice the batch; it may leave the frame below."""
    size, count = first["batch_size"], first["steps"]
    return [{"batch_size": at, "at": count * size / at} for at in (size, right)]


def _fitted(result: CriticalBatchSize, left: float, right: float) -> list[dict[str, float]]:
    """Return points of S_min (1 + B_crit / B), evenly spaced on the axis."""
    critical, minimal = result.value or 0.0, result.minimal_steps or 0.0
    sizes = np.geomspace(left, right, _N_POINTS)
    return [{"batch_size": float(size), "at": float(minimal * (1 + critical / size))} for size in sizes]


def _critical_layers(result: CriticalBatchSize, x: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the band over the interval of B_crit and the post at its estimate; the axis cuts an infinite interval."""
    left, right = x["scale"]["domain"]
    low, high = (left if end is None else min(max(end, left), right) for end in (result.low, result.high))
    words = [{"field": "words", "title": CRITICAL, "type": "nominal"}]
    row = {"low": low, "high": high, "value": result.value, "words": _critical_words(result)}
    return [
        {
            "data": {"values": [row]},
            "mark": {"type": "rect", "color": GREEN, "opacity": 0.14},
            "encoding": {
                "x": x | {"field": "low"},
                "x2": {"field": "high"},
                "y": {"value": 0},
                "y2": {"value": {"expr": "height"}},
                "tooltip": words,
            },
        },
        {
            "data": {"values": [row]},
            "mark": {"type": "rule", "color": GREEN, "strokeWidth": 2, "opacity": 0.8},
            "encoding": {"x": x | {"field": "value"}, "tooltip": words},
        },
    ]


def _size_text(size: float) -> str:
    return f"{size:,.0f}" if size >= 10 else f"{size:.2g}"


def _critical_words(result: CriticalBatchSize) -> str:
    value, low, high = result.value or 0.0, result.low or 0.0, math.inf if result.high is None else result.high
    span = f"{_size_text(low)} to {_size_text(high)}" if math.isfinite(high) else f"from {_size_text(low)}"
    return f"{_size_text(value)} ({100 * result.confidence:.3g}% interval {span})"


def _headline(result: CriticalBatchSize) -> str:
    if result.value is not None:
        text = f"Critical batch size {_critical_words(result)}"
    elif result.refusal is not None:
        text = f"No critical batch size: {_REFUSALS[result.refusal]}"
    else:
        text = "No critical batch size"
    return f"{text}; {result.budget}"


def _help(result: CriticalBatchSize) -> str:
    text = (
        "Along the dashed line twice the batch needs half the steps; where the marks leave it, larger batches save less"
    )
    if result.value is not None:
        text += ". At the critical batch size training takes twice the fewest steps; the band is its interval"
    elif result.refusal is not None:
        text += f". No critical batch size is given: {_REFUSALS[result.refusal]}"
    if not result.is_reached.all():
        text += ". Arrows take more steps than were watched"
    if result.budget is Budget.EPOCH:
        text += ". An epoch budget favours small batches"
    elif result.budget is Budget.STEP:
        text += ". A step budget favours large batches"
    return f"{text}."


def _alt(result: CriticalBatchSize, rows: list[dict[str, Any]]) -> str:
    shown = sorted({0, len(rows) // 2, len(rows) - 1})
    text = f"Steps to target against the batch size. {_headline(result)}. Batch size and steps: "
    text += ", ".join(f"{_size_text(rows[at]['batch_size'])}: {rows[at]['words']}" for at in shown) + "."
    useful, known = result.largest_useful, result.batch_size[~np.isnan(result.gain)]
    if useful is not None and useful < known.max():
        text += f" Beyond batch size {_size_text(useful)} a doubling saves less than a tenth of the steps."
    n_missed = len(rows) - int(result.is_reached.sum())
    return text + (f" {n_missed} of {len(rows)} sizes missed the goal." if n_missed else "")


_SIZE = {"field": "area", "type": "quantitative", "scale": None}
_TOOLTIP = [
    {"field": "batch_size", "title": "batch size", "type": "quantitative", "format": ",~r"},
    {"field": "words", "title": "steps to target", "type": "nominal"},
    {"field": "gain", "title": "steps at half the size / steps", "type": "nominal"},
    {"field": "mark", "title": "verdict", "type": "nominal"},
    {"field": "n_trials", "title": "trials", "type": "nominal"},
]
