"""How do all charts look? Fonts, axes and sizes in one place, for a light and for a dark background.

Also how a name from a study becomes a label: names come from users and may hold anything.
"""

from __future__ import annotations

import unicodedata
from typing import Any

from playbook_plugins.charts.palette import BLUE

SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"
WIDTH, HEIGHT = 460, 270

_MAX_LABEL = 60
# Text, secondary text, grid lines and background.
_LIGHT = ("#1f2430", "#565f6e", "#e6e9ee", "#ffffff")
_DARK = ("#e9ecf1", "#a9b2bf", "#31363f", "#16191f")


def config(*, dark: bool = False) -> dict[str, Any]:
    """Return the Vega-Lite config shared by all charts.

    Parameters
    ----------
    dark
        For a dark background instead of a white one.
    """
    text, faint, grid, background = _DARK if dark else _LIGHT
    return {
        "background": background,
        "font": FONT,
        "view": {"stroke": None},
        "title": {
            "anchor": "start",
            "color": text,
            "fontSize": 14,
            "fontWeight": 600,
            "offset": 10,
            "subtitleColor": faint,
            "subtitleFontSize": 12,
            "subtitlePadding": 4,
        },
        "axis": {
            "domain": False,
            "gridColor": grid,
            "labelColor": faint,
            "labelFontSize": 11,
            "labelPadding": 6,
            "ticks": False,
            "titleColor": text,
            "titleFontSize": 12,
            "titleFontWeight": 500,
            "titlePadding": 8,
        },
        "axisX": {
            "grid": False,
            "domain": True,
            "domainColor": faint,
            "ticks": True,
            "tickColor": faint,
            "tickSize": 4,
        },
        "legend": {
            "labelColor": text,
            "labelFontSize": 12,
            "labelLimit": 240,
            "offset": 8,
            "orient": "top",
            "symbolStrokeWidth": 2,
            "titleColor": faint,
        },
        "text": {"color": faint, "fontSize": 11},
        "point": {"filled": True},
        # How a page marks the trial that the reader picked.
        "style": {
            "picked": {"filled": False, "color": text, "strokeWidth": 2, "size": 380, "opacity": 1},
            "picked-line": {"color": text, "strokeWidth": 6, "opacity": 0.25},
        },
        "line": {"color": BLUE},
    }


def label(text: object, limit: int = _MAX_LABEL) -> str:
    """Return a name as a label of one line: without control characters, at most ``limit`` characters long.

    Parameters
    ----------
    text
        A study's, hyperparameter's or category's name; anything with a ``str()``.
    limit
        In characters, at least 2.
    """
    # Lone surrogates (Cs) cannot be written as UTF-8 at all; unassigned code points are harmless.
    clean = "".join("\ufffd" if unicodedata.category(char) in ("Cc", "Cs") else char for char in str(text)[: limit + 1])
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
