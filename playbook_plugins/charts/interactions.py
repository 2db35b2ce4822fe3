"""Which hyperparameters must be tuned together? The heat map of the interactions of every pair.

Playbook: "Identifying scientific, nuisance, and fixed hyperparameters".
"""

from __future__ import annotations

import math
from typing import Any

from playbook_plugins.analysis import Interactions, Trials, interactions
from playbook_plugins.charts.chart import Chart
from playbook_plugins.charts.palette import BLUE, GREY, ORANGE
from playbook_plugins.charts.table import finite
from playbook_plugins.charts.theme import SCHEMA, WIDTH, config, label

FLAGGED, TOLD, UNTOLD, NOT_ASKED = "interact", "no evidence", "too few trials", "not asked"
# A mark in the cells that have no number.
_SIGNS = {UNTOLD: "?", NOT_ASKED: "–"}
# The colours run to the strongest interaction, and no less far than this: chance alone shall look pale.
_LEAST_STRENGTH = 0.5
# Seen through, so that the middle of the scale is the page itself, be it light or dark.
_NONE = "rgba(125, 133, 144, 0)"
_CELL, _LEAST_HEIGHT, _GREATEST_HEIGHT = 44, 60, 460
# Smaller cells cannot hold a number of two digits.
_LEAST_WIDTH_OF_TEXT = 26.0


def interaction_chart(trials: Trials | Interactions) -> Chart:
    """Draw how strongly each pair of hyperparameters interacts.

    The colour of a cell is the partial correlation of `playbook_plugins.analysis.interactions`, on a scale that is
    symmetric about 0: orange where high values of one go with high values of the other, blue where they go with low
    ones; of a category it is never negative. Pairs that `check_interactions` flags are outlined and carry the number.
    Pairs that are no question carry a dash, pairs with too few trials a question mark.

    Parameters
    ----------
    trials
        The study, or what `playbook_plugins.analysis.interactions` made of it.

    Returns
    -------
    Chart
        The data hold one row a pair.

    Raises
    ------
    ValueError
        When there are fewer than two hyperparameters to compare.
    """
    result = interactions(trials) if isinstance(trials, Trials) else trials
    if len(result.names) < 2:
        raise ValueError(
            f"`trials` compares the hyperparameters {list(result.names)}: an interaction needs two that vary. Search "
            "over another number, or make a categorical hyperparameter scientific."
        )
    labels = _labels(result.names)
    rows = [_row(result, labels, one, other) for other in range(1, len(result.names)) for one in range(other)]
    strength = max([_LEAST_STRENGTH, *(abs(row["strength"]) for row in rows if row["strength"] is not None)])
    n_lines = len(labels) - 1
    height = min(_GREATEST_HEIGHT, max(_LEAST_HEIGHT, _CELL * n_lines))
    axis = {"grid": False, "domain": False, "ticks": False, "labelLimit": 150, "title": None}
    at = {
        "x": {
            "field": "first",
            "type": "nominal",
            "scale": {"domain": labels[:-1], "padding": 0.06},
            "axis": axis | {"labelAngle": -30},
        },
        "y": {
            "field": "second",
            "type": "nominal",
            "scale": {"domain": labels[1:], "padding": 0.06},
            "axis": axis,
        },
    }
    layers: list[dict[str, Any]] = [
        {
            "transform": [{"filter": "!isValid(datum.strength)"}],
            "mark": {"type": "rect", "color": GREY, "opacity": 0.16, "cornerRadius": 3},
            "encoding": at | {"tooltip": _tooltip()},
        },
        {
            "transform": [{"filter": "isValid(datum.strength)"}],
            # The frame shows the pairs without any interaction, whose colour is the page's.
            "mark": {"type": "rect", "cornerRadius": 3, "stroke": GREY, "strokeOpacity": 0.35, "strokeWidth": 1},
            "encoding": at | {"color": _colour(strength), "tooltip": _tooltip()},
        },
    ]
    if any(row["verdict"] == FLAGGED for row in rows):
        layers += _flagged_layers(at, show_numbers=WIDTH / n_lines >= _LEAST_WIDTH_OF_TEXT)
    if any(row["verdict"] in _SIGNS for row in rows):
        layers.append(
            {
                "transform": [{"filter": "!isValid(datum.strength)"}],
                "mark": {"type": "text", "fontSize": 12, "aria": False},
                "encoding": at | {"text": {"field": "sign", "type": "nominal"}, "tooltip": _tooltip()},
            }
        )
    title = "Interactions of hyperparameters"
    spec = {
        "$schema": SCHEMA,
        "title": {"text": title, "subtitle": _summary(rows)},
        "width": WIDTH,
        "height": height,
        "config": config(),
        "data": {"values": rows},
        "layer": layers,
    }
    return Chart(spec=spec, title=title, help=_help(rows), alt=_alt(rows))


