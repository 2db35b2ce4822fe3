"""How good is the best of m trials, and are more trials likely to help? The tuning curve.

Playbook: "How many trials are needed to get good results with quasi-random search?" (its figure 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from playbook_plugins.analysis import Trials, TuningBox, TuningCurve
from playbook_plugins.analysis import tuning_curve as estimate_tuning_curve
from playbook_plugins.analysis.records import Direction
from playbook_plugins.charts.chart import Chart
from playbook_plugins.charts.legend import mark_legend
from playbook_plugins.charts.palette import BAR, BLUE, CROSS, GREEN, INFEASIBLE, RED, STAR, translucent
from playbook_plugins.charts.scales import HUGE, TINY, ObjectiveScale, objective_title, scale_type, widen
from playbook_plugins.charts.table import finite
from playbook_plugins.charts.theme import HEIGHT, SCHEMA, WIDTH, config, label

MEDIAN, MIDDLE, BOX, BEST = "median", "middle half", "5% to 95%", "best trial"
_BOX_SHAPE = "M-.07,-1L.07,-1L.07,-.5L.6,-.5L.6,.5L.07,.5L.07,1L-.07,1L-.07,.5L-.6,.5L-.6,-.5L-.07,-.5Z"
# In the order of the legend: colour, shape.
_LOOKS = {
    MEDIAN: (BLUE, BAR),
    MIDDLE: (translucent(BLUE, 0.35), "square"),
    BOX: (BLUE, _BOX_SHAPE),
    BEST: (GREEN, STAR),
    INFEASIBLE: (RED, CROSS),
}
# What fewer trials reach is often so bad that it would hide the rest of the curve, where there is a rest.
_AXIS_FROM = 2
_SHORT = 8
_SMALL_EXCESS = 1.25
_LOG_RATIO = 10.0
# The axis of m is logarithmic from here on.
_LOG_FROM = 4
_SIDE = 2**0.4
# The number of all trials is a tick of its own where it stands so far from the last power of two.
_TICK_ROOM = 1.4
# Beyond this share of the trials the estimate rests on the very best of them, and the line is dashed.
_FIRM_SHARE = 2


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What the curve is of: the words of the axis, and the best trial where it is known."""

    direction: Direction
    axis_title: str
    name: str = ""
    best_trial: int | None = None


def tuning_curve(trials: Trials | TuningCurve) -> Chart:
    """Draw the best objective of m trials against m, as the search that drew these trials would reach it.

    The line is the median over such searches and the band their middle half; boxes with whiskers from 5% to 95% stand
    at m = 1, 2, 4, ... up to a quarter of the trials. Beyond half of the trials the line is dashed: it rests on the few
    best ones. A star is the best of all trials. Where a search of m trials is so likely to find infeasible ones only, a
    whisker ends at a cross in the strip beyond the worst edge, and the line is not drawn. The axis of the objective
    reaches from the best trial to the median of the best of two, or a little further; what is worse is cut at its edge.

    Parameters
    ----------
    trials
        The study, or its curve from `playbook_plugins.analysis.tuning_curve`, which knows neither the objective's name
        nor which trial is the best.

    Returns
    -------
    Chart
        The points of the curve are the chart's own data, at most about 200; the star carries the number of its trial
        in the field ``trial``.
    """
    curve = estimate_tuning_curve(trials) if isinstance(trials, Trials) else trials
    subject = _subject(trials)
    scale = _scale(curve, subject.direction)
    crosses = _crosses(curve)
    x = _x(curve.n_points)
    y = scale.y("median", strip=bool(crosses), title=subject.axis_title)
    best = _best(curve)
    occurs = {
        MEDIAN: best is not None and curve.n_points > 1,
        MIDDLE: best is not None and curve.n_points > 1,
        BOX: any(math.isfinite(box.better_end) for box in curve.boxes),
        BEST: best is not None,
        INFEASIBLE: bool(crosses),
    }
    legend = mark_legend({kind: look for kind, look in _LOOKS.items() if occurs[kind]})
    layers: list[dict[str, Any]] = []
    if crosses:
        layers += scale.strip_layers(INFEASIBLE)
    layers += _line_layers(curve, scale, x, y)
    layers += _box_layers(curve, scale, x, y)
    if crosses:
        layers.append(
            {
                "data": {"values": [{"m": m, "mark": INFEASIBLE} for m in crosses]},
                "mark": {"type": "point", "size": 64, "opacity": 0.8},
                "encoding": legend | {"x": x, "y": scale.strip_y(), "tooltip": [_M]},
            }
        )
    if best is not None:
        star = {"m": curve.n_points, "best": best, "mark": BEST}
        words = [{"field": "m", "title": "best of", "type": "quantitative", "format": ",d"}]
        if subject.best_trial is not None:
            star |= {"trial": subject.best_trial}
            words.append({"field": "trial", "title": "trial", "type": "quantitative", "format": "d"})
        words.append({"field": "best", "title": "objective", "type": "quantitative", "format": ".5~g"})
        layers.append(
            {
                "data": {"values": [star]},
                "mark": {"type": "point", "size": 210, "opacity": 1},
                "encoding": legend | {"x": x, "y": y | {"field": "best"}, "tooltip": words},
            }
        )
    title = "Tuning curve"
    spec = {
        "$schema": SCHEMA,
        "title": {"text": title, "subtitle": _summary(curve, subject)},
        "width": WIDTH,
        "height": HEIGHT,
        "config": config(),
        "data": {"values": _rows(curve)},
        "layer": layers or [{"mark": {"type": "point"}, "encoding": {"x": x, "y": y}}],
    }
    return Chart(spec=spec, title=title, help=_help(curve, scale, bool(crosses)), alt=_alt(curve, subject))


