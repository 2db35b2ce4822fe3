"""Which gradients were outliers, and where was clipped? The gradient norm over training, from a logged table.

Playbook: "How can optimization failures be debugged and mitigated?", "Gradient clipping": clip at the 90th percentile
of the gradient norms.
"""

from __future__ import annotations

from playbook_plugins.charts.legend import mark_legend
from playbook_plugins.charts.palette import BAR, BLUE, GREEN, GREY, ORANGE
from playbook_plugins.wandb.preset_parts import (
    Spec,
    Transforms,
    log_label,
    only_labelled,
    read_numbers,
    step_axis,
    title_room,
    view,
)

MEDIAN, CLIPPED, LARGEST, THRESHOLD = "median", "above threshold", "largest", "threshold"
_LOOKS = {
    MEDIAN: (BLUE, "circle"),
    LARGEST: (GREY, "diamond"),
    CLIPPED: (ORANGE, "triangle-up"),
    THRESHOLD: (GREEN, BAR),
}
_AREAS = "datum.mark == '" + CLIPPED + "' ? 40 : datum.mark == '" + LARGEST + "' ? 22 : 26"


def gradient_norms_spec() -> Spec:
    """Return the median and the largest gradient norm between evaluations, and the threshold of clipping.

    Of a table of several trials the first one's, which its label names.
    """
    x = step_axis()
    y = {
        "field": "value",
        "type": "quantitative",
        "scale": {"type": "log", "nice": False, "padding": 9},
        "axis": {
            "title": "gradient norm before clipping",
            "tickCount": 6,
            "labelExpr": log_label(),
            "gridOpacity": only_labelled(),
            **title_room(),
        },
    }
    looks = mark_legend(_LOOKS, columns=4)
    for channel in looks.values():
        channel["legend"]["title"] = ""
    words = [
        {"field": "label_given", "type": "nominal", "title": "trial"},
        {"field": "mark", "type": "nominal", "title": "what"},
        {"field": "step", "type": "quantitative", "title": "step", "format": ",d"},
        {"field": "value", "type": "quantitative", "title": "norm", "format": ".4~g"},
        {"field": "threshold", "type": "quantitative", "title": THRESHOLD, "format": ".4~g"},
    ]
    return view(
        "Gradient norm over training",
        [],
        ("step", "norm", "norm_max", "threshold", "label"),
        [*read_numbers("step", "norm", "norm_max", "threshold"), *_marks()],
        [
            {
                "name": "norms",
                "transform": [{"filter": f"datum.mark != '{THRESHOLD}'"}, {"calculate": _AREAS, "as": "area"}],
                "mark": {"type": "point", "opacity": 0.65},
                "encoding": {
                    "x": x,
                    "y": y,
                    **looks,
                    "size": {"field": "area", "type": "quantitative", "scale": None},
                    "tooltip": words,
                },
            },
            {
                "name": "threshold",
                "transform": [{"filter": f"datum.mark == '{THRESHOLD}'"}],
                "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 2},
                "encoding": {"x": x, "y": y, "color": looks["color"]},
            },
            {
                "transform": [
                    {"aggregate": [{"op": "count", "as": "n_points"}], "groupby": ["label_given"]},
                ],
                "mark": {"type": "text", "align": "right", "baseline": "top", "dx": -4, "dy": 4},
                "encoding": {
                    "x": {"value": "width"},
                    "y": {"value": 0},
                    "text": {"field": "label_given", "type": "nominal"},
                },
            },
        ],
    )


def _marks() -> Transforms:
    """Return the transforms to one row a mark: what it is, and its positive value."""
    return [
        {"window": [{"op": "first_value", "field": "label_given", "as": "first_label"}]},
        {"filter": "datum.label_given == datum.first_label"},
        {"calculate": "datum.threshold", "as": "limit"},
        {"fold": ["norm_max", "norm", "limit"], "as": ["column", "value"]},
        {"filter": "isValid(datum.step) && isValid(datum.value) && datum.value > 0"},
        {
            "calculate": f"datum.column == 'limit' ? '{THRESHOLD}' : datum.column == 'norm_max' ? '{LARGEST}' : "
            f"isValid(datum.threshold) && datum.value > datum.threshold ? '{CLIPPED}' : '{MEDIAN}'",
            "as": "mark",
        },
    ]
