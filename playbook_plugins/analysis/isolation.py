"""How does one hyperparameter do, with all others optimized away? The numbers behind the isolation plot.

Playbook: "Detecting whether a change is useful with isolation plots".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.isolation_groups import Groups, Label, group_trials, is_scientific, values_of
from playbook_plugins.analysis.parameters import Parameter
from playbook_plugins.analysis.precedence import Lead, find_lead, find_range_lead
from playbook_plugins.analysis.records import Status
from playbook_plugins.analysis.trials import Trials
from playbook_plugins.analysis.tuning_curve import expected_best, quantile_best

SECTION = "Detecting whether a change is useful with isolation plots"
# More combinations than that have too few trials each to say anything.
_MAX_COMBINATIONS = 24
_ALPHA = 0.05
# From here on the design is taken to be paired; below, a few points met by chance.
_SHARED = 0.5


@dataclass(frozen=True, kw_only=True)
class IsolationGroup:
    """One value, or one bucket of values, of the isolated hyperparameter.

    Attributes
    ----------
    value
        The category or the integer; a tuple of them for a combination; None for a bucket.
    low, high
        The bounds of a bucket, in the hyperparameter's unit: low inclusive, high exclusive except in the last bucket;
        NaN for a single value.
    n_trials
        How many trials say something about it, feasible and infeasible ones. A retrained configuration counts once, by
        its first trial, and a point shared by values of other scientific hyperparameters once, by the best of them.
    n_infeasible
        How many of them are infeasible.
    best_row
        The row of its best trial in the table; None where none is feasible.
    best
        The objective of that trial, in the objective's unit; NaN where none is feasible.
    expected_best, median_best
        The estimates of the mean and of the median of the best of ``equal_count`` trials of such a search, in the
        objective's unit: a comparison that is fair between groups of different size. Of two equally good values with 8
        and 64 trials, either has the better median in 45% to 55% of studies. The mean is the unbiased U-statistic; the
        median is `quantile_best`, so that even at the smallest group's own count it is not its best trial. Infinite
        where so many draws are likely to be all infeasible, NaN for a group without a trial.
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
        Its name; the names of combined ones, joined by commas.
    groups
        In the order of the choices, or from the lowest bucket to the highest; empty ones included, but for
        combinations.
    equal_count
        The m of the fair comparison: the number of trials of the smallest non-empty group.
    """

    parameter: str
    groups: tuple[IsolationGroup, ...]
    equal_count: int


def isolate(trials: Trials, parameter: str | Sequence[str]) -> Isolation:
    """Compare the values of one hyperparameter, or the combinations of several, each at its best over all others.

    Parameters
    ----------
    trials
        The study. Infeasible trials count as worst; pruned, running and failed ones are left out, and so are those
        without the hyperparameter, where it is conditional.
    parameter
        The name of a hyperparameter: categorical, integer, or continuous. Numbers with more than 10 values are taken
        in clip(n // 8, 2, 10) buckets of equal width in the search scale. Or the names of several with at most 10
        integer values or with categories, whose combinations are compared as far as they are present.

    Returns
    -------
    Isolation
        One group a value, bucket or combination.

    Raises
    ------
    ValueError
        When the study has no such hyperparameter, or those named cannot be combined.
    """
    names = [parameter] if isinstance(parameter, str) else list(parameter)
    if not isinstance(parameter, str):
        _check_combination(trials, names)
    groups = group_trials(trials, names, combine=not isinstance(parameter, str))
    members = [groups.rows[groups.place == place] for place in range(len(groups.labels))]
    equal_count = min((len(member) for member in members if len(member)), default=0)
    return Isolation(
        parameter=", ".join(names),
        groups=tuple(
            _group(trials, member, label, equal_count) for member, label in zip(members, groups.labels, strict=True)
        ),
        equal_count=equal_count,
    )


def check_isolation(trials: Trials) -> list[Finding]:
    """Ask of each scientific hyperparameter whether its values differ at their best.

    - **Values** with trials at points of their own: the precedence test (Nelson, 1963). The first ``lead`` trials of
      the ranking are strictly better than the best of every other value. Were the values equally good, each order of
      the trials would be equally likely, and so long a lead for any one value would have the chance ``p``.
    - **Values at shared points**, where at least half of the trials share theirs with another value (the sampler's
      ``scientific`` gives every value the same points). They are compared within the better half of the points, 12 at
      least: were they equally good, the value of the best trial would be the best of k at any other point with the
      chance 1 / k. The precedence test finds hardly anything there: the trials of the best point come first together.
    - **Buckets** of a continuous hyperparameter: the precedence test for ranges. The first ``lead`` trials of the
      ranking lie within 40% of the buckets; ``p`` sums the chances over all such ranges.

    FLAG where p is at most 0.05 divided by the number of questions: one a scientific hyperparameter with at least two
    values to compare, and one for the combinations of the categorical ones where there are several. Ties only shorten a
    lead. A flag says that the values differ; ``p_winner`` says whether the winner is better than every other value. It
    speaks of this search, not of retraining: the winner is to be retrained before it is adopted.

    Parameters
    ----------
    trials
        The study. Infeasible trials count as worst; a value without any feasible trial is left out where two others
        have one. A conditional hyperparameter is asked of the trials that have it. Pruned trials are left out and
        counted, and bias the comparison where they are not few: a pruner stops the values that learn slowly, which
        need not end worse.

    Returns
    -------
    list of Finding
        One a scientific hyperparameter, and one for the combinations ("activation, optimizer"). Numbers: ``n_trials``
        (compared, feasible or not), ``n_pruned``; ``winner`` (the value, those of a combination joined by commas) or,
        of the buckets of the leading trials, ``winner_low`` and ``winner_high``; the same of ``runner_up``; ``best``
        and ``runner_up_best`` (objectives), ``gap`` (>= 0, in the objective's unit); ``lead`` (trials), or ``n_points``
        (shared points compared) and ``n_wins`` (those where the winner is strictly the best); ``p`` and ``allowed_p``;
        ``p_winner`` (the largest chance of such a lead over one other value alone; None for buckets). TOO_LITTLE_DATA
        with fewer than two values to compare, with no feasible trial, where no result could have been a flag, and for
        more than 24 combinations (``n_combinations``).
        ``error_rate`` bounds the share of studies with any flag when all values are equally good. Where one of two
        values is better by two standard deviations of retraining, and the other hyperparameters move the objective by
        five, 90% of studies are flagged with 24 shared points, 30% with 24 trials each at points of their own. Where a
        fifth of a range is better by two standard deviations of all the rest, 65% are flagged with 80 trials.
    """
    questions = _questions(trials)
    compared = {names: group_trials(trials, names, combine=len(names) > 1) for names in questions}
    n_answerable = sum(_is_answerable(names, groups) for names, groups in compared.items())
    allowed = _ALPHA / max(1, n_answerable)
    return [_compare(trials, names, groups, allowed) for names, groups in compared.items()]


def _questions(trials: Trials) -> list[tuple[str, ...]]:
    asked = [
        parameter
        for parameter in trials.parameters
        if is_scientific(parameter)
        and (parameter.low < parameter.high if parameter.is_numeric else len(parameter.choices) > 1)
    ]
    # A conditional one has its combinations with its parent already: they are its values.
    combined = tuple(parameter.name for parameter in asked if not parameter.is_numeric and parameter.condition is None)
    return [(parameter.name,) for parameter in asked] + ([combined] if len(combined) > 1 else [])


def _is_answerable(names: Sequence[str], groups: Groups) -> bool:
    return len(np.unique(groups.place)) > 1 and not _has_too_many(names, groups)


def _has_too_many(names: Sequence[str], groups: Groups) -> bool:
    return len(names) > 1 and len(groups.labels) > _MAX_COMBINATIONS


def _compare(trials: Trials, names: tuple[str, ...], groups: Groups, allowed: float) -> Finding:
    has_all = np.logical_and.reduce([trials.has(name) for name in names])
    numbers: dict[str, Number] = {
        "n_trials": len(groups.rows),
        "n_pruned": int(np.sum(has_all & (trials.status == Status.PRUNED))),
    }
    verdict = Verdict.TOO_LITTLE_DATA
    if _has_too_many(names, groups):
        numbers["n_combinations"] = len(groups.labels)
    lead, p_winner = _find_lead(trials, groups) if _is_answerable(names, groups) else (None, None)
    if lead is not None:
        numbers |= _describe(trials, names, groups, lead)
        numbers |= {"lead": lead.lead} if lead.n_points is None else {"n_points": lead.n_points, "n_wins": lead.n_wins}
        numbers |= {"p": lead.p, "allowed_p": allowed, "p_winner": p_winner}
        if lead.p <= allowed:
            verdict = Verdict.FLAG
        elif lead.least_p <= allowed:
            verdict = Verdict.NO_EVIDENCE
    return Finding(
        check="isolation",
        subject=", ".join(names),
        verdict=verdict,
        numbers=numbers,
        section=SECTION,
        error_rate=_ALPHA,
    )


def _find_lead(trials: Trials, groups: Groups) -> tuple[Lead | None, float | None]:
    """Return the lead, and the largest chance of such a lead over one other value alone (None for buckets)."""
    cost = trials.cost[groups.rows]
    if not math.isnan(groups.labels[0][1]):
        return find_range_lead(cost, groups.place), None
    n_at_point = np.bincount(groups.point)[groups.point]
    point = groups.point if np.mean(n_at_point > 1) >= _SHARED else None
    lead = find_lead(cost, groups.place, point)
    if lead is None:
        return None, None
    rivals = [int(place) for place in np.unique(groups.place[np.isfinite(cost)]) if place != lead.winner]
    one_by_one = [find_lead(cost, groups.place, point, against=rival) for rival in rivals]
    return lead, max((one.p for one in one_by_one if one is not None), default=lead.p)


def _describe(trials: Trials, names: Sequence[str], groups: Groups, lead: Lead) -> dict[str, Number]:
    """Return the winner and the runner-up: their values and the objectives of their best trials."""
    cost = trials.cost[groups.rows]
    parameters = [trials.parameter(name) for name in names]
    sign = 1.0 if trials.direction == "minimize" else -1.0
    best = float(cost.min())
    numbers = _value_numbers("winner", groups.labels[lead.winner], groups.labels[lead.last], parameters)
    numbers["best"] = sign * best
    others = ((groups.place < lead.winner) | (groups.place > lead.last)) & np.isfinite(cost)
    if others.any():
        second = float(cost[others].min())
        place = int(groups.place[others & (cost == second)].min())
        numbers |= _value_numbers("runner_up", groups.labels[place], groups.labels[place], parameters)
        gap = second - best
        numbers |= {"runner_up_best": sign * second, "gap": gap if math.isfinite(gap) else None}
    return numbers


def _value_numbers(name: str, first: Label, last: Label, parameters: Sequence[Parameter]) -> dict[str, Number]:
    value, low, _ = first
    if not math.isnan(low):
        return {f"{name}_low": low, f"{name}_high": last[2]}
    if len(parameters) > 1:
        return {name: ", ".join(str(part) for part in value)}
    return {name: int(value) if parameters[0].is_numeric else str(value)}


def _check_combination(trials: Trials, names: list[str]) -> None:
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"`parameter` is {names}: a combination names at least one hyperparameter, and each once. Pass different "
            "names, or a single name as text."
        )
    continuous = [name for name in names if values_of(trials.parameter(name)) is None]
    if continuous:
        raise ValueError(
            f"`parameter` is {names}, of which {continuous} are taken in buckets: combinations need categories or "
            "integers of at most 10 values. Isolate those by themselves."
        )


def _group(trials: Trials, rows: NDArray[np.intp], label: Label, equal_count: int) -> IsolationGroup:
    value, low, high = label
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
        median_best=sign * quantile_best(cost, equal_count, 0.5) if len(rows) else math.nan,
    )
