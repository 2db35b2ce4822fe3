"""Were enough points sampled? The gain of the last doubling, the chance that more would help, and flat studies.

Playbook: "Not sampling enough points in the search space". All of it takes the trials to be exchangeable: drawn by a
search that does not look at results. An adaptive search, Bayesian optimization for one, draws later trials better than
earlier ones; `order_trend` sees the trace of it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import scipy
from numpy.typing import NDArray

from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.groups import groups_by_value, scientific_categories
from playbook_plugins.analysis.points import point_codes
from playbook_plugins.analysis.trials import Trials
from playbook_plugins.analysis.tuning_curve import best_of_m_weights as best_of_m_weights
from playbook_plugins.analysis.tuning_curve import expected_best as expected_best
from playbook_plugins.analysis.tuning_curve import median_best as median_best

SECTION = "Not sampling enough points in the search space"
# With fewer, noise alone makes the last doubling gain more than a standard deviation too often.
_MIN_FEASIBLE = 16
_TREND_LEVEL = 0.01
_INSENSITIVE_LEVEL = 0.05
# Of any flag that is wrong, study-wise (tests/test_budget.py simulates it).
_ERROR_RATE = 0.06
# Larger objectives are cut to it: no verdict changes, and squares of differences stay within float64.
_HUGE = 1e100


def chance_of_improvement(n_trials: int, n_more: int) -> float:
    """Return the chance that the best of more trials of the same search beats the best so far.

    Parameters
    ----------
    n_trials
        The trials so far, at least 1.
    n_more
        The trials to come, at least 0.

    Returns
    -------
    float
        n_more / (n_trials + n_more), in [0, 1): each of all trials is equally likely the best. Ties make it smaller.

    Raises
    ------
    ValueError
        When a count is out of range.
    """
    if n_trials < 1 or n_more < 0:
        name, count, least = ("n_trials", n_trials, 1) if n_trials < 1 else ("n_more", n_more, 0)
        raise ValueError(
            f"`{name}` is {count}: it is a number of trials and must be at least {least}. Count them anew."
        )
    return n_more / (n_trials + n_more)


def order_trend(trials: Trials) -> float:
    """Return the one-sided p-value that later trials are better than earlier ones.

    The search did not look at results only if the order of the trials says nothing: the covariance of the ranks of
    order and objective, within each combination of categorical scientific values, against all permutations (normal
    approximation). A small value comes from adaptive search, or from training code that was changed on the way. Where
    half of 32 trials gather about the optimum of four hyperparameters, p is below 0.01 in 99% of studies.

    Parameters
    ----------
    trials
        The study, in the order of its trials. Infeasible trials count as worst, repeated points once.

    Returns
    -------
    float
        In [0, 1]; 1 where the trials say nothing.
    """
    return _trend(trials, trials.distinct(np.flatnonzero(trials.is_judged)))


def _trend(trials: Trials, rows: NDArray[np.intp]) -> float:
    group = point_codes([trials.unit(parameter.name)[rows] for parameter in scientific_categories(trials)], len(rows))
    covariance = variance = 0.0
    cost = _cost(trials)[rows]
    for place in range(int(group.max(initial=-1)) + 1):
        ranks = scipy.stats.rankdata(cost[group == place])
        if len(ranks) < 2:
            continue
        order = np.arange(len(ranks)) - (len(ranks) - 1) / 2
        ranks -= ranks.mean()
        covariance += float(order @ ranks)
        variance += float(order @ order) * float(ranks @ ranks) / (len(ranks) - 1)
    return float(scipy.stats.norm.cdf(covariance / math.sqrt(variance))) if variance > 0 else 1.0


def check_budget(trials: Trials, retrain_sd: float | None = None) -> list[Finding]:
    """Ask whether more points would have found something better, or whether there is nothing to find.

    FLAG in two cases, of which the second is judged first:

    - **not enough points**: the last doubling, from n / 2 points to n, gained more than one standard deviation of
      retraining. The gain is the mean over all halves of the points of how much worse their best is.
    - **insensitive**: the hyperparameters move the objective less than retraining does: no trial is infeasible, and
      their variance of at least retrain_sd^2 beside that of retraining is rejected at 0.05 / K (chi-squared test) for
      the study, or for each of its K scientific values; or all points have one and the same objective. An effect in a
      small part of the space may have been missed.

    Exchangeable trials only can answer it. Where later trials are better than earlier ones (`order_trend` at 0.01),
    the search was adaptive: TOO_LITTLE_DATA, without a gain or a chance. The table does not tell which trials a
    sampler chose by results, and a few at the end may go unseen: give the trials of the exploration alone
    (``trials.select``).

    Parameters
    ----------
    trials
        The study. Infeasible trials count as worst; repeated points count once, by their best. Asked of the study
        and, where there are categorical scientific hyperparameters, of each of their values by itself.
    retrain_sd
        The standard deviation of the objective when one configuration is retrained with other seeds, in the
        objective's unit, positive. Without it no gain can be said to matter.

    Returns
    -------
    list of Finding
        Subject ``"study"``; ``value`` names the scientific value that a question was asked of. Numbers: ``n_points``,
        ``n_infeasible``; ``best`` (objective); ``gain`` (of the last doubling, >= 0, in the objective's unit);
        ``retrain_sd``; ``n_more`` (a quarter more points) and ``chance_of_improvement`` (theirs, in [0, 1]);
        ``trend_p`` and ``allowed_trend_p``; ``spread`` (standard deviation of the feasible points), ``insensitive``
        (1 or 0), ``insensitive_p`` (None where nothing tells) and ``allowed_insensitive_p``. TOO_LITTLE_DATA below
        16 feasible points, and without ``retrain_sd``.
        ``error_rate`` bounds the share of studies, of up to five values of one scientific hyperparameter, that are
        told wrongly that points are missing, when the objective is retraining noise alone; and the share told wrongly
        that they are insensitive, when the hyperparameters move the objective smoothly and as much as retraining does
        (15% at most where only a tenth of a range does). Normal noise is assumed: noise with a heavy tail towards good
        values makes points look missing. Of studies that the last doubling truly gains 2 retrain_sd on average, 80%
        are flagged; half of them where it gains 1, a fifth where it gains 0.5. Of flat studies, half are found
        insensitive with 16 points, 85% with 32.

    Raises
    ------
    ValueError
        When ``retrain_sd`` is not positive and finite.
    """
    if retrain_sd is not None and not 0 < retrain_sd < math.inf:
        raise ValueError(
            f"`retrain_sd` is {retrain_sd}: it is a standard deviation in the objective's unit and must be positive "
            "and finite. Retrain one configuration with several seeds to measure it, or pass None."
        )
    judged = np.flatnonzero(trials.is_judged)
    groups = [(value, trials.distinct(rows)) for value, rows in groups_by_value(trials, judged)]
    trends = [_trend(trials, points) for _, points in groups]
    # An adaptive search gathers where all is alike: that it varies little says nothing about the space.
    flat = [
        None if trend <= _TREND_LEVEL else _insensitivity(_cost(trials)[points], retrain_sd)
        for (_, points), trend in zip(groups, trends, strict=True)
    ]
    allowed = _INSENSITIVE_LEVEL / max(1, len(groups) - 1)
    if len(groups) > 1:
        # The best over scientific values varies less than any of them: the study is as insensitive as all its values.
        flat[0] = max(flat[1:], key=lambda p: math.inf if p is None else p)
    findings = []
    for (value, points), trend, chance in zip(groups, trends, flat, strict=True):
        finding = _judge(trials, points, retrain_sd, trend, chance, allowed)
        where: dict[str, Number] = {} if value is None else {"value": value}
        findings.append(replace(finding, numbers={**finding.numbers, **where}))
    return findings


def _cost(trials: Trials) -> NDArray[np.float64]:
    return np.where(trials.is_infeasible, np.inf, np.clip(trials.cost, -_HUGE, _HUGE))


def _insensitivity(cost: NDArray[np.float64], retrain_sd: float | None) -> float | None:
    """Return the p-value that hyperparameters vary the objective as much as retraining; None where nothing tells."""
    if len(cost) < _MIN_FEASIBLE:
        return None
    if np.isinf(cost).any():
        return 1.0
    if cost.min() == cost.max():
        return 0.0
    if retrain_sd is None:
        return None
    freedom = len(cost) - 1
    with np.errstate(over="ignore"):
        lead = np.minimum((cost - cost.min()) / retrain_sd, _HUGE)
    return float(scipy.stats.chi2.cdf(freedom * float(np.var(lead, ddof=1)) / 2.0, freedom))


def _judge(
    trials: Trials,
    points: NDArray[np.intp],
    retrain_sd: float | None,
    trend: float,
    insensitive_p: float | None,
    allowed: float,
) -> Finding:
    ranked = np.sort(_cost(trials)[points])
    n_points = len(ranked)
    feasible = ranked[np.isfinite(ranked)]
    sign = 1.0 if trials.direction == "minimize" else -1.0
    is_adaptive = trend <= _TREND_LEVEL
    is_insensitive = insensitive_p is not None and insensitive_p <= allowed
    numbers: dict[str, Number] = {
        "n_points": n_points,
        "n_infeasible": n_points - len(feasible),
        "retrain_sd": retrain_sd,
        "trend_p": trend,
        "allowed_trend_p": _TREND_LEVEL,
        "insensitive": int(is_insensitive),
        "insensitive_p": insensitive_p,
        "allowed_insensitive_p": allowed,
    }
    verdict = Verdict.TOO_LITTLE_DATA
    if len(feasible):
        gain = _gain_of_last_doubling(ranked)
        n_more = math.ceil(n_points / 4)
        numbers |= {
            "best": sign * float(feasible[0]),
            "spread": float(np.std(feasible, ddof=1)) if len(feasible) > 1 else None,
            "gain": None if is_adaptive else gain,
            "n_more": n_more,
            "chance_of_improvement": None if is_adaptive else chance_of_improvement(n_points, n_more),
        }
        if is_insensitive:
            verdict = Verdict.FLAG
        elif not is_adaptive and retrain_sd is not None and len(feasible) >= _MIN_FEASIBLE:
            verdict = Verdict.FLAG if gain > retrain_sd else Verdict.NO_EVIDENCE
    return Finding(
        check="budget",
        subject="study",
        verdict=verdict,
        numbers=numbers,
        section=SECTION,
        error_rate=_ERROR_RATE,
    )


def _gain_of_last_doubling(ranked: NDArray[np.float64]) -> float:
    """Return how much worse the best of half of the points is than that of all, on average over the feasible halves.

    Halves without any feasible point, 1 in 2^k at most where k are feasible, have no best and are left out.
    """
    n_feasible = int(np.isfinite(ranked).sum())
    weights = best_of_m_weights(len(ranked), math.ceil(len(ranked) / 2))[:n_feasible]
    return float(weights @ (ranked[:n_feasible] - ranked[0])) / float(weights.sum())
