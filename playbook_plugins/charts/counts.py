"""How many trials stand behind each group of a chart? Two lines of counts below its axis."""

from __future__ import annotations

from typing import Any

# The words of a line, the field that holds its counts, and how far below the axis it stands.
_LINES = (("trials", "n_trials", 34), ("infeasible", "n_infeasible", 48))
# The lines stand between the labels of the axis and its title, which needs so much padding.
COUNT_ROOM = 38


def count_layers(x: dict[str, Any], groups: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Return the layers with the number of trials, and of infeasible ones, of each group.

    Parameters
    ----------
    x
        The chart's horizontal channel; a group stands at its field ``x``.
    groups
        Rows with ``x``, ``n_trials`` and ``n_infeasible``; by default the chart's own data.
    """
    data = {} if groups is None else {"data": {"values": groups}}
    layers: list[dict[str, Any]] = []
    for words, counts, offset in _LINES:
        y = {"value": {"expr": f"height + {offset}"}}
        mark = {"type": "text", "baseline": "middle", "aria": False}
        layers += [
            {
                "data": {"values": [{"words": words}]},
                "mark": mark | {"align": "right"},
                "encoding": {"x": {"value": -6}, "y": y, "text": {"field": "words"}},
            },
            data | {"mark": mark, "encoding": {"x": x | {"field": "x"}, "y": y, "text": {"field": counts}}},
        ]
    return layers
