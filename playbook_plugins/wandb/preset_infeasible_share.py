"""Where along a hyperparameter are runs infeasible? Their share by bucket or by category, as a preset.

Playbook: "Identifying bad search space boundaries": infeasible points tell which region to leave.
"""

from __future__ import annotations

from playbook_plugins.charts.feasibility import ALL, INTERVAL, SHARE
from playbook_plugins.charts.palette import RED
from playbook_plugins.wandb.preset_groups import (
    BUCKET_PARAMS,
    counts_of_groups,
    group_text,
    group_trials,
    group_x,
    one_row_a_group,
)
from playbook_plugins.wandb.preset_parts import DIRECTION, Spec, Transforms, bound_layers, view
from playbook_plugins.wandb.preset_trials import judge_trials, read_category, read_x

# The normal quantile of a 95% interval.
_Z = 1.959963984540054


def infeasible_share_spec(*, numeric: bool) -> Spec:
    """Return the share of infeasible trials by bucket of a number, or by category, with its 95% interval."""
    x = group_x(numeric=numeric)
    groups = [*one_row_a_group(numeric=numeric), group_text(numeric=numeric), *_shares()]
    known: Transforms = [*groups, {"filter": "isValid(datum.share)"}]
    return view(
        "Infeasible trials",
        [DIRECTION, *(BUCKET_PARAMS if numeric else [])],
        ("x", "y", "status"),
        [*judge_trials(), *(read_x() if numeric else read_category()), *group_trials(numeric=numeric)],
        [
            *(bound_layers(x) if numeric else []),
            _bar_layer(x, known, numeric=numeric),
            {
                # A share of a few percent must not look large.
                "data": {"values": [{"share": 0.1}]},
                "mark": {"type": "rule", "opacity": 0, "aria": False},
                "encoding": {"y": _share_y("share")},
            },
            _overall_layer(),
            *_interval_layers(x, known),
            *counts_of_groups(x, numeric=numeric),
        ],
    )


def _shares() -> Transforms:
    """Return the transforms of the share of a group and its interval, `analysis.feasibility.wilson_interval`."""
    n, scale = "datum.n_trials", f"(1 + {_Z * _Z} / datum.n_trials)"
    middle = f"(datum.share + {_Z * _Z} / (2 * {n})) / {scale}"
    half = f"{_Z} / {scale} * sqrt(datum.share * (1 - datum.share) / {n} + {_Z * _Z} / (4 * {n} * {n}))"
    return [
        {"calculate": f"{n} > 0 ? datum.n_infeasible / {n} : null", "as": "share"},
        {"calculate": f"isValid(datum.share) ? max(0, {middle} - {half}) : null", "as": "lower"},
        {"calculate": f"isValid(datum.share) ? min(1, {middle} + {half}) : null", "as": "upper"},
    ]


def _share_y(field: str) -> Spec:
    return {
        "field": field,
        "type": "quantitative",
        "scale": {"nice": False},
        "axis": {"title": SHARE, "minExtent": 62, "tickCount": 5, "format": ".0%"},
    }


def _bar_layer(x: Spec, known: Transforms, *, numeric: bool) -> Spec:
    look = {"color": RED, "opacity": 0.28}
    at = {"x": x | {"field": "middle"}, "y": _share_y("share"), "y2": {"datum": 0}, "tooltip": _words()}
    if not numeric:
        mark = {"type": "bar", "width": {"band": 0.6}, **look}
        return {"name": "bars", "transform": known, "mark": mark, "encoding": at}
    at |= {"x": x | {"field": "bucket_low"}, "x2": {"field": "bucket_high"}}
    mark = {"type": "rect", "xOffset": 1, "x2Offset": -1, **look}
    return {"name": "bars", "transform": known, "mark": mark, "encoding": at}


def _overall_layer() -> Spec:
    return {
        "name": "overall",
        "transform": [
            {
                "aggregate": [
                    {"op": "count", "as": "n_trials"},
                    {"op": "sum", "field": "is_infeasible", "as": "n_infeasible"},
                ],
                "groupby": [],
            },
            {"calculate": "datum.n_infeasible / datum.n_trials", "as": "share"},
            {"filter": "datum.n_trials > 0"},
        ],
        "mark": {"type": "rule", "color": RED, "strokeDash": [6, 4], "strokeWidth": 1.5},
        "encoding": {
            "y": _share_y("share"),
            "tooltip": [
                {"field": "share", "type": "quantitative", "title": f"{SHARE} of {ALL}", "format": ".1%"},
                *_COUNT_WORDS,
            ],
        },
    }


def _interval_layers(x: Spec, known: Transforms) -> list[Spec]:
    at: Spec = {"x": x | {"field": "middle"}, "tooltip": _words()}
    tick = {"type": "tick", "orient": "horizontal", "color": RED, "size": 10, "thickness": 1.6, "opacity": 1}
    return [
        {
            "name": "intervals",
            "transform": known,
            "mark": {"type": "rule", "color": RED, "strokeWidth": 1.6},
            "encoding": at | {"y": _share_y("lower"), "y2": {"field": "upper"}},
        },
        *({"transform": known, "mark": tick, "encoding": at | {"y": _share_y(end)}} for end in ("lower", "upper")),
        {
            "name": "shares",
            "transform": known,
            "mark": {"type": "point", "color": RED, "size": 60, "opacity": 1},
            "encoding": at | {"y": _share_y("share")},
        },
    ]


_COUNT_WORDS = [
    {"field": "n_trials", "type": "quantitative", "title": "trials"},
    {"field": "n_infeasible", "type": "quantitative", "title": "infeasible"},
]


def _words() -> list[Spec]:
    return [
        {"field": "group_text", "type": "nominal", "title": "${string:x_title:hyperparameter}"},
        *_COUNT_WORDS,
        {"field": "share", "type": "quantitative", "title": SHARE, "format": ".1%"},
        {"field": "lower", "type": "quantitative", "title": f"{INTERVAL} from", "format": ".1%"},
        {"field": "upper", "type": "quantitative", "title": "to", "format": ".1%"},
    ]
