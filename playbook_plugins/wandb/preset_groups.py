"""Which trials does a preset take together? Buckets of a number, or categories, counted from the rows of a query.

Playbook: "Detecting whether a change is useful with isolation plots". As `playbook_plugins.analysis.isolation_groups`
groups trials, but for repeats: a preset sees one hyperparameter and cannot tell a retrained configuration from another.
"""

from __future__ import annotations

from typing import Any

from playbook_plugins.charts.counts import COUNT_ROOM
from playbook_plugins.charts.palette import FEASIBLE, INFEASIBLE
from playbook_plugins.wandb.preset_parts import X_PARAMS, Spec, Transforms, category_x, numeric_x

# The most buckets that a panel may ask for.
MAX_BUCKETS = 40
# How far the title of the y axis may reach below the plot, beside the counts.
GROUP_ROOM = 30 + COUNT_ROOM
BUCKET_PARAMS = [*X_PARAMS, {"name": "n_buckets_given", "expr": "toNumber('${string:n_buckets:auto}')"}]
_EDGES = {"bucket_low": "", "bucket_high": " + 1"}


def group_trials(*, numeric: bool) -> Transforms:
    """Return the transforms that group the judged trials.

    Fields: ``group`` (the number of the bucket from 0, or the category), ``n_trials`` and ``n_infeasible`` of it,
    ``order`` in it (1 is its best trial, infeasible ones come last); of a number ``bucket_low`` and ``bucket_high``.
    """
    transforms: Transforms = [
        {"filter": f"datum.kind == '{FEASIBLE}' || datum.kind == '{INFEASIBLE}'"},
        {"calculate": f"datum.kind == '{INFEASIBLE}' ? 1 : 0", "as": "is_infeasible"},
    ]
    if numeric:
        transforms += [
            {"joinaggregate": [{"op": "count", "as": "n_all"}]},
            {
                "calculate": f"n_buckets_given >= 1 ? min(floor(n_buckets_given), {MAX_BUCKETS}) : "
                "clamp(floor(datum.n_all / 8), 2, 10)",
                "as": "n_buckets",
            },
            {"calculate": "clamp(floor(datum.unit * datum.n_buckets), 0, datum.n_buckets - 1)", "as": "group"},
            *_edges(),
        ]
    else:
        transforms.append({"calculate": "datum.x", "as": "group"})
    return [
        *transforms,
        {
            "joinaggregate": [
                {"op": "count", "as": "n_trials"},
                {"op": "sum", "field": "is_infeasible", "as": "n_infeasible"},
            ],
            "groupby": ["group"],
        },
        {
            "window": [{"op": "row_number", "as": "order"}],
            "groupby": ["group"],
            "sort": [{"field": "is_infeasible"}, {"field": "cost"}],
        },
    ]


def one_row_a_group(*, numeric: bool) -> Transforms:
    """Return the transforms from trials to groups, with ``middle``, its place; empty buckets too."""
    first: Transforms = [{"filter": "datum.order == 1"}]
    if not numeric:
        return [*first, {"calculate": "datum.group", "as": "middle"}]
    same = ("n_buckets", "low", "high")
    return [
        *first,
        {"impute": "n_trials", "key": "group", "keyvals": {"start": 0, "stop": MAX_BUCKETS}, "value": 0},
        {"joinaggregate": [{"op": "max", "field": name, "as": name} for name in same]},
        {"filter": "datum.group < datum.n_buckets"},
        {"calculate": "isValid(datum.n_infeasible) ? datum.n_infeasible : 0", "as": "n_infeasible"},
        *_edges(),
        {
            "calculate": "x_log ? sqrt(datum.bucket_low * datum.bucket_high) : "
            "(datum.bucket_low + datum.bucket_high) / 2",
            "as": "middle",
        },
    ]


def group_x(*, numeric: bool) -> Spec:
    """Return the encoding of x, with room for the counts below the axis."""
    return numeric_x("x", title_padding=COUNT_ROOM) if numeric else category_x("x", title_padding=COUNT_ROOM)


def group_text(*, numeric: bool) -> Spec:
    """Return the transform that names a group, as ``group_text``."""
    bucket = "format(datum.bucket_low, '.3~g') + ' to ' + format(datum.bucket_high, '.3~g')"
    return {"calculate": bucket if numeric else "toString(datum.group)", "as": "group_text"}


def counts_of_groups(x: Spec, *, numeric: bool) -> list[Spec]:
    """Return the layers with the numbers of trials and of infeasible ones below the axis."""
    layers: list[Spec] = []
    mark: dict[str, Any] = {"type": "text", "baseline": "middle", "aria": False}
    # As `charts.counts` places them.
    for words, counts, offset in (("trials", "n_trials", 34), ("infeasible", "n_infeasible", 48)):
        y = {"value": {"expr": f"height + {offset}"}}
        layers += [
            {
                "data": {"values": [{"words": words}]},
                "mark": mark | {"align": "right"},
                "encoding": {"x": {"value": -6}, "y": y, "text": {"field": "words", "type": "nominal"}},
            },
            {
                "name": f"{words} counted",
                "transform": one_row_a_group(numeric=numeric),
                "mark": mark,
                "encoding": {"x": x | {"field": "middle"}, "y": y, "text": {"field": counts, "type": "quantitative"}},
            },
        ]
    return layers


def _edges() -> Transforms:
    return [
        {
            "calculate": f"x_log ? datum.low * pow(datum.high / datum.low, (datum.group{step}) / datum.n_buckets) : "
            f"datum.low + (datum.group{step}) / datum.n_buckets * (datum.high - datum.low)",
            "as": name,
        }
        for name, step in _EDGES.items()
    ]
