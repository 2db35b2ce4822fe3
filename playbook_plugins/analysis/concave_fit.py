"""Which curve of diminishing returns lies closest to noisy measurements, and what does it gain with each doubling?

Method: Hildreth (1954), "Point estimates of ordinates of concave functions".
"""

from __future__ import annotations

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray


def concave_fit(x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Return the concave curve closest to the points, by least squares, at the points themselves.

    Parameters
    ----------
    x
        Shape (n,), strictly increasing.
    y
        Shape (n,), finite.

    Returns
    -------
    ndarray
        float64 of shape (n,): its slopes never grow. Equal to ``y`` where that is concave already.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(x) < 3:
        return y.copy()
    # A concave curve through the points is a straight line that bends down at inner points, never up.
    bends = -np.maximum(x[:, np.newaxis] - x[1:-1], 0)
    basis = np.column_stack([np.ones(len(x)), x, bends])
    lowest = np.concatenate([[-np.inf, -np.inf], np.zeros(len(x) - 2)])
    solution = scipy.optimize.lsq_linear(basis, y, bounds=(lowest, np.inf), method="bvls", tol=1e-14)
    return np.asarray(basis @ solution.x, dtype=np.float64)


def doubling_gains(sizes: ArrayLike, speed: ArrayLike) -> NDArray[np.float64]:
    """Return how many times faster each size is than half of it, read off the closest concave curve in logarithms.

    Between the sizes the curve is a straight line, below the smallest it is extended.

    Parameters
    ----------
    sizes
        Shape (n,), at least 2, positive and strictly increasing.
    speed
        Shape (n,), positive; higher is better.

    Returns
    -------
    ndarray
        float64 of shape (n,); the first is that of the extension.
    """
    doublings = np.log2(np.asarray(sizes, dtype=np.float64))
    fitted = concave_fit(doublings, np.log2(np.asarray(speed, dtype=np.float64)))
    at_half = np.interp(doublings - 1, doublings, fitted)
    first_slope = (fitted[1] - fitted[0]) / (doublings[1] - doublings[0])
    at_half += first_slope * np.minimum(doublings - 1 - doublings[0], 0)
    return np.asarray(np.exp2(fitted - at_half), dtype=np.float64)
