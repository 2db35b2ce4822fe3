"""Does a validation metric swing with a fixed period? The sharpest line of its spectrum, against chance.

Playbook: "Examining the training curves": other behaviors than overfitting deserve a look as well. A metric that comes
back every few evaluations usually is a bug: training data that are not shuffled between epochs, or evaluations that
see another part of the validation set each time.

Methods: Fisher (1929), "Tests of significance in harmonic analysis", for the largest ordinate of a periodogram.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

# The first quarter falls from the untrained model and says nothing about a period.
_SKIPPED = 0.25
_MIN_EVALUATIONS = 32
# Slower swings cannot be told from a trend.
_MIN_CYCLES = 4
_DEGREE = 3


@dataclass(frozen=True)
class Period:
    """The strongest period of a series.

    Attributes
    ----------
    length
        In evaluations; at least 2.
    p
        The chance of so strong a line in noise without a period, in [0, 1].
    share
        The share of the variation around the trend that the line explains, in [0, 1].
    """

    length: float
    p: float
    share: float


def find_period(values: NDArray[np.float64]) -> Period | None:
    """Return the strongest period of evenly spaced evaluations, whatever its evidence.

    The first quarter is left out. A cubic trend is taken off, residuals become normal scores by their ranks (an
    outlier is no line), an autoregression of order 1 is taken out (correlated noise is no line, and a filter leaves a
    line a line), and the largest ordinate of the periodogram with at least 4 cycles is judged by Fisher's test.

    Parameters
    ----------
    values
        Finite, shape (n_evaluations,).

    Returns
    -------
    Period or None
        None below 32 evaluations, or where nothing varies.
    """
    if len(values) < _MIN_EVALUATIONS:
        return None
    tail = values[int(_SKIPPED * len(values)) :]
    place = np.linspace(-1.0, 1.0, len(tail))
    trend = np.polynomial.Polynomial.fit(place, tail, _DEGREE)
    residual = tail - trend(place)
    if np.ptp(residual) <= 1e-9 * (np.abs(tail).max() + np.ptp(tail)):
        return None
    scores = scipy.special.ndtri((scipy.stats.rankdata(residual) - 0.5) / len(residual))
    correlation = float(np.clip(scores[1:] @ scores[:-1] / (scores @ scores), -0.95, 0.95))
    white = scores[1:] - correlation * scores[:-1]
    line, p = _largest_line(white)
    length = len(white) / line
    wave = np.exp(2j * np.pi * np.arange(len(scores)) / length)
    share = min(1.0, float(2.0 * np.abs(wave @ scores) ** 2 / (len(scores) * (scores @ scores))))
    return Period(length=length, p=p, share=share)


def _largest_line(values: NDArray[np.float64]) -> tuple[int, float]:
    """Return the number of cycles of the largest ordinate with enough cycles, and its p-value."""
    power = np.abs(np.fft.rfft(values)) ** 2
    # The last ordinate of an even length has one degree of freedom, the others have two.
    if len(values) % 2 == 0:
        power[-1] /= 2.0
    ordinates = power[_MIN_CYCLES:]
    largest = int(np.argmax(ordinates))
    total = float(ordinates.sum())
    share = float(ordinates[largest]) / total if total > 0 else 0.0
    return largest + _MIN_CYCLES, fisher_p(share, len(ordinates))


def fisher_p(share: float, n_ordinates: int) -> float:
    """Return the chance that the largest of n independent exponential ordinates has at least so large a share.

    Fisher's exact series, sum over j of (-1)^(j-1) C(n, j) (1 - j share)^(n-1), while 1 - j share > 0.

    Parameters
    ----------
    share
        In (0, 1].
    n_ordinates
        At least 1.
    """
    first = n_ordinates * (1.0 - share) ** (n_ordinates - 1)
    # Far beyond 1 the terms cancel below float64's precision, and the chance is 1; far below, one term is enough.
    if first > 20.0:
        return 1.0
    total = 0.0
    for j in range(1, n_ordinates + 1):
        if j * share >= 1.0:
            break
        log_choose = math.lgamma(n_ordinates + 1) - math.lgamma(j + 1) - math.lgamma(n_ordinates - j + 1)
        term = math.exp(log_choose + (n_ordinates - 1) * math.log1p(-j * share))
        total += term if j % 2 else -term
        if term < 1e-17:
            break
    return min(1.0, max(0.0, total))
