"""How noisy is a curve, and how much worse does it end than it was at its best? What the questions about curves share.

Playbook: "Examining the training curves".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_EVALUATIONS = 12
_MIN_HALF = 8
# What is smaller than this share of the curve's range matters to nobody.
MATERIAL = 0.02
# Scaled by it, a median absolute deviation estimates the standard deviation of Gaussian noise.
_SIGMA = 1.4826
# So many standard errors a rise must exceed: it is the largest over all windows, and the noise is known from half of
# the evaluations only, by an estimate that correlation makes too small.
_RISE_ERRORS = 6.0
# Larger values are cut to it: no verdict changes, and differences stay within float64.
_HUGE = 1e100
# Differences below this share of the values are those of float64's last digits.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Series:
    """The finite values of one column, turned so that lower is better, with their steps; shape (n_evaluations,)."""

    name: str
    step: NDArray[np.int64]
    values: NDArray[np.float64]

    def smooth(self, window: int) -> NDArray[np.float64]:
        """Return the means of all windows of neighbors, shape (n_evaluations - window + 1,)."""
        return np.convolve(self.values, np.full(window, 1.0 / window), mode="valid")

    @property
    def window(self) -> int:
        """The evaluations that a smoothed value stands for: a twentieth of the curve, 3 at least."""
        return max(3, len(self.values) // 20)

    @property
    def span(self) -> float:
        """The range of the smoothed curve, the evaluation before any update included."""
        return float(np.ptp(self.smooth(self.window)))


@dataclass(frozen=True)
class Rise:
    """How much worse the smoothed end is than the smoothed best, and whether that is overfitting."""

    is_flagged: bool
    height: float
    excess: float
    share: float
    step: int


def step_noise(values: NDArray[np.float64], spacing: int = 1) -> float:
    """Return the standard deviation of the noise between evaluations, over the last half of a curve.

    1.4826 median |y(i + s) - 2 y(i) + y(i - s)| / sqrt(6), which a trend does not change: second differences of noise
    of variance v have the variance 6 v.

    Parameters
    ----------
    values
        Finite, shape (n_evaluations,); the last half of them counts, and 8 at least.
    spacing
        s, in evaluations: correlated neighbors differ by less than their noise, points further apart do not.

    Returns
    -------
    float
        In the unit of the values; NaN where fewer than ``2 * spacing + 1`` count.
    """
    half = np.asarray(values, dtype=np.float64)[-max(len(values) // 2, _MIN_HALF) :]
    if len(half) < 2 * spacing + 1:
        return float("nan")
    second = half[2 * spacing :] - 2.0 * half[spacing:-spacing] + half[: -2 * spacing]
    return float(_SIGMA * np.median(np.abs(second)) / 6.0**0.5)


def series_of(name: str, step: NDArray[np.int64], values: NDArray[np.float64], is_minimized: bool) -> Series:
    """Return the finite values of a column, lower being better, cut to where differences stay within float64."""
    known = np.isfinite(values)
    cost = np.clip(values[known] if is_minimized else -values[known], -_HUGE, _HUGE)
    return Series(name, step[known], cost)


def noise_of(series: Series) -> float:
    """Return the larger step noise of two spacings; 0 where it is only that of rounding."""
    far = 3 if len(series.values) >= 24 else 2
    noise = max(step_noise(series.values, 1), step_noise(series.values, far))
    return noise if noise > _ROUNDING * float(np.abs(series.values).max()) else 0.0


def share_of(part: float, span: float) -> float:
    """Return a part of a range as a share of it, 0 where the range is none."""
    return part / span if span > 0 else 0.0


def find_rise(series: Series) -> Rise | None:
    """Return how much worse a curve ends than its best, None below 12 evaluations."""
    if len(series.values) < MIN_EVALUATIONS:
        return None
    smooth = series.smooth(series.window)
    best = int(np.argmin(smooth))
    excess = float(smooth[-1] - smooth[best])
    error = noise_of(series) / (series.window / 2.0) ** 0.5
    is_rise = excess > _ROUNDING * float(np.abs(smooth).max())
    height = excess / error if error > 0 else float("inf") if is_rise else 0.0
    share = share_of(excess, float(np.ptp(smooth)))
    return Rise(
        is_flagged=is_rise and height > _RISE_ERRORS and share >= MATERIAL,
        height=height,
        excess=excess,
        share=share,
        step=int(series.step[best + series.window // 2]),
    )
