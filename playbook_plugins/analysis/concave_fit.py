"""Which curve of diminishing returns lies closest to noisy measurements? Least squares among the concave ones.

Method: Hildreth (1954), "Point estimates of ordinates of concave functions".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import lsq_linear


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
    solution = lsq_linear(basis, y, bounds=(lowest, np.inf), method="bvls", tol=1e-14)
    return np.asarray(basis @ solution.x, dtype=np.float64)
