"""How likely is it that one of several groups of trials leads by so much, were they all alike? Tests by ranks.

Playbook: "Detecting whether a change is useful with isolation plots". All look at the good end of the ranking only,
and none changes when the objective is rescaled.

- Groups whose trials lie at points of their own: the precedence test (Nelson, "Tables for a precedence life test",
  1963), extended to several groups of different size.
- Groups that were tried at the same points: the precedence test then almost never flags, because the trials of the best
  point come first together. Within each point the groups are exchangeable, so that each is the best of k with the
  chance 1 / k; the best trial's own group is compared with the others at the best of the remaining points.
- Buckets of a continuous hyperparameter: neighbours are alike, and one bucket seldom leads over the next. The
  precedence test asks instead whether the best trials lie together in 40% of the buckets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

# Of the points, so many are compared: where the trials are bad, being less bad says little about the best.
_COMPARED_SHARE = 2
_MIN_COMPARED = 12
# Of the buckets. A narrower range finds fewer of the smooth effects; a wider one says little.
_RANGE_SHARE = 0.4


@dataclass(frozen=True, kw_only=True)
class Lead:
    """How the group of the best trial stands against the others.

    Attributes
    ----------
    winner, last
        That group; of equal ones the first. Of neighbouring buckets the first and the last, else the same.
    lead
        How many of its trials are strictly better than the best of every other group; None for shared points.
    n_points, n_wins
        Of how many shared points it is strictly the best at how many; None for points of their own.
    p
        The chance of that, were the groups alike, in (0, 1].
    least_p
        The least that p could have been with so many trials, in (0, 1].
    """

    winner: int
    last: int
    lead: int | None
    n_points: int | None
    n_wins: int | None
    p: float
    least_p: float


def find_lead(
    cost: NDArray[np.float64], place: NDArray[np.intp], point: NDArray[np.intp] | None, against: int | None = None
) -> Lead | None:
    """Compare the group of the best trial with the others.

    Groups without a feasible trial are left out as soon as two have one: they would be company that makes any other
    group's lead look unlikely.

    Parameters
    ----------
    cost
        Shape (n,), lower is better; +inf for infeasible trials.
    place
        The group of each trial, shape (n,).
    point
        The point of each trial, shape (n,); None where points are not shared.
    against
        The one group to compare with; None for all.

    Returns
    -------
    Lead or None
        None where no trial is feasible or there are fewer than two groups.
    """
    rivals = _rivals(cost, place)
    if not len(rivals):
        return None
    winner = int(place[cost == cost.min()].min())
    if against is not None:
        rivals = np.array([winner, against])
    kept = np.isin(place, rivals)
    is_winner = place == winner
    if len(np.unique(place[kept])) < 2:
        return None
    if point is not None:
        return _lead_at_points(winner, cost[kept], is_winner[kept], point[kept])
    lead = int(np.sum(cost[is_winner] < cost[kept & ~is_winner].min()))
    counts = [int(np.sum(place == group)) for group in rivals]
    return Lead(
        winner=winner,
        last=winner,
        lead=lead,
        n_points=None,
        n_wins=None,
        p=chance_of_lead(lead, counts),
        least_p=chance_of_lead(int(is_winner.sum()), counts),
    )


def find_range_lead(cost: NDArray[np.float64], place: NDArray[np.intp]) -> Lead | None:
    """Ask whether the best trials lie together in a part of the range.

    Parameters
    ----------
    cost
        Shape (n,), lower is better; +inf for infeasible trials.
    place
        The bucket of each trial, from the lowest to the highest, shape (n,).

    Returns
    -------
    Lead or None
        From the first to the last bucket of the leading trials. ``p`` bounds the chance that the trials of any 40% of
        the buckets that have some (one at least) lead by so many. None where no trial is feasible or there are fewer
        than two buckets.
    """
    rivals = _rivals(cost, place)
    if len(rivals) < 2:
        return None
    kept = np.isin(place, rivals)
    cost, place = cost[kept], place[kept]
    rank = np.searchsorted(rivals, place)
    width = max(1, round(_RANGE_SHARE * len(rivals)))
    counts = np.bincount(rank, minlength=len(rivals))
    in_ranges = [int(counts[start : start + width].sum()) for start in range(len(rivals) - width + 1)]
    best_of_bucket = np.full(len(rivals), np.inf)
    np.minimum.at(best_of_bucket, rank, cost)
    leads = []
    for start in range(len(in_ranges)):
        outside = np.delete(best_of_bucket, np.s_[start : start + width]).min()
        leads.append(int(np.sum(cost < outside)))
    start = int(np.argmax(leads))
    n_trials = len(cost)
    leading = place[np.lexsort((place, cost))[: max(1, leads[start])]]
    return Lead(
        winner=int(leading.min()),
        last=int(leading.max()),
        lead=leads[start],
        n_points=None,
        n_wins=None,
        p=_chance_of_range_lead(leads[start], in_ranges, n_trials),
        least_p=_chance_of_range_lead(in_ranges[start], in_ranges, n_trials),
    )


def _chance_of_range_lead(lead: int, in_ranges: Sequence[int], n_trials: int) -> float:
    return min(1.0, sum(_chance_within(lead, count, n_trials) for count in in_ranges))


def _rivals(cost: NDArray[np.float64], place: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the groups to compare, ascending: those with a feasible trial, or all where one only has; none if none."""
    feasible = np.unique(place[np.isfinite(cost)])
    return np.unique(place) if len(feasible) == 1 else feasible


