"""Which learning rate is best, and where does training break? The objective against the learning rate.

Playbook: "How can optimization failures be debugged and mitigated?", "Identifying unstable workloads": sweep
the learning rate, find the best one, lr*, and see what becomes of larger ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playbook_plugins.analysis import Parameter, Role, Trials, Verdict, check_trial_stability
from playbook_plugins.charts.chart import Chart
from playbook_plugins.charts.palette import INFEASIBLE, OFF_SCALE, RED
from playbook_plugins.charts.scales import STRIP_HEIGHT, parameter_x
from playbook_plugins.charts.sweeps import MAX_SWEEPS, Sweep, SweepPicture
from playbook_plugins.charts.theme import HEIGHT, SCHEMA, WIDTH, config, label

_RATES = ("learning_rate", "lr")


def learning_rate_sweep_chart(trials: Trials | Mapping[str, Trials], *, learning_rate: str | None = None) -> Chart:
    """Draw the objective of one or several sweeps against the learning rate, on a logarithmic axis.

    A star marks the best rate of each sweep, lr*. Infeasible trials are crosses in a strip beyond the worst edge,
    feasible ones far worse than the rest triangles at that edge, see `playbook_plugins.charts.scales`. Where nothing
    but the rate was searched, a line joins the best trial of each rate; and where the trials have curves, a dashed
    rule stands at the smallest rate at which `check_trial_stability` finds that instability limits the rate.

    Parameters
    ----------
    trials
        The study of a sweep; or several by name, for instance ``{"no warmup": ..., "1000 steps of warmup": ...}``, at
        most 7. Pruned, failed and running trials are left out. By the best or the final training loss, pass
        ``trials.with_objective("train")``, with ``moment="final"`` for the final one.
    learning_rate
        The name of the hyperparameter; by default the only number searched whose name ends in ``learning_rate`` or
        ``lr``.

    Returns
    -------
    Chart
        Of a single study every mark of a trial carries its number in the field ``trial``, of several in ``number``.

    Raises
    ------
    ValueError
        When there is no sweep or more than 7, they differ in direction or objective, or none or several
        hyperparameters could be the learning rate.
    """
    sweeps = dict(trials) if isinstance(trials, Mapping) else {"": trials}
    _check(sweeps)
    rate = rate_of(next(iter(sweeps.values())), learning_rate)
    series = [_sweep(name, table, rate) for name, table in sweeps.items()]
    best = [_best_rate(sweep) for sweep in series]
    is_single = not isinstance(trials, Mapping)
    picture = SweepPicture(
        series,
        x_name=rate,
        best_name=f"lr* = {best[0]:.3g}" if is_single and best[0] is not None else "lr*",
        number="trial" if is_single else "number",
    )
    joined, parameter = _axis(series, rate)
    x = parameter_x(joined, parameter, "x")
    limits = [_unstable_rate(sweep, at) for sweep, at in zip(series, best, strict=True)]
    layers = _limit_layers(picture, limits, x)
    layers += picture.layers(x, joined=all(_is_alone(table, rate) for table in sweeps.values()))
    subtitle = label(trials.name) if isinstance(trials, Trials) else label(", ".join(sweeps), 80)
    spec = {
        "$schema": SCHEMA,
        "title": {"text": "Learning rate sweep", "subtitle": subtitle},
        "width": WIDTH,
        "height": HEIGHT,
        "config": config(),
        "data": {"values": picture.rows},
        "layer": layers,
    }
    return Chart(
        spec=spec,
        title="Learning rate sweep",
        help=_help(picture, limits),
        alt=_alt(picture, rate, best, limits),
    )


def rate_of(trials: Trials, learning_rate: str | None) -> str:
    """Return the name of the hyperparameter that is the learning rate.

    Raises
    ------
    ValueError
        When none or several could be, or the one that is named is no number.
    """
    if learning_rate is not None:
        if not trials.parameter(learning_rate).is_numeric:
            raise ValueError(
                f"`learning_rate` is {learning_rate!r}: it is no number. Pass the name of a number that the study "
                "searched."
            )
        return learning_rate
    names = learning_rates(trials)
    if len(names) != 1:
        raise ValueError(
            f"`learning_rate` is None: the study {trials.name!r} has {names} for a learning rate. Pass the name of one "
            f"of {[parameter.name for parameter in trials.parameters]}."
        )
    return names[0]


def learning_rates(trials: Trials) -> list[str]:
    """Return the names of the numbers searched whose name ends as that of a learning rate does."""
    return [
        parameter.name
        for parameter in trials.parameters
        if parameter.role is not Role.FIXED and parameter.kind == "float" and parameter.name.lower().endswith(_RATES)
    ]


def _check(sweeps: dict[str, Trials]) -> None:
    if not 1 <= len(sweeps) <= MAX_SWEEPS:
        raise ValueError(
            f"`trials` has {len(sweeps)} sweeps: it must have 1 to {MAX_SWEEPS}, because more cannot be told apart. "
            "Pass fewer."
        )
    kinds = sorted({(table.direction, table.objective_name) for table in sweeps.values()})
    if len(kinds) > 1:
        raise ValueError(
            f"`trials` has sweeps of the objectives {kinds}: one axis shows one objective. Pass sweeps of the same "
            "direction and objective, see Trials.with_objective."
        )


def _sweep(name: str, trials: Trials, rate: str) -> Sweep:
    trials.parameter(rate)
    value = np.asarray(trials.values[rate], dtype=np.float64)
    return Sweep(name=name, trials=trials, value=value, x=np.where(value > 0, value, np.nan))


def _is_alone(trials: Trials, rate: str) -> bool:
    return all(parameter.name == rate or parameter.role is Role.FIXED for parameter in trials.parameters)


def _best_rate(sweep: Sweep) -> float | None:
    return None if sweep.best is None else float(sweep.value[sweep.best])


def _axis(series: list[Sweep], rate: str) -> tuple[Trials, Parameter]:
    """Return the hyperparameter on its logarithmic axis, with the bounds of all sweeps, and a table of its values."""
    ranges = [sweep.trials.parameter(rate) for sweep in series]
    values = np.concatenate([sweep.x[sweep.is_shown] for sweep in series])
    ends: NDArray[np.float64] = np.array([end for one in ranges for end in (one.low, one.high) if end > 0] + [*values])
    low, high = (float(ends.min()), float(ends.max())) if len(ends) else (1.0, 1.0)
    parameter = Parameter(name=rate, kind="float", low=low, high=high, log=True)
    return Trials.from_columns("", [parameter], {rate: values}, np.zeros(len(values))), parameter


def _unstable_rate(sweep: Sweep, best: float | None) -> float | None:
    """Return the smallest rate at which instability limits the best one, None where none is known."""
    if best is None:
        return None
    for finding in check_trial_stability(sweep.trials):
        if finding.check == "learning rate limit" and finding.verdict is Verdict.FLAG:
            factor = finding.numbers["unstable_factor"]
            return None if factor is None else float(factor) * best
    return None


def _limit_layers(picture: SweepPicture, limits: list[float | None], x: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rules at the rates at which training is unstable, in the colour of their sweep."""
    values = [
        {"x": limit, "words": "unstable", "at": f"{limit:.3g}", "look": name, "sweep": name}
        for limit, name in zip(limits, picture.labels, strict=True)
        if limit is not None
    ]
    if not values:
        return []
    colour = {"value": RED} if picture.is_single else picture.colour()
    words = [
        *([] if picture.is_single else [{"field": "sweep", "title": "sweep", "type": "nominal"}]),
        {"field": "at", "title": "unstable from", "type": "nominal"},
    ]
    rule = {"type": "rule", "strokeDash": [3, 3], "strokeWidth": 1.5, "aria": False}
    text = {"type": "text", "align": "left", "baseline": "bottom", "dx": 4, "aria": False}
    # At the worst edge, where few marks are.
    room = 14 + (STRIP_HEIGHT if INFEASIBLE in picture.kinds else 0)
    edge = {"value": room} if picture.scale.direction == "minimize" else {"value": {"expr": f"height - {room - 8}"}}
    return [
        {"data": {"values": values}, "mark": rule, "encoding": {"x": x, "color": colour, "tooltip": words}},
        {
            "data": {"values": values[:1]},
            "mark": text,
            "encoding": {"x": x, "y": edge, "text": {"field": "words", "type": "nominal"}},
        },
    ]


