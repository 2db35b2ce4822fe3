"""Which part of the objective and of the search space does a chart show, and on which scale?

The objective's axis has to separate the good trials: in most studies a few feasible trials are worse by orders of
magnitude. It is linear, from the best trial to twice the distance between the best and the third quartile beyond it;
trials worse than that stand at the worst edge as triangles. Where the objective is minimized, positive, and the third
quartile is more than 10 times the best, the same rule holds on a logarithmic axis. Trials without a finite objective
stand in a strip of their own beyond the worst edge.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from playbook_plugins.analysis import Parameter, Trials
from playbook_plugins.analysis.records import Direction
from playbook_plugins.charts.table import choice_labels
from playbook_plugins.charts.theme import label

STRIP_HEIGHT = 30
# Beyond these, sums and ratios of objectives leave the floating-point numbers.
TINY, HUGE = 1e-300, 1e300
# The first steps of training fall from the untrained model's value: this share of them does not choose the axis.
EARLY_SHARE = 0.2
_LOG_RATIO = 10.0
_REACH = 2.0
# Room between the outermost marks and the frame, as a share of what is shown.
_MARGIN = 0.05
# Powers of ten as people write learning rates: 1e-4, 0.001, ..., 1000, 1e5.
_LOG_LABEL = (
    "datum.value < 9e-4 || datum.value >= 1e5 ? replace(format(datum.value, '~e'), '+', '') : format(datum.value, '~g')"
)


@dataclass(frozen=True, kw_only=True)
class ObjectiveScale:
    """The part of the objective that a chart shows.

    Attributes
    ----------
    low, high
        The ends of the axis, in the objective's unit, low < high.
    limit
        The worst value shown at its own place, in the objective's unit; worse ones stand at the edge.
    log
        Whether the axis is logarithmic.
    direction
        Which way the objective gets better.
    n_beyond
        How many of the values are worse than the limit.
    is_empty
        Whether there was no value at all; the axis then has no meaning.
    """

    low: float
    high: float
    limit: float
    log: bool
    direction: Direction
    n_beyond: int = 0
    is_empty: bool = False

    def is_beyond(self, datum: str = "datum.objective") -> str:
        """Return the Vega expression that tells whether a value is worse than the limit."""
        sign = ">" if self.direction == "minimize" else "<"
        return f"isValid({datum}) && {datum} {sign} {self.limit!r}"

    def y(self, field: str, *, strip: bool, title: str) -> dict[str, Any]:
        """Return the encoding of y by a field that holds objectives.

        Parameters
        ----------
        field
            The field's name.
        strip
            Whether to keep room for the strip of trials without a finite objective, beyond the worst edge.
        title
            The axis title.
        """
        room = STRIP_HEIGHT if strip else 0
        scale: dict[str, Any] = {"domain": [self.low, self.high], "nice": False, "clamp": True, **scale_type(self.log)}
        if self.direction == "minimize":
            scale["range"] = [{"expr": "height"}, room]
        else:
            scale["range"] = [{"expr": f"height - {room}"}, 0]
        axis: dict[str, Any] = {"title": title, "tickCount": 6}
        if strip:
            # The strip's own label stands where the tick labels do.
            axis["minExtent"] = 62
        if self.log:
            axis |= {"values": log_ticks(self.low, self.high), "labelExpr": _LOG_LABEL}
        if self.is_empty:
            axis |= {"labels": False, "grid": False}
        return {"field": field, "type": "quantitative", "scale": scale, "axis": axis}

    def strip_y(self) -> dict[str, Any]:
        """Return the y of a mark in the middle of the strip."""
        half = STRIP_HEIGHT // 2 - 2
        return {"value": half} if self.direction == "minimize" else {"value": {"expr": f"height - {half}"}}

    def strip_layers(self, words: str) -> list[dict[str, Any]]:
        """Return the layers that draw the strip itself and its label."""
        top, bottom = (
            (0, STRIP_HEIGHT - 4) if self.direction == "minimize" else (f"height - {STRIP_HEIGHT - 4}", "height")
        )
        once: dict[str, Any] = {"values": [{"words": words}]}
        return [
            {
                "data": once,
                "mark": {"type": "rect", "color": "#d8433b", "opacity": 0.09, "tooltip": None, "aria": False},
                "encoding": {
                    "x": {"value": 0},
                    "x2": {"value": "width"},
                    "y": {"value": {"expr": str(top)}},
                    "y2": {"value": {"expr": str(bottom)}},
                },
            },
            {
                "data": once,
                "mark": {"type": "text", "align": "right", "baseline": "middle", "aria": False},
                "encoding": {"text": {"field": "words"}, "x": {"value": -6}, "y": self.strip_y()},
            },
        ]


def objective_scale(trials: Trials, also: Iterable[float] = ()) -> ObjectiveScale:
    """Choose the axis of the objective, as this module's docstring says.

    Parameters
    ----------
    trials
        The study.
    also
        Objectives that shall not stand at the edge, for instance the best of each group, unless they are beyond three
        times the reach.
    """
    sign = 1.0 if trials.direction == "minimize" else -1.0
    cost = np.clip(np.sort(trials.cost[trials.is_feasible]), -HUGE, HUGE)
    if not len(cost):
        return ObjectiveScale(low=0.0, high=1.0, limit=1.0, log=False, direction=trials.direction, is_empty=True)
    is_log = trials.direction == "minimize" and cost[0] > TINY and np.quantile(cost, 0.75) > _LOG_RATIO * cost[0]
    scaled = np.log10(cost) if is_log else cost
    best, worst = float(scaled[0]), float(scaled[-1])
    span = float(np.quantile(scaled, 0.75)) - best
    # A small excess is shown rather than cut.
    limit = worst if span <= 0 or worst <= best + 1.25 * _REACH * span else best + _REACH * span
    for value in also:
        wanted = sign * value
        if math.isfinite(wanted) and (not is_log or wanted > 0):
            wanted = math.log10(wanted) if is_log else wanted
            if limit < wanted <= best + 3 * _REACH * span:
                limit = wanted
    margin = _MARGIN * (limit - best) or _MARGIN * abs(best) or _MARGIN
    ends = [best - margin, limit + margin]
    n_beyond = int(np.sum(scaled > limit))
    if is_log:
        ends, limit = [10.0**end for end in ends], 10.0**limit
    low, high = sorted(sign * end for end in ends)
    return ObjectiveScale(
        low=low, high=high, limit=sign * limit, log=bool(is_log), direction=trials.direction, n_beyond=n_beyond
    )


def objective_title(trials: Trials) -> str:
    """Return the axis title of the objective, with the direction in which it gets better."""
    return better_title(trials.objective_name, trials.direction)


def better_title(name: str, direction: Direction) -> str:
    """Return the axis title of a value by its name, with the direction in which it gets better."""
    better = "lower" if direction == "minimize" else "higher"
    return f"{label(name, 40)} ({better} is better)"


def step_x(low: float, high: float) -> dict[str, Any]:
    """Return the encoding of x by the field ``step``, in optimizer steps, between two ends."""
    return {
        "field": "step",
        "type": "quantitative",
        "scale": {"domain": [low, high], "nice": False},
        "axis": {"title": "step", "tickCount": 6, "format": "~s"},
    }


def parameter_x(trials: Trials, parameter: Parameter, field: str) -> dict[str, Any]:
    """Return the encoding of x by a hyperparameter: its search scale, from bound to bound and a little beyond.

    Trials outside the bounds, which a user can enqueue, widen the axis.
    """
    title = label(parameter.name)
    if not parameter.is_numeric:
        labels = choice_labels(parameter)
        return {
            "field": field,
            "type": "nominal",
            "scale": {"domain": labels, "padding": 0.1},
            "axis": {"title": title, "labelAngle": 0, "labelLimit": 110, "labelOverlap": True},
        }
    unit = parameter.to_unit(trials.values[parameter.name])
    unit = unit[np.isfinite(unit)]
    first, last = min(0.0, unit.min(initial=0.0)), max(1.0, unit.max(initial=1.0))
    if parameter.low < parameter.high:
        low, high = (parameter.from_unit(end) for end in (first - _MARGIN, last + _MARGIN))
    else:
        low, high = (parameter.low / 2, parameter.low * 2) if parameter.log else (parameter.low - 1, parameter.low + 1)
    axis: dict[str, Any] = {"title": title, "labelOverlap": True, "tickCount": 6}
    if parameter.log:
        axis |= {"values": log_ticks(low, high), "labelExpr": _LOG_LABEL}
    elif parameter.kind == "int":
        axis |= {"tickMinStep": 1, "format": ",d"}
    return {
        "field": field,
        "type": "quantitative",
        "scale": {"domain": [low, high], "nice": False, **scale_type(parameter.log)},
        "axis": axis,
    }


def scale_type(log: bool) -> dict[str, Any]:
    """Return the type of a quantitative scale, and that a linear one need not reach down to zero."""
    return {"type": "log"} if log else {"type": "linear", "zero": False}


def widen(low: float, high: float, is_log: bool) -> tuple[float, float]:
    """Return the ends of an axis, low <= high, with room beyond the outermost marks."""
    if is_log:
        margin = max((high / low) ** _MARGIN, 1.01)
        return low / margin, high * margin
    margin = _MARGIN * (high - low) or _MARGIN * abs(high) or _MARGIN
    return low - margin, high + margin


def log_ticks(low: float, high: float) -> list[float]:
    """Return 3 to about 10 round ticks between two positive numbers on a logarithmic axis."""
    decades = math.log10(high / low)
    digits = (
        (1,) if decades >= 3 else (1, 3) if decades >= 1.5 else (1, 2, 5) if decades >= 0.7 else tuple(range(1, 10))
    )
    every = max(1, math.ceil(decades / 8))
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{digit}e{exponent}") for exponent in exponents if exponent % every == 0 for digit in digits]
    ticks = [tick for tick in ticks if low <= tick <= high]
    if len(ticks) < 2:
        # Less than a decimal step between the ends: three ticks of three digits.
        ticks = sorted({float(f"{low * (high / low) ** share:.3g}") for share in (0.1, 0.5, 0.9)})
    return ticks
