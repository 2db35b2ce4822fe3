"""How good is the best of m trials, for every m? The order statistics, and the tuning curve for a chart to draw.

Playbook: "Not sampling enough points in the search space", and "How many trials are needed to get good results with
quasi-random search?", whose Figure 3 shows boxes of the best of resampled trials. Resampling is not needed. The
estimate of the expected best of m without replacement is the U-statistic of Tang et al., "Showing Your Work Doesn't
Always Work" (2020); the naive estimate with replacement takes the best of m for worse than it is, the more the closer m
is to n. A quantile of the best of m is one of a single trial at another share, for which Hyndman and Fan, "Sample
Quantiles in Statistical Packages" (1996), give the estimate that is too low as often as too high. Beyond a quarter of
the trials resampling misleads: samples of the same few trials are alike, so that their median is too good
(tests/test_budget_convnext.py) and their spread too small, none at all for the best of all n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from playbook_plugins.analysis.trials import Trials

# Up to here every m is shown; beyond, so many, evenly spread on a log scale.
_MAX_M = 200
_BOX_SHARE = 4
_ENDS = (0.05, 0.95)


def best_of_m_weights(n_trials: int, m: int) -> NDArray[np.float64]:
    """Return how likely each of n ranked trials is the best of m drawn without replacement.

    Parameters
    ----------
    n_trials
        The number of trials, at least 1.
    m
        The number drawn, in [1, n_trials].

    Returns
    -------
    ndarray
        float64 of shape (n_trials,), the best trial first: C(n - i, m - 1) / C(n, m) for rank i = 1 ... n; it sums
        to 1.

    Raises
    ------
    ValueError
        When m is not in [1, n_trials].
    """
    _check_m(n_trials, m)
    weights = np.zeros(n_trials)
    # Each weight follows from the one before by a ratio of binomials; no factorial is ever formed.
    rank = np.arange(1, n_trials - m + 1)
    ratios = (n_trials - rank - m + 1) / (n_trials - rank)
    weights[: n_trials - m + 1] = m / n_trials * np.cumprod(np.concatenate([[1.0], ratios]))
    return weights


def expected_best(cost: ArrayLike, m: int) -> float:
    """Return the unbiased estimate of the expected best of m trials.

    Parameters
    ----------
    cost
        Shape (n_trials,), lower is better; +inf for infeasible trials.
    m
        In [1, n_trials].

    Returns
    -------
    float
        In the unit of ``cost``; +inf where m draws can all be infeasible, because the mean does not exist then.
    """
    ranked = np.sort(np.asarray(cost, dtype=np.float64))
    weights = best_of_m_weights(len(ranked), m)
    # 0 * inf is NaN: a rank that can never be the best of m does not count.
    possible = weights > 0
    return float(np.sum(ranked[possible] * weights[possible]))


def median_best(cost: ArrayLike, m: int) -> float:
    """Return the median of the best of m of these trials, which exists also where some trials are infeasible.

    It describes the draws of m from these very trials. As an estimate for the search that drew them it is too good
    where m is above n / 4; `quantile_best` is the estimate.

    Parameters
    ----------
    cost
        Shape (n_trials,), lower is better; +inf for infeasible trials.
    m
        In [1, n_trials].

    Returns
    -------
    float
        In the unit of ``cost``; +inf where at least half of the draws of m are all infeasible.
    """
    ranked = np.sort(np.asarray(cost, dtype=np.float64))
    reached = np.cumsum(best_of_m_weights(len(ranked), m))
    # Rounding must not push the median past the rank that holds it.
    return float(ranked[np.searchsorted(reached, 0.5 - 1e-12)])


def quantile_best(cost: ArrayLike, m: int, share: float) -> float:
    """Return the estimate of what the best of m trials of such a search reaches with the chance ``share``.

    The best of m lies below a value as often as not all of m trials lie above it: its quantile is that of one trial at
    1 - (1 - share)^(1 / m). The estimate of that is Hyndman and Fan's eighth, the approximately median-unbiased one:
    too low in 45% to 55% of simulated studies of 32 trials for m up to n / 2, but for the better quartile (below).

    Parameters
    ----------
    cost
        Shape (n_trials,), lower is better; +inf for infeasible trials.
    m
        In [1, n_trials].
    share
        In (0, 1): 0.5 for the median, 0.25 for the better quartile, 0.75 for the worse one.

    Returns
    -------
    float
        In the unit of ``cost``; +inf where so many draws are likely to be all infeasible. Never better than the best
        of these trials, which is too bad an estimate of the better quartile where m is above 0.43 n_trials.

    Raises
    ------
    ValueError
        When m is not in [1, n_trials], or ``share`` not in (0, 1).
    """
    ranked = np.sort(np.asarray(cost, dtype=np.float64))
    _check_m(len(ranked), m)
    if not 0 < share < 1:
        raise ValueError(
            f"`share` is {share}: it is the chance that the best of m trials is at least so good and must lie between "
            "0 and 1. Pass 0.5 for the median."
        )
    place = -math.expm1(math.log1p(-share) / m)
    rank = min(max((len(ranked) + 1 / 3) * place + 1 / 3, 1.0), float(len(ranked)))
    # Whole ranks miss their number by the last bits, and must not reach for a neighbour that may be infinite.
    rank = round(rank, 9)
    low = math.floor(rank)
    # Between two infinite neighbours there is nothing to interpolate.
    if rank == low or ranked[low] == ranked[low - 1]:
        return float(ranked[low - 1])
    # Weighted, and not stepped from one to the other: their difference may overflow.
    return float((1 - (rank - low)) * ranked[low - 1] + (rank - low) * ranked[low])


@dataclass(frozen=True, kw_only=True)
class TuningBox:
    """The distribution of the best of m trials, in the objective's unit; NaN where it is infeasible.

    Attributes
    ----------
    m
        The number of trials, in [1, n_points / 4].
    better_end, worse_end
        Reached by the best of m trials with the chances 0.05 and 0.95.
    better_quartile, median, worse_quartile
        Reached with the chances 0.25, 0.5 and 0.75.
    """

    m: int
    better_end: float
    better_quartile: float
    median: float
    worse_quartile: float
    worse_end: float


@dataclass(frozen=True, kw_only=True, eq=False)
class TuningCurve:
    """The best of m trials against m. All arrays have the shape (n_m,), and none holds an infinite value.

    Attributes
    ----------
    n_points
        The number n of trials that it rests on, repeated points counted once.
    n_infeasible
        How many of them are infeasible; they count as worst.
    m
        int64, ascending from 1 to n_points.
    median, better_quartile, worse_quartile
        What the best of m trials reaches with the chances 0.5, 0.25 and 0.75, in the objective's unit; NaN where so
        many draws are likely to be all infeasible. None is better than the best trial.
    expected
        The expected best of m trials by the U-statistic, in the objective's unit; NaN throughout where a trial is
        infeasible, because the mean does not exist then.
    boxes
        For m = 1, 2, 4, ..., n_points / 4.
    """

    n_points: int
    n_infeasible: int
    m: NDArray[np.int64]
    median: NDArray[np.float64]
    better_quartile: NDArray[np.float64]
    worse_quartile: NDArray[np.float64]
    expected: NDArray[np.float64]
    boxes: tuple[TuningBox, ...]


def tuning_curve(trials: Trials) -> TuningCurve:
    """Estimate the distribution of the best of m trials of the search that drew these.

    The median and the quartiles are `quantile_best`, the mean is `expected_best`. They describe a search that does not
    look at results, such as random or quasi-random search. The trials of an adaptive one are not exchangeable, and it
    is not described by them; `playbook_plugins.analysis.budget.order_trend` sees the trace of it.

    Parameters
    ----------
    trials
        The study; for one scientific value, ``trials.select`` its trials. Pruned, running and failed trials are left
        out; repeated points count once, by their best.

    Returns
    -------
    TuningCurve
        With empty arrays where no trial is judged.
    """
    rows = trials.distinct(np.flatnonzero(trials.is_judged))
    cost = np.sort(np.where(trials.is_infeasible[rows], np.inf, trials.cost[rows]))
    n_points = len(cost)
    n_infeasible = int(np.isinf(cost).sum())
    sign = 1.0 if trials.direction == "minimize" else -1.0

    def reached(m: int, share: float) -> float:
        value = quantile_best(cost, m, share)
        return sign * value if np.isfinite(value) else np.nan

    sizes = _sizes(n_points)
    expected = [np.nan if n_infeasible else sign * expected_best(cost, m) for m in sizes]
    return TuningCurve(
        n_points=n_points,
        n_infeasible=n_infeasible,
        m=np.array(sizes, dtype=np.int64),
        median=np.array([reached(m, 0.5) for m in sizes], dtype=np.float64),
        better_quartile=np.array([reached(m, 0.25) for m in sizes], dtype=np.float64),
        worse_quartile=np.array([reached(m, 0.75) for m in sizes], dtype=np.float64),
        expected=np.array(expected, dtype=np.float64),
        boxes=tuple(
            TuningBox(
                m=m,
                better_end=reached(m, _ENDS[0]),
                better_quartile=reached(m, 0.25),
                median=reached(m, 0.5),
                worse_quartile=reached(m, 0.75),
                worse_end=reached(m, _ENDS[1]),
            )
            for m in (2**power for power in range(n_points.bit_length()))
            if _BOX_SHARE * m <= n_points
        ),
    )


def _sizes(n_points: int) -> list[int]:
    if n_points <= _MAX_M:
        return list(range(1, n_points + 1))
    return sorted({round(size) for size in np.geomspace(1, n_points, _MAX_M)})


def _check_m(n_trials: int, m: int) -> None:
    if not 1 <= m <= n_trials:
        raise ValueError(
            f"`m` is {m}: it must lie between 1 and the number of trials, {n_trials}, because trials are drawn without "
            "replacement. Pass a smaller m, or run more trials."
        )
