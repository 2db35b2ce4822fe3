"""How often did each gradient norm occur, and which norm is the 90th percentile? The histogram of all steps.

Playbook: "How can optimization failures be debugged and mitigated?", "Gradient clipping": clip at the 90th percentile
of the gradient norms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playbook_plugins.analysis import GradientNorms, TrialRecord
from playbook_plugins.charts.chart import Chart
from playbook_plugins.charts.palette import BLUE, GREEN, PURPLE
from playbook_plugins.charts.scales import TINY, ObjectiveScale, widen
from playbook_plugins.charts.theme import HEIGHT, SCHEMA, WIDTH, config


def gradient_norm_histogram(norms: GradientNorms | TrialRecord) -> Chart:
    """Draw how often each gradient norm occurred, with the 90th percentile and the threshold last in force.

    The axis is logarithmic where all norms are positive.

    Parameters
    ----------
    norms
        Every step of a run, or a trial's record, which keeps the histogram of all its steps.

    Raises
    ------
    ValueError
        When there is no norm to count.
    """
    counted = _count_record(norms) if isinstance(norms, TrialRecord) else _count(norms)
    edges, counts = _visible(counted.edges), counted.counts
    is_log = bool(edges[0] > TINY)
    first, last = float(edges[0]), float(edges[-1])
    marks: list[dict[str, Any]] = [
        {"at": counted.p90, "words": f"90th percentile: {counted.p90:.3g}", "kind": "90th percentile"}
    ]
    if math.isfinite(counted.threshold):
        words = f"last threshold: {counted.threshold:.3g}"
        marks.append({"at": counted.threshold, "words": words, "kind": "threshold"})
        first, last = min(first, counted.threshold), max(last, counted.threshold)
    low, high = widen(first, last, is_log)
    scale = ObjectiveScale(low=low, high=high, limit=high, log=is_log, direction="minimize")
    x = scale.y("low", strip=False, title="gradient norm before clipping")
    # The objective's axis, lying down.
    del x["scale"]["range"]
    total = int(counts.sum())
    rows = [
        {"low": float(left), "high": float(right), "count": int(count), "share": int(count) / total}
        for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True)
        if count
    ]
    for place, mark in enumerate(marks):
        unit = _unit(mark["at"], low, high, is_log)
        # Away from the other rule, where there is room; the second label one line lower.
        is_left = unit > (0.5 if len(marks) == 1 else 0.26 if mark["at"] < max(one["at"] for one in marks) else 0.74)
        mark |= {"align": "right" if is_left else "left", "dx": -5 if is_left else 5, "line": place}
    names = [mark["kind"] for mark in marks]
    colours = {"90th percentile": PURPLE, "threshold": GREEN}
    color = {
        "field": "kind",
        "type": "nominal",
        "scale": {"domain": names, "range": [colours[name] for name in names]},
        "legend": None,
    }
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "rect", "color": BLUE, "opacity": 0.75},
            "encoding": {
                "x": x,
                "x2": {"field": "high"},
                "y": {
                    "field": "count",
                    "type": "quantitative",
                    # Room for the two labels.
                    "scale": {"domain": [0, 1.2 * int(counts.max())], "nice": False},
                    "axis": {"title": "number of steps", "tickCount": 5, "format": "~s", "tickMinStep": 1},
                },
                "y2": {"datum": 0},
                "tooltip": [
                    {"field": "low", "title": "from", "type": "quantitative", "format": ".4~g"},
                    {"field": "high", "title": "to", "type": "quantitative", "format": ".4~g"},
                    {"field": "count", "title": "steps", "type": "quantitative", "format": ",d"},
                    {"field": "share", "title": "share", "type": "quantitative", "format": ".1%"},
                ],
            },
        },
        {
            "data": {"values": marks},
            "mark": {"type": "rule", "strokeWidth": 2, "strokeDash": [6, 3]},
            "encoding": {
                "x": x | {"field": "at"},
                "color": color,
                "tooltip": [{"field": "words", "title": "norm", "type": "nominal"}],
            },
        },
    ]
    for mark in marks:
        layers.append(
            {
                "data": {"values": [mark]},
                "mark": {
                    "type": "text",
                    "align": mark["align"],
                    "dx": mark["dx"],
                    "baseline": "top",
                    "fontSize": 12,
                    "aria": False,
                },
                "encoding": {
                    "x": x | {"field": "at"},
                    "y": {"value": 4 + 16 * mark["line"]},
                    "text": {"field": "words"},
                    "color": color,
                },
            }
        )
    spec = {
        "$schema": SCHEMA,
        "title": {"text": "Gradient norms of all steps", "subtitle": f"{total:,} steps"},
        "width": WIDTH,
        "height": HEIGHT,
        "config": config(),
        "data": {"values": rows},
        "layer": layers,
    }
    alt = (
        f"Histogram of the gradient norms of {total:,} steps, from {counted.edges[0]:.4g} to {counted.edges[-1]:.4g}. "
        f"The 90th percentile is {counted.p90:.4g}"
    )
    alt += f", the last threshold {counted.threshold:.4g}." if math.isfinite(counted.threshold) else "."
    help_ = (
        "How often each gradient norm occurred, before clipping. The playbook clips at the 90th percentile; a long "
        "tail to the right is what clipping cuts."
    )
    return Chart(spec=spec, title="Gradient norms of all steps", help=help_, alt=alt)


@dataclass(frozen=True, kw_only=True)
class _Counted:
    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    p90: float
    threshold: float


def _count(norms: GradientNorms) -> _Counted:
    if not len(norms):
        raise ValueError(
            "`norms` is empty: there is no norm to count. Train with PercentileGradientClipping and pass its "
            "history(), or the record of the trial."
        )
    edges, counts = norms.histogram()
    return _Counted(edges=edges, counts=counts, p90=norms.percentile(90), threshold=norms.last_threshold)


def _count_record(record: TrialRecord) -> _Counted:
    edges, counts = record.gradient_norm_histogram
    is_kept = len(counts) and np.isfinite(edges).all() and len(record.gradient_norm_quantiles)
    if not is_kept:
        raise ValueError(
            "`record` keeps no histogram of gradient norms: there is nothing to count. Train with "
            "PercentileGradientClipping beside TrialRecorder, which records them."
        )
    threshold = math.nan
    if np.isfinite(record.curve.gradient_norm).any():
        threshold = GradientNorms.from_record(record).last_threshold
    return _Counted(edges=edges, counts=counts, p90=record.clip_threshold(90), threshold=threshold)


def _visible(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the edges, those of a single bin without width moved apart until it can be seen."""
    low, high = float(edges[0]), float(edges[-1])
    if high - low > 1e-9 * abs(high):
        return edges
    return np.array([low / 1.002, high * 1.002]) if low > TINY else np.array([-1e-3, 1e-3])


def _unit(value: float, low: float, high: float, is_log: bool) -> float:
    if is_log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low)
