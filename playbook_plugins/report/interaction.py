"""How does a chart become part of a page? It loses what the page says itself, and can mark the trial that is picked.

Playbook: "Automate generically useful plots".
"""

from __future__ import annotations

import copy
from typing import Any

# The signal that holds the number of the picked trial, or null.
PICKED = "picked"
# The title and the help stand above each chart; without a schema, vega-embed compares no versions.
_PAGE_KEYS = ("title", "config", "data", "$schema")
_KEPT_CHANNELS = ("x", "x2", "y", "xOffset", "detail")


def page_spec(spec: dict[str, Any], *, legend: bool = True) -> dict[str, Any]:
    """Return a chart's specification as the page draws it; the original stays as it is.

    The title, the config and the data of the trials are the page's, the width is that of its container, and copies of
    the layers whose marks stand for a trial show the picked one: a ring around a point, a halo behind a line.

    Parameters
    ----------
    spec
        A layered Vega-Lite specification.
    legend
        Whether to keep the legends; the page draws that of the axis plots once.
    """
    page = copy.deepcopy({key: value for key, value in spec.items() if key not in _PAGE_KEYS})
    page["width"] = "container"
    page["autosize"] = {"type": "fit-x", "contains": "padding"}
    page["params"] = [{"name": PICKED, "value": None}]
    for layer in page["layer"]:
        for channel in layer["encoding"].values():
            if isinstance(channel, dict) and channel.get("legend"):
                channel["legend"] = channel["legend"] | {"columns": 2} if legend else None
    has_trials = _has_trial(spec["data"])
    copies = [
        _picked_layer(layer)
        for layer in page["layer"]
        if (_has_trial(layer["data"]) if "data" in layer else has_trials)
    ]
    # Beneath the marks themselves, so that these keep their tooltips.
    page["layer"] = [layer for layer in copies if layer is not None] + page["layer"]
    return page


def _has_trial(data: dict[str, Any]) -> bool:
    return any("trial" in row for row in data["values"])


def _picked_layer(layer: dict[str, Any]) -> dict[str, Any] | None:
    styles = {"point": "picked", "line": "picked-line"}
    kind = layer["mark"]["type"]
    # A line that joins the bests of groups is no trial's own.
    if kind not in styles or (kind == "line" and "detail" not in layer["encoding"]):
        return None
    mark = {"type": kind, "style": styles[kind], "aria": False, "tooltip": None}
    mark |= {"filled": False, "shape": "circle"} if kind == "point" else {"clip": True}
    encoding = {name: copy.deepcopy(layer["encoding"][name]) for name in _KEPT_CHANNELS if name in layer["encoding"]}
    if "strokeDash" in layer["encoding"]:
        # One halo a line; by dash it would take over the legend's symbols.
        encoding["detail"] = [encoding["detail"], {"field": layer["encoding"]["strokeDash"]["field"]}]
    picked = {
        "transform": [*copy.deepcopy(layer.get("transform", [])), {"filter": f"datum.trial === {PICKED}"}],
        "mark": mark,
        "encoding": encoding,
    }
    return ({"data": layer["data"]} if "data" in layer else {}) | picked
