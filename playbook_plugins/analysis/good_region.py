"""May the search space be narrowed? Outer parts of a range in which no good trial lies.

Playbook: "Exploration vs exploitation": as insight accumulates, the search space is refined around the good region.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import scipy
from numpy.typing import NDArray

from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.parameters import Parameter, Role
from playbook_plugins.analysis.sensitivity import groups_of
from playbook_plugins.analysis.trials import Trials

SECTION = "Exploration vs exploitation"
# What is looked at is wider than what may be cut, so that a margin stays between the cut and the good trials.
_LOOKED_AT = 1 / 3
CUT = 0.25
_LEVEL = 0.05
_MIN_POINTS = 8
_MIN_FEASIBLE = 4


def check_good_region(trials: Trials) -> list[Finding]:
    """Ask of each end of each nuisance number whether the good trials stay away from it.

    FLAG, "the outer quarter may be cut", where so few of the best k = max(4, ceil(0.2 n)) of n points lie in the outer
    third of the scaled range that it has at most a chance of 0.05 / (2 d) if they lay anywhere (hypergeometric, d
    nuisance numbers), and where none of the best 20% of all trials, nor of those of any one scientific value, lies in
    the outer quarter. The thirds are set in advance, so the chance holds: at most 5% of studies of three
    hyperparameters that do nothing have a flag (``error_rate``). It takes about 50 points: where one hyperparameter
    alone matters, by a valley in the middle of its range, each of its ends is found with 30, 50 and 60 points in 15%,
    81% and 95% of studies of it alone; among three in 74% with 60 points, and in nearly all with 120.

    Parameters
    ----------
    trials
        The study. Infeasible trials count as worst; repeated points count once, by their best.

    Returns
    -------
    list of Finding
        Two a nuisance number, subject ``"<name>, lower"`` and ``"<name>, upper"``. Numbers: ``n_points``, ``k``,
        ``n_outer`` (points in the outer third), ``k_outer`` (best ones there), ``p``, ``allowed_p``.
        TOO_LITTLE_DATA below 8 points or 4 feasible ones, or where no result could have been significant.
    """
    subjects = [
        parameter
        for parameter in trials.parameters
        if parameter.is_numeric and parameter.role is Role.NUISANCE and parameter.low < parameter.high
    ]
    allowed = _LEVEL / (2 * max(1, len(subjects)))
    return [finding for parameter in subjects for finding in _judge(trials, parameter, allowed)]


def _judge(trials: Trials, parameter: Parameter, allowed: float) -> Iterator[Finding]:
    groups = groups_of(trials, parameter)
    points = trials.distinct(groups[0][1])
    top = _best(trials, points)
    good = np.concatenate([_best(trials, rows) for _, rows in groups])
    for side in ("lower", "upper"):
        outer = _is_outer(trials, parameter, side, points, _LOOKED_AT)
        numbers: dict[str, Number] = {"n_points": len(points)}
        verdict = Verdict.TOO_LITTLE_DATA
        if len(points) >= _MIN_POINTS and len(top) >= _MIN_FEASIBLE:
            n_outer, k = int(outer.sum()), len(top)
            k_outer = int(_is_outer(trials, parameter, side, top, _LOOKED_AT).sum())
            chance = float(scipy.stats.hypergeom.cdf(k_outer, len(points), n_outer, k))
            numbers |= {"k": k, "n_outer": n_outer, "k_outer": k_outer, "p": chance, "allowed_p": allowed}
            if chance <= allowed and not _is_outer(trials, parameter, side, good, CUT).any():
                verdict = Verdict.FLAG
            elif scipy.stats.hypergeom.pmf(0, len(points), n_outer, k) <= allowed:
                verdict = Verdict.NO_EVIDENCE
        yield Finding(
            check="good region",
            subject=f"{parameter.name}, {side}",
            verdict=verdict,
            numbers=numbers,
            section=SECTION,
            error_rate=_LEVEL,
        )


def _is_outer(
    trials: Trials, parameter: Parameter, side: str, rows: NDArray[np.intp], share: float
) -> NDArray[np.bool_]:
    unit = trials.unit(parameter.name)[rows]
    return np.asarray(unit < share if side == "lower" else unit > 1 - share, dtype=np.bool_)


def _best(trials: Trials, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return which of some rows are the best k feasible trials."""
    cost = trials.cost[rows]
    n_feasible = int(np.isfinite(cost).sum())
    k = min(max(_MIN_FEASIBLE, math.ceil(0.2 * len(rows))), n_feasible)
    return rows[np.argsort(cost, kind="stable")[:k]]