def chance_of_lead(lead: int, counts: Sequence[int]) -> float:
    """Return the chance that the first ``lead`` of a random order all belong to one group, shape of counts (K,)."""
    return min(1.0, sum(_chance_within(lead, count, sum(counts)) for count in counts))


def _chance_within(lead: int, count: int, n_trials: int) -> float:
    """Return the chance that the first ``lead`` of a random order are all among ``count`` of the trials."""
    if lead > count:
        return 0.0
    # C(n - lead, count - lead) / C(n, count), by logarithms.
    gammaln = scipy.special.gammaln
    log_chance = gammaln(n_trials - lead + 1) - gammaln(count - lead + 1) + gammaln(count + 1) - gammaln(n_trials + 1)
    return min(1.0, math.exp(float(log_chance)))


def chance_of_wins(n_wins: int, chances: NDArray[np.float64]) -> float:
    """Return the chance of at least so many successes in independent trials of the given chances, shape (n,)."""
    counts = np.array([1.0])
    for chance in chances:
        counts = np.append(counts, 0.0) * (1 - chance) + np.append(0.0, counts) * chance
    return min(1.0, float(counts[n_wins:].sum()))


def _lead_at_points(
    winner: int, cost: NDArray[np.float64], is_winner: NDArray[np.bool_], point: NDArray[np.intp]
) -> Lead:
    _, at = np.unique(point, return_inverse=True)
    n_points = int(at.max()) + 1
    n_groups = np.bincount(at, minlength=n_points)
    best, best_other, own = (np.full(n_points, np.inf) for _ in range(3))
    np.minimum.at(best, at, cost)
    np.minimum.at(best_other, at[~is_winner], cost[~is_winner])
    np.minimum.at(own, at[is_winner], cost[is_winner])
    # A point where nothing is feasible has no best group.
    is_shared = (n_groups > 1) & np.isin(np.arange(n_points), at[is_winner]) & np.isfinite(best)
    shared = np.flatnonzero(is_shared)
    shared = shared[np.argsort(best[shared], kind="stable")]
    shared = shared[: max(_MIN_COMPARED, math.ceil(len(shared) / _COMPARED_SHARE))]
    is_won = own[shared] < best_other[shared]
    # Who wins the best trial's point is who is asked about; the other points know nothing of it.
    others = shared != at[int(np.argmin(np.where(is_winner, cost, np.inf)))]
    chances = 1.0 / n_groups[shared[others]]
    return Lead(
        winner=winner,
        last=winner,
        lead=None,
        n_points=len(shared),
        n_wins=int(is_won.sum()),
        p=chance_of_wins(int(is_won[others].sum()), chances),
        least_p=float(np.prod(chances)),
    )
