"""Which curve of steps over batch sizes lies closest to the measured ones, and which others lie close enough?

Shallue et al. (2019), "Measuring the Effects of Data Parallelism on Neural Network Training"; the curve
log S = log(S_min (1 + B_crit / B)) is that of McCandlish et al. (2018), "An Empirical Model of Large-Batch Training".
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# B_crit is looked for from the smallest batch size over this to the largest times this; beyond, the curve is a
# straight line to six digits.
_SPAN = 1e3
_GRID = 241
_FINE_GRID = 4001


def _centred(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values - values.mean(axis=-1, keepdims=True), dtype=np.float64)


def _shape(u: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log(1 + exp(u) / x) less its mean over x, shape (len(u), len(x)): S_min has gone with the mean."""
    return _centred(np.log1p(np.exp(u)[:, np.newaxis] / x))


def _sum_of_squares(u: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the residual sums of squares at log B_crit = u, shape (len(y),), row by row of y, shape (len(y), n)."""
    return np.asarray(np.sum((_centred(y) - _shape(u, x)) ** 2, axis=1), dtype=np.float64)


def _search_range(x: NDArray[np.float64], n_points: int) -> NDArray[np.float64]:
    return np.linspace(math.log(x.min() / _SPAN), math.log(x.max() * _SPAN), n_points)


def fit_critical_size(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return log B_crit of the closest curves and their sums of squares, shapes (len(y),), for y of shape (., n).

    The best point of a grid, which no local minimum can hide, and Gauss-Newton steps from there to the next points.
    """
    grid = _search_range(x, _GRID)
    shapes = _shape(grid, x)
    best = np.argmin(np.sum(shapes**2, axis=1) - 2 * _centred(y) @ shapes.T, axis=1)
    u, width = grid[best], grid[1] - grid[0]
    is_inside = (best > 0) & (best < _GRID - 1)
    for _ in range(12):
        slope = _centred(np.exp(u)[:, np.newaxis] / (x + np.exp(u)[:, np.newaxis]))
        step = np.sum(slope * (_centred(y) - _shape(u, x)), axis=1) / np.maximum(np.sum(slope**2, axis=1), 1e-300)
        u = np.where(is_inside, np.clip(u + step, grid[best] - width, grid[best] + width), u)
    return u, _sum_of_squares(u, x, y)


def interval_of_critical_size(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    estimate: float,
    noise: float,
    confidence: float,
    n_resamples: int,
    generator: np.random.Generator,
) -> tuple[float, float]:
    """Return the lower and upper end for B_crit: 0 and +inf where the search range does not bound it."""
    if noise < 1e-9:
        return estimate, estimate
    truth = np.full(n_resamples, math.log(estimate))
    resampled = np.log1p(estimate / x) + noise * generator.standard_normal((n_resamples, len(x)))
    least = fit_critical_size(x, resampled)[1]
    excess = _sum_of_squares(truth, x, resampled) / least
    allowed = float(np.quantile(excess, confidence)) * noise**2 * (len(x) - 2)
    grid = _search_range(x, _FINE_GRID)
    inside = np.flatnonzero(_sum_of_squares(grid, x, np.broadcast_to(y, (_FINE_GRID, len(x)))) <= allowed)
    if not len(inside):
        return estimate, estimate
    low = 0.0 if inside[0] == 0 else min(float(np.exp(grid[inside[0]])), estimate)
    high = math.inf if inside[-1] == _FINE_GRID - 1 else max(float(np.exp(grid[inside[-1]])), estimate)
    return low, high
