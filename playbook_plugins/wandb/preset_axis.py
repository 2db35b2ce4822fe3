"""Where in its range do the good runs lie? The axis plot as a preset, for a number and for a category.

Playbook: "Identifying bad search space boundaries" (its figures 1 and 2).
"""

from __future__ import annotations

import json

from playbook_plugins.charts.palette import BEST, FEASIBLE, INFEASIBLE, MARKS
from playbook_plugins.charts.table import N_BEST
from playbook_plugins.wandb.preset_parts import (
    TRIAL_PARAMS,
    X_PARAMS,
    Spec,
    bound_layers,
    category_x,
    legend_of,
    marks_of,
    numeric_x,
    objective_y,
    strip_layers,
    strip_y,
    view,
)
from playbook_plugins.wandb.preset_trials import (
    JITTER,
    cut_objective,
    judge_trials,
    mark_of_trial,
    measure_objective,
    read_category,
    read_x,
    trial_texts,
    trial_words,
)

_AREAS = json.dumps({kind: area for kind, (_, _, area) in MARKS.items()})
_WORDS = f"datum.n_infeasible == datum.n_strip ? '{INFEASIBLE}' : datum.n_infeasible ? 'no value' : 'stopped'"


def axis_spec(*, numeric: bool) -> Spec:
    """Return the axis plot of a numeric or of a categorical hyperparameter.

    Feasible trials are dots, the best three stars, infeasible ones crosses in a strip beyond the worst edge, those that
    stopped for another reason grey; dashed rules are the bounds of the search space.
    """
    x = numeric_x("x") if numeric else category_x("x")
    marks: Spec = legend_of(marks_of(*MARKS), (BEST, FEASIBLE)) | {
        "x": x,
        "size": {"field": "area", "type": "quantitative", "scale": None},
        "tooltip": trial_words(),
    }
    if not numeric:
        marks["xOffset"] = {"field": "jitter", "type": "quantitative", "scale": {"domain": [-0.6, 0.6]}}
    return view(
        "Axis plot",
        TRIAL_PARAMS + (X_PARAMS if numeric else []),
        ("x", "y", "status", "trial"),
        [
            *judge_trials(),
            *measure_objective(),
            *(read_x() if numeric else read_category()),
            *cut_objective(),
            *mark_of_trial(f"isValid(datum.rank) && datum.rank <= {N_BEST} ? '{BEST}'"),
            {"calculate": f"{_AREAS}[datum.mark]", "as": "area"},
            {"calculate": JITTER, "as": "jitter"},
            *trial_texts(numeric=numeric),
        ],
        [
            *(bound_layers(x) if numeric else []),
            *strip_layers("!isValid(datum.y)", _WORDS),
            {
                "name": "without objective",
                "transform": [{"filter": "!isValid(datum.y)"}],
                "mark": {"type": "point", "opacity": 0.7},
                "encoding": marks | {"y": strip_y()},
            },
            {
                "name": "trials",
                "transform": [{"filter": "isValid(datum.y)"}],
                "mark": {"type": "point", "opacity": 0.8},
                "encoding": marks | {"y": objective_y("y_shown")},
            },
        ],
    )
