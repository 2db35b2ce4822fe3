"""Where in its range do the good trials lie? The axis plot: the objective against one hyperparameter.

Playbook: "Identifying bad search space boundaries" (its figures 1 and 2).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from playbook_plugins.analysis import Parameter, Trials
from playbook_plugins.charts.chart import Chart
from playbook_plugins.charts.palette import FAILED, FEASIBLE, GREY, INFEASIBLE, MARKS, OFF_SCALE, PRUNED
from playbook_plugins.charts.scales import ObjectiveScale, objective_scale, objective_title, parameter_x
from playbook_plugins.charts.table import field, parameters_shown, place_of, tooltip, tooltip_transforms, trial_rows
from playbook_plugins.charts.theme import HEIGHT, SCHEMA, WIDTH, config, label

# The golden ratio spreads any run of trial numbers evenly, the same way each time.
JITTER = "((datum.trial * 0.6180339887498949) % 1) - 0.5"
AREAS = json.dumps({kind: area for kind, (_, _, area) in MARKS.items()})


def axis_plot(trials: Trials, parameter: str) -> Chart:
    """Draw the objective of every trial against one hyperparameter.

    Feasible trials are dots, the best three stars. Infeasible trials have no finite objective: they are crosses in a
    strip beyond the worst edge. Feasible trials far worse than the rest stand at the worst edge as triangles, see
    `playbook_plugins.charts.scales`. Dashed rules are the bounds of the search space; the axis is logarithmic where
    the search is.

    Parameters
    ----------
    trials
        The study.
    parameter
        The name of a hyperparameter.

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
    rows = trial_rows(trials)
    scale = objective_scale(trials)
    kinds = {row["kind"] for row in rows if row["objective"] is None and row[field(place)] is not None}
    x = parameter_x(trials, subject, field(place))
    marks = trial_encoding(rows, scale) | {"x": x, "tooltip": tooltip(trials, places)}
    if not subject.is_numeric:
        marks["xOffset"] = {"field": "jitter", "type": "quantitative", "scale": {"domain": [-0.6, 0.6]}}
    layers = bound_layers(subject, x)
    if kinds:
        layers += scale.strip_layers(", ".join(sorted(kinds, key=list(MARKS).index)))
        layers.append(
            {
                "transform": [{"filter": "!isValid(datum.objective)"}],
                "mark": {"type": "point", "opacity": 0.7},
                "encoding": marks | {"y": scale.strip_y()},
            }
        )
    layers.append(
        {
            "transform": [{"filter": "isValid(datum.objective)"}],
            "mark": {"type": "point", "opacity": 0.8},
            "encoding": marks | {"y": scale.y("objective", strip=bool(kinds), title=objective_title(trials))},
        }
    )
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
            {"calculate": f"isValid(datum.rank) && {scale.is_beyond()} ? '{OFF_SCALE}' : datum.kind", "as": "mark"},
            {"calculate": f"{AREAS}[datum.mark]", "as": "area"},
            {"calculate": JITTER, "as": "jitter"},
            *tooltip_transforms(trials, places),
        ],
        "layer": layers,
    }
    return Chart(spec=spec, title=title, help=_help(subject, scale, kinds), alt=_alt(trials, subject, scale))


def trial_encoding(rows: list[dict[str, Any]], scale: ObjectiveScale) -> dict[str, Any]:
    """Return colour, shape and size by the kind of a trial's mark, with one legend for the kinds that occur."""
    present = {row["kind"] for row in rows} | ({OFF_SCALE} if scale.n_beyond else set())
    kinds = [kind for kind in MARKS if kind in present] or [FEASIBLE]
    shapes = [MARKS[kind][1] for kind in kinds]
    if scale.direction == "maximize":
        shapes = ["triangle-down" if shape == "triangle-up" else shape for shape in shapes]
    legend = {"title": None, "symbolSize": 90}
    return {
        "color": {
            "field": "mark",
            "type": "nominal",
            "scale": {"domain": kinds, "range": [MARKS[kind][0] for kind in kinds]},
            "legend": legend,
        },
        "shape": {"field": "mark", "type": "nominal", "scale": {"domain": kinds, "range": shapes}, "legend": legend},
        "size": {"field": "area", "type": "quantitative", "scale": None},
    }


def bound_layers(parameter: Parameter, x: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rules at the bounds of the search space; none for categories, which have no bounds."""
    if not parameter.is_numeric:
        return []
    bounds = [{"bound": "lower bound", "at": parameter.low}, {"bound": "upper bound", "at": parameter.high}]
    return [
        {
            "data": {"values": bounds},
            "mark": {"type": "rule", "color": GREY, "strokeDash": [4, 4], "aria": False},
            "encoding": {
                "x": x | {"field": "at"},
                "tooltip": [{"field": "bound", "title": "search space"}, {"field": "at", "title": "value"}],
            },
        }
    ]


def _help(parameter: Parameter, scale: ObjectiveScale, kinds: set[str]) -> str:
    text = "Each mark is a trial, stars the best three"
    if INFEASIBLE in kinds:
        text += ", crosses infeasible ones"
    if scale.n_beyond:
        text += ", triangles those worse than the axis shows"
    if kinds & {PRUNED, FAILED}:
        text += "; grey marks stopped for reasons that are not their point's own"
    if parameter.is_numeric:
        text += ". When the best trials crowd against a dashed bound, better values may lie beyond it"
    return f"{text}."


def _alt(trials: Trials, parameter: Parameter, scale: ObjectiveScale) -> str:
    has = trials.has(parameter.name)
    n_trials, n_infeasible = int(has.sum()), int((trials.is_infeasible & has).sum())
    text = (
        f"Axis plot of {label(trials.objective_name)} against {label(parameter.name)}: {n_trials} trials, "
        f"{n_infeasible} of them infeasible."
    )
    ranking = [row for row in trials.ranking() if has[row]]
    if ranking:
        best = trials.values[parameter.name][ranking[0]]
        shown = f"{best:.4g}" if parameter.is_numeric else label(best)
        text += f" The best has {shown} and reaches {trials.objective[ranking[0]]:.4g}."
    if parameter.is_numeric:
        text += f" The search space goes from {parameter.low:.4g} to {parameter.high:.4g}"
        text += ", logarithmically." if parameter.log else "."
        if ranking and len(ranking) > 3:
            unit = parameter.to_unit(trials.values[parameter.name][np.array(ranking[:3])])
            text += f" The best three lie at {', '.join(f'{100 * place:.0f}%' for place in unit)} of that range."
    if scale.n_beyond:
        text += f" {scale.n_beyond} feasible trials are worse than the axis shows."
    return text
