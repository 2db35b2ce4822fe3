"""Where along a hyperparameter are trials infeasible? Their share, value by value or bucket by bucket.

Playbook: "Identifying bad search space boundaries": infeasible points tell which region to leave.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playbook_plugins.analysis import Parameter, Trials
from playbook_plugins.analysis.feasibility import wilson_interval
from playbook_plugins.analysis.isolation_groups import split_range, values_of
from playbook_plugins.charts.axes import bound_layers
from playbook_plugins.charts.chart import Chart
from playbook_plugins.charts.counts import COUNT_ROOM, count_layers
from playbook_plugins.charts.legend import mark_legend
from playbook_plugins.charts.palette import RED
from playbook_plugins.charts.scales import parameter_x
from playbook_plugins.charts.table import choice_labels, place_of
from playbook_plugins.charts.theme import HEIGHT, SCHEMA, WIDTH, config, label

SHARE, INTERVAL, ALL = "infeasible share", "95% interval", "all trials"
_WHISKER = "M-.5,-1L.5,-1L.5,-.8L.1,-.8L.1,.8L.5,.8L.5,1L-.5,1L-.5,.8L-.1,.8L-.1,-.8L-.5,-.8Z"
_DASHES = "M-1.2,-.12L-.2,-.12L-.2,.12L-1.2,.12ZM.2,-.12L1.2,-.12L1.2,.12L.2,.12Z"
# In the order of the legend: colour, shape. All of them speak of infeasible trials, and are red.
_LOOKS = {SHARE: (RED, "circle"), INTERVAL: (RED, _WHISKER), ALL: (RED, _DASHES)}
# The axis reaches beyond the highest whisker, but never so close that a share of a few percent looks large.
_ABOVE, _LEAST_TOP = 1.06, 0.1
_WIDEST_BAR = 34.0


@dataclass(frozen=True, kw_only=True)
class _Group:
    """One value, or one bucket of a number: its name, its ends in the search scale's own unit, and its counts."""

    name: str
    value: Any
    low: float
    high: float
    n_trials: int
    n_infeasible: int


def infeasible_share_chart(trials: Trials, parameter: str) -> Chart:
    """Draw the share of infeasible trials against one hyperparameter.

    Bars and dots are the share among the feasible and infeasible trials of a value, or of a bucket: numbers of more
    than 10 values are taken in clip(n // 8, 2, 10) buckets of equal width in the search scale. Whiskers are the Wilson
    (1927) 95% interval of each by itself; the dashed rule is the share of all trials that have the hyperparameter. The
    counts stand below the axis, which is logarithmic where the search is; dashed grey rules are the bounds of the
    search space. Pruned, running and failed trials are not counted. Every trial counts, retrained configurations too.

    Parameters
    ----------
    trials
        The study.
    parameter
        The name of a hyperparameter.

    Returns
    -------
    Chart
        One row of data a value or bucket.

    Raises
    ------
    ValueError
        When the study has no such hyperparameter.
    """
    subject = trials.parameters[place_of(trials, parameter)]
    groups = _groups(trials, subject)
    rows = [_row(group, subject) for group in groups]
    n_trials, n_infeasible = _totals(groups)
    x = parameter_x(trials, subject, "x")
    x["axis"]["titlePadding"] = COUNT_ROOM
    y = _y(rows)
    layers = bound_layers(subject, x)
    if n_trials:
        layers += _bar_layers(subject, groups, x, y)
        layers += _overall_layers(n_infeasible, n_trials, y)
        layers += _interval_layers(subject, x, y)
    layers += count_layers(x)
    title = label(subject.name)
    spec = {
        "$schema": SCHEMA,
        "title": {"text": f"Infeasible trials: {title}", "subtitle": f"{label(trials.name)}: {_count_text(groups)}"},
        "width": WIDTH,
        "height": HEIGHT,
        "config": config(),
        "data": {"values": rows},
        "layer": layers,
    }
    return Chart(spec=spec, title=f"Infeasible trials: {title}", help=_help(groups), alt=_alt(subject, groups))


