"""Is a change beyond the noise of retraining? The objective of every retrain, a column a configuration.

Playbook: "Determining whether to adopt a training pipeline change or hyperparameter configuration".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from playbook_plugins.analysis import Trials
from playbook_plugins.analysis.records import Direction
from playbook_plugins.charts.chart import Chart
from playbook_plugins.charts.legend import mark_legend
from playbook_plugins.charts.palette import BAR, BLUE, CROSS, INFEASIBLE, OFF_SCALE, ORANGE, PURPLE, RED
from playbook_plugins.charts.retrain_groups import (
    RetrainGroup,
    check_groups,
    comparison_of,
    groups_of_study,
    headline,
    mean_and_interval,
)
from playbook_plugins.charts.scales import ObjectiveScale, objective_scale, objective_title
from playbook_plugins.charts.table import finite
from playbook_plugins.charts.theme import HEIGHT, SCHEMA, WIDTH, config, label

RETRAIN, SEARCH, MEAN = "retrain", "the search's own trial", "mean and its 90% interval"
# A ring: the inner circle runs the other way round.
_RING = "M0,-1A1,1,0,0,1,0,1A1,1,0,0,1,0,-1ZM0,-.55A.55,.55,0,0,0,0,.55A.55,.55,0,0,0,0,-.55Z"
# In the order of the legend: colour, shape, area.
_LOOKS = {
    RETRAIN: (BLUE, "circle", 46),
    SEARCH: (PURPLE, _RING, 80),
    MEAN: (ORANGE, BAR, 700),
    OFF_SCALE: (BLUE, "triangle-up", 60),
    INFEASIBLE: (RED, CROSS, 60),
}
# The width of a letter of the axis, in pixels, or a little more.
_LETTER = 6.5
# The golden ratio spreads any run of retrains evenly, the same way each time.
_GOLDEN = 0.6180339887498949


def retrain_chart(
    retrains: Mapping[str, ArrayLike] | Trials, *, direction: Direction = "minimize", objective_name: str = "objective"
) -> Chart:
    """Draw every retrain of each configuration, with the mean and its 90% interval.

    The interval is Student's, by the spread of the configuration's own retrains. Retrains that diverged are crosses in
    a strip beyond the worst edge; no mean exists beside them, so none is drawn. The trial by which a search chose a
    configuration is a ring: it was chosen for its luck and is no part of the mean.

    Parameters
    ----------
    retrains
        The objectives of the retrains by configuration, the baseline first, shape (n,) each, NaN or infinite where one
        diverged; what `compare_retrains` says of two configurations stands in the subtitle. Or a study with repeated
        points, of which `collect_retrains` finds the retrains and `check_adoption` the comparison.
    direction, objective_name
        Of the values; a study has its own.

    Returns
    -------
    Chart
        Of a study every mark of a trial carries its number in the field ``trial``.

    Raises
    ------
    ValueError
        When there are no retrains, or more than 12 configurations.
    """
    if isinstance(retrains, Trials):
        direction, objective_name = retrains.direction, retrains.objective_name
        groups = groups_of_study(retrains)
    else:
        values = {name: np.asarray(group, dtype=np.float64).reshape(-1) for name, group in retrains.items()}
        groups = [RetrainGroup(name=name, values=group) for name, group in values.items()]
    check_groups(groups)
    means = [mean_and_interval(group) for group in groups]
    labels = _labels(groups)
    ends = [end for mean in means if mean is not None for end in mean[1:] if math.isfinite(end)]
    joint = _joint(groups, ends, direction, objective_name)
    scale = objective_scale(joint, joint.objective[joint.is_feasible].tolist())
    rows = [row for place, group in enumerate(groups) for row in _rows(group, labels[place], scale)]
    bars = [_bar(labels[place], mean) for place, mean in enumerate(means) if mean is not None]
    kinds = {row["mark"] for row in rows} | ({MEAN} if bars else set())
    shown = {kind: look for kind, look in _LOOKS.items() if kind in kinds}
    if OFF_SCALE in shown and direction == "maximize":
        shown[OFF_SCALE] = (shown[OFF_SCALE][0], "triangle-down", *shown[OFF_SCALE][2:])
    looks = mark_legend(shown, columns=3)
    x = {
        "field": "configuration",
        "type": "nominal",
        "scale": {"domain": labels, "padding": 0.1},
        "axis": {"title": None, **_label_room(labels)},
    }
    y = scale.y("objective", strip=INFEASIBLE in kinds, title=objective_title(joint))
    marks = looks | {
        "x": x,
        "xOffset": {"field": "jitter", "type": "quantitative", "scale": {"domain": [-0.75, 0.75]}},
        "size": {"field": "area", "type": "quantitative", "scale": None},
        "tooltip": _tooltip(objective_name, has_trials=any(group.numbers for group in groups)),
    }
    layers: list[dict[str, Any]] = []
    if INFEASIBLE in kinds:
        layers += scale.strip_layers(INFEASIBLE)
        layers.append(
            {
                "transform": [{"filter": "!isValid(datum.objective)"}],
                "mark": {"type": "point", "opacity": 0.8},
                "encoding": marks | {"y": scale.strip_y()},
            }
        )
    layers += _mean_layers(bars, x, y, looks, objective_name)
    layers.append(
        {
            "transform": [{"filter": "isValid(datum.objective)"}],
            "mark": {"type": "point", "opacity": 0.8},
            "encoding": marks | {"y": y},
        }
    )
    comparison = comparison_of(retrains, groups, direction)
    lines = headline(comparison, groups)
    spec = {
        "$schema": SCHEMA,
        "title": {"text": "Retrains", "subtitle": lines},
        "width": WIDTH,
        "height": HEIGHT,
        "config": config(),
        "data": {"values": rows},
        "layer": layers,
    }
    return Chart(spec=spec, title="Retrains", help=_help(kinds), alt=_alt(groups, means, labels, "; ".join(lines)))


def _labels(groups: Sequence[RetrainGroup]) -> list[str]:
    labels = [label(group.name, 40) for group in groups]
    if len(set(labels)) < len(labels):
        labels = [f"{text} ({place})" for place, text in enumerate(labels)]
    return labels


def _label_room(labels: Sequence[str]) -> dict[str, Any]:
    """Return how the names of the configurations stand below the axis: aslant where they do not fit side by side."""
    room = WIDTH // len(labels)
    if len(labels) < 4 or _LETTER * max(map(len, labels)) <= room:
        return {"labelAngle": 0, "labelLimit": room, "labelOverlap": True}
    return {"labelAngle": -30, "labelLimit": 120, "labelOverlap": False}


def _joint(groups: Sequence[RetrainGroup], ends: list[float], direction: Direction, objective_name: str) -> Trials:
    """Return all objectives and the ends of the intervals as one table, which chooses the axis."""
    searched = [group.search for group in groups if group.search is not None]
    values = np.concatenate([*(group.values for group in groups), searched, ends])
    return Trials.from_columns("", [], {}, values, direction=direction, objective_name=objective_name)


def _rows(group: RetrainGroup, name: str, scale: ObjectiveScale) -> list[dict[str, Any]]:
    """Return one row a retrain, and one for the search's own trial, which stands in the middle."""
    values = [*([] if group.search is None else [group.search]), *group.values.tolist()]
    sign = 1.0 if scale.direction == "minimize" else -1.0
    rows = []
    for place, value in enumerate(values):
        is_search = group.search is not None and place == 0
        if not math.isfinite(value):
            kind = INFEASIBLE
        elif is_search:
            kind = SEARCH
        else:
            kind = OFF_SCALE if sign * value > sign * scale.limit else RETRAIN
        row: dict[str, Any] = {
            "configuration": name,
            "objective": finite(value),
            "words": f"{value:.6g}" if math.isfinite(value) else "none",
            "what": SEARCH if is_search else RETRAIN,
            "mark": kind,
            "area": _LOOKS[kind][2],
            # The middle is the ring's.
            "jitter": 0.0 if is_search else round((place * _GOLDEN) % 1 - 0.5, 4),
        }
        rows.append(row | ({"trial": group.numbers[place]} if group.numbers else {}))
    return rows


