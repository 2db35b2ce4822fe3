"""How many trials are infeasible, and where? A search space that is mostly infeasible must be moved or mended first.

Playbook: "Identifying bad search space boundaries": a very large fraction of infeasible points asks for another
search space, or shows a bug in the training code.
"""

from __future__ import annotations

import math

import numpy as np
import scipy
from numpy.typing import NDArray

from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.parameters import Parameter, Role
from playbook_plugins.analysis.records import Status
from playbook_plugins.analysis.trials import Trials

SECTION = "Identifying bad search space boundaries"
_VERY_LARGE = 0.5
_EXPLAINED_LEVEL = 0.05
# Fewer than this cannot show a majority: the Wilson interval of 3 of 3 still reaches below one half.
_MIN_TRIALS = 4
# That 4 of 4 are infeasible where half of the space is; with more trials the chance is smaller (binomial, exact).
_ERROR_RATE = 1 / 16


def wilson_interval(n_hits: int, n_trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return the Wilson (1927) score interval of a share.

    Parameters
    ----------
    n_hits, n_trials
        Counts, 0 <= n_hits <= n_trials, n_trials >= 1.
    z
        The normal quantile; the default gives 95%.

    Returns
    -------
    tuple of float
        The lower and the upper end, in [0, 1].
    """
    share = n_hits / n_trials
    scale = 1.0 + z * z / n_trials
    middle = (share + z * z / (2 * n_trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n_trials + z * z / (4 * n_trials * n_trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def check_feasibility(trials: Trials) -> list[Finding]:
    """Ask whether a very large fraction of the trials is infeasible, and which hyperparameter explains it.

    FLAG when the lower end of the 95% Wilson interval of the infeasible share is above one half. The hyperparameter
    that explains it is the one whose values differ most between feasible and infeasible trials (Mann-Whitney test for
    numbers, hypergeometric test of the worst category), if significant at 0.05 / d over d hyperparameters.

    Where half of the space is infeasible, the flag has a chance of 1/16 with 4 trials and of at most 4% with more
    (``error_rate``); where three quarters are, it is raised by 63% of studies of 16 trials and 85% of 32. Where chance
    alone decides what is infeasible, a hyperparameter is named in at most 5% of studies. One of four above whose
    middle everything is infeasible is named in 97% of studies of 16 trials, and in 86% of 32 if three of ten trials are
    infeasible, or not, by chance.

    Parameters
    ----------
    trials
        The study. Pruned, running and failed trials are not judged.

    Returns
    -------
    list of Finding
        One, subject ``"study"``. Numbers: ``n_judged``, ``n_infeasible``, ``n_failed``, ``share`` and its interval
        ``low``, ``high``; ``all_infeasible`` (1 where no trial is feasible: suspect a bug); ``explained_by`` (a name
        or None), ``explained_side`` ("upper", "lower" or a category), ``share_there`` and ``share_elsewhere``
        (infeasible shares in that fifth of the range, or of that category, and in the rest).
    """
    n_judged = int(trials.is_judged.sum())
    n_infeasible = int(trials.is_infeasible.sum())
    n_failed = int(np.sum(trials.status == Status.FAILED))
    numbers: dict[str, Number] = {"n_judged": n_judged, "n_infeasible": n_infeasible, "n_failed": n_failed}
    verdict = Verdict.TOO_LITTLE_DATA
    if n_judged:
        low, high = wilson_interval(n_infeasible, n_judged)
        all_infeasible = n_infeasible == n_judged
        numbers |= {"share": n_infeasible / n_judged, "low": low, "high": high, "all_infeasible": int(all_infeasible)}
        numbers |= _explain(trials)
        if low > _VERY_LARGE:
            verdict = Verdict.FLAG
        elif n_judged >= _MIN_TRIALS:
            verdict = Verdict.NO_EVIDENCE
    return [
        Finding(
            check="feasibility",
            subject="study",
            verdict=verdict,
            numbers=numbers,
            section=SECTION,
            error_rate=_ERROR_RATE,
        )
    ]


def _explain(trials: Trials) -> dict[str, Number]:
    """Return the hyperparameter along which feasible and infeasible trials differ most, if they clearly do."""
    subjects = [parameter for parameter in trials.parameters if parameter.role is not Role.FIXED]
    best_p, explanation = math.inf, dict[str, Number]()
    for parameter in subjects:
        rows = np.flatnonzero(trials.is_judged & trials.has(parameter.name))
        broken = trials.is_infeasible[rows]
        if not 0 < broken.sum() < len(rows):
            continue
        chance, side, there = _contrast(parameter, trials.unit(parameter.name)[rows], broken)
        if chance < best_p and there.any():
            best_p = chance
            explanation = {
                "explained_by": parameter.name,
                "explained_side": side,
                "share_there": float(broken[there].mean()),
                "share_elsewhere": float(broken[~there].mean()) if (~there).any() else None,
            }
    return explanation if best_p <= _EXPLAINED_LEVEL / max(1, len(subjects)) else {"explained_by": None}


def _contrast(
    parameter: Parameter, unit: NDArray[np.float64], broken: NDArray[np.bool_]
) -> tuple[float, str, NDArray[np.bool_]]:
    """Return the p-value, the bad side and the trials there, shape (n,)."""
    if parameter.is_numeric:
        chance = float(scipy.stats.mannwhitneyu(unit[broken], unit[~broken]).pvalue)
        if np.mean(unit[broken]) >= np.mean(unit[~broken]):
            return chance, "upper", np.asarray(unit >= 0.8)
        return chance, "lower", np.asarray(unit <= 0.2)
    best = (math.inf, "", np.zeros(len(unit), dtype=np.bool_))
    for place, choice in enumerate(parameter.choices):
        there = np.floor(unit * len(parameter.choices)) == place
        hits = int(broken[there].sum())
        chance = float(scipy.stats.hypergeom.sf(hits - 1, len(unit), int(broken.sum()), int(there.sum())))
        chance = min(1.0, chance * len(parameter.choices))
        if there.any() and chance < best[0]:
            best = (chance, str(choice), there)
    return best