_M = {"field": "m", "title": "trials", "type": "quantitative", "format": ",d"}


def _subject(trials: Trials | TuningCurve) -> _Subject:
    if isinstance(trials, Trials):
        ranking = trials.ranking()
        return _Subject(
            direction=trials.direction,
            axis_title=f"best {objective_title(trials)}",
            name=label(trials.name),
            best_trial=int(trials.number[ranking[0]]) if len(ranking) else None,
        )
    # Of a flat curve it does not matter which way is better.
    is_lower = not np.any(trials.better_quartile > trials.worse_quartile)
    if is_lower and any(box.better_end > box.worse_end for box in trials.boxes):
        is_lower = False
    return _Subject(
        direction="minimize" if is_lower else "maximize",
        axis_title=f"best objective ({'lower' if is_lower else 'higher'} is better)",
    )


def _best(curve: TuningCurve) -> float | None:
    """Return the best of all trials: what the better quartile of the best of all n is estimated to be."""
    return finite(curve.better_quartile[-1]) if curve.n_points else None


def _scale(curve: TuningCurve, direction: Direction) -> ObjectiveScale:
    """Return the axis from the best trial to the median of two trials, and to all of the curve if that is near."""
    sign = 1.0 if direction == "minimize" else -1.0
    best = _best(curve)
    if best is None:
        return ObjectiveScale(low=0.0, high=1.0, limit=1.0, log=False, direction=direction, is_empty=True)
    medians = np.clip(sign * curve.median, -HUGE, HUGE)
    quartiles = np.clip(sign * curve.worse_quartile, -HUGE, HUGE)
    start = float(np.clip(sign * best, -HUGE, HUGE))
    late = medians[curve.m >= _AXIS_FROM]
    limit = max([start, *late[np.isfinite(late)].tolist()])
    known = np.concatenate([medians, quartiles])
    worst = max([start, *known[np.isfinite(known)].tolist()])
    if curve.n_points < _SHORT or limit == start or worst <= start + _SMALL_EXCESS * (limit - start):
        limit = worst
    is_log = direction == "minimize" and start > TINY and limit > _LOG_RATIO * start
    start, limit = widen(start, limit, is_log)
    low, high = sorted((sign * start, sign * limit))
    return ObjectiveScale(low=low, high=high, limit=sign * limit, log=is_log, direction=direction)


def _x(n_points: int) -> dict[str, Any]:
    axis: dict[str, Any] = {"title": "number of trials m", "format": ",d", "labelOverlap": True}
    if n_points < _LOG_FROM:
        axis["values"] = list(range(1, max(n_points, 1) + 1))
        scale: dict[str, Any] = {"domain": [0.5, max(n_points, 1) + 0.5], "nice": False} | scale_type(False)
    else:
        axis["values"] = [2**power for power in range(n_points.bit_length())]
        if n_points > _TICK_ROOM * axis["values"][-1]:
            axis["values"].append(n_points)
        scale = {"type": "log", "base": 2, "domain": [1 / _SIDE, n_points * _SIDE], "nice": False}
    return {"field": "m", "type": "quantitative", "scale": scale, "axis": axis}


