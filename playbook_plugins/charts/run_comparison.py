"""Did the change help these runs? Their objectives over training in one picture, diverged runs too.

Playbook: "How can optimization failures be debugged and mitigated?", whose pictures of an instability, of warmup and of
clipping lay a few runs over one another: with and without a remedy, or at several learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from playbook_plugins.analysis import Status, TrialRecord
from playbook_plugins.analysis.objectives import is_training_minimized
from playbook_plugins.analysis.records import Direction
from playbook_plugins.charts.chart import Chart
from playbook_plugins.charts.palette import CROSS, RED, TRIAL_COLOURS
from playbook_plugins.charts.scales import HUGE, TINY, ObjectiveScale, better_title, step_x, widen
from playbook_plugins.charts.theme import HEIGHT, SCHEMA, WIDTH, config, label

Split: TypeAlias = Literal["training", "validation"]

_MAX_POINTS = 500
# A blow-up is followed up to so many times the value that training began with, or on a linear axis so many times what
# training gained; beyond, nothing else could be seen.
_REACH, _LINEAR_REACH = 10.0, 3.0
# Between these the axis is logarithmic; of more the lower end leaves the frame.
_LOG_RATIO, _LARGEST_RATIO = 10.0, 1e30


@dataclass(frozen=True)
class _Line:
    """One run as it is drawn: steps and means of shape (n_points,), and whether it broke."""

    step: NDArray[np.int64]
    value: NDArray[np.float64]
    n_averaged: int
    is_broken: bool


def run_comparison_chart(
    runs: Mapping[str, TrialRecord], *, split: Split = "training", average: int = 1, title: str = ""
) -> Chart:
    """Draw the objective of a few named runs against the step, whether they trained well or broke.

    A run that is infeasible, or whose objective ceased to be finite, ends in a red cross, at the edge of the frame if
    it left that. The axis is logarithmic where the objective is minimized, positive, and spans a factor of more than
    10. It reaches up to 10 times the worst value that a run began with; a linear axis reaches 3 times as far beyond
    that value as the best one lies below it. Lines that are worse leave the frame.

    Parameters
    ----------
    runs
        Records by the words of the legend; 1 to 8 of them, which get better in one direction.
    split
        ``"training"`` for the training objective, ``"validation"`` for the monitored one.
    average
        How many successive evaluations become one point, their mean, at the last of their steps; 1 or more. Of more
        than 500 points as many are averaged as leave 500.
    title
        The chart's title; by default the objective's name.

    Returns
    -------
    Chart
        Every mark of a run carries its name in the field ``run``.

    Raises
    ------
    ValueError
        When there are no runs or more than can be told apart, when they get better in different directions, when none
        has a finite value, or when ``split`` or ``average`` is out of range.
    """
    _check(runs, split, average)
    names = _legend(runs)
    lines = {name: _line(record, split, average) for name, record in zip(names, runs.values(), strict=True)}
    some = {name: line for name, line in lines.items() if len(line.value)}
    if not some:
        raise ValueError(
            f"`runs` holds no finite {split} objective: there is no line to draw. Pass records of runs that were "
            "evaluated at least once, or the other `split`."
        )
    scale = _scale(list(some.values()), _direction(runs, split))
    last = max(1, *(int(line.step[-1]) for line in some.values()))
    rows = [
        {"run": name, "step": int(step), "value": float(f"{value:.6g}")}
        for name, line in some.items()
        for step, value in zip(line.step, line.value, strict=True)
    ]
    crosses = [{"run": name, **_cross(line, scale)} for name, line in lines.items() if line.is_broken]
    objective = _objective_name(runs, split)
    x = step_x(0, 1.02 * last)
    y = scale.y("value", strip=False, title=better_title(objective, scale.direction))
    # A line that leaves the frame is cut there; a clamped one would run along its edge.
    y["scale"] |= {"clamp": False}
    words = [
        {"field": "run", "title": "run", "type": "nominal"},
        {"field": "step", "title": "step", "type": "quantitative", "format": ",d"},
        {"field": "value", "title": label(objective), "type": "quantitative", "format": ".4~g"},
    ]
    looks = {"domain": names, "range": list(TRIAL_COLOURS[: len(names)])}
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "line", "clip": True, "strokeWidth": 1.8, "opacity": 0.9},
            "encoding": {
                "x": x,
                "y": y,
                "color": {
                    "field": "run",
                    "type": "nominal",
                    "scale": looks,
                    "legend": {"title": None, "symbolType": "stroke", "symbolSize": 300, "columns": 2},
                },
                "tooltip": words,
            },
        }
    ]
    if crosses:
        layers.append(
            {
                "data": {"values": crosses},
                "mark": {"type": "point", "shape": CROSS, "color": RED, "size": 90, "opacity": 1},
                "encoding": {"x": x, "y": y, "tooltip": words[:2]},
            }
        )
    spec = {
        "$schema": SCHEMA,
        "title": {"text": label(title or _sentence(objective))},
        "width": WIDTH,
        "height": HEIGHT,
        "config": config(),
        "data": {"values": rows},
        "layer": layers,
    }
    return Chart(
        spec=spec,
        title=title or _sentence(objective),
        help=_help(some, bool(crosses), scale),
        alt=_alt(objective, lines),
    )


def _check(runs: Mapping[str, TrialRecord], split: str, average: int) -> None:
    if not 1 <= len(runs) <= len(TRIAL_COLOURS):
        raise ValueError(
            f"`runs` holds {len(runs)} runs: there must be 1 to {len(TRIAL_COLOURS)}, because more lines cannot be "
            "told apart. Pass those that are to be compared."
        )
    if split not in ("training", "validation"):
        raise ValueError(f"`split` is {split!r}: it must be 'training' or 'validation'. Pass one of them.")
    if average < 1:
        raise ValueError(
            f"`average` is {average}: it must be 1 or more, the evaluations that become one point. Pass 1 for all."
        )
    directions = {record.direction for record in runs.values()}
    if len(directions) > 1:
        raise ValueError(
            "`runs` holds runs that are minimized and runs that are maximized: they share no axis. Pass records of one "
            "objective."
        )


def _legend(runs: Mapping[str, TrialRecord]) -> list[str]:
    """Return the names as labels that differ, also where they differ only beyond a label's length."""
    labels = [label(name, 40) for name in runs]
    return [
        f"{text} ({labels[: place + 1].count(text)})" if labels.count(text) > 1 else text
        for place, text in enumerate(labels)
    ]


