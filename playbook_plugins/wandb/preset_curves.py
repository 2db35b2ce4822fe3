"""How did the best trials train? Their curves, from a logged table, as a preset.

Playbook: "Examining the training curves".
"""

from __future__ import annotations

from playbook_plugins.charts.palette import STAR, TRIAL_COLOURS
from playbook_plugins.charts.scales import EARLY_SHARE
from playbook_plugins.wandb.preset_parts import (
    DIRECTION,
    Y_SCALE,
    Spec,
    Transforms,
    log_label,
    only_labelled,
    read_numbers,
    step_axis,
    title_room,
    view,
)

_SPLITS = {"validation": [1, 0], "training": [5, 4]}


def curves_spec() -> Spec:
    """Return the validation and the training curves of some trials; those of the best one are thicker.

    A star is the best validation objective of a trial. The axis shows what is reached after the first fifth of
    training; a line starts where it enters the frame.
    """
    x = step_axis()
    y = {
        "field": "value",
        "type": "quantitative",
        "scale": {"type": "${string:y_scale:linear}", "zero": False, "nice": False, "padding": 9},
        "axis": {
            "title": "${string:y_title:objective}",
            "tickCount": 6,
            "labelExpr": f"y_log ? ({log_label()}) : datum.label",
            "gridOpacity": only_labelled(),
            **title_room(),
        },
    }
    colour = {
        "field": "label_given",
        "type": "nominal",
        "sort": {"field": "rank", "op": "min"},
        "scale": {"range": list(TRIAL_COLOURS)},
        # At the top, a legend without entries, before there are rows, would have no place.
        "legend": {"title": "", "symbolType": "stroke", "symbolSize": 300, "orient": "bottom"},
    }
    words = [
        {"field": "label_given", "type": "nominal", "title": "trial"},
        {"field": "split", "type": "nominal", "title": "objective on"},
        {"field": "step", "type": "quantitative", "title": "step", "format": ",d"},
        {"field": "value", "type": "quantitative", "title": "objective", "format": ".5~g"},
    ]
    return view(
        "Training curves",
        [DIRECTION, Y_SCALE],
        ("step", "validation", "train", "label", "rank"),
        [*read_numbers("step", "validation", "train", "rank"), *_curve_points()],
        [
            {
                "name": "lines",
                "transform": [{"filter": "!datum.early || (datum.value >= datum.least && datum.value <= datum.most)"}],
                "mark": {"type": "line", "opacity": 0.9},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": colour,
                    "strokeDash": {
                        "field": "split",
                        "type": "nominal",
                        "scale": {"domain": list(_SPLITS), "range": list(_SPLITS.values())},
                        "legend": {"title": "", "symbolType": "stroke", "symbolSize": 400},
                    },
                    "strokeWidth": {
                        "field": "width",
                        "type": "quantitative",
                        "scale": None,
                    },
                    "tooltip": words,
                },
            },
            {
                "name": "best",
                "transform": [{"filter": "datum.split == 'validation' && datum.place == 1"}],
                "mark": {"type": "point", "shape": STAR, "size": 150, "opacity": 1},
                "encoding": {"x": x, "y": y, "color": colour, "tooltip": words},
            },
        ],
    )


def _curve_points() -> Transforms:
    """Return the transforms to one row a point of a line, with the part of the objective that is shown."""
    return [
        {"fold": ["validation", "train"], "as": ["column", "value"]},
        {"filter": "isValid(datum.value) && isValid(datum.step) && (!y_log || datum.value > 0)"},
        {"calculate": "datum.column == 'train' ? 'training' : 'validation'", "as": "split"},
        {"calculate": "sign * datum.value", "as": "cost"},
        {
            "window": [{"op": "row_number", "as": "place"}],
            "groupby": ["label_given", "split"],
            "sort": [{"field": "cost"}],
        },
        {
            "joinaggregate": [
                {"op": "max", "field": "step", "as": "last_step"},
                {"op": "min", "field": "rank", "as": "best_rank"},
            ]
        },
        {"calculate": f"datum.step < {EARLY_SHARE} * datum.last_step", "as": "early"},
        {
            "calculate": "datum.early && !(datum.split == 'validation' && datum.place == 1) ? null : datum.value",
            "as": "late_value",
        },
        {
            "joinaggregate": [
                {"op": "min", "field": "late_value", "as": "least"},
                {"op": "max", "field": "late_value", "as": "most"},
            ]
        },
        {"calculate": "datum.rank == datum.best_rank ? 2.6 : 1.5", "as": "width"},
    ]
