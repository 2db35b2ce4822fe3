"""Which learning rate is best, and does instability keep it from being larger? A sweep, then runs above its best.

Playbook: "How can optimization failures be debugged and mitigated?", "Identifying unstable workloads": find the best
learning rate, then look at the loss just above it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage

from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.learning_rate_limit import check_learning_rate_limit
from playbook_plugins.analysis.records import Direction, Status, TrialRecord
from playbook_plugins.analysis.stability import SECTION
from playbook_plugins.analysis.trials import Trials
from playbook_plugins.optuna.plans import Plan, TrainConfig
from playbook_plugins.optuna.protocols import ProtocolResult
from playbook_plugins.optuna.stages import check_config, judge_stability, train_stage

# Rates that differ by less are one: grids are computed in floating point.
_SAME = 1e-9
# A further stage leaves out what differs by less from a rate that was trained.
_NEAR = 1e-3


def learning_rate_sweep(
    train: TrainConfig,
    config: Mapping[str, Any],
    *,
    low: float,
    high: float,
    n_trials: int = 10,
    n_stages: int = 1,
    factors: Sequence[float] = (2.0, 5.0, 10.0),
    limit_config: Mapping[str, Any] | None = None,
    learning_rate: str = "learning_rate",
    study_name: str,
    storage: str | BaseStorage | None = None,
    direction: Direction = "minimize",
    n_jobs: int = 1,
) -> ProtocolResult:
    """Sweep the learning rate, then train at multiples of the best one to see whether instability holds it down.

    Parameters
    ----------
    train
        ``train(config) -> TrialRecord``, with one evaluation of the training loss a step, or nearly so, in the runs
        above the best rate: blow-ups are short. A record keeps 500 evaluations at most.
    config
        What all runs share.
    low, high
        The ends of the sweep, positive; its rates are evenly spaced on a logarithmic scale, both ends included.
    n_trials
        The rates of each stage, at least 3.
    n_stages
        At least 1. Each further stage sweeps between the neighbors of the best rate so far.
    factors
        By what the best rate is multiplied afterwards, ascending, above 1. Beyond 10 nothing counts. A multiple that
        the sweep has trained is not trained again.
    limit_config
        Entries that differ in the runs at the multiples, for instance a ``max_train_steps`` of 500 with an evaluation
        at each. The best rate itself is then trained in this way, too.
    learning_rate
        The entry of the configuration that takes the learning rate.
    study_name
        The beginning of the names: the stages are ``"<study_name>/rates 1"``, ... and ``"<study_name>/limit"``.
    storage, direction, n_jobs
        As in `run_plan`.

    Returns
    -------
    ProtocolResult
        ``recommendation`` has ``"learning_rate"`` (by the name of the entry), the best of the sweep, and
        ``"unstable_base_learning_rate"``, the smallest rate from it upwards that trained unstably: a multiple whose
        loss `check_stability` flags, or any that diverged. Each is left out where there is none. Findings:

        - ``"learning rate sweep"``, subject the entry: FLAG where no rate trained feasibly, or the best one is at an
          end of the sweep, beyond which nothing was tried. Numbers: ``best`` (the rate), ``at_boundary`` (``"lower"``,
          ``"upper"`` or None), ``n_trials``, ``n_feasible``, ``n_smaller``, ``n_larger`` and ``n_larger_infeasible``.
          A plain comparison, without a rate of false flags.
        - that of `check_learning_rate_limit`, with ``best`` and ``unstable_base_learning_rate`` (or None) among its
          numbers. With other factors than 2, 5 and 10 its rate of false flags holds approximately.

    Raises
    ------
    ValueError
        When a number is out of its range, ``config`` holds the learning rate, or a study of these names was begun
        with other arguments.
    """
    _check(low, high, n_trials, n_stages, factors)
    check_config(config, {"learning_rate": learning_rate})
    storage = optuna.storages.get_storage(storage)
    options: dict[str, Any] = {"storage": storage, "direction": direction, "n_jobs": n_jobs}
    trials: dict[str, Trials] = {}
    records: dict[float, TrialRecord] = {}
    rates = _round([float(rate) for rate in np.geomspace(low, high, n_trials)], ends=(low, high))
    for stage in range(1, n_stages + 1):
        plan = Plan(
            goal="Which learning rate is best?",
            points=tuple({learning_rate: rate} for rate in rates),
            fixed=dict(config),
            log=(learning_rate,),
        )
        name = f"rates {stage}"
        trials[name], found = train_stage(plan, train, study_name=f"{study_name}/{name}", **options)
        records |= dict(zip(rates, found, strict=True))
        best = _best_rate(records, direction)
        rates = _between(sorted(records), best, n_trials) if best is not None and stage < n_stages else []
        if not rates:
            break
    best = _best_rate(records, direction)
    runs: dict[float, TrialRecord] = {}
    if best is not None and factors:
        wanted = {factor: _known_rate(best * factor, records) for factor in (1.0, *factors)}
        tried = {factor: rate for factor, rate in wanted.items() if limit_config or rate not in records}
        if tried:
            plan = Plan(
                goal="Does instability keep the best learning rate from being larger?",
                points=tuple({learning_rate: rate} for rate in tried.values()),
                fixed={**config, **(limit_config or {})},
                log=(learning_rate,),
            )
            trials["limit"], found = train_stage(plan, train, study_name=f"{study_name}/limit", **options)
            runs = dict(zip(tried, found, strict=True))
        runs = {factor: runs[factor] if factor in runs else records[rate] for factor, rate in wanted.items()}
    unstable = _smallest_unstable(best, runs, records)
    [limit] = check_learning_rate_limit({float(factor): run for factor, run in runs.items()})
    numbers: dict[str, Number] = {**limit.numbers, "best": best, "unstable_base_learning_rate": unstable}
    recommendation = {learning_rate: best, "unstable_base_learning_rate": unstable}
    return ProtocolResult(
        findings=(
            _judge_sweep(learning_rate, records, best),
            Finding(**{**vars(limit), "numbers": numbers}),
        ),
        recommendation={name: rate for name, rate in recommendation.items() if rate is not None},
        trials=trials,
    )


def _check(low: float, high: float, n_trials: int, n_stages: int, factors: Sequence[float]) -> None:
    if not 0 < low < high < math.inf:
        raise ValueError(
            f"`low` and `high` are {low} and {high}: the ends of a sweep must be positive and finite, and low the "
            "smaller one. Pass for instance low=1e-4, high=1.0."
        )
    for argument, value, least, why in (
        ("n_trials", n_trials, 3, "with fewer rates the best one is always at an end of the sweep"),
        ("n_stages", n_stages, 1, "the first stage is the sweep itself"),
    ):
        if value < least:
            raise ValueError(
                f"`{argument}` is {value}: it must be at least {least}, because {why}. Pass {least} or more."
            )
    if list(factors) != sorted(set(factors)) or not all(1 < factor < math.inf for factor in factors):
        raise ValueError(
            f"`factors` is {tuple(factors)}: the multiples of the best rate must be above 1 and ascend. Pass for "
            "instance (2, 5, 10)."
        )


def _round(rates: Sequence[float], ends: Sequence[float] = ()) -> list[float]:
    """Return rates that people can read, with the ends as they were given."""
    rounded = [float(f"{rate:.4g}") for rate in rates]
    if ends:
        rounded[0], rounded[-1] = float(ends[0]), float(ends[1])
    # Narrow ranges may leave fewer digits than rates.
    return rounded if rounded == sorted(set(rounded)) else list(rates)


def _best_rate(records: Mapping[float, TrialRecord], direction: Direction) -> float | None:
    sign = 1.0 if direction == "minimize" else -1.0
    complete = [rate for rate, run in records.items() if run.status is Status.COMPLETE and math.isfinite(run.objective)]
    return min(complete, key=lambda rate: (sign * records[rate].objective, rate), default=None)


def _known_rate(rate: float, records: Mapping[float, TrialRecord]) -> float:
    """Return the rate of the sweep that this one is, but for rounding, or itself."""
    return next((known for known in records if math.isclose(known, rate, rel_tol=_SAME)), rate)


def _between(rates: Sequence[float], best: float, n_trials: int) -> list[float]:
    """Return new rates around the best one, between its neighbors."""
    place = rates.index(best)
    below, above = rates[max(place - 1, 0)], rates[min(place + 1, len(rates) - 1)]
    new = _round([float(rate) for rate in np.geomspace(below, above, n_trials + 2)[1:-1]])
    return [rate for rate in new if not any(math.isclose(rate, known, rel_tol=_NEAR) for known in rates)]


def _smallest_unstable(
    best: float | None, runs: Mapping[float, TrialRecord], records: Mapping[float, TrialRecord]
) -> float | None:
    if best is None:
        return None
    unstable = [
        _known_rate(best * factor, records) for factor, run in runs.items() if judge_stability(run).is_stable is False
    ]
    # A stable loss is flagged in one of fifty runs: of the many runs of the sweep only those that diverged count.
    diverged = [run for run in records if run > best and records[run].status is Status.INFEASIBLE]
    unstable += [rate for rate in diverged if judge_stability(records[rate]).is_stable is False]
    return min(unstable, default=None)


def _judge_sweep(name: str, records: Mapping[float, TrialRecord], best: float | None) -> Finding:
    feasible = [rate for rate, run in records.items() if run.status is Status.COMPLETE]
    larger = [rate for rate in records if best is not None and rate > best]
    n_smaller = sum(best is not None and rate < best for rate in records)
    side = None if best is None else "lower" if not n_smaller else "upper" if not larger else None
    return Finding(
        check="learning rate sweep",
        subject=name,
        verdict=Verdict.FLAG if best is None or side is not None else Verdict.NO_EVIDENCE,
        numbers={
            "best": best,
            "at_boundary": side,
            "n_trials": len(records),
            "n_feasible": len(feasible),
            "n_smaller": n_smaller,
            "n_larger": len(larger),
            "n_larger_infeasible": sum(records[rate].status is Status.INFEASIBLE for rate in larger),
        },
        section=SECTION,
    )
