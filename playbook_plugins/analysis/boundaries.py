"""Is the search space large enough? Bounds at which the best trials crowd, and edges beyond which training breaks.

Playbook: "Identifying bad search space boundaries": a study whose best point lies near the edge of the search space
should be widened; where points beyond a learning rate fail, training should be made stable instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom, rankdata, t

from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.parameters import Parameter, Role
from playbook_plugins.analysis.trials import Trials

SECTION = "Identifying bad search space boundaries"
Side: TypeAlias = Literal["lower", "upper"]

# The outer part of the scaled range that counts as close to a bound.
_OUTER = 0.2
_MIN_POINTS = 8
_MIN_FEASIBLE = 4
# Shared by all the sides of a study, so that its chance of any false flag is bounded whatever its number of
# hyperparameters. Together they give the error rate below (tests/test_boundaries.py simulates it).
_CROWDING_LEVEL = 0.20
_SLOPE_LEVEL = 0.05
_ERROR_RATE = 0.09
_EDGE_LEVEL = 0.05
_EDGE_SHARE = 0.9


@dataclass(frozen=True)
class _Question:
    """One hyperparameter, asked of all trials or of those with one scientific value."""

    parameter: Parameter
    rows: NDArray[np.intp]
    others: tuple[Parameter, ...]
    value: str | None = None


def check_boundaries(trials: Trials) -> list[Finding]:
    """Ask of each bound of each number whether the optimum may lie beyond it.

    A side is flagged when one of two rules says so, with d questions (hyperparameters, each asked of the study and,
    where it is shared by scientific values, of each of these by itself) in the study:

    - crowding: the best trial lies in the outer 20% of the scaled range, and so many of the best
      k = max(4, ceil(0.2 n)) do that the hypergeometric chance is at most 0.20 / (2 d);
    - slope: the ranks of the objective, fitted by an additive quadratic in all hyperparameters, still improve at the
      bound, one-sided t-test at 0.05 / (2 d); it does not count where most trials in the outer 20% are infeasible,
      whose equal ranks bend the fit.

    Infeasible trials count as worst; repeated points count once, by their best. Where at least 90% of the trials
    beyond a threshold are infeasible and the best trial lies just below it, the finding is a **stability edge**
    instead: a wider range would only find more divergence; warmup or clipping may move the edge.

    Parameters
    ----------
    trials
        The study.

    Returns
    -------
    list of Finding
        Two for each question, ``check`` being ``"boundary"`` or ``"stability edge"`` and ``subject``
        ``"<name>, lower"`` or ``"<name>, upper"``. Numbers of a boundary: ``n_points``, ``best`` and ``bound`` (in
        the hyperparameter's unit), ``k``, ``k_outer`` (of the best k, those in the outer 20%), ``p`` and
        ``allowed_p`` of the crowding, ``slope_p`` and ``allowed_slope_p``; of an edge: ``threshold`` and ``best`` (in
        the hyperparameter's unit), ``n_beyond``, ``share_infeasible_beyond``, ``share_infeasible_before``, ``p``.
        ``value`` names the scientific value a question was asked of. TOO_LITTLE_DATA below 8 points, below 4
        feasible ones, or where no result could have been significant.
    """
    questions = list(_questions(trials))
    findings = []
    for question in questions:
        for side in _sides():
            edge = _find_stability_edge(trials, question, side, len(questions))
            findings.append(edge or _judge_side(trials, question, side, len(questions)))
    return findings


def _sides() -> tuple[Side, Side]:
    return ("lower", "upper")


def _questions(trials: Trials) -> Iterator[_Question]:
    numbers = [
        parameter
        for parameter in trials.parameters
        if parameter.is_numeric and parameter.role is not Role.FIXED and parameter.low < parameter.high
    ]
    scientific = [
        parameter
        for parameter in trials.parameters
        if parameter.role is Role.SCIENTIFIC and not parameter.is_numeric and len(parameter.choices) > 1
    ]
    for parameter in numbers:
        others = tuple(
            other
            for other in numbers
            if other is not parameter and (other.condition is None or other.condition == parameter.condition)
        )
        rows = np.flatnonzero(trials.is_judged & trials.has(parameter.name))
        yield _Question(parameter, trials.distinct(rows), others)
        if parameter.condition is not None:
            continue
        for group in scientific:
            column = trials.values[group.name][rows]
            for choice in group.choices:
                same = np.array([group.rank(value) == group.rank(choice) for value in column], dtype=np.bool_)
                branch = tuple(
                    other
                    for other in numbers
                    if other is not parameter and other.condition in (None, (group.name, choice))
                )
                yield _Question(parameter, trials.distinct(rows[same]), branch, f"{group.name}={choice}")


def _subject(question: _Question, side: Side) -> tuple[str, dict[str, Number]]:
    where: dict[str, Number] = {} if question.value is None else {"value": question.value}
    return f"{question.parameter.name}, {side}", where


def _from_bound(trials: Trials, question: _Question, side: Side) -> NDArray[np.float64]:
    """Return how far each point lies from the other bound, shape (n_points,): 1 is the bound that is asked about."""
    unit = question.parameter.to_unit(trials.values[question.parameter.name][question.rows])
    return unit if side == "upper" else 1.0 - unit


def _judge_side(trials: Trials, question: _Question, side: Side, n_questions: int) -> Finding:
    subject, numbers = _subject(question, side)
    rows = question.rows
    n_points = len(rows)
    numbers["n_points"] = n_points
    finding = Finding(
        check="boundary",
        subject=subject,
        verdict=Verdict.TOO_LITTLE_DATA,
        numbers=numbers,
        section=SECTION,
        error_rate=_ERROR_RATE,
    )
    cost = trials.cost[rows]
    n_feasible = int(np.isfinite(cost).sum())
    if n_points < _MIN_POINTS or n_feasible < _MIN_FEASIBLE:
        return finding
    place = _from_bound(trials, question, side)
    order = np.argsort(cost, kind="stable")
    is_outer = place >= 1.0 - _OUTER
    k = min(max(4, math.ceil(0.2 * n_points)), n_feasible)
    k_outer = int(is_outer[order[:k]].sum())
    n_outer = int(is_outer.sum())
    chance = float(hypergeom.sf(k_outer - 1, n_points, n_outer, k))
    allowed = _CROWDING_LEVEL / (2 * n_questions)
    slope_p = _slope_p(trials, question, side)
    allowed_slope = _SLOPE_LEVEL / (2 * n_questions)
    parameter = question.parameter
    numbers |= {
        "best": float(trials.values[parameter.name][rows[order[0]]]),
        "bound": float(parameter.low if side == "lower" else parameter.high),
        "k": k,
        "k_outer": k_outer,
        "p": chance,
        "allowed_p": allowed,
        "slope_p": slope_p,
        "allowed_slope_p": allowed_slope,
    }
    crowded = bool(is_outer[order[0]]) and chance <= allowed
    is_slope_known = not is_outer.any() or float(np.isinf(cost[is_outer]).mean()) <= 0.5
    if crowded or (is_slope_known and slope_p <= allowed_slope):
        verdict = Verdict.FLAG
    elif hypergeom.sf(min(k, n_outer) - 1, n_points, n_outer, k) > allowed:
        verdict = Verdict.TOO_LITTLE_DATA
    else:
        verdict = Verdict.NO_EVIDENCE
    return replace(finding, verdict=verdict, numbers=numbers)


def _slope_p(trials: Trials, question: _Question, side: Side) -> float:
    """Return the one-sided p-value that the ranks of the objective still improve at the bound.

    The other hyperparameters join the fit where there are points enough, n > 2 d + 8: what they explain is not noise.
    """
    rows = question.rows
    n_points = len(rows)
    columns = [_from_bound(trials, question, side) - 0.5]
    n_others = (n_points - 9) // 2 - 1
    columns += [
        other.to_unit(trials.values[other.name][rows]) - 0.5
        for other in question.others
        if len(question.others) <= n_others
    ]
    design = np.column_stack([np.ones(n_points), *columns, *(column**2 for column in columns)])
    ranks = rankdata(trials.cost[rows])
    freedom = n_points - int(np.linalg.matrix_rank(design))
    if freedom < 1:
        return 1.0
    inverse = np.linalg.pinv(design.T @ design)
    weights = inverse @ (design.T @ ranks)
    residual = ranks - design @ weights
    # d/du (b u + c u^2) at u = 0.5, the bound, with u measured from the middle of the range.
    contrast = np.zeros(design.shape[1])
    contrast[1] = 1.0
    contrast[1 + len(columns)] = 1.0
    spread = float(residual @ residual) / freedom * float(contrast @ inverse @ contrast)
    slope = float(contrast @ weights)
    if spread <= 1e-12 * n_points**2:
        return 0.0 if slope < 0 and not math.isclose(slope, 0.0, abs_tol=1e-6 * n_points) else 1.0
    return float(t.cdf(slope / math.sqrt(spread), freedom))


def _find_stability_edge(trials: Trials, question: _Question, side: Side, n_questions: int) -> Finding | None:
    """Return the finding where training breaks beyond a threshold with the best trial just before it, else None."""
    rows = question.rows
    place = _from_bound(trials, question, side)
    broken = trials.is_infeasible[rows]
    n_broken = int(broken.sum())
    if len(rows) < _MIN_POINTS or n_broken < _MIN_FEASIBLE or len(rows) - n_broken < _MIN_FEASIBLE:
        return None
    outside_in = np.argsort(-place, kind="stable")
    n_beyond = np.arange(1, len(rows) + 1)
    broken_beyond = np.cumsum(broken[outside_in])
    best = int(np.argmin(trials.cost[rows]))
    # The threshold lies at a broken point: the widest zone beyond the best trial of which at least 90% is broken.
    candidates = np.flatnonzero(
        (broken_beyond >= _EDGE_SHARE * n_beyond)
        & (broken_beyond >= _MIN_FEASIBLE)
        & broken[outside_in]
        & (place[outside_in] > place[best])
    )
    if not len(candidates):
        return None
    last = int(candidates[-1])
    threshold = float(place[outside_in[last]])
    chance = float(hypergeom.sf(broken_beyond[last] - 1, len(rows), n_broken, n_beyond[last]))
    if threshold - place[best] > _OUTER or chance > _EDGE_LEVEL / (2 * n_questions):
        return None
    subject, numbers = _subject(question, side)
    column = trials.values[question.parameter.name][rows]
    n_before = len(rows) - int(n_beyond[last])
    numbers |= {
        "threshold": float(column[outside_in[last]]),
        "best": float(column[best]),
        "n_points": len(rows),
        "n_beyond": int(n_beyond[last]),
        "share_infeasible_beyond": float(broken_beyond[last] / n_beyond[last]),
        "share_infeasible_before": float((n_broken - broken_beyond[last]) / n_before),
        "p": chance,
    }
    return Finding(
        check="stability edge",
        subject=subject,
        verdict=Verdict.FLAG,
        numbers=numbers,
        section=SECTION,
        error_rate=_EDGE_LEVEL,
    )