def _bar(name: str, mean: tuple[float, float, float]) -> dict[str, Any]:
    value, low, high = mean
    has_interval = math.isfinite(low)
    return {
        "configuration": name,
        "mean": value,
        "low": finite(low),
        "high": finite(high),
        "interval": f"{low:.6g} to {high:.6g}" if has_interval else "unknown",
        "mark": MEAN,
    }


def _mean_layers(
    bars: list[dict[str, Any]], x: dict[str, Any], y: dict[str, Any], looks: dict[str, Any], objective_name: str
) -> list[dict[str, Any]]:
    words = [
        {"field": "configuration", "title": "configuration", "type": "nominal"},
        {"field": "mean", "title": f"mean of {label(objective_name, 40)}", "type": "quantitative", "format": ".6~g"},
        {"field": "interval", "title": "90% interval", "type": "nominal"},
    ]
    intervals = [bar for bar in bars if bar["low"] is not None]
    layers: list[dict[str, Any]] = []
    if intervals:
        layers.append(
            {
                "data": {"values": intervals},
                "mark": {"type": "rule", "strokeWidth": 2.5, "opacity": 0.8},
                "encoding": {
                    "x": x,
                    "y": y | {"field": "low"},
                    "y2": {"field": "high"},
                    "color": looks["color"],
                    "tooltip": words,
                },
            }
        )
    if bars:
        layers.append(
            {
                "data": {"values": bars},
                "mark": {"type": "point", "size": _LOOKS[MEAN][2], "opacity": 1},
                "encoding": {"x": x, "y": y | {"field": "mean"}, "tooltip": words, **looks},
            }
        )
    return layers


