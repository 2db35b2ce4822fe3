"""When in training were the better runs at their best? A histogram of their best steps, as a preset.

Playbook: "Deciding how long to train when training is not compute-bound": best steps in the first 10% of training
ask for a shorter one, in the last 25% for a longer one.
"""

from __future__ import annotations

from playbook_plugins.charts.palette import BLUE, FEASIBLE, ORANGE, PURPLE
from playbook_plugins.wandb.preset_parts import DIRECTION, Spec, Transforms, read_numbers, view
from playbook_plugins.wandb.preset_trials import judge_trials

# The zones end at the edges of bins.
_N_BINS = 20
_EARLY, _LATE = 0.10, 0.75
_ROOM = 20


def best_step_spec() -> Spec:
    """Return the histogram of the best steps of the better half of the feasible trials, as shares of training.

    Bins of 5% of training, the upper end of each inclusive, so that the zones are those of `analysis.steps`.
    """
    return view(
        "Best steps",
        [DIRECTION],
        ("y", "status", "best_step", "max_steps"),
        [
            *judge_trials(),
            *read_numbers("best_step", "max_steps"),
            {"filter": f"datum.kind == '{FEASIBLE}' && datum.best_step >= 0 && datum.max_steps > 0"},
            {"filter": "isValid(datum.best_step) && isValid(datum.max_steps)"},
            *_better_half(),
            {"calculate": "datum.best_step / datum.max_steps", "as": "progress"},
            {
                "calculate": f"clamp(ceil(round(datum.progress * {_N_BINS} * 1e9) / 1e9) - 1, 0, {_N_BINS - 1})",
                "as": "bin",
            },
            {"calculate": f"datum.progress <= {_EARLY} ? 1 : 0", "as": "early"},
            {"calculate": f"datum.progress > {_LATE} ? 1 : 0", "as": "late"},
        ],
        [*_zone_layers(), _bars()],
    )


def _better_half() -> Transforms:
    """Return the transforms that keep the better half of the trials, and those that tie with its last."""
    return [
        {"window": [{"op": "row_number", "as": "order"}], "sort": [{"field": "cost"}]},
        {"joinaggregate": [{"op": "count", "as": "n_known"}]},
        {"calculate": "datum.order <= ceil(datum.n_known / 2) ? datum.cost : null", "as": "cost_of_half"},
        {"joinaggregate": [{"op": "max", "field": "cost_of_half", "as": "worst_of_half"}]},
        {"filter": "datum.cost <= datum.worst_of_half"},
    ]


def _x(field: str) -> Spec:
    return {
        "field": field,
        "type": "quantitative",
        "scale": {"domain": [0, 1], "nice": False},
        "axis": {
            "title": "best step, as a share of training",
            "values": [0, 0.1, 0.25, 0.5, 0.75, 1],
            "format": ".0%",
        },
    }


def _zone_layers() -> list[Spec]:
    layers: list[Spec] = []
    # Both in one: Vega-Lite merges aggregates of the same rows, and their fields if these have one name.
    counted: Transforms = [
        {
            "aggregate": [
                {"op": "count", "as": "n_better"},
                {"op": "sum", "field": "early", "as": "n_early"},
                {"op": "sum", "field": "late", "as": "n_late"},
            ],
            "groupby": [],
        },
        {"filter": "datum.n_better > 0"},
    ]
    for start, end, words, zone, colour in (
        (0, _EARLY, "first 10%", "early", ORANGE),
        (_LATE, 1, "last 25%", "late", PURPLE),
    ):
        edges = {"values": [{"start": start, "end": end}]}
        layers += [
            {
                "data": edges,
                "mark": {"type": "rect", "color": colour, "opacity": 0.13, "aria": False},
                "encoding": {
                    "x": _x("start"),
                    "x2": {"field": "end"},
                    "y": {"value": 0},
                    "y2": {"value": {"expr": "height"}},
                },
            },
            {
                "name": f"{zone} share",
                "transform": [
                    *counted,
                    {"calculate": f"'{words}: ' + format(datum.n_{zone} / datum.n_better, '.0%')", "as": "words"},
                    {"calculate": str(start if zone == "early" else end), "as": "at"},
                ],
                "mark": {
                    "type": "text",
                    "align": "left" if zone == "early" else "right",
                    "dx": 4 if zone == "early" else -4,
                    "baseline": "middle",
                },
                "encoding": {
                    "x": _x("at"),
                    "y": {"value": _ROOM // 2},
                    "text": {"field": "words", "type": "nominal"},
                },
            },
        ]
    return layers


def _bars() -> Spec:
    return {
        "name": "bars",
        "transform": [
            {"aggregate": [{"op": "count", "as": "n_trials"}], "groupby": ["bin"]},
            {"calculate": f"datum.bin / {_N_BINS}", "as": "bin_from"},
            {"calculate": f"(datum.bin + 1) / {_N_BINS}", "as": "bin_to"},
        ],
        "mark": {"type": "rect", "color": BLUE, "opacity": 0.8, "xOffset": 1, "x2Offset": -1},
        "encoding": {
            "x": _x("bin_from"),
            "x2": {"field": "bin_to"},
            "y": {
                "field": "n_trials",
                "type": "quantitative",
                "scale": {"range": [{"expr": "height"}, _ROOM]},
                "axis": {"title": "trials of the better half", "tickCount": 5, "tickMinStep": 1},
            },
            "y2": {"datum": 0},
            "tooltip": [
                {"field": "bin_from", "type": "quantitative", "title": "share of training from", "format": ".0%"},
                {"field": "bin_to", "type": "quantitative", "title": "to", "format": ".0%"},
                {"field": "n_trials", "type": "quantitative", "title": "trials of the better half"},
            ],
        },
    }
