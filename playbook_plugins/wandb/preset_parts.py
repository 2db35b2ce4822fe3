"""What do all custom-chart presets share? How a preset reads the rows of a query, and how its axes and marks look.

Playbook: "Automate generically useful plots".

A preset is a Vega-Lite specification in which W&B replaces ``${field:x}`` by the name of a column, with dots escaped,
and ``${string:title:...}`` by a text. The name stands in one expression only, ``datum["..."]``, because a field name
elsewhere is parsed as a path: brackets and quotes would break it. All else is computed from the rows, so that a panel
follows the runs as they come in; W&B gives numbers that JSON lacks as "Infinity" and "NaN".
"""

from __future__ import annotations

from typing import Any

from playbook_plugins.charts.legend import mark_legend
from playbook_plugins.charts.palette import FAILED, GREY, INFEASIBLE, MARKS, PRUNED, RED
from playbook_plugins.charts.scales import STRIP_HEIGHT
from playbook_plugins.charts.theme import SCHEMA
from playbook_plugins.charts.theme import config as chart_config

Spec = dict[str, Any]
Transforms = list[Spec]

STATUSES = (INFEASIBLE, PRUNED, FAILED)
# The parameters that direct the computation; an expression reads them by name.
DIRECTION = {"name": "sign", "expr": "'${string:direction:minimize}' == 'maximize' ? -1 : 1"}
Y_SCALE = {"name": "y_log", "expr": "'${string:y_scale:linear}' == 'log'"}
# For the legend, which has no data of its own.
OCCURRING = {"name": "statuses", "expr": "pluck(data('wandb'), '${field:status}')"}
TRIAL_PARAMS = [DIRECTION, Y_SCALE, OCCURRING]
X_PARAMS = [
    {"name": "x_log", "expr": "'${string:scale:linear}' == 'log'"},
    {"name": "low_given", "expr": "toNumber('${string:low:auto}')"},
    {"name": "high_given", "expr": "toNumber('${string:high:auto}')"},
]
# As the charts of the project label powers of ten: 1e-4, 0.001, ..., 1000, 1e5.
_LOG_LABEL = (
    "datum.label == '' ? '' : datum.value < 9e-4 || datum.value >= 1e5 ? "
    "replace(format(datum.value, '~e'), '+', '') : format(datum.value, '~g')"
)
_PADDING = 9
# The labels and the title of the x axis stand below the plot, so that the title of the y axis has room beside them.
_TITLE_ROOM, _ROOM_ABOVE = 30, 20


def view(title: str, params: list[Spec], columns: tuple[str, ...], transform: Transforms, layer: list[Spec]) -> Spec:
    """Return a preset's specification; W&B gives it its size and its data.

    Parameters
    ----------
    title
        What stands there where the panel gives no title.
    params, transform, layer
        As Vega-Lite has them.
    columns
        The columns that the panel names. All are copied first, ``x`` to the field ``x_given`` for instance, because any
        other field may have the name of a hyperparameter.
    """
    copies = [{"calculate": f'datum["${{field:{name}}}"]', "as": f"{name}_given"} for name in columns]
    return {
        "$schema": SCHEMA,
        "data": {"name": "wandb"},
        "title": {"text": "${string:title:" + title + "}"},
        "config": _config(),
        "params": params,
        "transform": [*copies, *transform],
        "layer": layer,
    }


def read_numbers(*names: str) -> Transforms:
    """Return the transforms that read given columns as numbers, ``x_given`` as ``x``; null unless finite."""
    return [
        {
            "calculate": f"isFinite(toNumber(datum.{name}_given)) ? toNumber(datum.{name}_given) : null",
            "as": name,
        }
        for name in names
    ]


def numeric_x(field: str, *, title_padding: int | None = None) -> Spec:
    """Return the encoding of x by a numeric hyperparameter, on its search scale."""
    axis: Spec = {
        "title": "${string:x_title:hyperparameter}",
        "labelOverlap": True,
        "tickCount": 6,
        "labelExpr": f"x_log ? ({_LOG_LABEL}) : datum.label",
        "tickOpacity": only_labelled(),
    }
    if title_padding is not None:
        axis["titlePadding"] = title_padding
    return {
        "field": field,
        "type": "quantitative",
        "scale": {"type": "${string:scale:linear}", "zero": False, "nice": False, "padding": 2 * _PADDING},
        "axis": axis,
    }


def category_x(field: str, *, title_padding: int | None = None) -> Spec:
    """Return the encoding of x by a categorical hyperparameter."""
    axis: Spec = {
        "title": "${string:x_title:hyperparameter}",
        "labelAngle": 0,
        "labelLimit": {"expr": "clamp(bandwidth('x'), 48, 110)"},
        "labelOverlap": True,
    }
    if title_padding is not None:
        axis["titlePadding"] = title_padding
    return {"field": field, "type": "nominal", "scale": {"padding": 0.1}, "axis": axis}


def objective_y(field: str, room: int = _TITLE_ROOM) -> Spec:
    """Return the encoding of y by a field that holds objectives, with room for the strip beyond the worst edge.

    Parameters
    ----------
    field
        The field's name.
    room
        See `title_room`.
    """
    return {
        "field": field,
        "type": "quantitative",
        "scale": {
            "type": "${string:y_scale:linear}",
            "zero": False,
            "nice": False,
            "padding": _PADDING,
            "range": [
                {"expr": f"sign > 0 ? height : height - {STRIP_HEIGHT}"},
                {"expr": f"sign > 0 ? {STRIP_HEIGHT} : 0"},
            ],
        },
        "axis": {
            "title": "${string:y_title:objective}",
            "tickCount": 6,
            "minExtent": 62,
            "labelExpr": f"y_log ? ({_LOG_LABEL}) : datum.label",
            "gridOpacity": only_labelled(),
            **title_room(room),
        },
    }


