"""What is a run to a preset? Judged, ranked and placed as a trial of the analysis is, from the columns of its row.

Playbook: "Identifying bad search space boundaries", which asks for the best points, feasible and infeasible.
"""

from __future__ import annotations

from playbook_plugins.charts.palette import FAILED, FEASIBLE, INFEASIBLE, OFF_SCALE, PRUNED
from playbook_plugins.wandb.preset_parts import Spec, Transforms, read_numbers

JITTER = "((datum.row * 0.6180339887498949) % 1) - 0.5"
# Beyond this multiple of the distance from the best to the third quartile, values stand at the edge.
_REACH, _SMALL_EXCESS = 2, 1.25


def judge_trials() -> Transforms:
    """Return the transforms that give each trial its kind and its place in the ranking.

    From the given columns ``y`` and ``status``, as `playbook_plugins.analysis.Trials` judges: a trial is feasible
    if it is complete and its objective finite, infeasible if it says so, or if nobody knows its status and its
    objective is not finite. Fields: ``y`` (null unless finite), ``kind``, ``cost`` (lower is better; null unless
    feasible), ``rank`` (1 is best; null unless feasible) and ``row``.
    """
    status = "datum.status_given"
    return [
        *read_numbers("y"),
        {"filter": f"{status} != 'running'"},
        {
            "calculate": f"{status} == '{INFEASIBLE}' ? '{INFEASIBLE}' : {status} == '{PRUNED}' ? '{PRUNED}' : "
            f"isValid(datum.y) && ({status} == 'complete' || !{status}) ? '{FEASIBLE}' : "
            f"!{status} ? '{INFEASIBLE}' : '{FAILED}'",
            "as": "kind",
        },
        {"calculate": f"datum.kind == '{INFEASIBLE}' ? null : datum.y", "as": "y"},
        {"calculate": f"datum.kind == '{FEASIBLE}' ? 0 : 1", "as": "without_cost"},
        {"calculate": "datum.without_cost ? null : sign * datum.y", "as": "cost"},
        {
            "window": [{"op": "row_number", "as": "place"}],
            "sort": [{"field": "without_cost"}, {"field": "cost"}],
        },
        {"calculate": "datum.without_cost ? null : datum.place", "as": "rank"},
        {"calculate": "datum.place - 1", "as": "row"},
    ]


def measure_objective() -> Transforms:
    """Return the transforms that choose what the axis of the objective shows, as `charts.scales` does.

    From the best trial to twice the distance between the best and the third quartile beyond it; `cut_objective` then
    puts what is worse at the edge.
    """
    return [
        # A logarithm needs positive numbers: what is not stands with the least of those.
        {"calculate": "y_log && datum.y <= 0 ? null : datum.y", "as": "y_positive"},
        {"joinaggregate": [{"op": "min", "field": "y_positive", "as": "y_least"}]},
        {"calculate": "isValid(datum.y_least) ? datum.y_least : 1", "as": "y_least"},
        _scaled("datum.cost", "scaled"),
        {
            "joinaggregate": [
                {"op": "min", "field": "scaled", "as": "scaled_best"},
                {"op": "max", "field": "scaled", "as": "scaled_worst"},
                {"op": "q3", "field": "scaled", "as": "scaled_q3"},
            ]
        },
        {"calculate": "datum.scaled_q3 - datum.scaled_best", "as": "span"},
        {
            "calculate": f"datum.span <= 0 || datum.scaled_worst <= datum.scaled_best + {_SMALL_EXCESS * _REACH} * "
            f"datum.span ? datum.scaled_worst : datum.scaled_best + {_REACH} * datum.span",
            "as": "scaled_limit",
        },
    ]