def _rows(curve: TuningCurve) -> list[dict[str, Any]]:
    columns = zip(curve.m, curve.median, curve.better_quartile, curve.worse_quartile, strict=True)
    return [
        {"m": int(m), "median": finite(median), "better": finite(better), "worse": finite(worse)}
        for m, median, better, worse in columns
    ]


def _crosses(curve: TuningCurve) -> list[int]:
    """Return the m where a whisker, or without a box the median, ends in the strip of infeasible searches."""
    boxes = [box.m for box in curve.boxes if math.isnan(box.worse_end)]
    last_box = curve.boxes[-1].m if curve.boxes else 0
    beyond = [int(m) for m in curve.m[np.isnan(curve.median)] if m > last_box and (m & (m - 1)) == 0]
    return boxes + beyond


def _texts(names: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "calculate": f"isValid(datum.{name}) ? format(datum.{name}, '.5~g') : '{INFEASIBLE}'",
            "as": f"{name}_text",
        }
        for name in names
    ]


def _words(names: dict[str, str]) -> list[dict[str, Any]]:
    return [_M, *({"field": f"{name}_text", "title": title, "type": "nominal"} for name, title in names.items())]


def _line_layers(
    curve: TuningCurve, scale: ObjectiveScale, x: dict[str, Any], y: dict[str, Any]
) -> list[dict[str, Any]]:
    if _best(curve) is None or curve.n_points < 2:
        return []
    is_shown = f"isValid(datum.median) && !({scale.is_beyond('datum.median')})"
    firm = curve.n_points / _FIRM_SHARE
    # The dashed line starts where the other ends.
    joint = int(max(curve.m[curve.m <= firm], default=curve.m[0]))
    layers: list[dict[str, Any]] = [
        {
            "transform": [
                {"filter": "isValid(datum.better)"},
                {"calculate": f"isValid(datum.worse) ? datum.worse : {scale.limit!r}", "as": "worse_drawn"},
            ],
            "mark": {"type": "area", "color": BLUE, "opacity": 0.15, "tooltip": None, "aria": False},
            "encoding": {"x": x, "y": y | {"field": "better"}, "y2": {"field": "worse_drawn"}},
        }
    ]
    for part, dash in ((f"datum.m <= {joint}", [1, 0]), (f"datum.m >= {joint}", [4, 3])):
        layers.append(
            {
                "transform": [{"filter": f"{is_shown} && {part}"}],
                "mark": {"type": "line", "strokeWidth": 2, "strokeDash": dash, "aria": False},
                "encoding": {"x": x, "y": y},
            }
        )
    layers.append(
        {
            "transform": [
                {"filter": is_shown},
                *_texts(["median", "better", "worse"]),
            ],
            # A line has no place of its own for the pointer.
            "mark": {"type": "point", "size": 60, "opacity": 0, "aria": False},
            "encoding": {
                "x": x,
                "y": y,
                "tooltip": _words({"better": "25% reach", "median": "half reach", "worse": "75% reach"}),
            },
        }
    )
    return layers