def _direction(runs: Mapping[str, TrialRecord], split: Split) -> Direction:
    direction = next(iter(runs.values())).direction
    if split == "validation":
        return direction
    is_minimized = all(is_training_minimized(record.curve, direction) for record in runs.values())
    return "minimize" if is_minimized else direction


def _objective_name(runs: Mapping[str, TrialRecord], split: Split) -> str:
    names = {record.objective_name for record in runs.values()}
    known = names.pop() if len(names) == 1 else "objective"
    return known if split == "validation" else "training objective"


def _line(record: TrialRecord, split: Split, average: int) -> _Line:
    curve = record.curve
    column = curve.train if split == "training" else curve.validation
    known = np.flatnonzero(np.isfinite(column))
    n_averaged = max(average, math.ceil(len(known) / _MAX_POINTS))
    # Sums of the largest numbers would not be finite.
    values, ends = np.clip(column[known], -HUGE, HUGE), np.arange(0, len(known), n_averaged)
    counts = np.diff([*ends, len(known)])
    means = np.add.reduceat(values, ends) / counts if len(known) else values
    rows = known[np.minimum(ends + n_averaged, len(known)) - 1] if len(known) else known
    # Unknown in between, or never known, is no break.
    is_broken = record.status is Status.INFEASIBLE or (len(known) > 0 and known[-1] < len(curve) - 1)
    return _Line(curve.step[rows], means, n_averaged, is_broken)


def _scale(lines: list[_Line], direction: Direction) -> ObjectiveScale:
    sign = 1.0 if direction == "minimize" else -1.0
    costs = [sign * line.value for line in lines]
    best, worst = min(float(cost.min()) for cost in costs), max(float(cost.max()) for cost in costs)
    start = max(float(cost[0]) for cost in costs)
    is_log = sign > 0 and best > TINY and worst > _LOG_RATIO * best
    if is_log:
        worst = min(worst, _REACH * start)
        best = max(best, worst / _LARGEST_RATIO)
    elif start > best:
        worst = min(worst, start + _LINEAR_REACH * (start - best))
    ends = [sign * end for end in widen(best, worst, is_log)]
    return ObjectiveScale(low=min(ends), high=max(ends), limit=sign * worst, log=is_log, direction=direction)


def _cross(line: _Line, scale: ObjectiveScale) -> dict[str, Any]:
    """Return where a broken line ends: at its last value, or at the edge where it left the frame for good."""
    sign = 1.0 if scale.direction == "minimize" else -1.0
    inside = np.flatnonzero(sign * line.value <= sign * scale.limit)
    place = min(int(inside[-1]) + 1 if len(inside) else 0, len(line.value) - 1)
    if place < 0:
        return {"step": 0, "value": float(f"{scale.limit:.6g}")}
    value = sign * min(sign * float(line.value[place]), sign * scale.limit)
    return {"step": int(line.step[place]), "value": float(f"{value:.6g}")}


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _help(lines: Mapping[str, _Line], has_crosses: bool, scale: ObjectiveScale) -> str:
    parts = ["Each line is a run"]
    n_averaged = {line.n_averaged for line in lines.values()}
    if n_averaged != {1}:
        parts.append(f"each point the mean of {' or '.join(map(str, sorted(n_averaged)))} evaluations")
    if has_crosses:
        parts.append("a cross marks where one broke")
    sign = 1.0 if scale.direction == "minimize" else -1.0
    if any(np.any(sign * line.value > sign * scale.limit) for line in lines.values()):
        parts.append("a line that leaves the frame is worse than the axis shows")
    return f"{', '.join(parts)}."


def _alt(objective: str, lines: Mapping[str, _Line]) -> str:
    parts = []
    for name, line in lines.items():
        end = f"ends at {line.value[-1]:.4g} (step {line.step[-1]:,})" if len(line.value) else "has no finite value"
        parts.append(f"{name} {end}" + (", broken" if line.is_broken else ""))
    return f"{_sentence(label(objective))} over training: {'; '.join(parts)}."
