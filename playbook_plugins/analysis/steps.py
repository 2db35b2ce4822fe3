"""Was training long enough, or too long? What the step of the best checkpoint says about max_train_steps.

Playbook: "Deciding how long to train when training is not compute-bound": if the best checkpoint of the good trials
comes in the first 10% of training, or in the last 25%, the length of training should be looked at again.
"""

from __future__ import annotations

import math

import numpy as np
import scipy
from numpy.typing import NDArray

from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.groups import groups_by_value
from playbook_plugins.analysis.records import Curve
from playbook_plugins.analysis.trials import Trials

SECTION = "Deciding how long to train when training is not compute-bound"
_MIN_POINTS = 8
_CONSISTENT = 0.8
_EARLY = 0.10
_LATE = 0.75
# A learning rate that falls by less after its peak is constant, but for rounding.
_CONSTANT = 0.99
# Where training levelled off by its half, noise puts the best step anywhere in the second half: in the last quarter of
# training with this chance.
_LATE_BY_NOISE = 0.5
# Shared by the scientific values: what asking each of them may add to the study's chance of a false flag.
_VALUES_LEVEL = 0.05


def check_best_steps(trials: Trials) -> list[Finding]:
    """Ask whether the better trials reach their best evaluation very early or very late in training.

    Of the better half of the points (at least 8 of them), FLAG when at least 80% have their best step in the first 10%
    of training (the budget is too long, or they overfit) or in the last 25% (training longer may help). Under a
    decaying learning rate the best step is late by design: then the late share says nothing, and is not flagged.

    The better half of a study may hold trials of one scientific value only, while another value would need longer
    training to show what it can reach. So each of K values of categorical scientific hyperparameters is asked too, by
    its own better half; there, late best steps must also be too many for noise: a chance of 0.05 / K at most, had
    training levelled off by its half.

    Parameters
    ----------
    trials
        The study. Complete trials with a finite objective and known ``best_step`` and ``max_steps`` count; the steps
        of a pruned or failed trial are those at which it was stopped. Repeated points count once, by their best
        trial: a point that is trained five times is not five witnesses. Trials that tie with the last of the better
        half belong to it.

    Returns
    -------
    list of Finding
        Subject ``"study"``: one of all trials, then one of each scientific value, which ``value`` names. Numbers:
        ``n_feasible`` (trials with known steps), ``n_points`` (without repeats), ``n_better_half``, ``share_early``
        and ``share_late`` (in [0, 1]), ``late_p`` (the chance of so many late best steps where training levelled off
        by its half) and, for a value, ``allowed_late_p``; ``learning_rate_decays`` (1: the late share is
        uninformative; 0; or None where the curves hold no learning rate: late best steps are flagged then, too).
        TOO_LITTLE_DATA below 8 points, and for a value whose late best steps could not be too many.
        ``error_rate`` is the chance of a false flag of a study of this size whose training levelled off by its half,
        the noise of an evaluation then deciding on the best step: 6.3% for 8 points, 19% (the most) for 10, 3.5% for
        16, 1.1% for 32; and at most 0.05 more where there are scientific values. Where best steps lie anywhere in
        training, these are 0.4%, 1.6%, 0.04% and less. Of studies of 32 points of which nine in ten are best in the
        last quarter, over 90% are flagged.
    """
    is_known = trials.is_feasible & (trials.best_step >= 0) & (trials.max_steps > 0)
    groups = groups_by_value(trials, np.flatnonzero(is_known))
    n_values = len(groups) - 1
    study = _judge(trials, groups[0][1], None)
    n_better = study[1].get("n_better_half")
    error_rate = None
    if n_better is not None:
        error_rate = _late_chance(math.ceil(_CONSISTENT * int(n_better)), int(n_better))
        error_rate = min(1.0, error_rate + (_VALUES_LEVEL if n_values else 0.0))
    judged = [study, *(_judge(trials, rows, _VALUES_LEVEL / n_values) for _, rows in groups[1:])]
    return [
        Finding(
            check="best step",
            subject="study",
            verdict=verdict,
            numbers=numbers if value is None else {**numbers, "value": value},
            section=SECTION,
            error_rate=error_rate,
        )
        for (value, _), (verdict, numbers) in zip(groups, judged, strict=True)
    ]


def learning_rate_decays(curves: list[Curve | None]) -> int | None:
    """Return 1 where most trials end below half of their peak learning rate, None where no curve tells."""
    ratios = []
    for curve in curves:
        rates = curve.learning_rate[np.isfinite(curve.learning_rate)] if curve is not None else np.empty(0)
        if len(rates) and rates.max() > 0:
            ratios.append(rates[-1] / rates.max())
    return int(np.median(ratios) < 0.5) if ratios else None


def is_constant_rate(rates: NDArray[np.float64]) -> bool | None:
    """Return whether a learning rate, shape (n_evaluations,), stays at its peak once there; None where unknown."""
    known = rates[np.isfinite(rates)]
    if not len(known) or known.max() <= 0:
        return None
    return bool(known[int(np.argmax(known)) :].min() >= _CONSTANT * known.max())


def _judge(trials: Trials, rows: NDArray[np.intp], allowed_late_p: float | None) -> tuple[Verdict, dict[str, Number]]:
    points = trials.distinct(rows)
    n_points = len(points)
    numbers: dict[str, Number] = {"n_feasible": len(rows), "n_points": n_points}
    if n_points < _MIN_POINTS:
        return Verdict.TOO_LITTLE_DATA, numbers
    cost = trials.cost[points]
    better = points[cost <= np.sort(cost)[math.ceil(n_points / 2) - 1]]
    progress = trials.best_step[better] / trials.max_steps[better]
    n_late = int(np.sum(progress > _LATE))
    share_early, share_late = float(np.mean(progress <= _EARLY)), n_late / len(better)
    late_p = _late_chance(n_late, len(better))
    decays = learning_rate_decays([trials.curves[row] for row in better])
    numbers |= {
        "n_better_half": len(better),
        "share_early": share_early,
        "share_late": share_late,
        "late_p": late_p,
        "learning_rate_decays": decays,
    }
    is_late = share_late >= _CONSISTENT
    if allowed_late_p is not None:
        numbers["allowed_late_p"] = allowed_late_p
        is_late = is_late and late_p <= allowed_late_p
    if share_early >= _CONSISTENT or (is_late and decays != 1):
        return Verdict.FLAG, numbers
    if allowed_late_p is not None and decays != 1 and _late_chance(len(better), len(better)) > allowed_late_p:
        return Verdict.TOO_LITTLE_DATA, numbers
    return Verdict.NO_EVIDENCE, numbers


def _late_chance(n_late: int, n_better: int) -> float:
    """Return the chance that so many of the better half are best in the last quarter, by noise after the half."""
    return float(scipy.stats.binom.sf(n_late - 1, n_better, _LATE_BY_NOISE))