def _groups(trials: Trials, parameter: Parameter) -> list[_Group]:
    chosen = np.flatnonzero(trials.is_judged & trials.has(parameter.name))
    place, names, values, edges = _split(parameter, trials, chosen)
    is_infeasible = trials.is_infeasible[chosen]
    return [
        _Group(
            name=names[group],
            value=values[group],
            low=edges[group][0],
            high=edges[group][1],
            n_trials=int(np.sum(place == group)),
            n_infeasible=int(np.sum(is_infeasible & (place == group))),
        )
        for group in range(len(names))
    ]


def _split(
    parameter: Parameter, trials: Trials, chosen: NDArray[np.intp]
) -> tuple[NDArray[np.intp], list[str], list[Any], list[tuple[float, float]]]:
    """Return the group of each chosen trial, shape (n,); and name, value (None for a bucket) and ends of each group."""
    nowhere = (math.nan, math.nan)
    if not parameter.is_numeric:
        labels = choice_labels(parameter)
        return trials.ranks(parameter.name)[chosen], labels, list(labels), [nowhere] * len(labels)
    values = values_of(parameter) if parameter.low < parameter.high else (parameter.low,)
    if values is not None:
        # What lies off the grid or beyond the bounds, which an imported trial may, counts with its nearest value.
        distance = np.abs(trials.values[parameter.name][chosen][:, None] - np.array(values))
        names = [f"{value:,.10g}" for value in values]
        return distance.argmin(axis=1), names, list(values), [nowhere] * len(names)
    place, edges = split_range(parameter, trials.unit(parameter.name)[chosen])
    return place, [f"{low:.3g} to {high:.3g}" for low, high in edges], [None] * len(edges), edges


def _row(group: _Group, parameter: Parameter) -> dict[str, Any]:
    middle = math.sqrt(group.low * group.high) if parameter.log else (group.low + group.high) / 2
    row: dict[str, Any] = {
        "group": group.name,
        "x": middle if group.value is None else group.value,
        "n_trials": group.n_trials,
        "n_infeasible": group.n_infeasible,
    }
    if group.value is None:
        row |= {"low": group.low, "high": group.high}
    if group.n_trials:
        lower, upper = wilson_interval(group.n_infeasible, group.n_trials)
        row |= {"share": group.n_infeasible / group.n_trials, "lower": lower, "upper": upper}
    return row


def _y(rows: list[dict[str, Any]]) -> dict[str, Any]:
    top = max((row["upper"] for row in rows if "upper" in row), default=1.0)
    return {
        "field": "share",
        "type": "quantitative",
        "scale": {"domain": [0, max(_LEAST_TOP, _ABOVE * top)], "nice": False},
        "axis": {
            "title": "infeasible share",
            # Room for the names of the counts.
            "minExtent": 62,
            "values": [tick / 100 for tick in range(0, 101, 2 if top < _LEAST_TOP else 10 if top < 0.5 else 20)],
            "format": ".0%",
        },
    }


def _bar_layers(
    parameter: Parameter, groups: list[_Group], x: dict[str, Any], y: dict[str, Any]
) -> list[dict[str, Any]]:
    look = {"color": RED, "opacity": 0.28}
    at = {"x": x, "y": y, "y2": {"datum": 0}, "tooltip": _tooltip(parameter)}
    if not parameter.is_numeric:
        return [{"mark": {"type": "bar", "width": {"band": 0.6}, **look}, "encoding": at}]
    if groups[0].value is None:
        # A pixel on either side keeps the buckets apart.
        mark = {"type": "rect", "xOffset": 1, "x2Offset": -1, **look}
        return [{"mark": mark, "encoding": at | {"x": x | {"field": "low"}, "x2": {"field": "high"}}}]
    places = parameter.to_unit([group.value for group in groups])
    gap = float(np.diff(places).min(initial=1.0))
    return [{"mark": {"type": "bar", "size": min(_WIDEST_BAR, 0.6 * gap * WIDTH), **look}, "encoding": at}]


