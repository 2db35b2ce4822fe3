"""When in training was each trial at its best? The step of the best evaluation against the objective.

Playbook: "Deciding how long to train when training is not compute-bound": best steps in the first 10% of training
ask for a shorter one, in the last 25% for a longer one.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playbook_plugins.analysis import Finding, Trials, check_best_steps
from playbook_plugins.charts.axes import JITTER
from playbook_plugins.charts.chart import Chart
from playbook_plugins.charts.palette import BEST, BLUE, GREY, MARKS, OFF_SCALE, ORANGE, PURPLE, translucent
from playbook_plugins.charts.scales import ObjectiveScale, objective_scale, objective_title
from playbook_plugins.charts.table import (
    describe_drawn,
    drawn_rows,
    parameters_shown,
    tooltip,
    tooltip_transforms,
    trial_rows,
)
from playbook_plugins.charts.theme import HEIGHT, SCHEMA, WIDTH, config, label

BETTER, WORSE = "better half", "worse half"
# In the order of the legend: colour, shape, area in square pixels.
_LOOKS: dict[str, tuple[str, str, int]] = {
    BEST: MARKS[BEST],
    BETTER: (BLUE, "circle", 46),
    WORSE: (BLUE, "circle", 36),
    OFF_SCALE: MARKS[OFF_SCALE],
}
_FAINT = 0.08
_AREAS = json.dumps({kind: area for kind, (_, _, area) in _LOOKS.items()})
_EARLY_END, _LATE_START = 0.10, 0.75
# Room for the marks at either end, where those that share it are spread sideways to be told apart.
_SIDE, _SPREAD = 0.03, 0.04


def best_step_chart(trials: Trials) -> Chart:
    """Draw the objective of each feasible trial against the share of training at which it was reached.

    Dots are the better half of the trials, rings the worse half, and stars the best three. The shaded zones are the
    first 10% of training, where best steps say that training is too long or that the trials overfit, and the last 25%,
    where they ask for longer training; under a decaying learning rate the best step is late by design, and the zone is
    grey. Marks at 0% and at 100%, which many trials share, are spread sideways. Feasible trials far worse than the rest
    stand at the worst edge as triangles, see `playbook_plugins.charts.scales`. Trials of which a best step or a length
    is unknown are left out and counted.

    Parameters
    ----------
    trials
        The study.

    Returns
    -------
    Chart
        Every mark of a trial carries its number in the field ``trial``; its rows are those of all charts of a study.
    """
    is_known = trials.is_feasible & (trials.best_step >= 0) & (trials.max_steps > 0)
    finding = check_best_steps(trials)[0]
    steps = _step_rows(trials, is_known)
    scale = objective_scale(trials)
    drawn = trials.select(is_known)
    sign = 1.0 if trials.direction == "minimize" else -1.0
    n_beyond = int(np.sum(drawn.cost > sign * scale.limit))
    x = {
        "field": "place",
        "type": "quantitative",
        "scale": {"domain": [-_SIDE, 1 + _SIDE], "nice": False, "clamp": True},
        "axis": {"title": "best step, as a share of training", "values": [0, 0.1, 0.25, 0.5, 0.75, 1], "format": ".0%"},
    }
    y = scale.y("objective", strip=True, title=objective_title(trials))
    places = parameters_shown(trials)
    occurring = {*(row["half"] for row in steps), *([BEST] if steps else []), *([OFF_SCALE] if n_beyond else [])}
    layers = _zone_layers(finding, scale, x)
    layers.append(
        {
            "transform": [
                {"filter": "isValid(datum.progress) && isValid(datum.rank)"},
                {
                    "calculate": f"{scale.is_beyond()} ? '{OFF_SCALE}' : "
                    f"datum.kind === '{BEST}' ? '{BEST}' : datum.half",
                    "as": "mark",
                },
                {"calculate": f"{_AREAS}[datum.mark]", "as": "area"},
                {
                    "calculate": "datum.progress > 0 && datum.progress < 1 ? datum.progress : "
                    f"datum.progress + {_SPREAD} * ({JITTER})",
                    "as": "place",
                },
            ],
            "mark": {"type": "point", "opacity": 0.8, "strokeWidth": 1.5},
            "encoding": _legend([kind for kind in _LOOKS if kind in occurring], trials.direction == "maximize")
            | {"x": x, "y": y, "tooltip": _tooltip(trials, places)},
        }
    )
    title = "Best steps"
    spec = {
        "$schema": SCHEMA,
        "title": {"text": title, "subtitle": [label(trials.name), *_verdict(finding), *_left_out(trials, is_known)]},
        "width": WIDTH,
        "height": HEIGHT,
        "config": config(),
        "data": {"values": trial_rows(trials)},
        # The rows of the trials know no steps.
        "transform": [
            {
                "lookup": "trial",
                "from": {
                    "data": {"values": steps},
                    "key": "trial",
                    "fields": ["progress", "best_step", "max_steps", "half"],
                },
            },
            *tooltip_transforms(trials, places),
        ],
        "layer": layers,
    }
    return Chart(spec=spec, title=title, help=_help(trials, finding, is_known), alt=_alt(trials, finding, is_known))


def _step_rows(trials: Trials, is_known: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Return what the rows of the trials lack: the steps, and the half, of each trial that is drawn."""
    points = trials.distinct(np.flatnonzero(is_known))
    cost = np.sort(trials.cost[points])
    # The better half is that of the check: of the points, with all that tie with its last.
    worst_of_better = cost[math.ceil(len(cost) / 2) - 1] if len(cost) else math.inf
    return [
        {
            "trial": int(trials.number[row]),
            "progress": float(f"{trials.best_step[row] / trials.max_steps[row]:.6g}"),
            "best_step": int(trials.best_step[row]),
            "max_steps": int(trials.max_steps[row]),
            "half": BETTER if trials.cost[row] <= worst_of_better else WORSE,
        }
        for row in drawn_rows(trials)
        if is_known[row]
    ]


