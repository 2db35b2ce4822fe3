"""How does each value of one hyperparameter do, with the others optimized away? The isolation plot.

Playbook: "Detecting whether a change is useful with isolation plots".
"""

from __future__ import annotations

import math
from typing import Any

from playbook_plugins.analysis import Isolation, IsolationGroup, Parameter, Trials, isolate
from playbook_plugins.charts.axes import JITTER, bound_layers
from playbook_plugins.charts.chart import Chart
from playbook_plugins.charts.counts import COUNT_ROOM, count_layers
from playbook_plugins.charts.legend import mark_legend
from playbook_plugins.charts.palette import BAR, BLUE, CROSS, GREEN, INFEASIBLE, ORANGE, RED, STAR
from playbook_plugins.charts.scales import objective_scale, objective_title, parameter_x
from playbook_plugins.charts.table import (
    choice_labels,
    field,
    finite,
    parameters_shown,
    place_of,
    tooltip,
    tooltip_transforms,
    trial_rows,
)
from playbook_plugins.charts.theme import HEIGHT, SCHEMA, WIDTH, config, label

TRIAL, BEST = "trial", "best of the value"


def isolation_plot(trials: Trials, parameter: str) -> Chart:
    """Draw the best trial of each value of one hyperparameter, in front of all trials.

    A star is the best trial of a value, or of a bucket of a continuous hyperparameter; a line joins them where the
    values are ordered. A value with more trials has more chances: where the groups differ in size, the bar is the
    estimated median of the best of m trials of such a search, m being the size of the smallest, and compares them
    fairly: of equally good values either has the better bar as often as not. So the smallest group's own bar is not its
    best trial either. The counts of trials and of infeasible ones stand below the axis; a retrained configuration
    counts once, and its star is at its first trial.

    Parameters
    ----------
    trials
        The study.
    parameter
        The name of a hyperparameter: categorical, integer, or continuous, which is taken in buckets as
        `playbook_plugins.analysis.isolate` says.

    Returns
    -------
    Chart
        Every mark of a trial carries its number in the field ``trial``.

    Raises
    ------
    ValueError
        When the study has no such hyperparameter.
    """
    place = place_of(trials, parameter)
    subject = trials.parameters[place]
    places = parameters_shown(trials, subject)
    isolation = isolate(trials, parameter)
    is_fair = _is_fair(isolation)
    scale = objective_scale(trials, [value for group in isolation.groups for value in (group.best, group.median_best)])
    rows = trial_rows(trials)
    fair = f"median best of {isolation.equal_count}"
    has_strip = any(group.n_infeasible for group in isolation.groups)
    x = parameter_x(trials, subject, field(place))
    y = scale.y("objective", strip=has_strip, title=objective_title(trials))
    y["axis"]["minExtent"] = 62
    x["axis"]["titlePadding"] = COUNT_ROOM
    looks = {TRIAL: (BLUE, "circle"), BEST: (GREEN, STAR)}
    looks |= {} if is_fair else {fair: (ORANGE, BAR)}
    legend = mark_legend(looks | ({INFEASIBLE: (RED, CROSS)} if has_strip else {}))
    jitter = {"field": "jitter", "type": "quantitative", "scale": {"domain": [-0.6, 0.6]}}
    one_trial = (
        legend | {"x": x, "tooltip": tooltip(trials, places)} | ({} if subject.is_numeric else {"xOffset": jitter})
    )
    groups = _group_rows(trials, subject, isolation, fair)
    starred = [group["trial"] for group in groups if "trial" in group]
    layers = bound_layers(subject, x)
    if has_strip:
        layers += scale.strip_layers(INFEASIBLE)
        layers.append(
            {
                "transform": [
                    {"filter": "datum.status === 'infeasible'"},
                    {"calculate": f"'{INFEASIBLE}'", "as": "mark"},
                ],
                "mark": {"type": "point", "opacity": 0.6, "size": 46},
                "encoding": one_trial | {"y": scale.strip_y()},
            }
        )
    layers.append(
        {
            "transform": [
                {"filter": f"isValid(datum.rank) && indexof({starred}, datum.trial) < 0"},
                {"calculate": f"'{TRIAL}'", "as": "mark"},
            ],
            "mark": {"type": "point", "opacity": 0.5, "size": 30},
            "encoding": one_trial | {"y": y},
        }
    )
    if not is_fair:
        layers += _fair_layers(subject, x, y, legend, groups)
    layers += _best_layers(subject, x, y, legend, groups)
    layers += count_layers(x, groups)
    title = label(subject.name)
    spec = {
        "$schema": SCHEMA,
        "title": {"text": title, "subtitle": label(trials.name)},
        "width": WIDTH,
        "height": HEIGHT,
        "config": config(),
        "data": {"values": rows},
        "transform": [
            {"filter": f"isValid(datum.{field(place)})"},
            {"calculate": JITTER, "as": "jitter"},
            *tooltip_transforms(trials, places),
        ],
        "layer": layers,
    }
    return Chart(spec=spec, title=title, help=_help(isolation), alt=_alt(trials, subject, isolation))


