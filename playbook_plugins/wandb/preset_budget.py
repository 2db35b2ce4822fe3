"""How good is the best of n trials, and are more trials likely to help? The tuning curve, from a logged table.

Playbook: "How many trials are needed to get good results with quasi-random search?" (its figure 3).
"""

from __future__ import annotations

from playbook_plugins.charts.legend import mark_legend
from playbook_plugins.charts.palette import BAR, BLUE, GREEN, STAR, translucent
from playbook_plugins.charts.tuning_curve import BEST, MEDIAN, MIDDLE
from playbook_plugins.wandb.preset_parts import (
    DIRECTION,
    Y_SCALE,
    Spec,
    Transforms,
    log_label,
    only_labelled,
    read_numbers,
    title_room,
    view,
)

_LOOKS = {MEDIAN: (BLUE, BAR), MIDDLE: (translucent(BLUE, 0.35), "square"), BEST: (GREEN, STAR)}
# As `charts.tuning_curve`: the best of fewer trials does not choose the axis, unless there are hardly more; beyond half
# of the trials the line rests on the few best ones.
_AXIS_FROM, _SHORT, _SMALL_EXCESS, _FIRM_SHARE = 2, 8, 1.25, 2


def budget_spec() -> Spec:
    """Return the median and the quartiles of the best of n trials against n, dashed beyond half of the trials."""
    x = {
        "field": "n_trials",
        "type": "quantitative",
        "scale": {"type": "log", "base": 2, "nice": False, "padding": 12},
        "axis": {"title": "number of trials", "format": ",d", "labelOverlap": True, "tickCount": 8},
    }
    y = {
        "type": "quantitative",
        "scale": {"type": "${string:y_scale:linear}", "zero": False, "nice": False, "padding": 12},
        "axis": {
            "title": "${string:y_title:best objective}",
            "tickCount": 6,
            "labelExpr": f"y_log ? ({log_label()}) : datum.label",
            "gridOpacity": only_labelled(),
            **title_room(),
        },
    }
    looks = mark_legend(_LOOKS)
    for channel in looks.values():
        channel["legend"]["title"] = ""
    shown = "isValid(datum.median) && sign * datum.median <= datum.limit"
    line: Spec = {
        "mark": {"type": "line", "color": BLUE, "strokeWidth": 2, "aria": False},
        "encoding": {"x": x, "y": y | {"field": "median"}},
    }
    words = [
        {"field": "n_trials", "type": "quantitative", "title": "trials", "format": ",d"},
        {"field": "better", "type": "quantitative", "title": "25% reach", "format": ".5~g"},
        {"field": "median", "type": "quantitative", "title": "half reach", "format": ".5~g"},
        {"field": "worse", "type": "quantitative", "title": "75% reach", "format": ".5~g"},
    ]
    return view(
        "Best of n trials",
        [DIRECTION, Y_SCALE],
        ("n_trials", "median", "lower", "upper"),
        [*read_numbers("n_trials", "median", "lower", "upper"), *_limits()],
        [
            {
                "name": "band",
                "transform": [{"filter": "isValid(datum.better_shown)"}],
                "mark": {"type": "area", "color": BLUE, "opacity": 0.15, "aria": False},
                "encoding": {"x": x, "y": y | {"field": "better_shown"}, "y2": {"field": "worse_shown"}},
            },
            line | {"name": "firm", "transform": [{"filter": f"{shown} && datum.n_trials <= datum.joint"}]},
            line
            | {
                "name": "dashed",
                "transform": [{"filter": f"{shown} && datum.n_trials >= datum.joint"}],
                "mark": line["mark"] | {"strokeDash": [4, 3]},
            },
            {
                "name": "medians",
                "transform": [{"filter": shown}],
                "mark": {"type": "point", "size": 60, "opacity": 0},
                "encoding": {"x": x, "y": y | {"field": "median"}, "tooltip": words},
            },
            {
                "name": "best",
                "transform": [
                    {"filter": "datum.n_trials == datum.n_most && isValid(datum.better)"},
                    {"calculate": f"'{BEST}'", "as": "mark"},
                ],
                "mark": {"type": "point", "size": 210, "opacity": 1},
                "encoding": looks | {"x": x, "y": y | {"field": "better"}, "tooltip": words},
            },
        ],
    )


def _limits() -> Transforms:
    """Return the transforms that sort the quartiles by the direction and cut what would hide the rest.

    A quartile that is missing is the worse one: so many searches find infeasible trials only.
    """
    only = "(isValid(datum.lower) ? datum.lower : datum.upper)"
    both = "isValid(datum.lower) && isValid(datum.upper)"
    return [
        {"filter": "datum.n_trials > 0"},
        {"calculate": f"{both} ? sign * min(sign * datum.lower, sign * datum.upper) : {only}", "as": "better"},
        {"calculate": f"{both} ? sign * max(sign * datum.lower, sign * datum.upper) : null", "as": "worse"},
        *(
            {"calculate": f"isValid(datum.{name}) ? sign * datum.{name} : null", "as": f"{name}_cost"}
            for name in ("better", "median", "worse")
        ),
        {"calculate": f"datum.n_trials >= {_AXIS_FROM} ? datum.median_cost : null", "as": "late_cost"},
        {
            "joinaggregate": [
                {"op": "max", "field": "n_trials", "as": "n_most"},
                {"op": "min", "field": "better_cost", "as": "start"},
                {"op": "max", "field": "late_cost", "as": "late_limit"},
                {"op": "max", "field": "median_cost", "as": "worst_median"},
                {"op": "max", "field": "worse_cost", "as": "worst_quartile"},
            ]
        },
        {"calculate": "max(datum.start, datum.worst_median, datum.worst_quartile)", "as": "worst"},
        {"calculate": "max(datum.start, datum.late_limit)", "as": "limit"},
        {
            "calculate": f"datum.n_most < {_SHORT} || datum.limit == datum.start || "
            f"datum.worst <= datum.start + {_SMALL_EXCESS} * (datum.limit - datum.start) ? datum.worst : datum.limit",
            "as": "limit",
        },
        {"calculate": f"datum.n_trials <= datum.n_most / {_FIRM_SHARE} ? datum.n_trials : null", "as": "firm"},
        {"joinaggregate": [{"op": "max", "field": "firm", "as": "joint"}]},
        {"calculate": "isValid(datum.joint) ? datum.joint : 1", "as": "joint"},
        {
            "calculate": "isValid(datum.better_cost) ? sign * min(datum.better_cost, datum.limit) : null",
            "as": "better_shown",
        },
        {
            "calculate": "isValid(datum.worse_cost) ? sign * min(datum.worse_cost, datum.limit) : sign * datum.limit",
            "as": "worse_shown",
        },
    ]