def cut_objective(*also: str) -> Transforms:
    """Return the transforms that place the objective of each trial: ``beyond`` is 1 at the edge, ``y_shown`` the place.

    Fields named in ``also`` (costs, of which the best of a group is one) move the edge where they are not farther than
    three times the reach; each gets a field ``..._shown``.
    """
    transforms: Transforms = []
    for name in also:
        transforms += [
            _scaled(f"datum.{name}", f"{name}_scaled"),
            {
                "calculate": f"isValid(datum.{name}_scaled) && datum.{name}_scaled <= datum.scaled_best + {3 * _REACH} "
                f"* datum.span ? max(datum.scaled_limit, datum.{name}_scaled) : datum.scaled_limit",
                "as": f"{name}_limit",
            },
            {"joinaggregate": [{"op": "max", "field": f"{name}_limit", "as": "scaled_limit"}]},
        ]
    return [
        *transforms,
        {"calculate": "isValid(datum.scaled) && datum.scaled > datum.scaled_limit ? 1 : 0", "as": "beyond"},
        # A pruned or failed trial may have an objective, too: it is shown, but ranked nowhere.
        {"calculate": "isValid(datum.y) ? sign * datum.y : null", "as": "any_cost"},
        _scaled("datum.any_cost", "any_scaled"),
        _shown("datum.any_cost", "datum.any_scaled", "y_shown"),
        *(_shown(f"datum.{name}", f"datum.{name}_scaled", f"{name}_shown") for name in also),
    ]


def read_x() -> Transforms:
    """Return the transforms of a numeric hyperparameter: ``x``, its bounds ``low`` and ``high``, its place ``unit``.

    Without bounds, those of the trials stand in. Trials without a place in the search scale are left out.
    """
    ends = [
        {"op": "min", "field": "x", "as": "x_least"},
        {"op": "max", "field": "x", "as": "x_most"},
    ]
    scaled = {name: f"(x_log ? log(datum.{name}) : datum.{name})" for name in ("x", "low", "high")}
    return [
        *read_numbers("x"),
        {"filter": "isValid(datum.x) && (!x_log || datum.x > 0)"},
        {"joinaggregate": ends},
        {"calculate": "isFinite(low_given) ? low_given : datum.x_least", "as": "low"},
        {"calculate": "isFinite(high_given) ? high_given : datum.x_most", "as": "high"},
        {
            "calculate": f"datum.low == datum.high ? 0.5 : ({scaled['x']} - {scaled['low']}) / "
            f"({scaled['high']} - {scaled['low']})",
            "as": "unit",
        },
    ]


def read_category() -> Transforms:
    """Return the transforms of a categorical hyperparameter: ``x``; trials that lack it are left out."""
    return [
        {"filter": "isValid(datum.x_given) && datum.x_given !== ''"},
        {"calculate": "datum.x_given", "as": "x"},
    ]


def mark_of_trial(best: str) -> Transforms:
    """Return the transform that names the mark of each trial: its kind, beyond the axis, or one of the best."""
    return [
        {"calculate": f"datum.beyond ? '{OFF_SCALE}' : {best} : datum.kind", "as": "mark"},
    ]


def trial_words() -> list[Spec]:
    """Return the tooltip of a mark that stands for a trial."""
    return [
        {"field": "trial_given", "type": "nominal", "title": "trial"},
        {"field": "objective_text", "type": "nominal", "title": "objective"},
        {"field": "status_text", "type": "nominal", "title": "status"},
        {"field": "x_text", "type": "nominal", "title": "${string:x_title:hyperparameter}"},
    ]


def trial_texts(*, numeric: bool) -> Transforms:
    """Return the transforms behind `trial_words`."""
    return [
        {"calculate": "isValid(datum.y) ? format(datum.y, '.5~g') : 'none'", "as": "objective_text"},
        {
            "calculate": "(isValid(datum.status_given) ? datum.status_given : datum.kind) + "
            "(datum.beyond ? ', worse than the axis shows' : '')",
            "as": "status_text",
        },
        {"calculate": "format(datum.x, '.4~g')" if numeric else "toString(datum.x)", "as": "x_text"},
    ]


def _scaled(value: str, name: str) -> Spec:
    """Return the transform of a cost to the scale of the axis, on which lower is better."""
    objective = f"max(sign * {value}, datum.y_least)"
    return {"calculate": f"!isValid({value}) ? null : y_log ? sign * log({objective}) / LN10 : {value}", "as": name}


def _shown(value: str, scaled: str, name: str) -> Spec:
    """Return the transform of a cost to the objective at which it is drawn: itself, or the edge of the axis."""
    edge = "(y_log ? pow(10, sign * datum.scaled_limit) : sign * datum.scaled_limit)"
    own = f"(y_log ? max(sign * {value}, datum.y_least) : sign * {value})"
    # Without a feasible trial there is no limit.
    is_cut = f"isValid(datum.scaled_limit) && {scaled} > datum.scaled_limit"
    return {"calculate": f"!isValid({value}) ? null : {is_cut} ? {edge} : {own}", "as": name}
