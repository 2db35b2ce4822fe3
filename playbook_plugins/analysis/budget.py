"""How good is the best of m trials? The order statistics behind "were enough points sampled?".

Playbook: "Not sampling enough points in the search space". The estimate of the expected best of m without replacement
is the U-statistic of Tang et al., "Showing Your Work Doesn't Always Work" (2020); the naive estimate with replacement
is biased towards good values, the more the closer m is to n.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


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
    if not 1 <= m <= n_trials:
        raise ValueError(
            f"`m` is {m}: it must lie between 1 and the number of trials, {n_trials}, because trials are drawn without "
            "replacement. Pass a smaller m, or run more trials."
        )
    weights = np.zeros(n_trials)
    # Each weight follows from the one before by a ratio of binomials; no factorial is ever formed.
    weights[0] = m / n_trials
    for rank in range(1, n_trials - m + 1):
        weights[rank] = weights[rank - 1] * (n_trials - rank - m + 1) / (n_trials - rank)
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
    """Return the median of the best of m trials, which exists also where some trials are infeasible.

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
