"""How evenly do the first points of a sequence cover the square? The centred discrepancy, for many candidates at once.

Playbook: "Why use quasi-random search instead of more sophisticated black box optimization algorithms during the
exploration phase of tuning?" (the search spreads evenly over each hyperparameter and over each pair of them).

References
----------
F. J. Hickernell (1998). "A generalized discrepancy and quadrature error bound". Mathematics of Computation 67, 299-322.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# The numbers of points at which a candidate is judged: rounds of experiments have 16 to 128 trials, and 6 is what each
# of five scientific values gets of a round of thirty.
JUDGED_COUNTS = (6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
# Coordinates are judged to the cell in which they fall.
N_CELLS = 2**16

_COUNTS = np.array(JUDGED_COUNTS, dtype=np.float64)
# The pairs i < k of judged points, ordered by the first judged count that holds both, and where each count's begin.
_FIRST, _SECOND = np.triu_indices(JUDGED_COUNTS[-1], k=1)
_SHELL = np.searchsorted(JUDGED_COUNTS, _SECOND, side="right")
_ORDER = np.argsort(_SHELL, kind="stable")
_FIRST, _SECOND = _FIRST[_ORDER], _SECOND[_ORDER]
_PAIR_SHELLS = [
    slice(a, b) for a, b in pairwise(np.searchsorted(_SHELL[_ORDER], np.arange(len(JUDGED_COUNTS) + 1)).tolist())
]
_POINT_SHELLS = [slice(a, b) for a, b in pairwise((0, *JUDGED_COUNTS))]


class Kernels(NamedTuple):
    """The terms of the centred discrepancy of one or more coordinates x of 128 points, in units of 2^-18.

    Attributes
    ----------
    single
        1 + |x - 1/2| / 2 - |x - 1/2|^2 / 2, shape (..., 128).
    diagonal
        1 + |x - 1/2|, shape (..., 128): each point paired with itself.
    pairs
        1 + |x - 1/2| / 2 + |y - 1/2| / 2 - |x - y| / 2 for every two points, shape (..., 8128).
    """

    single: NDArray[np.float64]
    diagonal: NDArray[np.float64]
    pairs: NDArray[np.float64]

    def of(self, row: int) -> Kernels:
        """Return the kernels of one coordinate."""
        return Kernels(self.single[row], self.diagonal[row], self.pairs[row])


def kernels_of(cells: NDArray[np.int64]) -> Kernels:
    """Return the kernels of the coordinates (cells + 1/2) / 2^16, shape (..., 128).

    All terms are whole numbers (the single ones by rounding), and the sums of their products stay below 2^53: exact in
    float64, whatever the order in which a linear algebra library adds. So every machine ranks the candidates alike.
    """
    x = cells.astype(np.float64)
    # 2^17 |x - 1/2|, which is 2^18 times the half of it that enters the kernels.
    off = np.abs(2 * x + 1 - N_CELLS)
    single = np.floor(2**18 + off - off * off / 2**17 + 0.5)
    pairs = 2**18 + off[..., _FIRST] + off[..., _SECOND] - 2 * np.abs(x[..., _FIRST] - x[..., _SECOND])
    return Kernels(single, 2**18 + 2 * off, pairs)


def score(candidates: Kernels, others: list[Kernels]) -> NDArray[np.float64]:
    """Return how unevenly each candidate for one more coordinate covers, by itself and paired with the others.

    Parameters
    ----------
    candidates
        The kernels of n_candidates coordinates.
    others
        The kernels of the coordinates that there are already.

    Returns
    -------
    ndarray
        float64 of shape (n_candidates,), lower is better. For each judged count: the squared centred discrepancy over
        that of plain random points, the larger of the coordinate's own and of its worst pair. Over the counts: the
        mean of the fourth power, so that no count is sacrificed for the others.
    """
    # Paired with a coordinate whose kernels are all 1, the products are the coordinate's own.
    ones = Kernels(*(np.full(part.shape[1:], 2.0**18) for part in candidates))
    ratio = _worst_ratio(candidates, [ones], n_dimensions=1)
    if others:
        ratio = np.maximum(ratio, _worst_ratio(candidates, others, n_dimensions=2))
    # Multiplied, not raised to a power, which machines may round differently.
    ratio = ratio * ratio
    return np.asarray((ratio * ratio).mean(axis=1), dtype=np.float64)


def _worst_ratio(candidates: Kernels, others: list[Kernels], n_dimensions: int) -> NDArray[np.float64]:
    """Return the largest ratio over the others, shape (n_candidates, n_counts).

    The squared centred discrepancy of n points in d dimensions is (13/12)^d - 2/n sum of single + 1/n^2 sum over all
    i, k of pairs, products over the d coordinates; its mean over random points is ((5/4)^d - (13/12)^d) / n.
    """
    single, diagonal, pairs = (
        _sums(mine, np.stack(theirs, axis=1), shells)
        for mine, theirs, shells in zip(
            candidates, zip(*others, strict=True), (_POINT_SHELLS, _POINT_SHELLS, _PAIR_SHELLS), strict=True
        )
    )
    centre, spread = ((13 / 12), (5 / 4)) if n_dimensions == 1 else (169 / 144, 25 / 16)
    squared = centre - 2 * single / _COUNTS + (diagonal + 2 * pairs) / (_COUNTS * _COUNTS)
    return np.asarray((squared * _COUNTS / (spread - centre)).max(axis=1), dtype=np.float64)


def _sums(mine: NDArray[np.float64], theirs: NDArray[np.float64], shells: list[slice]) -> NDArray[np.float64]:
    """Return the sums of products up to each judged count, shape (n_candidates, n_others, n_counts)."""
    return np.stack([mine[:, shell] @ theirs[shell] for shell in shells], axis=2).cumsum(axis=2) / 2.0**36