def _overall_layers(n_infeasible: int, n_trials: int, y: dict[str, Any]) -> list[dict[str, Any]]:
    overall = {"share": n_infeasible / n_trials, "n_trials": n_trials, "n_infeasible": n_infeasible}
    words = [
        {"field": "share", "title": "infeasible share of all", "type": "quantitative", "format": ".1%"},
        *_COUNT_WORDS,
    ]
    return [
        {
            "data": {"values": [overall]},
            "mark": {"type": "rule", "color": RED, "strokeDash": [6, 4], "strokeWidth": 1.5},
            "encoding": {"y": y, "tooltip": words},
        }
    ]


def _interval_layers(parameter: Parameter, x: dict[str, Any], y: dict[str, Any]) -> list[dict[str, Any]]:
    words = {"tooltip": _tooltip(parameter)}
    known = [{"filter": "isValid(datum.share)"}]
    layers: list[dict[str, Any]] = [
        {
            "transform": known,
            "mark": {"type": "rule", "color": RED, "strokeWidth": 1.6},
            "encoding": {"x": x, "y": y | {"field": "lower"}, "y2": {"field": "upper"}, **words},
        }
    ]
    for end in ("lower", "upper"):
        mark = {"type": "tick", "orient": "horizontal", "color": RED, "size": 10, "thickness": 1.6, "opacity": 1}
        layers.append(
            {"transform": known, "mark": mark, "encoding": {"x": x, "y": y | {"field": end}, **words}},
        )
    layers.append(
        {
            "transform": [*known, {"calculate": f"'{SHARE}'", "as": "mark"}],
            "mark": {"type": "point", "size": 60, "opacity": 1},
            "encoding": mark_legend(_LOOKS) | {"x": x, "y": y, **words},
        }
    )
    return layers


_COUNT_WORDS = [
    {"field": "n_trials", "title": "trials", "type": "quantitative", "format": ",d"},
    {"field": "n_infeasible", "title": "infeasible", "type": "quantitative", "format": ",d"},
]


def _tooltip(parameter: Parameter) -> list[dict[str, Any]]:
    return [
        {"field": "group", "title": label(parameter.name), "type": "nominal"},
        *_COUNT_WORDS,
        {"field": "share", "title": "infeasible share", "type": "quantitative", "format": ".1%"},
        {"field": "lower", "title": "95% interval from", "type": "quantitative", "format": ".1%"},
        {"field": "upper", "title": "to", "type": "quantitative", "format": ".1%"},
    ]


def _help(groups: list[_Group]) -> str:
    if not any(group.n_trials for group in groups):
        return "No trial with this hyperparameter has ended feasible or infeasible yet."
    text = "The share of infeasible trials, with its 95% interval, and dashed that of all trials"
    if math.isnan(groups[0].low) and isinstance(groups[0].value, str):
        return f"{text}. A value whose whole interval lies above it is infeasible more often than the others."
    return f"{text}. Where intervals at one end lie above it, move that bound, or make training more stable there."


def _alt(parameter: Parameter, groups: list[_Group]) -> str:
    text = f"Infeasible trials by {label(parameter.name)}: {_count_text(groups)}."
    if not _totals(groups)[0]:
        return text
    parts = []
    for group in groups:
        share = f" ({group.n_infeasible / group.n_trials:.0%})" if group.n_trials else ""
        parts.append(f"{group.name}: {group.n_infeasible} of {group.n_trials}{share}")
    text += f" {'; '.join(parts)}."
    if parameter.is_numeric:
        scale = ", logarithmically" if parameter.log else ""
        text += f" The search space goes from {parameter.low:.4g} to {parameter.high:.4g}{scale}."
    return text


def _count_text(groups: list[_Group]) -> str:
    n_trials, n_infeasible = _totals(groups)
    text = f"{n_infeasible:,} of {n_trials:,} trials infeasible"
    return f"{text} ({n_infeasible / n_trials:.0%})" if n_trials else text


def _totals(groups: list[_Group]) -> tuple[int, int]:
    """Return the number of trials, and of infeasible ones."""
    return sum(group.n_trials for group in groups), sum(group.n_infeasible for group in groups)
