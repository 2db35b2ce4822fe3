"""Which hyperparameters hardly matter here? What is shown to matter little may be fixed in the next round.

Playbook: "Identifying scientific, nuisance, and fixed hyperparameters": a nuisance hyperparameter that hardly
interacts with the others may be fixed, with a caveat. That a test found no effect does not show that there is none,
so the burden is turned round: an equivalence test (Wellek, "Testing Statistical Hypotheses of Equivalence and
Noninferiority", 2010) asks whether an effect of noticeable size can be excluded.
"""

from __future__ import annotations

import numpy as np
import scipy
from numpy.typing import NDArray

from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.groups import groups_by_value
from playbook_plugins.analysis.parameters import Parameter, Role
from playbook_plugins.analysis.trials import Trials

SECTION = "Identifying scientific, nuisance, and fixed hyperparameters"
# The smallest share of the variance of the ranks that counts as noticeable.
_NOTICEABLE = 0.10
# Of the test. Its bound on the effect is in shares of these trials' variance, not of all possible ones', so that the
# simulated study-wise rate is higher (tests/test_sensitivity.py).
_LEVEL = 0.015
_ERROR_RATE = 0.05
_MIN_FREEDOM = 10


def check_sensitivity(trials: Trials) -> list[Finding]:
    """Ask of each nuisance number whether it can be shown to matter little.

    The ranks of the objective (infeasible trials as worst) are fitted by a quadratic in all numbers, indicators of
    the categories, and the products of the asked hyperparameter with each other number. FLAG, "insensitive", where
    an effect of 10% of the ranks' variance through its own terms and products is rejected at 0.015 / d over d
    nuisance numbers (noncentral F): in the study as a whole and, where scientific values share it, for each of these
    by itself. It can be wrong about an effect of another shape: a narrow dip, a product of three. Where each of three
    hyperparameters explains exactly 10%, at most 5% of studies have a flag (``error_rate``); of those without any
    effect, beside one that explains 80%, 44% are found with 30 points and 94% with 60.

    Parameters
    ----------
    trials
        The study. Repeated points count once, by their best.

    Returns
    -------
    list of Finding
        One a nuisance number. Numbers, of the group of trials in which it matters most: ``n_points``, ``share`` (of
        the ranks' variance, in [0, 1]), ``noticeable`` (0.10), ``p`` and ``allowed_p``; ``value`` where that group is
        a scientific value's. TOO_LITTLE_DATA where some group leaves fewer than 10 degrees of freedom.
    """
    subjects = [
        parameter
        for parameter in trials.parameters
        if parameter.is_numeric and parameter.role is Role.NUISANCE and parameter.low < parameter.high
    ]
    return [_judge(trials, parameter, _LEVEL / len(subjects)) for parameter in subjects]


def groups_of(trials: Trials, parameter: Parameter) -> list[tuple[str | None, NDArray[np.intp]]]:
    """Return the groups of trials of which a question about a hyperparameter is asked, repeated points included.

    Parameters
    ----------
    trials
        The study.
    parameter
        One of its hyperparameters.

    Returns
    -------
    list of tuple
        ``(None, rows)`` of all judged trials that have it; then, unless it belongs to a branch, ``("optimizer=adam",
        rows)`` of each categorical scientific value.
    """
    rows = np.flatnonzero(trials.is_judged & trials.has(parameter.name))
    return groups_by_value(trials, rows) if parameter.condition is None else [(None, rows)]


def _judge(trials: Trials, parameter: Parameter, allowed: float) -> Finding:
    worst: dict[str, Number] = {"n_points": 0}
    verdict = Verdict.FLAG
    for value, rows in groups_of(trials, parameter):
        points = trials.distinct(rows)
        result = _effect(trials, parameter, points)
        where: dict[str, Number] = {} if value is None else {"value": value}
        if result is None:
            verdict, worst = Verdict.TOO_LITTLE_DATA, {"n_points": len(points), **where}
            break
        share, chance = result
        # All groups must agree, so none needs a correction for the others (intersection-union).
        if chance > allowed:
            verdict = Verdict.NO_EVIDENCE
        if chance >= float(worst.get("p") or 0.0):
            worst = {"n_points": len(points), "share": share, "noticeable": _NOTICEABLE, **where}
            worst |= {"p": chance, "allowed_p": allowed}
    return Finding(
        check="sensitivity",
        subject=parameter.name,
        verdict=verdict,
        numbers=worst,
        section=SECTION,
        error_rate=_ERROR_RATE,
    )


def _effect(trials: Trials, parameter: Parameter, rows: NDArray[np.intp]) -> tuple[float, float] | None:
    """Return the share of the ranks' variance and the p-value that it is noticeable; None where too few points."""
    others = [
        other
        for other in trials.parameters
        if other.name != parameter.name
        and other.role is not Role.FIXED
        and other.condition in (None, parameter.condition)
        and bool(trials.has(other.name)[rows].all())
    ]
    rest = [np.ones(len(rows))]
    own = trials.unit(parameter.name)[rows] - 0.5
    block = [own, own**2]
    for other in others:
        unit = trials.unit(other.name)[rows]
        if other.is_numeric:
            rest += [unit - 0.5, (unit - 0.5) ** 2]
            block.append(own * (unit - 0.5))
        else:
            rest += [np.asarray(unit == place, dtype=np.float64) for place in np.unique(unit)[1:]]
    if len(rows) - len(rest) - len(block) < _MIN_FREEDOM:
        return None
    ranks = scipy.stats.rankdata(trials.cost[rows])
    total = float(np.sum((ranks - ranks.mean()) ** 2))
    if total == 0.0:
        return None
    without, rank_without = _residual(np.column_stack(rest), ranks)
    left, rank_with = _residual(np.column_stack([*rest, *block]), ranks)
    explained, n_terms, freedom = max(0.0, without - left), rank_with - rank_without, len(rows) - rank_with
    share = explained / total
    if n_terms == 0:
        return None
    noise = left / freedom
    if noise <= 1e-12 * total:
        return share, float(share >= _NOTICEABLE)
    chance = float(scipy.stats.ncf.cdf(explained / n_terms / noise, n_terms, freedom, _NOTICEABLE * total / noise))
    return share, chance


def _residual(design: NDArray[np.float64], ranks: NDArray[np.float64]) -> tuple[float, int]:
    weights, _, rank, _ = np.linalg.lstsq(design, ranks, rcond=None)
    return float(np.sum((ranks - design @ weights) ** 2)), int(rank)
