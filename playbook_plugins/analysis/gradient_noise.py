"""How noisy are the gradients? The simple gradient noise scale, a hint at where larger batches stop paying.

Playbook: "Choosing the batch size to minimize training time" asks for the critical batch size, which takes tuned
trainings at several batch sizes to measure. The noise scale B_simple = tr(Sigma) / |G|^2 of McCandlish et al., "An
Empirical Model of Large-Batch Training" (2018, appendix A.1), comes from the gradients of one run. It is advisory: it
follows the critical batch size within an order of magnitude or so, and grows during training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, kw_only=True)
class GradientNoiseScale:
    """The estimate, with how far it is known.

    Attributes
    ----------
    value
        B_simple, in examples, at least 0; None where no signal was found in the gradients (``squared_gradient`` is not
        above 0): then it may be any number above ``low``.
    standard_error
        Of the value, in examples; None without a value or with a single measurement.
    low, high
        The 95% interval, in examples, from 0 to +inf; None with a single measurement.
    squared_gradient
        The estimate of |G|^2, the squared norm of the gradient without noise; noise can make it negative.
    trace
        The estimate of tr(Sigma), the variance of the gradient of one example, summed over its entries; noise can
        make it negative.
    n_measurements
        How many pairs of squared norms were averaged.
    """

    value: float | None
    standard_error: float | None
    low: float | None
    high: float | None
    squared_gradient: float
    trace: float
    n_measurements: int


def gradient_noise_scale(
    small_squared_norms: ArrayLike, big_squared_norms: ArrayLike, small_batch: int, big_batch: int
) -> GradientNoiseScale:
    """Estimate the noise scale from squared gradient norms at a small and at a big batch.

    E|G_B|^2 = |G|^2 + tr(Sigma) / B at any batch size B, hence two sizes give both terms without bias:
    |G|^2 = (b |G_b|^2 - s |G_s|^2) / (b - s) and tr(Sigma) = (|G_s|^2 - |G_b|^2) / (1 / s - 1 / b). The norms are
    averaged over the measurements before the ratio is taken, because a ratio of noisy numbers is biased. The standard
    error is that of a ratio of means (delta method); the interval is Fieller's, which stays right where the signal is
    hardly known and is then unbounded. Simulated, with 30 and more measurements, it covers 93 to 98%; the value plus or
    minus two standard errors covers as much only where the interval is bounded.

    Parameters
    ----------
    small_squared_norms, big_squared_norms
        Shape (n_measurements,), at least 0: squared norms of unclipped mean gradients, in the same order. The big
        batch may be the union of small ones, as with data parallelism: each device's gradient is a small batch
        (average their squared norms within a step), the mean of all is the big one. The weights should hardly change
        over the measurements, and each should see fresh examples.
    small_batch, big_batch
        In examples; the small one at least 1, the big one larger.

    Returns
    -------
    GradientNoiseScale
        In examples.

    Raises
    ------
    ValueError
        When the columns do not fit together or are negative or not finite, or the batch sizes are in the wrong order.
    """
    small, big = _norms("small_squared_norms", small_squared_norms), _norms("big_squared_norms", big_squared_norms)
    if len(small) != len(big) or not len(small):
        raise ValueError(
            f"`small_squared_norms` has {len(small)} entries and `big_squared_norms` has {len(big)}: both need one "
            "entry a measurement, and at least one. Pass the two norms of each step."
        )
    if not 1 <= small_batch < big_batch:
        raise ValueError(
            f"`small_batch` is {small_batch} and `big_batch` is {big_batch}: the small batch must hold at least 1 "
            "example and fewer than the big one. Pass their sizes in examples, at least a factor of 2 apart."
        )
    signal = (big_batch * big - small_batch * small) / (big_batch - small_batch)
    noise = (small - big) / (1.0 / small_batch - 1.0 / big_batch)
    squared_gradient, trace, n = float(signal.mean()), float(noise.mean()), len(small)
    value = max(trace, 0.0) / squared_gradient if squared_gradient > 0 else None
    standard_error = low = high = None
    if n >= 2:
        # Variances and covariance of the two means.
        covariance = np.cov(np.stack([noise, signal])) / n
        if squared_gradient > 0:
            slope = np.array([1.0, -trace / squared_gradient]) / squared_gradient
            standard_error = math.sqrt(max(float(slope @ covariance @ slope), 0.0))
        low, high = _fieller(trace, squared_gradient, covariance, float(scipy.stats.t.ppf(0.975, n - 1)))
    return GradientNoiseScale(
        value=value,
        standard_error=standard_error,
        low=low,
        high=high,
        squared_gradient=squared_gradient,
        trace=trace,
        n_measurements=n,
    )


def _norms(name: str, values: ArrayLike) -> NDArray[np.float64]:
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1 or not np.all(np.isfinite(column) & (column >= 0)):
        raise ValueError(
            f"`{name}` is {column.tolist()}: squared norms must be finite and at least 0, in one dimension. Leave out "
            "the steps whose gradient was not finite."
        )
    return column


def _fieller(trace: float, signal: float, covariance: NDArray[Any], quantile: float) -> tuple[float, float]:
    """Return the range of ratios r >= 0 for which trace - r * signal lies within its noise of 0.

    That is where (trace - r signal)^2 <= q^2 (v_tt - 2 r v_ts + r^2 v_ss): a parabola a r^2 - 2 b r + c <= 0.
    """
    q2 = quantile**2
    a = signal**2 - q2 * float(covariance[1, 1])
    b = trace * signal - q2 * float(covariance[0, 1])
    c = trace**2 - q2 * float(covariance[0, 0])
    root = math.sqrt(max(b * b - a * c, 0.0))
    if a > 0 and signal > 0:
        return max((b - root) / a, 0.0), max((b + root) / a, 0.0)
    # The signal may be 0, and the ratio without bound. Where the noise is known to be positive, its ratio to as much
    # signal as there may be is a bound from below: the positive root.
    return ((b - root) / a if a < 0 < c else 0.0), math.inf