def _help(picture: SweepPicture, limits: list[float | None]) -> str:
    text = "Each mark is a trial; the star is the best rate, lr*" + ("" if picture.is_single else ", of its sweep")
    if INFEASIBLE in picture.kinds:
        text += ", crosses are infeasible trials"
    if OFF_SCALE in picture.kinds:
        text += ", triangles worse ones than the axis shows"
    if any(limit is not None for limit in limits):
        text += ". From the dashed rule on training is unstable: warmup or clipping may allow larger rates"
    return f"{text}."


def _alt(picture: SweepPicture, rate: str, best: list[float | None], limits: list[float | None]) -> str:
    parts = []
    for name, sweep, at, limit in zip(picture.labels, picture.sweeps, best, limits, strict=True):
        shown = int(sweep.is_shown.sum())
        part = f"{name}: " if name else ""
        part += f"{shown} trials, {int((sweep.trials.is_infeasible & sweep.is_shown).sum())} infeasible"
        if at is not None and sweep.best is not None:
            part += f", the best at {at:.3g} reaches {sweep.trials.objective[sweep.best]:.4g}"
        if limit is not None:
            part += f", unstable from {limit:.3g}"
        parts.append(part)
    objective = label(picture.sweeps[0].trials.objective_name)
    return f"Learning rate sweep of {objective} against {label(rate)}. {'; '.join(parts)}."
