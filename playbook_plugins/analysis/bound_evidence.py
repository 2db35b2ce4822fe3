"""How surprising is what the trials show at a bound? The crowding of the best ones, and the slope of the objective.

Playbook: "Identifying bad search space boundaries". `check_boundaries` asks both of the feasible points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

_BEST_SHARE = 0.2
_MIN_BEST = 4


@dataclass(frozen=True)
class Crowding:
    """How many of the best points lie in each of several zones. Arrays have shape (n_zones,).

    Attributes
    ----------
    k
        How many points count as the best.
    k_inside
        Of these, the points in the zone. Of equal objectives at the k-th place the zone gets its share, rounded down.
    p
        The chance of so many or more if the objective had nothing to do with the zone, in [0, 1]; low is crowded.
    p_with_best
        The chance of so many or more and of the best point in the zone; 1 where the best is not in it (of several equal
        ones, at most half).
    least_p, least_p_with_best
        The smallest values that the number of points in the zone allows.
    """

    k: int
    k_inside: NDArray[np.int64]
    p: NDArray[np.float64]
    p_with_best: NDArray[np.float64]
    least_p: NDArray[np.float64]
    least_p_with_best: NDArray[np.float64]


def count_crowding(cost: NDArray[np.float64], is_inside: NDArray[np.bool_], k: int | None = None) -> Crowding:
    """Count the best points in each zone, and compute the hypergeometric chance of so many.

    Parameters
    ----------
    cost
        Finite, lower is better, shape (n_points,), at least 4.
    is_inside
        Which points lie in which zone, shape (n_points, n_zones).
    k
        How many points count as the best; by default a fifth of all, 4 at least.
    """
    n_points = len(cost)
    if k is None:
        k = max(_MIN_BEST, math.ceil(_BEST_SHARE * n_points))
    last = np.partition(cost, k - 1)[k - 1]
    is_better, is_tied = cost < last, cost == last
    # By share and not by the order of the trials: a sorted grid of equal results crowds nowhere.
    share = (k - is_better.sum()) / is_tied.sum()
    k_inside = np.floor(is_inside[is_better].sum(axis=0) + share * is_inside[is_tied].sum(axis=0) + 1e-9)
    n_inside = is_inside.sum(axis=0)
    has_best = is_inside[cost == cost.min()].mean(axis=0) > 0.5
    # The chances of what was counted, and of the most that could have been.
    counts = np.stack([k_inside, np.minimum(k, n_inside)])
    p, least_p = scipy.stats.hypergeom.sf(counts - 1, n_points, n_inside, k)
    # The best point is inside, and so many of the other k - 1 that there are k_inside.
    others = scipy.stats.hypergeom.sf(counts - 2, n_points - 1, np.maximum(n_inside - 1, 0), k - 1)
    p_with_best, least_p_with_best = n_inside / n_points * others
    return Crowding(
        k=k,
        k_inside=k_inside.astype(np.int64),
        p=p,
        p_with_best=np.where(has_best, p_with_best, 1.0),
        least_p=least_p,
        least_p_with_best=least_p_with_best,
    )


def compute_slope_p(
    unit: NDArray[np.float64], asked: NDArray[np.intp], cost: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the chance of a slope so good at each bound if the objective did not improve there.

    The ranks of the objective are fitted by an additive quadratic in all hyperparameters where there are points enough,
    n > 2 d + 8, because what the others explain is not noise; otherwise in one hyperparameter at a time. Then a
    one-sided t-test of the derivative at the bound. It is 1 where the values cannot tell it, such as two alone.

    Parameters
    ----------
    unit
        Places in the ranges, in [0, 1] of the search scale, shape (n_points, d).
    asked
        The columns of ``unit`` that are asked about, shape (n_asked,).
    cost
        Lower is better, shape (n_points,).

    Returns
    -------
    ndarray
        In [0, 1], shape (2 n_asked,): of each column the lower bound, then the upper.
    """
    centred = unit - 0.5
    ranks = scipy.stats.rankdata(cost)
    if len(cost) > 2 * unit.shape[1] + 8:
        return _fit_slope_p(centred, asked, ranks)
    first = np.zeros(1, dtype=np.intp)
    return np.concatenate([_fit_slope_p(centred[:, [column]], first, ranks) for column in asked])


def _fit_slope_p(
    centred: NDArray[np.float64], asked: NDArray[np.intp], ranks: NDArray[np.float64]
) -> NDArray[np.float64]:
    n_points, d = centred.shape
    design = np.column_stack([np.ones(n_points), centred, centred**2])
    left, sizes, right = np.linalg.svd(design, full_matrices=False)
    is_known = sizes > sizes[0] * n_points * np.finfo(np.float64).eps
    left, sizes, right = left[:, is_known], sizes[is_known], right[is_known]
    freedom = n_points - len(sizes)
    # b u + c u^2, with u in [-0.5, 0.5], grows outwards by c - b at the lower bound and by c + b at the upper.
    contrasts = np.zeros((len(asked), 2, 1 + 2 * d))
    each = np.arange(len(asked))
    contrasts[each, 0, 1 + asked] = -1.0
    contrasts[each, 1, 1 + asked] = 1.0
    contrasts[each, :, 1 + d + asked] = 1.0
    contrasts = contrasts.reshape(-1, 1 + 2 * d)
    seen = contrasts @ right.T
    can_tell = np.abs(seen @ right - contrasts).max(axis=1) < 1e-6
    if freedom < 1:
        return np.ones(len(contrasts))
    fitted = left.T @ ranks
    residual = ranks - left @ fitted
    slope = (seen / sizes) @ fitted
    spread = float(residual @ residual) / freedom * ((seen / sizes) ** 2).sum(axis=1)
    is_exact = spread <= 1e-12 * n_points**2
    p = scipy.special.stdtr(freedom, slope / np.sqrt(np.where(is_exact, 1.0, spread)))
    p = np.where(is_exact, np.where(slope < -1e-6 * n_points, 0.0, 1.0), p)
    return np.asarray(np.where(can_tell, p, 1.0), dtype=np.float64)