def _tooltip(objective_name: str, *, has_trials: bool) -> list[dict[str, Any]]:
    return [
        {"field": "configuration", "title": "configuration", "type": "nominal"},
        {"field": "what", "title": "what", "type": "nominal"},
        {"field": "words", "title": label(objective_name, 40), "type": "nominal"},
        *([{"field": "trial", "title": "trial", "type": "quantitative", "format": "d"}] if has_trials else []),
    ]


def _help(kinds: set[str]) -> str:
    text = "Each dot is a retrain of the same configuration, with another seed"
    if MEAN in kinds:
        text += "; the bar is their mean, the line its 90% interval"
    if SEARCH in kinds:
        text += ". The ring is the trial that the search chose, a lucky one: it does not count"
    if OFF_SCALE in kinds:
        text += ". Triangles are worse than the axis shows"
    if INFEASIBLE in kinds:
        text += ". Crosses diverged; beside them no mean exists"
    return f"{text}."


def _alt(
    groups: Sequence[RetrainGroup],
    means: Sequence[tuple[float, float, float] | None],
    labels: Sequence[str],
    words: str,
) -> str:
    parts = []
    for group, mean, name in zip(groups, means, labels, strict=True):
        n_diverged = int((~np.isfinite(group.values)).sum())
        part = f"{name}: {len(group.values)} {'retrain' if len(group.values) == 1 else 'retrains'}"
        part += f", {n_diverged} diverged" if n_diverged else ""
        if mean is not None:
            part += f", mean {mean[0]:.5g}"
            part += f" (90% interval {mean[1]:.5g} to {mean[2]:.5g})" if math.isfinite(mean[1]) else ""
        if group.search is not None:
            own = f"{group.search:.5g}" if math.isfinite(group.search) else "diverged"
            part += f", the search's own {own}"
        parts.append(part)
    return f"Retrains. {words}. {'; '.join(parts)}."
