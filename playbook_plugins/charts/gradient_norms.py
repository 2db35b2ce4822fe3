"""Which gradients were outliers, and where was clipped? The norm of the gradient over training.

Playbook: "How can optimization failures be debugged and mitigated?", "Gradient clipping": clip at the 90th percentile
of the gradient norms.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playbook_plugins.analysis import TrialRecord
from playbook_plugins.analysis.gradient_norms import GradientNorms
from playbook_plugins.charts.chart import Chart
from playbook_plugins.charts.legend import mark_legend
from playbook_plugins.charts.palette import BAR, BLUE, CROSS, GREEN, GREY, ORANGE, RED
from playbook_plugins.charts.scales import TINY, ObjectiveScale, step_x, widen
from playbook_plugins.charts.table import finite
from playbook_plugins.charts.theme import HEIGHT, SCHEMA, WIDTH, config

MAX_ROWS = 2000
_LOG_RATIO = 10.0
_NORM, _CLIPPED, _THRESHOLD = "norm", "clipped", "threshold"
_MEDIAN, _MEDIAN_CLIPPED, _LARGEST = "median norm", "median above the threshold", "largest norm"
# Colour, shape and area of each mark, in the order of the legend.
_MARKS: dict[str, tuple[str, str, int]] = {
    _NORM: (BLUE, "circle", 14),
    _MEDIAN: (BLUE, "circle", 26),
    _LARGEST: (GREY, "diamond", 22),
    _CLIPPED: (ORANGE, "triangle-up", 26),
    _MEDIAN_CLIPPED: (ORANGE, "triangle-up", 40),
    _THRESHOLD: (GREEN, BAR, 90),
}


def gradient_norm_chart(norms: GradientNorms | TrialRecord) -> Chart:
    """Draw the unclipped gradient norm against the step, and the threshold in force.

    Clipped updates are triangles above the stepped line of the threshold; updates whose norm was NaN or infinite are
    red crosses in a strip at the top. The axis is logarithmic where all norms are positive and span a factor of more
    than 10.

    Parameters
    ----------
    norms
        Every step of a run, from `PercentileGradientClipping.history`; of more than 1800 the extremes are kept. Or a
        trial's record, which knows the median, and where recorded the largest, of each stretch between evaluations.

    Returns
    -------
    Chart
        At most 2000 rows of data.

    Raises
    ------
    ValueError
        When there is no norm to show.
    """
    is_record = isinstance(norms, TrialRecord)
    every = GradientNorms.from_record(norms) if isinstance(norms, TrialRecord) else norms
    if not len(every) and not len(every.nonfinite):
        raise ValueError(
            "`norms` is empty: there is no update to show. Train with PercentileGradientClipping and pass its "
            "history(), or the record of the trial."
        )
    shown = every.thin(MAX_ROWS * 9 // 10)
    rows = _norm_rows(shown, *((_MEDIAN, _MEDIAN_CLIPPED) if is_record else (_NORM, _CLIPPED)))
    if isinstance(norms, TrialRecord):
        rows = _largest_rows(norms) + rows
    crosses = [{"step": int(step)} for step in shown.nonfinite]
    seen = [value for row in rows for value in (row["norm"], row["threshold"]) if value is not None]
    scale = _norm_scale(np.array(seen))
    last = max([1, *(row["step"] for row in rows + crosses)])
    x = step_x(-0.01 * last, 1.01 * last)
    y = scale.y("norm", strip=bool(crosses), title="gradient norm before clipping")
    has_threshold = any(row["threshold"] is not None for row in rows)
    kinds = {row["kind"] for row in rows} | ({_THRESHOLD} if has_threshold else set())
    looks = mark_legend({kind: look for kind, look in _MARKS.items() if kind in kinds}, field="kind")
    layers: list[dict[str, Any]] = []
    if crosses:
        layers += scale.strip_layers("not finite")
        layers.append(
            {
                "data": {"values": crosses},
                "mark": {"type": "point", "shape": CROSS, "color": RED, "size": 64, "opacity": 0.8},
                "encoding": {"x": x, "y": scale.strip_y(), "tooltip": [_STEP]},
            }
        )
    layers.append(
        {
            "mark": {"type": "point", "opacity": 0.65},
            "encoding": {"x": x, "y": y, **looks, "size": _SIZE, "tooltip": [_STEP, *_WORDS]},
        }
    )
    if has_threshold:
        layers.append(
            {
                "transform": [{"filter": "isValid(datum.threshold)"}],
                "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 2, "clip": True},
                "encoding": {
                    "x": x,
                    "y": y | {"field": "threshold"},
                    "color": looks["color"] | {"field": "line"},
                },
            }
        )
    spec = {
        "$schema": SCHEMA,
        "title": {"text": "Gradient norm over training", "subtitle": _summary(norms, every)},
        "width": WIDTH,
        "height": HEIGHT,
        "config": config(),
        "data": {"values": rows},
        "layer": layers,
    }
    help_ = _chart_help(is_record)
    if len(shown) < len(every):
        help_ += f" Of {len(every):,} norms {len(shown):,} are drawn, the outliers among them."
    return Chart(spec=spec, title="Gradient norm over training", help=help_, alt=_alt(norms, every))


_STEP = {"field": "step", "title": "step", "type": "quantitative", "format": ",d"}
_WORDS = [
    {"field": "kind", "title": "what", "type": "nominal"},
    {"field": "norm", "title": "norm", "type": "quantitative", "format": ".4~g"},
    {"field": "threshold", "title": "threshold", "type": "quantitative", "format": ".4~g"},
]
_SIZE = {"field": "area", "type": "quantitative", "scale": None}


def _norm_rows(norms: GradientNorms, usual: str, clipped: str) -> list[dict[str, Any]]:
    columns = zip(norms.update, norms.norm, norms.threshold, norms.clipped, strict=True)
    rows = [_row(*column[:3], clipped if column[3] else usual) for column in columns]
    # What comes later is drawn on top.
    return sorted(rows, key=lambda row: bool(row["kind"] == clipped))


def _largest_rows(record: TrialRecord) -> list[dict[str, Any]]:
    """Return a row for the largest norm of each stretch, where the record has it."""
    largest = np.asarray(getattr(record.curve, "gradient_norm_max", ()), dtype=np.float64)
    if len(largest) != len(record.curve):
        return []
    known = np.flatnonzero(np.isfinite(largest))
    known = known[np.linspace(0, len(known) - 1, min(len(known), MAX_ROWS // 10)).round().astype(np.intp)]
    return [_row(record.curve.step[row], largest[row], math.nan, _LARGEST) for row in known]


def _row(step: np.int64, norm: np.float64, threshold: float, kind: str) -> dict[str, Any]:
    # Six digits are more than a mark can show, and a third of the size.
    return {
        "step": int(step),
        "norm": float(f"{norm:.6g}"),
        "threshold": finite(float(f"{threshold:.6g}")),
        "kind": kind,
        "area": _MARKS[kind][2],
        "line": _THRESHOLD,
    }


def _norm_scale(values: NDArray[np.float64]) -> ObjectiveScale:
    if not len(values):
        return ObjectiveScale(low=0.0, high=1.0, limit=1.0, log=False, direction="minimize", is_empty=True)
    low, high = float(values.min()), float(values.max())
    is_log = low > TINY and high > _LOG_RATIO * low
    low, high = widen(low, high, is_log)
    return ObjectiveScale(low=low if is_log else max(low, 0.0), high=high, limit=high, log=is_log, direction="minimize")


def _summary(norms: GradientNorms | TrialRecord, every: GradientNorms) -> str:
    if isinstance(norms, TrialRecord):
        text = f"{len(every):,} stretches between evaluations"
        share = norms.clipped_share
    else:
        text, share = f"{len(every) + len(every.nonfinite):,} steps", every.clipped_share
    text += f", {share:.1%} of the updates clipped" if math.isfinite(share) else ""
    return text + (f", {len(every.nonfinite):,} not finite" if len(every.nonfinite) else "")


def _chart_help(is_record: bool) -> str:
    what = "median norm between two evaluations" if is_record else "norm of one update's gradient before clipping"
    return (
        f"Each dot is the {what}, triangles lie above the threshold in force. Outliers are what clipping cuts; if more "
        "than half of the updates are clipped, the playbook lowers the learning rate instead."
    )


def _alt(norms: GradientNorms | TrialRecord, every: GradientNorms) -> str:
    text = f"Gradient norm over training: {_summary(norms, every)}."
    if len(every):
        text += (
            f" The {'medians' if isinstance(norms, TrialRecord) else 'norms'} go from {every.norm.min():.4g} to "
            f"{every.norm.max():.4g}, their 90th percentile is {every.percentile(90):.4g}."
        )
    if math.isfinite(every.last_threshold):
        text += f" The threshold ends at {every.last_threshold:.4g}."
    return text