def _zone_layers(finding: Finding, scale: ObjectiveScale, x: dict[str, Any]) -> list[dict[str, Any]]:
    late = GREY if _decays(finding) else PURPLE
    zones = (
        (-_SIDE, _EARLY_END, "first 10%", ORANGE),
        (_LATE_START, 1 + _SIDE, "last 25%", late),
    )
    layers: list[dict[str, Any]] = []
    for start, end, words, colour in zones:
        values = {"values": [{"start": start, "end": end, "middle": (start + end) / 2, "words": words}]}
        layers += [
            {
                "data": values,
                "mark": {"type": "rect", "color": colour, "opacity": 0.13, "tooltip": None, "aria": False},
                "encoding": {
                    "x": x | {"field": "start"},
                    "x2": {"field": "end"},
                    "y": {"value": 0},
                    "y2": {"value": {"expr": "height"}},
                },
            },
            {
                "data": values,
                "mark": {"type": "text", "baseline": "middle", "aria": False},
                "encoding": {"x": x | {"field": "middle"}, "y": scale.strip_y(), "text": {"field": "words"}},
            },
        ]
    return layers


def _legend(kinds: list[str], is_maximized: bool) -> dict[str, Any]:
    shapes = [_LOOKS[kind][1] for kind in kinds]
    if is_maximized:
        shapes = ["triangle-down" if shape == "triangle-up" else shape for shape in shapes]
    colours = [_LOOKS[kind][0] for kind in kinds]
    # A hole could not be pointed at.
    fills = [translucent(_LOOKS[kind][0], _FAINT) if kind == WORSE else _LOOKS[kind][0] for kind in kinds]
    legend = {"title": None, "symbolSize": 90, "symbolOpacity": 1, "symbolStrokeWidth": 1.5} if kinds else None
    mark: dict[str, Any] = {"field": "mark", "type": "nominal"}
    return {
        "stroke": mark | {"scale": {"domain": kinds, "range": colours}, "legend": legend},
        "fill": mark | {"scale": {"domain": kinds, "range": fills}, "legend": legend},
        "shape": mark | {"scale": {"domain": kinds, "range": shapes}, "legend": legend},
        "size": {"field": "area", "type": "quantitative", "scale": None},
    }


def _tooltip(trials: Trials, places: list[int]) -> list[dict[str, Any]]:
    number, objective, *others = tooltip(trials, places)
    return [
        number,
        objective,
        {"field": "best_step", "title": "best step", "type": "quantitative", "format": ",d"},
        {"field": "max_steps", "title": "of", "type": "quantitative", "format": ",d"},
        {"field": "progress", "title": "share of training", "type": "quantitative", "format": ".0%"},
        *others,
    ]


def _decays(finding: Finding) -> bool:
    return finding.numbers.get("learning_rate_decays") == 1


def _verdict(finding: Finding) -> list[str]:
    """Return what the check found, one sentence a line."""
    numbers = finding.numbers
    if "share_early" not in numbers:
        n_points = numbers["n_points"]
        if not n_points:
            return ["No feasible trial has known steps."]
        return [f"{n_points} point{'' if n_points == 1 else 's'} with known steps: too few to judge."]
    lines = [
        f"Of the better half, {_percent(numbers['share_early'])} are best in the first 10% of training and "
        f"{_percent(numbers['share_late'])} in the last 25%."
    ]
    return [*lines, "The learning rate decays: late best steps say little."] if _decays(finding) else lines


def _percent(share: Any) -> str:
    # "100%" would say all.
    return "over 99%" if 0.995 <= share < 1 else f"{share:.0%}"


def _left_out(trials: Trials, is_known: NDArray[np.bool_]) -> list[str]:
    n_unknown = int(np.sum(trials.is_feasible & ~is_known))
    subject = "1 feasible trial has" if n_unknown == 1 else f"{n_unknown:,} feasible trials have"
    return [f"{subject} no known steps and {'is' if n_unknown == 1 else 'are'} left out."] if n_unknown else []


def _help(trials: Trials, finding: Finding, is_known: NDArray[np.bool_]) -> str:
    if not is_known.any():
        lines = ["No feasible trial has a known best step and length of training: record them with each trial."]
    else:
        longer = "" if _decays(finding) else "; mostly in the last 25%: train longer"
        lines = [
            "Where in training each trial was at its best. Mostly in the first 10%: train shorter, or see whether the "
            f"trials overfit{longer}.",
            *_verdict(finding),
            *_left_out(trials, is_known),
        ]
    return " ".join([*lines, describe_drawn(trials)]).strip()


def _alt(trials: Trials, finding: Finding, is_known: NDArray[np.bool_]) -> str:
    text = f"Best steps of {int(is_known.sum()):,} feasible trials against {label(trials.objective_name)}."
    lines = [text, *_verdict(finding)]
    best = [row for row in trials.ranking() if is_known[row]][:1]
    for row in best:
        lines.append(
            f"The best of them, trial {trials.number[row]}, reaches {trials.objective[row]:.4g} at step "
            f"{trials.best_step[row]:,} of {trials.max_steps[row]:,}."
        )
    return " ".join([*lines, *_left_out(trials, is_known)])
