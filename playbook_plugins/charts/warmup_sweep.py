"""How much warmup does training need? The objective against the number of warmup steps.

Playbook: "How can optimization failures be debugged and mitigated?", "Learning rate warmup": find the fewest warmup
steps that allow a peak learning rate well above the one that is unstable without.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from playbook_plugins.analysis import Role, Trials
from playbook_plugins.charts.chart import Chart
from playbook_plugins.charts.learning_rate_sweep import learning_rates, rate_of
from playbook_plugins.charts.palette import GREY, INFEASIBLE, OFF_SCALE
from playbook_plugins.charts.scales import log_ticks, widen
from playbook_plugins.charts.sweeps import MAX_SWEEPS, Sweep, SweepPicture
from playbook_plugins.charts.theme import HEIGHT, SCHEMA, WIDTH, config, label

# Of a continuous rate, so many equal parts of its range, in its search scale.
_N_BUCKETS = 4
# How far to the left of the fewest steps no warmup stands, as a share of the logarithmic axis, and at least.
_GAP, _LEAST_GAP = 0.12, 1.5
_LABEL = "datum.value < 1e4 ? format(datum.value, ',~r') : format(datum.value, '~s')"


def warmup_sweep_chart(
    trials: Trials, warmup_steps: str = "warmup_steps", *, learning_rate: str | None = None
) -> Chart:
    """Draw the objective against the warmup steps, on a logarithmic axis, grouped by the base learning rate.

    Trials without warmup stand at the left, beyond a dashed rule. Each base learning rate has a colour and a shape; of
    more than 7 rates each quarter of the range has. A star marks the best trial of each. Infeasible trials are crosses
    in a strip beyond the worst edge, feasible ones far worse than the rest triangles at that edge. Where the warmups
    were repeated, as on a grid, a line joins the best trial of each.

    Parameters
    ----------
    trials
        The study. Pruned, failed and running trials are left out.
    warmup_steps
        The name of the hyperparameter that holds the warmup steps.
    learning_rate
        That of the base learning rate; by default the only number searched whose name ends in ``learning_rate`` or
        ``lr``, and none where there is none.

    Returns
    -------
    Chart
        Every mark of a trial carries its number in the field ``trial``.

    Raises
    ------
    ValueError
        When the study has no such hyperparameter, or several could be the learning rate.
    """
    if not trials.parameter(warmup_steps).is_numeric:
        raise ValueError(
            f"`warmup_steps` is {warmup_steps!r}: it is no number. Pass the name of the hyperparameter that holds the "
            "warmup steps."
        )
    rate = rate_of(trials, learning_rate) if learning_rate is not None or learning_rates(trials) else None
    steps = np.asarray(trials.values[warmup_steps], dtype=np.float64)
    low, high, zero = _ends(trials, warmup_steps, steps)
    place = np.where(steps > 0, steps, np.where(steps == 0, zero, np.nan))
    series = [
        Sweep(name=name, trials=trials.select(rows), value=steps[rows], x=place[rows])
        for name, rows in _groups(trials, rate, np.isfinite(place)).items()
    ]
    has_zero = any(bool(np.any(sweep.value[sweep.is_shown] == 0)) for sweep in series)
    x = _x(warmup_steps, low, high, zero if has_zero else None)
    picture = SweepPicture(series, x_name=warmup_steps, best_name="best", number="trial")
    layers = _break_layer(np.sqrt(zero * low), x) if has_zero else []
    layers += picture.layers(x, joined=_is_grid(series, trials, {warmup_steps, rate}))
    spec = {
        "$schema": SCHEMA,
        "title": {"text": "Warmup sweep", "subtitle": label(trials.name)},
        "width": WIDTH,
        "height": HEIGHT,
        "config": config(),
        "data": {"values": picture.rows},
        "layer": layers,
    }
    return Chart(spec=spec, title="Warmup sweep", help=_help(picture, rate), alt=_alt(picture, warmup_steps))


def _ends(trials: Trials, warmup_steps: str, steps: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the ends of the logarithmic axis, and where no warmup stands."""
    shown = steps[trials.is_judged & (steps > 0) & np.isfinite(steps)]
    if not len(shown):
        top = trials.parameter(warmup_steps).high
        low, high = (top / 10, top) if top > 0 else (1.0, 10.0)
    else:
        low, high = float(shown.min()), float(shown.max())
    return low, high, low / max((high / low) ** _GAP, _LEAST_GAP)