def _group_rows(trials: Trials, parameter: Parameter, isolation: Isolation, fair: str) -> list[dict[str, Any]]:
    labels = iter(choice_labels(parameter)) if not parameter.is_numeric else None
    rows = []
    for group in isolation.groups:
        row: dict[str, Any] = {
            "group": next(labels) if labels else _range(group),
            "n_trials": group.n_trials,
            "n_infeasible": group.n_infeasible,
            "best": finite(group.best),
            "fair": finite(group.median_best),
            "fair_mark": fair,
            "best_mark": BEST,
        }
        if labels:
            row |= {"x": row["group"], "best_x": row["group"]}
        elif group.value is not None:
            row |= {"x": group.value, "best_x": group.value}
        else:
            row |= {"x": _middle(parameter, group), "low": group.low, "high": group.high}
        if group.best_row is not None:
            row["trial"] = int(trials.number[group.best_row])
            if not labels:
                row["best_x"] = float(trials.values[parameter.name][group.best_row])
        rows.append(row)
    return rows


def _fair_layers(
    parameter: Parameter, x: dict[str, Any], y: dict[str, Any], legend: dict[str, Any], groups: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    color = legend["color"] | {"field": "fair_mark"}
    words = [
        {"field": "group", "title": parameter_title(parameter)},
        {"field": "fair", "title": groups[0]["fair_mark"], "type": "quantitative", "format": ".5~g"},
    ]
    values = {"values": [group for group in groups if group["fair"] is not None]}
    fair = {"y": y | {"field": "fair"}, "color": color, "tooltip": words}
    if "low" in groups[0]:
        return [
            {
                "data": values,
                "mark": {"type": "rule", "strokeWidth": 2.5, "strokeCap": "butt"},
                "encoding": fair | {"x": x | {"field": "low"}, "x2": {"field": "high"}},
            }
        ]
    return [
        {
            "data": values,
            "mark": {"type": "point", "size": 900, "opacity": 1},
            "encoding": fair | {"x": x | {"field": "x"}, "shape": legend["shape"] | {"field": "fair_mark"}},
        }
    ]


def _best_layers(
    parameter: Parameter, x: dict[str, Any], y: dict[str, Any], legend: dict[str, Any], groups: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    values = {"values": [group for group in groups if group["best"] is not None]}
    at = {"x": x | {"field": "best_x"}, "y": y | {"field": "best"}}
    layers: list[dict[str, Any]] = []
    if parameter.is_numeric:
        layers.append(
            {
                "data": values,
                "mark": {"type": "line", "color": GREEN, "strokeWidth": 1.5, "opacity": 0.7},
                "encoding": at,
            }
        )
    layers.append(
        {
            "data": values,
            "mark": {"type": "point", "size": 210, "opacity": 1},
            "encoding": at
            | {channel: legend[channel] | {"field": "best_mark"} for channel in ("color", "shape")}
            | {
                "tooltip": [
                    {"field": "group", "title": parameter_title(parameter)},
                    {"field": "best", "title": "best", "type": "quantitative", "format": ".5~g"},
                    {"field": "trial", "title": "of trial", "type": "quantitative", "format": "d"},
                    {"field": "n_trials", "title": "trials", "type": "quantitative"},
                    {"field": "n_infeasible", "title": "infeasible", "type": "quantitative"},
                ]
            },
        }
    )
    return layers


def _is_fair(isolation: Isolation) -> bool:
    """Whether the groups that have trials are of one size, so that their bests compare fairly as they are."""
    return len({group.n_trials for group in isolation.groups if group.n_trials}) <= 1


def parameter_title(parameter: Parameter) -> str:
    """Return the name of a hyperparameter as a label."""
    return label(parameter.name)


def _range(group: IsolationGroup) -> str:
    return str(group.value) if group.value is not None else f"{group.low:.3g} to {group.high:.3g}"


def _middle(parameter: Parameter, group: IsolationGroup) -> float:
    return math.sqrt(group.low * group.high) if parameter.log else (group.low + group.high) / 2


def _help(isolation: Isolation) -> str:
    unit = "value" if math.isnan(isolation.groups[0].low) else "bucket"
    text = f"Stars are the best trial of each {unit}, with everything else optimized away"
    if _is_fair(isolation):
        return f"{text}; all have equally many trials, so they compare fairly."
    return f"{text}; bars compare fairly, at the estimated median of the best of {isolation.equal_count} trials each."


def _alt(trials: Trials, parameter: Parameter, isolation: Isolation) -> str:
    parts = []
    for group in isolation.groups:
        best = f"best {group.best:.4g}" if group.best_row is not None else "no feasible trial"
        name = _range(group) if parameter.is_numeric else label(group.value, 30)
        parts.append(f"{name}: {best} ({group.n_trials} trials, {group.n_infeasible} infeasible)")
    return f"Isolation plot of {label(trials.objective_name)} by {label(parameter.name)}. " + "; ".join(parts) + "."