def _labels(names: tuple[str, ...]) -> list[str]:
    """Return one label a hyperparameter, all different: long names may be cut to the same one."""
    labels = [label(name, 30) for name in names]
    if len(set(labels)) < len(labels):
        labels = [f"{text} ({place})" for place, text in enumerate(labels)]
    return labels


def _row(result: Interactions, labels: list[str], one: int, other: int) -> dict[str, Any]:
    pair = (one, other)
    p, share = float(result.p[pair]), float(result.share[pair])
    if math.isnan(p):
        verdict = UNTOLD if result.asked[pair] else NOT_ASKED
    else:
        verdict = FLAGGED if result.is_flagged[pair] else TOLD
    return {
        "first": labels[one],
        "second": labels[other],
        "strength": finite(result.strength[pair]),
        "p": finite(p),
        "share": finite(share),
        "n_points": int(result.n_points[pair]),
        "verdict": verdict,
        "sign": _SIGNS.get(verdict, ""),
    }


def _colour(strength: float) -> dict[str, Any]:
    return {
        "field": "strength",
        "type": "quantitative",
        "scale": {"domain": [-strength, 0, strength], "range": [BLUE, _NONE, ORANGE], "interpolate": "rgb"},
        "legend": {
            "title": "partial correlation",
            "type": "gradient",
            "direction": "horizontal",
            "gradientLength": 220,
            "format": ".1~f",
            "tickCount": 5,
        },
    }


def _flagged_layers(at: dict[str, Any], *, show_numbers: bool) -> list[dict[str, Any]]:
    chosen = [{"filter": f"datum.verdict === '{FLAGGED}'"}]
    # The style has the colour of the page's text, on light and on dark, in which outline and number stand out.
    outline = {"type": "rect", "style": "picked", "filled": False, "strokeWidth": 2, "cornerRadius": 3}
    text = {"type": "text", "style": "picked", "filled": True, "fontSize": 12, "fontWeight": 600, "strokeWidth": 0}
    layers: list[dict[str, Any]] = [
        {"transform": chosen, "mark": outline | {"aria": False}, "encoding": at | {"tooltip": _tooltip()}}
    ]
    if show_numbers:
        number = {"field": "strength", "type": "quantitative", "format": "+.2f"}
        layers.append(
            {
                "transform": chosen,
                "mark": text | {"aria": False},
                "encoding": at | {"text": number, "tooltip": _tooltip()},
            }
        )
    return layers


def _tooltip() -> list[dict[str, Any]]:
    number = {"type": "quantitative"}
    return [
        {"field": "first", "title": "hyperparameter", "type": "nominal"},
        {"field": "second", "title": "and", "type": "nominal"},
        {"field": "verdict", "title": "verdict", "type": "nominal"},
        {"field": "strength", "title": "partial correlation", "format": "+.2f", **number},
        {"field": "share", "title": "share of the variance", "format": ".1%", **number},
        {"field": "p", "title": "p", "format": ".2~g", **number},
        {"field": "n_points", "title": "points", "format": ",d", **number},
    ]


def _count(rows: list[dict[str, Any]], verdict: str) -> int:
    return sum(row["verdict"] == verdict for row in rows)


def _summary(rows: list[dict[str, Any]]) -> str:
    n_flagged, n_judged = _count(rows, FLAGGED), _count(rows, FLAGGED) + _count(rows, TOLD)
    if not n_judged:
        return "No pair has enough trials to judge"
    return f"{n_flagged} of {n_judged} {'pair' if n_judged == 1 else 'pairs'} judged must be tuned together"


def _help(rows: list[dict[str, Any]]) -> str:
    text = (
        "Outlined pairs interact: the best value of one depends on the other. Orange: high values of one go with high "
        "values of the other; blue: with low ones."
    )
    signs = [f"{sign} marks pairs with {kind}" for kind, sign in _SIGNS.items() if _count(rows, kind)]
    signs = [text.replace(f"with {NOT_ASKED}", "that are no question") for text in signs]
    return f"{text} {'; '.join(signs)}." if signs else text


def _alt(rows: list[dict[str, Any]]) -> str:
    flagged = sorted((row for row in rows if row["verdict"] == FLAGGED), key=lambda row: -row["share"])
    parts = [
        f"{row['first']} and {row['second']}: partial correlation {row['strength']:+.2f}, {row['share']:.1%} of the "
        f"variance"
        for row in flagged
    ]
    pairs = "pair" if len(rows) == 1 else "pairs"
    text = f"Heat map of the interactions of {len(rows)} {pairs} of hyperparameters. {_summary(rows)}"
    text += f": {'; '.join(parts)}." if parts else "."
    for kind in (UNTOLD, NOT_ASKED):
        if _count(rows, kind):
            text += f" {_count(rows, kind)} {kind}."
    return text
