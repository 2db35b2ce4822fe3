"""Is the search space large enough? Bounds at which the best trials crowd, and edges beyond which training breaks.

Playbook: "Identifying bad search space boundaries": a study whose best point lies near the edge of the search space
should be widened; where points beyond a learning rate fail, training should be made stable instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import scipy
from numpy.typing import NDArray

from playbook_plugins.analysis.bound_evidence import compute_slope_p, count_crowding
from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.groups import scientific_categories
from playbook_plugins.analysis.parameters import Parameter, Role
from playbook_plugins.analysis.trials import Trials

SECTION = "Identifying bad search space boundaries"
Side: TypeAlias = Literal["lower", "upper"]
_SIDES: tuple[Side, Side] = ("lower", "upper")

# The outer part of the scaled range that counts as close to a bound.
_OUTER = 0.2
_MIN_POINTS = 8
_MIN_FEASIBLE = 4
# Each is shared by all the sides of a study, so that its chance of any false flag is bounded whatever its number of
# hyperparameters. A crowding with the best inside, and a slope, together have at most the error rate.
_CROWDING_LEVEL = 0.20
_BEST_LEVEL = 0.05
_SLOPE_LEVEL = 0.04
_ERROR_RATE = _BEST_LEVEL + _SLOPE_LEVEL
_EDGE_LEVEL = 0.05
_EDGE_BEST = 6
_EDGE_CROWDING_LEVEL = 0.10
_EDGE_SHARE = 0.9
# Where little of the range trains, the outer 20% of the range is most of that, and all crowd there.
_TRAINED = 1 / 3


@dataclass(frozen=True)
class _Sample:
    """Trials at distinct points, and the hyperparameters that are asked of them.

    ``cost`` is lower for better ones and infinite for infeasible ones, shape (n_points,); ``unit`` has the places of
    every number that all these trials have, shape (n_points, n_numbers), ``asked`` the columns of it that are asked
    about, shape (n_asked,), and ``places`` where these stand in the search space.
    """

    rows: NDArray[np.intp]
    cost: NDArray[np.float64]
    unit: NDArray[np.float64]
    asked: NDArray[np.intp]
    parameters: tuple[Parameter, ...]
    places: tuple[int, ...]
    value: str | None


def check_boundaries(trials: Trials) -> list[Finding]:
    """Ask of each bound of each number whether the optimum may lie beyond it.

    A side is flagged when one of two rules says so of the feasible points, n of them, with d questions
    (hyperparameters, each asked of the study and, where it is shared by scientific values, of each of these by itself)
    in the study:

    - crowding: the best trial lies in the outer 20% of the scaled range, and so many of the best
      k = max(4, ceil(0.2 n)) do that the hypergeometric chance is at most 0.20 / (2 d), and the chance of both
      together at most 0.05 / (2 d);
    - slope: the ranks of the objective, fitted by an additive quadratic in all hyperparameters, still improve at the
      bound, one-sided t-test at 0.04 / (2 d); it does not count where most trials in the outer 20% are infeasible.

    So a study in which nothing matters has a false flag with a chance of at most 0.05 + 0.04. Infeasible trials are
    never among the best, but no witnesses either: beside them, the trials before a threshold of divergence would look
    crowded for being feasible at all. Repeated points count once, by their best; for a scientific number, only trials
    that repeat its value too.

    Where at least 90% of the trials beyond a threshold are infeasible, more than by chance at 0.05 / (2 d), and the
    best trial lies within 20% of the range before it, the finding is a **stability edge** instead, provided that so
    many of the best six lie there, within 20% of the range or within a third of the part that trains, that the chance
    of both is at most 0.10, shared by the questions about this hyperparameter. A wider range would only find more
    divergence; warmup or clipping may move the edge.

    Simulated over 2, 4 and 8 hyperparameters, 16 to 128 points, plain, paired and conditional studies, and 40% of the
    trials diverging at random or above a threshold: where the objective is flat, each design has false flags in at most
    5% of its studies, and no case of it in more than 9%; fewer where the optimum lies inside. Stability edges are false
    in 6% at most, where the objective is flat and all diverge above 0.6. An optimum 20% of the range beyond a bound,
    with noise of 0.1 standard deviations and 64 points, is flagged in at least 98%, 98% and 85% of studies with 2, 4
    and 8 hyperparameters, and in 93%, 83% and 45% where 40% diverge at random; where all diverge above 0.7 of the
    range, that edge is found in at least 97%, 95% and 83%.

    Parameters
    ----------
    trials
        The study.

    Returns
    -------
    list of Finding
        Two for each question, ``check`` being ``"boundary"`` or ``"stability edge"`` and ``subject``
        ``"<name>, lower"`` or ``"<name>, upper"``. Numbers of a boundary: ``n_points``, ``n_feasible``, ``best`` and
        ``bound`` (in the hyperparameter's unit), ``k``, ``k_outer`` (of the best k, those in the outer 20%), ``p`` and
        ``allowed_p`` of the crowding, ``p_with_best`` and ``allowed_p_with_best`` of the crowding and the best
        together (1 where the best is not in the outer 20%), ``slope_p`` and ``allowed_slope_p``; of an edge:
        ``threshold`` and ``best`` (in the hyperparameter's unit), ``n_points``, ``n_beyond``,
        ``share_infeasible_beyond``, ``share_infeasible_before``, ``p`` of so many infeasible ones beyond, ``k``,
        ``k_before`` (of the best k, those that crowd before the threshold) and ``p_before`` of so many.
        ``value`` names the scientific value a question was asked of. TOO_LITTLE_DATA below 8 points, below 4
        feasible ones, or where no crowding could have been significant, unless it is divergence that leaves too few.
    """
    samples = list(_samples(trials))
    n_questions = Counter(parameter.name for sample in samples for parameter in sample.parameters)
    findings: list[tuple[int, Finding]] = []
    for sample in samples:
        findings += _judge(trials, sample, n_questions)
    # All answers about one hyperparameter stand together, those of the whole study first.
    return [finding for _, finding in sorted(findings, key=lambda pair: pair[0])]


def _samples(trials: Trials) -> Iterator[_Sample]:
    """Yield each set of trials that questions are asked of: those that have a number, and each scientific value's."""
    numbers = {
        place: parameter
        for place, parameter in enumerate(trials.parameters)
        if parameter.is_numeric and parameter.role is not Role.FIXED and parameter.low < parameter.high
    }
    units = {place: trials.unit(parameter.name) for place, parameter in numbers.items()}
    groups = [
        (f"{parameter.name}={choice}", trials.ranks(parameter.name) == place)
        for parameter in scientific_categories(trials)
        for place, choice in enumerate(parameter.choices)
    ]
    is_judged = trials.is_judged
    alike: dict[tuple[bytes, str], list[int]] = {}
    for place, parameter in numbers.items():
        own = parameter.name if parameter.role is Role.SCIENTIFIC else ""
        alike.setdefault(((is_judged & np.isfinite(units[place])).tobytes(), own), []).append(place)
    for (mask, own), places in alike.items():
        # A scientific number is asked of all its values at a point, not of the best one there.
        table = trials if not own else replace(trials, parameters=tuple(_as_nuisance(trials.parameters, own)))
        is_known = np.frombuffer(mask, dtype=np.bool_)
        yield _sample(table, units, is_known, places, None)
        shared = [place for place in places if numbers[place].condition is None]
        if shared:
            for value, is_group in groups:
                yield _sample(table, units, is_known & is_group, shared, value)


def _as_nuisance(parameters: tuple[Parameter, ...], name: str) -> Iterator[Parameter]:
    for parameter in parameters:
        yield replace(parameter, role=Role.NUISANCE) if parameter.name == name else parameter


def _sample(
    trials: Trials,
    units: dict[int, NDArray[np.float64]],
    is_asked: NDArray[np.bool_],
    places: list[int],
    value: str | None,
) -> _Sample:
    rows = trials.distinct(np.flatnonzero(is_asked))
    # Those of other branches, and those that some of the trials lack, explain nothing here.
    fitted = [place for place in units if place in places or np.isfinite(units[place][rows]).all()]
    return _Sample(
        rows=rows,
        cost=trials.cost[rows],
        unit=np.column_stack([units[place][rows] for place in fitted]),
        asked=np.array([fitted.index(place) for place in places], dtype=np.intp),
        parameters=tuple(trials.parameters[place] for place in places),
        places=tuple(places),
        value=value,
    )


def _judge(trials: Trials, sample: _Sample, n_questions: Counter[str]) -> Iterator[tuple[int, Finding]]:
    """Yield the finding of each side of each hyperparameter of a sample, with the place of the hyperparameter."""
    sides = [
        (place, parameter, side)
        for place, parameter in zip(sample.places, sample.parameters, strict=True)
        for side in _SIDES
    ]
    n_sides = 2 * n_questions.total()
    cost = sample.cost
    is_feasible = np.isfinite(cost)
    n_points, n_feasible = len(cost), int(is_feasible.sum())
    start: dict[str, Number] = {} if sample.value is None else {"value": sample.value}
    start |= {"n_points": n_points, "n_feasible": n_feasible}
    if n_points < _MIN_POINTS or n_feasible < _MIN_FEASIBLE:
        for place, parameter, side in sides:
            yield place, _boundary(parameter, side, Verdict.TOO_LITTLE_DATA, start)
        return
    # How far each point lies from the other bound, shape (n_points, n_sides): 1 is the bound that is asked about.
    asked = sample.unit[:, sample.asked]
    place_of = np.stack([1.0 - asked, asked], axis=2).reshape(n_points, -1)
    # A value of a grid at 0.8 of the range may miss it by its last bits.
    is_outer = place_of >= 1.0 - _OUTER - 1e-9
    crowding = count_crowding(cost[is_feasible], is_outer[is_feasible])
    slope_p = compute_slope_p(sample.unit[is_feasible], sample.asked, cost[is_feasible])
    allowed: dict[str, float] = {
        "allowed_p": _CROWDING_LEVEL / n_sides,
        "allowed_p_with_best": _BEST_LEVEL / n_sides,
        "allowed_slope_p": _SLOPE_LEVEL / n_sides,
    }
    is_crowded = (crowding.p <= allowed["allowed_p"]) & (crowding.p_with_best <= allowed["allowed_p_with_best"])
    can_crowd = (crowding.least_p <= allowed["allowed_p"]) & (
        crowding.least_p_with_best <= allowed["allowed_p_with_best"]
    )
    is_trained = 2 * is_outer[~is_feasible].sum(axis=0) <= is_outer.sum(axis=0)
    is_steep = (slope_p <= allowed["allowed_slope_p"]) & is_trained
    # Where so many would be enough if they trained, more trials would diverge as well.
    enough = count_crowding(np.arange(n_points, dtype=np.float64), is_outer)
    is_barren = ~is_trained & (enough.least_p_with_best <= allowed["allowed_p_with_best"])
    best = int(np.argmin(cost))
    for column, (place, parameter, side) in enumerate(sides):
        edge = _find_stability_edge(trials, sample, place_of[:, column], parameter, side, n_questions)
        if edge is not None:
            yield place, edge
            continue
        if is_crowded[column] or is_steep[column]:
            verdict = Verdict.FLAG
        else:
            verdict = Verdict.NO_EVIDENCE if can_crowd[column] or is_barren[column] else Verdict.TOO_LITTLE_DATA
        numbers: dict[str, Number] = start | {
            "best": float(trials.values[parameter.name][sample.rows[best]]),
            "bound": float(parameter.low if side == "lower" else parameter.high),
            "k": crowding.k,
            "k_outer": int(crowding.k_inside[column]),
            "p": float(crowding.p[column]),
            "p_with_best": float(crowding.p_with_best[column]),
            "slope_p": float(slope_p[column]),
        }
        yield place, _boundary(parameter, side, verdict, {**numbers, **allowed})


def _boundary(parameter: Parameter, side: Side, verdict: Verdict, numbers: dict[str, Number]) -> Finding:
    return Finding(
        check="boundary",
        subject=f"{parameter.name}, {side}",
        verdict=verdict,
        numbers=numbers,
        section=SECTION,
        error_rate=_ERROR_RATE,
    )


def _find_stability_edge(
    trials: Trials,
    sample: _Sample,
    place: NDArray[np.float64],
    parameter: Parameter,
    side: Side,
    n_questions: Counter[str],
) -> Finding | None:
    """Return the finding where training breaks beyond a threshold with the best trials just before it, else None."""
    rows, cost = sample.rows, sample.cost
    is_broken = ~np.isfinite(cost)
    n_broken = int(is_broken.sum())
    if n_broken < _MIN_FEASIBLE:
        return None
    outside_in = np.argsort(-place, kind="stable")
    n_beyond = np.arange(1, len(rows) + 1)
    broken_beyond = np.cumsum(is_broken[outside_in])
    best = int(np.argmin(cost))
    # The threshold lies at a broken point: the widest zone beyond the best trial of which at least 90% is broken.
    candidates = np.flatnonzero(
        (broken_beyond >= _EDGE_SHARE * n_beyond)
        & (broken_beyond >= _MIN_FEASIBLE)
        & is_broken[outside_in]
        & (place[outside_in] > place[best])
    )
    if not len(candidates):
        return None
    last = int(candidates[-1])
    threshold = float(place[outside_in[last]])
    chance = float(scipy.stats.hypergeom.sf(broken_beyond[last] - 1, len(rows), n_broken, n_beyond[last]))
    if threshold - place[best] > _OUTER or chance > _EDGE_LEVEL / (2 * n_questions.total()):
        return None
    # One best trial lies there by chance in many a study whose optimum is elsewhere. The very best few are asked: a
    # fifth of many trials has no room there.
    is_before = place[~is_broken] >= threshold - min(_OUTER, _TRAINED * threshold)
    crowding = count_crowding(cost[~is_broken], is_before[:, None], min(_EDGE_BEST, len(rows) - n_broken))
    if crowding.p_with_best[0] > _EDGE_CROWDING_LEVEL / n_questions[parameter.name]:
        return None
    column = trials.values[parameter.name][rows]
    n_before = len(rows) - int(n_beyond[last])
    numbers: dict[str, Number] = {} if sample.value is None else {"value": sample.value}
    numbers |= {
        "threshold": float(column[outside_in[last]]),
        "best": float(column[best]),
        "n_points": len(rows),
        "n_beyond": int(n_beyond[last]),
        "share_infeasible_beyond": float(broken_beyond[last] / n_beyond[last]),
        "share_infeasible_before": float((n_broken - broken_beyond[last]) / n_before),
        "p": chance,
        "k": crowding.k,
        "k_before": int(crowding.k_inside[0]),
        "p_before": float(crowding.p_with_best[0]),
    }
    return Finding(
        check="stability edge",
        subject=f"{parameter.name}, {side}",
        verdict=Verdict.FLAG,
        numbers=numbers,
        section=SECTION,
        error_rate=_EDGE_CROWDING_LEVEL,
    )