def step_axis() -> Spec:
    """Return the x axis of optimizer steps, from 0 on."""
    return {
        "field": "step",
        "type": "quantitative",
        "scale": {"zero": True, "nice": False, "padding": 6},
        "axis": {"title": "step", "tickCount": 6, "format": "~s"},
    }


def title_room(room: int = _TITLE_ROOM) -> Spec:
    """Return the properties of the y axis that cut a long title in a small panel, before it reaches the panel's own.

    Parameters
    ----------
    room
        How far below the plot it may reach, in pixels.
    """
    limit, middle = f"height + {room + _ROOM_ABOVE}", f"height / 2 + {(room - _ROOM_ABOVE) // 2}"
    return {"titleLimit": {"expr": limit}, "titleY": {"expr": middle}}


def only_labelled() -> Spec:
    """Return an opacity that hides the ticks of a logarithmic axis that have no label."""
    return {"condition": {"test": "datum.label != ''", "value": 1}, "value": 0}


def log_label() -> str:
    """Return the expression of a label of a logarithmic axis."""
    return _LOG_LABEL


def strip_y() -> Spec:
    """Return the y of a mark in the middle of the strip."""
    half = STRIP_HEIGHT // 2 - 2
    return {"value": {"expr": f"sign > 0 ? {half} : height - {half}"}}


def strip_layers(condition: str, words: str) -> list[Spec]:
    """Return the strip of trials without a finite objective and its label, where a trial fulfils the condition.

    Parameters
    ----------
    condition
        An expression that is true of the trials in the strip.
    words
        An expression for the label; the rows are counts ``n_infeasible`` and ``n_strip``.
    """
    once: Transforms = [
        {"filter": condition},
        {"calculate": f"datum.kind == '{INFEASIBLE}' ? 1 : 0", "as": "is_infeasible"},
        {
            "aggregate": [
                {"op": "count", "as": "n_strip"},
                {"op": "sum", "field": "is_infeasible", "as": "n_infeasible"},
            ],
            "groupby": [],
        },
        {"filter": "datum.n_strip > 0"},
        {"calculate": words, "as": "words"},
    ]
    top, bottom = f"sign > 0 ? 0 : height - {STRIP_HEIGHT - 4}", f"sign > 0 ? {STRIP_HEIGHT - 4} : height"
    return [
        {
            "name": "strip",
            "transform": once,
            "mark": {"type": "rect", "color": RED, "opacity": 0.09, "aria": False},
            "encoding": {
                "x": {"value": 0},
                "x2": {"value": "width"},
                "y": {"value": {"expr": top}},
                "y2": {"value": {"expr": bottom}},
            },
        },
        {
            "transform": once,
            "mark": {"type": "text", "align": "right", "baseline": "middle", "aria": False},
            "encoding": {"text": {"field": "words"}, "x": {"value": -6}, "y": strip_y()},
        },
    ]


def bound_layers(x: Spec) -> list[Spec]:
    """Return the dashed rules at the bounds of the search space, where the panel knows them."""
    bounds = [
        {"bound": "lower bound", "given": "${string:low:auto}"},
        {"bound": "upper bound", "given": "${string:high:auto}"},
    ]
    return [
        {
            "name": "bounds",
            "data": {"values": bounds},
            "transform": [
                {"calculate": "toNumber(datum.given)", "as": "at"},
                {"filter": "isFinite(datum.at) && (!x_log || datum.at > 0)"},
            ],
            "mark": {"type": "rule", "color": GREY, "strokeDash": [4, 4], "aria": False},
            "encoding": {
                "x": x | {"field": "at"},
                "tooltip": [
                    {"field": "bound", "type": "nominal", "title": "search space"},
                    {"field": "at", "type": "quantitative", "title": "value"},
                ],
            },
        }
    ]


def legend_of(looks: dict[str, tuple[Any, ...]], always: tuple[str, ...]) -> Spec:
    """Return colour and shape by the field ``mark``, with a legend of the marks that occur.

    Parameters
    ----------
    looks
        Colour and shape of each mark.
    always
        Those in the legend; of the others, only the statuses that a trial has.
    """
    present = " + ".join(f"(indexof(statuses, '{kind}') < 0 ? '' : '|{kind}')" for kind in STATUSES if kind in looks)
    channels = mark_legend(
        looks, columns=4, symbolStrokeWidth=0, values={"expr": f"split('{'|'.join(always)}' + {present}, '|')"}
    )
    for channel in channels.values():
        # W&B turns null into {}.
        channel["legend"]["title"] = ""
    return channels


def marks_of(*kinds: str) -> dict[str, tuple[Any, ...]]:
    """Return colour, shape and area of the kinds of marks of the project's own charts."""
    return {kind: (MARKS[kind][0], direct_shape(MARKS[kind][1]), MARKS[kind][2]) for kind in kinds}


def direct_shape(shape: str) -> Any:
    """Return a shape of the legend; a triangle points beyond the worst edge, whichever that is."""
    if shape != "triangle-up":
        return shape
    return {"expr": "sign > 0 ? 'triangle-up' : 'triangle-down'"}


def _config() -> Spec:
    settings = chart_config()
    settings["view"] = {"stroke": "transparent"}
    settings["legend"] |= {"labelFontSize": 11, "columnPadding": 8, "padding": 0}
    del settings["style"]
    return settings
