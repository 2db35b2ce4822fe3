"""How does one hyperparameter do, with all others optimized away? The numbers behind the isolation plot.

Playbook: "Detecting whether a change is useful with isolation plots".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from playbook_plugins.analysis.budget import expected_best, median_best
from playbook_plugins.analysis.findings import Finding, Verdict
from playbook_plugins.analysis.parameters import Parameter, Role
from playbook_plugins.analysis.trials import Trials

SECTION = "Detecting whether a change is useful with isolation plots"
# Up to here an integer hyperparameter is shown value by value; beyond, in buckets.
_MAX_INTEGER_VALUES = 10
_ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class IsolationGroup:
    """One value, or one bucket of values, of the isolated hyperparameter.

    Attributes
    ----------
    value
        The category or the integer; None for a bucket.
    low, high
        The bounds of a bucket, in the hyperparameter's unit: low inclusive, high exclusive except in the last bucket;
        NaN for a single value.
    n_trials
        How many trials say something about it: feasible and infeasible ones, repeated points counted once.
    n_infeasible
        How many of them are infeasible.
    best_row
        The row of its best trial in the table; None where none is feasible.
    best
        The objective of that trial, in the objective's unit; NaN where none is feasible.
    expected_best, median_best
        The mean and the median of the best of ``equal_count`` trials, in the objective's unit: a comparison that is
        fair between groups of different size. Infinite where it does not exist, NaN for a group without a trial.
    """

    value: Any
    low: float
    high: float
    n_trials: int
    n_infeasible: int
    best_row: int | None
    best: float
    expected_best: float
    median_best: float


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """The isolated hyperparameter, group by group.

    Attributes
    ----------
    parameter
        Its name.
    groups
        In the order of the choices, or from the lowest bucket to the highest; empty ones included.
    equal_count
        The m of the fair comparison: the number of trials of the smallest non-empty group.
    """

    parameter: str
    groups: tuple[IsolationGroup, ...]
    equal_count: int


def isolate(trials: Trials, parameter: str) -> Isolation:
    """Compare the values of one hyperparameter, each at its best over all others.

    Parameters
    ----------
    trials
        The study. Infeasible trials count as worst; pruned, running and failed ones are left out.
    parameter
        The name of a hyperparameter: categorical, integer, or continuous. Numbers with more than 10 values are taken
        in clip(n // 8, 2, 10) buckets of equal width in the search scale.

    Returns
    -------
    Isolation
        One group a value or bucket.

    Raises
    ------
    ValueError
        When the study has no such hyperparameter.
    """
    subject = trials.parameter(parameter)
    rows = np.flatnonzero(trials.is_judged & trials.has(parameter))
    if subject.role is not Role.SCIENTIFIC:
        rows = trials.distinct(rows)
    places, labels = _split(subject, trials.values[parameter][rows])
    members = [rows[places == place] for place in range(len(labels))]
    equal_count = min((len(member) for member in members if len(member)), default=0)
    return Isolation(
        parameter=parameter,
        groups=tuple(
            _group(trials, member, *label, equal_count) for member, label in zip(members, labels, strict=True)
        ),
        equal_count=equal_count,
    )


def check_isolation(trials: Trials) -> list[Finding]:
    """Ask of each scientific hyperparameter whether its values differ at their best.

    The precedence test (Nelson, 1963): of all trials, the first ``lead`` in the ranking are strictly better than the
    best trial of every other value. Were the values equally good, each order of the trials would be equally likely,
    and so long a lead for any one value would have the chance ``p``. FLAG at p <= 0.05; ties only shorten the lead.
    It speaks of this search, not of retraining: one lucky trial leads by 1 only, but the winner is to be retrained
    before it is adopted.

    Parameters
    ----------
    trials
        The study.

    Returns
    -------
    list of Finding
        One a categorical scientific hyperparameter. Numbers: ``winner`` (its value), ``best`` and ``runner_up_best``
        (objectives), ``runner_up``, ``gap`` (>= 0, in the objective's unit), ``lead`` (trials), ``p``.
    """
    findings = []
    for parameter in trials.parameters:
        if parameter.role is Role.SCIENTIFIC and not parameter.is_numeric and len(parameter.choices) > 1:
            findings.append(_compare(trials, parameter))
    return findings


def _compare(trials: Trials, parameter: Parameter) -> Finding:
    isolation = isolate(trials, parameter.name)
    ranked = sorted(
        (group for group in isolation.groups if group.best_row is not None),
        key=lambda group: trials.cost[group.best_row],
    )
    counts = [group.n_trials for group in isolation.groups]
    question: dict[str, Any] = {
        "check": "isolation",
        "subject": parameter.name,
        "section": SECTION,
        "error_rate": _ALPHA,
    }
    if not ranked or sum(count > 0 for count in counts) < 2:
        return Finding(**question, verdict=Verdict.TOO_LITTLE_DATA, numbers={"n_trials": sum(counts)})
    winner = ranked[0]
    numbers: dict[str, Any] = {"n_trials": sum(counts), "winner": str(winner.value), "best": winner.best}
    rows = np.flatnonzero(trials.is_judged & trials.has(parameter.name))
    cost = trials.cost[rows]
    is_winner = np.array(
        [parameter.rank(value) == parameter.rank(winner.value) for value in trials.values[parameter.name][rows]]
    )
    lead = int(np.sum(cost < cost[~is_winner].min()))
    numbers["lead"] = lead
    numbers["p"] = _chance_of_lead(lead, counts)
    if len(ranked) > 1:
        numbers |= {"runner_up": str(ranked[1].value), "runner_up_best": ranked[1].best}
        numbers["gap"] = abs(winner.best - ranked[1].best)
    verdict = Verdict.FLAG if numbers["p"] <= _ALPHA else Verdict.NO_EVIDENCE
    if verdict is Verdict.NO_EVIDENCE and _chance_of_lead(winner.n_trials, counts) > _ALPHA:
        verdict = Verdict.TOO_LITTLE_DATA
    return Finding(**question, verdict=verdict, numbers=numbers)


def _chance_of_lead(lead: int, counts: list[int]) -> float:
    """Return the chance that the first ``lead`` of a random order all belong to one group, shape of counts (K,)."""
    n_trials = sum(counts)

    def log_choose(n: int, k: int) -> float:
        return float(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))

    chance = sum(
        math.exp(log_choose(n_trials - lead, count - lead) - log_choose(n_trials, count))
        for count in counts
        if count >= lead
    )
    return min(1.0, chance)


def _split(parameter: Parameter, values: NDArray[Any]) -> tuple[NDArray[np.intp], list[tuple[Any, float, float]]]:
    """Return the group of each value, shape (n,), and (value, low, high) of each group."""
    nan = math.nan
    if not parameter.is_numeric:
        ranks = [parameter.rank(value) for value in values]
        return np.array(ranks, dtype=np.intp), [(choice, nan, nan) for choice in parameter.choices]
    if parameter.kind == "int":
        spacing = parameter.step or 1
        n_values = int((parameter.high - parameter.low) // spacing) + 1
        if n_values <= _MAX_INTEGER_VALUES:
            grid = [int(parameter.low + place * spacing) for place in range(n_values)]
            return np.rint((values - parameter.low) / spacing).astype(np.intp), [(number, nan, nan) for number in grid]
    n_buckets = int(np.clip(len(values) // 8, 2, 10))
    places = np.clip((parameter.to_unit(values) * n_buckets).astype(np.intp), 0, n_buckets - 1)
    edges = [parameter.from_unit(place / n_buckets) for place in range(n_buckets + 1)]
    return places, [(None, edges[place], edges[place + 1]) for place in range(n_buckets)]


def _group(
    trials: Trials, rows: NDArray[np.intp], value: Any, low: float, high: float, equal_count: int
) -> IsolationGroup:
    cost = trials.cost[rows]
    sign = 1.0 if trials.direction == "minimize" else -1.0
    has_feasible = bool(np.isfinite(cost).any())
    best_row = int(rows[np.argmin(cost)]) if has_feasible else None
    return IsolationGroup(
        value=value,
        low=low,
        high=high,
        n_trials=len(rows),
        n_infeasible=int(trials.is_infeasible[rows].sum()),
        best_row=best_row,
        best=float(trials.objective[best_row]) if best_row is not None else math.nan,
        expected_best=sign * expected_best(cost, equal_count) if len(rows) else math.nan,
        median_best=sign * median_best(cost, equal_count) if len(rows) else math.nan,
    )