def _x(name: str, low: float, high: float, zero: float | None) -> dict[str, Any]:
    left, right = widen(low if zero is None else zero, high, True)
    # Less than this between the ends would make rounding visible.
    left, right = left / 1.1, right * 1.1
    ticks = [tick for tick in log_ticks(low / 1.1, right) if tick >= low / 1.1]
    axis: dict[str, Any] = {"title": label(name), "labelOverlap": True, "values": ticks, "labelExpr": _LABEL}
    if zero is not None:
        axis["values"] = [zero, *ticks]
        axis["labelExpr"] = f"datum.value < {np.sqrt(zero * low)} ? '0' : {_LABEL}"
    return {
        "field": "x",
        "type": "quantitative",
        "scale": {"type": "log", "domain": [left, right], "nice": False},
        "axis": axis,
    }


def _groups(trials: Trials, rate: str | None, is_shown: NDArray[np.bool_]) -> dict[str, NDArray[np.intp]]:
    """Return the rows of each base learning rate, or of each quarter of its range, by its label; "" for all."""
    everyone = {"": np.arange(len(trials), dtype=np.intp)}
    if rate is None:
        return everyone
    values = np.asarray(trials.values[rate], dtype=np.float64)
    known = trials.is_judged & is_shown & ~np.isnan(trials.unit(rate))
    distinct = np.unique(values[known])
    if len(distinct) < 2:
        return everyone
    if len(distinct) <= MAX_SWEEPS:
        return {f"{label(rate, 30)} {value:.3g}": np.flatnonzero(known & (values == value)) for value in distinct}
    bucket = np.clip(np.floor(trials.unit(rate) * _N_BUCKETS), 0, _N_BUCKETS - 1)
    parameter = trials.parameter(rate)
    edges = [parameter.from_unit(place / _N_BUCKETS) for place in range(_N_BUCKETS + 1)]
    return {
        f"{label(rate, 30)} {edges[place]:.2g} to {edges[place + 1]:.2g}": np.flatnonzero(known & (bucket == place))
        for place in range(_N_BUCKETS)
        if np.any(known & (bucket == place))
    }


def _is_grid(series: list[Sweep], trials: Trials, swept: set[str | None]) -> bool:
    """Whether nearly every group has nearly every warmup, so that its bests can be joined by a line.

    Where more was searched than warmup and rate, a line needs two trials a place: a single one has the luck of all
    else.
    """
    others = any(one.name not in swept and one.role is not Role.FIXED for one in trials.parameters)
    places = np.unique(np.concatenate([sweep.x[sweep.is_shown] for sweep in series]))
    n_shown = sum(int(sweep.is_shown.sum()) for sweep in series)
    return len(places) * len(series) <= n_shown * (0.5 if others else 1.5)


def _break_layer(at: float, x: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "data": {"values": [{"x": float(at)}]},
            "mark": {"type": "rule", "color": GREY, "strokeDash": [2, 4], "opacity": 0.7, "aria": False},
            "encoding": {"x": x},
        }
    ]


def _help(picture: SweepPicture, rate: str | None) -> str:
    text = "Each mark is a trial, stars the best"
    if not picture.is_single:
        text += f" of each {label(rate)}"
    if INFEASIBLE in picture.kinds:
        text += ", crosses infeasible ones"
    if OFF_SCALE in picture.kinds:
        text += ", triangles those worse than the axis shows"
    return f"{text}. Take the fewest warmup steps with which training is stable at a rate that was unstable without."


def _alt(picture: SweepPicture, warmup_steps: str) -> str:
    parts = []
    for name, sweep in zip(picture.labels, picture.sweeps, strict=True):
        part = f"{name}: " if name else ""
        part += (
            f"{int(sweep.is_shown.sum())} trials, {int((sweep.trials.is_infeasible & sweep.is_shown).sum())} infeasible"
        )
        if sweep.best is not None:
            part += f", the best with {sweep.value[sweep.best]:,.6g} reaches {sweep.trials.objective[sweep.best]:.4g}"
        parts.append(part)
    objective = label(picture.sweeps[0].trials.objective_name)
    return f"Warmup sweep of {objective} against {label(warmup_steps)}. {'; '.join(parts)}."