def _box_layers(
    curve: TuningCurve, scale: ObjectiveScale, x: dict[str, Any], y: dict[str, Any]
) -> list[dict[str, Any]]:
    boxes = [_box_row(box, scale) for box in curve.boxes if math.isfinite(box.better_end)]
    if not boxes:
        return []
    values = {"values": boxes}
    width = float(np.clip(0.34 * WIDTH / (math.log2(curve.n_points) + 1), 4, 16))
    names = {
        "better_end": "5% reach",
        "better": "25% reach",
        "median": "half reach",
        "worse": "75% reach",
        "worse_end": "95% reach",
    }
    words: dict[str, Any] = {"tooltip": _words(names)}
    texts = _texts(list(names))
    whisker = {"type": "rule", "color": BLUE, "strokeWidth": 1.4}
    layers: list[dict[str, Any]] = [
        *(
            {
                "data": values,
                "transform": [{"filter": f"isValid(datum.{start})"}, *texts],
                "mark": whisker,
                "encoding": words | {"x": x, "y": y | {"field": start}, "y2": {"field": f"{end}_drawn"}},
            }
            for start, end in (("better_end", "better"), ("worse", "worse_end"))
        ),
        {
            "data": values,
            "transform": [{"filter": "!isValid(datum.worse_end)"}, *texts],
            "mark": whisker,
            "encoding": {"x": x, "y": y | {"field": "worse_end_drawn"}, "y2": scale.strip_y(), **words},
        },
        {
            "data": values,
            "transform": [{"filter": "isValid(datum.better)"}, *texts],
            "mark": {"type": "bar", "color": BLUE, "size": width, "opacity": 0.45},
            "encoding": {"x": x, "y": y | {"field": "better"}, "y2": {"field": "worse_drawn"}, **words},
        },
    ]
    for field, length in (("better_end", 0.6), ("median", 1.25), ("worse_end", 0.6)):
        layers.append(
            {
                "data": values,
                "transform": [
                    {"filter": f"isValid(datum.{field}) && !({scale.is_beyond(f'datum.{field}')})"},
                    *texts,
                ],
                "mark": {
                    "type": "tick",
                    "color": BLUE,
                    "orient": "horizontal",
                    "size": length * width,
                    "thickness": 3 if field == "median" else 1.4,
                    "opacity": 1,
                },
                "encoding": {"x": x, "y": y | {"field": field}, **words},
            }
        )
    return layers


def _box_row(box: TuningBox, scale: ObjectiveScale) -> dict[str, Any]:
    row: dict[str, Any] = {
        "m": box.m,
        "better_end": finite(box.better_end),
        "better": finite(box.better_quartile),
        "median": finite(box.median),
        "worse": finite(box.worse_quartile),
        "worse_end": finite(box.worse_end),
    }
    for name in ("better", "worse", "worse_end"):
        row[f"{name}_drawn"] = scale.limit if row[name] is None else row[name]
    return row


def _summary(curve: TuningCurve, subject: _Subject) -> str:
    return f"{subject.name}: {_counts(curve)}" if subject.name else _counts(curve)


def _counts(curve: TuningCurve) -> str:
    return f"{curve.n_points:,} trial{'' if curve.n_points == 1 else 's'}, {curve.n_infeasible:,} infeasible"


def _help(curve: TuningCurve, scale: ObjectiveScale, has_crosses: bool) -> str:
    best = _best(curve)
    if not curve.n_points:
        return "No trial has ended feasible or infeasible yet, so there is no best of them."
    if best is None:
        return "Every trial is infeasible: there is no best of them."
    if curve.n_points == 1:
        return "One trial alone does not say what more of them would reach."
    text = (
        "What the best of m trials of such a random search is likely to reach: where the line is steep at its right, "
        "more trials are likely to help. It is dashed where it rests on a few best trials"
    )
    if has_crosses:
        text += "; a whisker at a cross says that at least 1 in 20 searches of m trials finds infeasible ones only"
    sign = 1.0 if scale.direction == "minimize" else -1.0
    reached = [curve.median, curve.worse_quartile, np.array([box.worse_end for box in curve.boxes])]
    if any(np.any(sign * values > sign * scale.limit) for values in reached):
        text += "; what is worse than the axis shows is cut"
    return f"{text}."


def _alt(curve: TuningCurve, subject: _Subject) -> str:
    best = _best(curve)
    if not curve.n_points:
        return "Tuning curve without a point: no trial has ended feasible or infeasible."
    text = f"Tuning curve: {subject.axis_title}, against the number of trials m; from {_counts(curve)}."
    if best is None:
        return text
    shown = [(box.m, box.median) for box in curve.boxes] or list(zip(curve.m.tolist(), curve.median, strict=True))
    chosen = dict(shown[::2]) | dict(shown[-1:])
    medians = [f"{m}: {f'{median:.4g}' if math.isfinite(median) else INFEASIBLE}" for m, median in chosen.items()]
    trial = "" if subject.best_trial is None else f" (trial {subject.best_trial})"
    return f"{text} Median of the best of m: {', '.join(medians)}. The best of all reaches {best:.4g}{trial}."
