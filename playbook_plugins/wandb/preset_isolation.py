"""How does each value do, with all else optimized away? The isolation plot as a preset that buckets its rows itself.

Playbook: "Detecting whether a change is useful with isolation plots". The numbers are those of
`playbook_plugins.analysis.isolate` where no configuration is repeated.
"""

from __future__ import annotations

from playbook_plugins.charts.palette import BAR, BLUE, CROSS, GREEN, INFEASIBLE, ORANGE, RED, STAR
from playbook_plugins.wandb.preset_groups import (
    BUCKET_PARAMS,
    GROUP_ROOM,
    counts_of_groups,
    group_text,
    group_trials,
    group_x,
)
from playbook_plugins.wandb.preset_parts import (
    TRIAL_PARAMS,
    Spec,
    Transforms,
    bound_layers,
    legend_of,
    objective_y,
    strip_layers,
    strip_y,
    view,
)
from playbook_plugins.wandb.preset_trials import (
    JITTER,
    cut_objective,
    judge_trials,
    measure_objective,
    read_category,
    read_x,
    trial_texts,
    trial_words,
)

TRIAL, GROUP_BEST, FAIR = "trial", "best", "median best of m"
_LOOKS = {TRIAL: (BLUE, "circle"), GROUP_BEST: (GREEN, STAR), FAIR: (ORANGE, BAR), INFEASIBLE: (RED, CROSS)}
_IS_BEST = f"datum.order == 1 && datum.kind != '{INFEASIBLE}'"


def isolation_spec(*, numeric: bool) -> Spec:
    """Return the isolation plot of a numeric hyperparameter, in buckets, or of a categorical one.

    Stars are the best trials of the groups, joined by a line where the groups are ordered. Where the groups differ in
    size, bars are the estimated medians of the best of m trials, m being the size of the smallest.
    """
    x = group_x(numeric=numeric)
    y = objective_y("y_shown", GROUP_ROOM)
    looks = legend_of(_LOOKS, (TRIAL, GROUP_BEST, FAIR))
    one_trial: Spec = {"x": x, "tooltip": trial_words()}
    if not numeric:
        one_trial["xOffset"] = {"field": "jitter", "type": "quantitative", "scale": {"domain": [-0.6, 0.6]}}
    return view(
        "Isolation plot",
        TRIAL_PARAMS + (BUCKET_PARAMS if numeric else []),
        ("x", "y", "status", "trial"),
        [
            *judge_trials(),
            *measure_objective(),
            *(read_x() if numeric else read_category()),
            *group_trials(numeric=numeric),
            *_best_of_equal_counts(),
            *cut_objective("best_cost", "fair_cost"),
            {"calculate": JITTER, "as": "jitter"},
            *trial_texts(numeric=numeric),
            group_text(numeric=numeric),
            {"calculate": "isValid(datum.best_cost) ? sign * datum.best_cost : null", "as": "best"},
            {"calculate": "isValid(datum.fair_cost) ? sign * datum.fair_cost : null", "as": "fair"},
        ],
        [
            *(bound_layers(x) if numeric else []),
            *strip_layers(f"datum.kind == '{INFEASIBLE}'", f"'{INFEASIBLE}'"),
            {
                "name": "infeasible trials",
                "transform": [
                    {"filter": f"datum.kind == '{INFEASIBLE}'"},
                    {"calculate": f"'{INFEASIBLE}'", "as": "mark"},
                ],
                "mark": {"type": "point", "opacity": 0.6, "size": 46},
                "encoding": looks | one_trial | {"y": strip_y()},
            },
            {
                "name": "trials",
                "transform": [
                    {"filter": f"datum.kind != '{INFEASIBLE}' && !({_IS_BEST})"},
                    {"calculate": f"'{TRIAL}'", "as": "mark"},
                ],
                "mark": {"type": "point", "opacity": 0.5, "size": 30},
                "encoding": looks | one_trial | {"y": y},
            },
            _fair_layer(x, y, looks, numeric=numeric),
            *_best_layers(x, y, looks, numeric=numeric),
            *counts_of_groups(x, numeric=numeric),
        ],
    )


