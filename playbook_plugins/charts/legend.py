"""How are the marks of a chart told apart? By colour and by shape, so that no one needs to see colours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def mark_legend(looks: Mapping[str, tuple[Any, ...]], *, field: str = "mark", **legend: Any) -> dict[str, Any]:
    """Return the colour and shape channels of marks, with one legend.

    Parameters
    ----------
    looks
        Colour and shape of each mark that occurs (what follows them is not read), in the order of the legend; without
        any there is no legend.
    field
        Which field of the data names the mark.
    **legend
        More properties of the legend, ``columns=3`` for instance.
    """
    shown = {"title": None, "symbolSize": 90, "symbolOpacity": 1} | legend if looks else None
    return {
        channel: {
            "field": field,
            "type": "nominal",
            "scale": {"domain": list(looks), "range": [look[place] for look in looks.values()]},
            "legend": shown,
        }
        for place, channel in enumerate(("color", "shape"))
    }