def _best_of_equal_counts() -> Transforms:
    """Return the transforms of `quantile_best` of analysis/tuning_curve.py, of the smallest group's number of trials.

    It is one of the ranked trials of a group, or lies between two: ``weight`` is their share in it. Where an infeasible
    one has a share, there is none.
    """
    return [
        {
            "joinaggregate": [
                {"op": "min", "field": "n_trials", "as": "m"},
                {"op": "max", "field": "n_trials", "as": "n_most"},
            ]
        },
        {"calculate": "(datum.n_trials + 1 / 3) * (1 - pow(0.5, 1 / datum.m)) + 1 / 3", "as": "exact_rank"},
        # Whole ranks miss their number by the last bits.
        {"calculate": "round(clamp(datum.exact_rank, 1, datum.n_trials) * 1e9) / 1e9", "as": "fair_rank"},
        {"calculate": "floor(datum.fair_rank)", "as": "fair_from"},
        {
            "calculate": "datum.order == datum.fair_from ? 1 + datum.fair_from - datum.fair_rank : "
            "datum.order == datum.fair_from + 1 ? datum.fair_rank - datum.fair_from : 0",
            "as": "weight",
        },
        {"calculate": "datum.is_infeasible ? 0 : datum.weight * datum.cost", "as": "weighted"},
        {"calculate": "datum.is_infeasible * datum.weight", "as": "lost"},
        {
            "joinaggregate": [
                {"op": "sum", "field": "weighted", "as": "fair_sum"},
                {"op": "sum", "field": "lost", "as": "lost"},
                {"op": "min", "field": "cost", "as": "best_cost"},
            ],
            "groupby": ["group"],
        },
        {"calculate": "datum.lost > 0 ? null : datum.fair_sum", "as": "fair_cost"},
    ]


def _fair_layer(x: Spec, y: Spec, looks: Spec, *, numeric: bool) -> Spec:
    layer: Spec = {
        "name": "fair",
        "transform": [
            {"filter": "datum.order == 1 && isValid(datum.fair_cost) && datum.m < datum.n_most"},
            {"calculate": f"'{FAIR}'", "as": "mark"},
        ],
    }
    encoding: Spec = {
        "y": y | {"field": "fair_cost_shown"},
        "color": looks["color"],
        "tooltip": [
            {"field": "group_text", "type": "nominal", "title": "${string:x_title:hyperparameter}"},
            {"field": "fair", "type": "quantitative", "title": "median of the best of m", "format": ".5~g"},
            {"field": "m", "type": "quantitative", "title": "m"},
        ],
    }
    if numeric:
        return layer | {
            "mark": {"type": "rule", "strokeWidth": 2.5, "strokeCap": "butt"},
            "encoding": encoding | {"x": x | {"field": "bucket_low"}, "x2": {"field": "bucket_high"}},
        }
    return layer | {
        "mark": {"type": "point", "size": 900, "opacity": 1},
        "encoding": encoding | {"x": x, "shape": looks["shape"]},
    }


def _best_layers(x: Spec, y: Spec, looks: Spec, *, numeric: bool) -> list[Spec]:
    chosen: Transforms = [{"filter": _IS_BEST}, {"calculate": f"'{GROUP_BEST}'", "as": "mark"}]
    at = {"x": x, "y": y | {"field": "best_cost_shown"}}
    line: Spec = {
        "name": "line",
        "transform": chosen,
        "mark": {"type": "line", "color": GREEN, "strokeWidth": 1.5, "opacity": 0.7},
        "encoding": at,
    }
    words = [
        {"field": "group_text", "type": "nominal", "title": "${string:x_title:hyperparameter}"},
        {"field": "best", "type": "quantitative", "title": "best", "format": ".5~g"},
        {"field": "trial_given", "type": "nominal", "title": "of trial"},
        {"field": "n_trials", "type": "quantitative", "title": "trials"},
        {"field": "n_infeasible", "type": "quantitative", "title": "infeasible"},
    ]
    stars: Spec = {
        "name": "stars",
        "transform": chosen,
        "mark": {"type": "point", "size": 210, "opacity": 1},
        "encoding": looks | at | {"tooltip": words},
    }
    return [line, stars] if numeric else [stars]
