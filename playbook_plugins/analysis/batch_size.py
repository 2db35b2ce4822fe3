"""Up to which batch size does a larger batch save steps? The critical batch size, from steps to target.

Playbook: "Choosing the batch size to minimize training time": up to a critical batch size, twice the batch needs half
the steps (perfect scaling); beyond it the returns diminish; in the end a larger batch saves no steps at all. The three
regimes are those of Shallue et al., "Measuring the Effects of Data Parallelism on Neural Network Training" (2019); the
curve S = S_min (1 + B_crit / B) is that of McCandlish et al., "An Empirical Model of Large-Batch Training" (2018): at
B_crit, training takes twice the fewest steps and twice the fewest examples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from playbook_plugins.analysis.batch_size_fit import fit_critical_size, interval_of_critical_size
from playbook_plugins.analysis.concave_fit import doubling_gains
from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.gradient_noise import GradientNoiseScale
from playbook_plugins.analysis.steps_to_target import Budget
from playbook_plugins.analysis.throughput import NEARLY_DOUBLES, PAYS

SECTION = "Choosing the batch size to minimize training time"
# Two of them are spent on the parameters of the curve; with one left over its noise is hardly known.
_MIN_SIZES = 4
# A larger batch never needs more steps if it is tuned as well. With 5% of noise two equal sizes differ by so much in
# one of 1000 comparisons.
_MAX_RISE = 1.25
# A doubling that saves exactly a tenth saves a tenth, whichever way its last bits were rounded.
_ROUNDING = 1e-9
# Simulated with 5% of noise in tests/test_batch_size.py: 9 sizes that all need the same steps seem to rise; a largest
# size that still saves a fifth of the steps of half of it seems to save nothing.
_RISE_ERROR_RATE = 0.03
_SATURATION_ERROR_RATE = 0.05


class ScalingRegime(StrEnum):
    """What a batch size saves against half of it; `CriticalBatchSize.regimes` states the rules."""

    PERFECT = "perfect scaling"
    DIMINISHING = "diminishing returns"
    MAXIMAL = "maximal data parallelism"


class Refusal(StrEnum):
    """Why no critical batch size is given; `critical_batch_size` states the rules."""

    NOT_MONOTONE = "more steps at a larger batch size"
    FEW_SIZES = "too few batch sizes"
    NOT_REACHED = "no measured batch size reaches it"
    NOT_BELOW = "no measured batch size lies below it"


@dataclass(frozen=True, kw_only=True, eq=False)
class CriticalBatchSize:
    """Steps to target at each batch size, one row a size, the smallest first, and what follows from them.

    Attributes
    ----------
    batch_size
        float64 of shape (n_sizes,), strictly increasing, in examples per step over all devices.
    steps
        float64 of shape (n_sizes,), in optimizer steps, above 0: repeats of a size are averaged in logarithms. +inf
        where the goal was not reached.
    budget
        What the batch sizes had in common in their training.
    value
        B_crit, in examples per step; None where it is refused.
    low, high
        The interval around it, from 0 to +inf; None where it is refused.
    confidence
        The nominal coverage of the interval, in (0, 1).
    minimal_steps
        S_min: what training takes however large the batch, in optimizer steps; None where B_crit is refused.
    noise
        The standard deviation of log steps around the curve; None with fewer than 3 measurements.
    rise
        The largest ratio of the steps at a batch size to those at a smaller one, a missed goal counting with the steps
        that it was watched for; 0 with a single size.
    refusal
        Why there is no number; None where there is one.
    """

    batch_size: NDArray[np.float64]
    steps: NDArray[np.float64]
    budget: Budget
    value: float | None
    low: float | None
    high: float | None
    confidence: float
    minimal_steps: float | None
    noise: float | None
    rise: float
    refusal: Refusal | None

    def __len__(self) -> int:
        """Return the number of batch sizes."""
        return len(self.batch_size)

    @property
    def examples(self) -> NDArray[np.float64]:
        """float64 of shape (n_sizes,): the examples to target, steps times batch size; epochs, but for a factor."""
        return self.steps * self.batch_size

    @property
    def is_reached(self) -> NDArray[np.bool_]:
        """Shape (n_sizes,): whether the goal was reached at this size."""
        return np.isfinite(self.steps)

    @cached_property
    def gain(self) -> NDArray[np.float64]:
        """float64 of shape (n_sizes,): the steps at half the batch size over those at this size; NaN if not reached.

        2 is perfect scaling, 1 means that nothing is saved. As in `Throughput.gain`, and against the noise of single
        measurements, it is read off the closest curve, in logarithms, whose doublings save less and less. Between the
        sizes this is a straight line, below the smallest it is extended.
        """
        gain = np.full(len(self), np.nan)
        rows = np.flatnonzero(self.is_reached)
        if len(rows) >= 2:
            gain[rows] = doubling_gains(self.batch_size[rows], 1 / self.steps[rows])
        return gain

    @property
    def regimes(self) -> tuple[ScalingRegime | None, ...]:
        """The regime of each size, of length n_sizes; None where unknown.

        PERFECT where the steps nearly halve with the last doubling (`gain` of at least 1.8), DIMINISHING where it
        still saves a tenth (1.1), MAXIMAL below. They need no B_crit: on the curve without noise, PERFECT ends at
        B_crit / 4, and MAXIMAL begins at 9 B_crit.
        """
        return tuple(map(_regime, self.gain))

    @property
    def largest_useful(self) -> float | None:
        """The largest batch size whose last doubling saves a tenth of the steps, the smallest where none does.

        The playbook: usually the one that minimizes training time, if the hardware has the throughput. None where no
        regime is known.
        """
        rows = np.flatnonzero(~np.isnan(self.gain))
        useful = rows[self.gain[rows] >= PAYS * (1 - _ROUNDING)]
        return float(self.batch_size[useful[-1] if len(useful) else rows[0]]) if len(rows) else None


def critical_batch_size(
    batch_sizes: ArrayLike,
    steps: ArrayLike,
    *,
    last_steps: ArrayLike | None = None,
    budget: Budget = Budget.UNKNOWN,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> CriticalBatchSize:
    """Fit log S = log(S_min (1 + B_crit / B)) by least squares, and say how far B_crit is known.

    The interval holds every B_crit whose sum of squares exceeds the least by no more than chance does: the allowed
    excess, relative to the residual variance, is the quantile of what it was in ``n_resamples`` fits to the fitted
    curve with new Gaussian noise of the residuals' size (a parametric bootstrap). Simulated, with 4 to 9 doubling
    sizes and 3 or 12% of noise, Gaussian or with the tails of Student's t with 3 degrees of freedom, a nominal 95%
    cover 92 to 98%; the percentiles of resampled residuals would cover 85% with 5 sizes.

    No number is given (``refusal``) in these cases, the first that holds:

    - NOT_MONOTONE: some batch size took over 1.25 times the steps of a smaller one, or was watched for as long without
      reaching the goal. A larger batch never needs more steps once it is tuned as well, so these sizes are not
      comparable.
    - FEW_SIZES: fewer than 4 batch sizes reached the goal.
    - NOT_REACHED: the estimate is above the largest batch size that reached the goal. Where twice the batch still
      nearly halves the steps, nothing tells where that ends.
    - NOT_BELOW: the estimate is below the smallest batch size.

    Parameters
    ----------
    batch_sizes
        Shape (n,), positive, in examples per step over all devices, in any order; repeats are allowed.
    steps
        Shape (n,), in optimizer steps, above 0, from `fewest_steps` or `steps_to_target`: with all relevant
        hyperparameters tuned at each size. +inf or NaN where the goal was not reached: left out of the fit.
    last_steps
        Shape (n,): for how many steps the runs were watched; read where the goal was not reached. -1 is unknown.
    budget
        What the runs had in common, from `held_budget`: kept as a label.
    confidence
        The coverage of the interval, in (0, 1).
    n_resamples
        At least 100.
    seed
        Of the noise in the bootstrap.

    Returns
    -------
    CriticalBatchSize
        With the steps, the scaling regimes, and B_crit or the reason why there is none.

    Raises
    ------
    ValueError
        When an argument has another shape or is outside its domain.
    """
    sizes, counts, last = _columns(batch_sizes, steps, last_steps)
    if not 0 < confidence < 1:
        raise ValueError(
            f"`confidence` is {confidence}: it is the coverage of an interval and must lie between 0 and 1. Pass for "
            "instance 0.95."
        )
    if n_resamples < 100:
        raise ValueError(
            f"`n_resamples` is {n_resamples}: the ends of an interval need at least 100 resamples. Pass 1000, or leave "
            "it out."
        )
    reached = np.isfinite(counts)
    x, y = sizes[reached], np.log(counts[reached])
    distinct = np.unique(sizes)
    level = np.array([_mean_steps(counts[sizes == size]) for size in distinct])
    watched = np.array([last[sizes == size].max() for size in distinct])
    rise = _rise(level, np.where(np.isfinite(level), level, watched))
    value = low = high = minimal = noise = None
    refusal = _early_refusal(rise, len(np.unique(x)))
    if len(np.unique(x)) >= 2 and len(x) >= 3:
        fit, sse = fit_critical_size(x, y[np.newaxis])
        estimate, noise = float(np.exp(fit[0])), math.sqrt(float(sse[0]) / (len(x) - 2))
        if refusal is None and estimate > x.max():
            refusal = Refusal.NOT_REACHED
        elif refusal is None and estimate < x.min():
            refusal = Refusal.NOT_BELOW
        elif refusal is None:
            value = estimate
            minimal = float(np.exp(np.mean(y - np.log1p(estimate / x))))
            low, high = interval_of_critical_size(
                x, y, estimate, noise, confidence, n_resamples, np.random.default_rng(seed)
            )
    return CriticalBatchSize(
        batch_size=distinct,
        steps=level,
        budget=budget,
        value=value,
        low=low,
        high=high,
        confidence=confidence,
        minimal_steps=minimal,
        noise=noise,
        rise=rise,
        refusal=refusal,
    )


def check_critical_batch_size(
    result: CriticalBatchSize, *, noise_scale: GradientNoiseScale | None = None
) -> list[Finding]:
    """Ask whether the batch sizes are comparable, and whether the largest of them still save steps.

    Parameters
    ----------
    result
        From `critical_batch_size`.
    noise_scale
        From `gradient_noise_scale`: an advisory number beside the measured one; no verdict depends on it.

    Returns
    -------
    list of Finding
        Two, subject ``"batch_size"``. Check ``"steps to target"``: FLAG when a batch size needs over 1.25 times the
        steps of a smaller one, which ought not to be. TOO_LITTLE_DATA with fewer than 2 sizes that reached the goal.
        Numbers: ``n_sizes``, ``n_censored`` (sizes that missed the goal), ``rise`` and ``budget``. ``error_rate`` is
        that of 9 sizes that need the same steps, with 5% of noise, as real sweeps have; with 10% it is a third with 5
        such sizes, and two thirds with 9. Of largest sizes that need half as many steps again as the 4 before, at
        least 95% are found.

        Check ``"critical batch size"``: FLAG when a batch size no longer saves a tenth of the steps of half of it.
        TOO_LITTLE_DATA where that is not so and B_crit is refused, and where the sizes are too few or not comparable.
        Numbers: the same, and ``critical_batch_size``, ``low`` and ``high`` (in examples per step; None where refused,
        high also where it is infinite), ``confidence``, ``minimal_steps``, ``refusal``, ``noise``, ``smallest`` and
        ``largest`` (batch sizes that reached the goal), ``largest_perfect`` (None where no size scales perfectly),
        ``largest_useful``, ``noise_scale`` and ``noise_scale_standard_error`` (None where not given).
        ``error_rate`` is the simulated chance of this flag with 5% of noise where in truth the largest size still
        saves at least a fifth of the steps of half of it. Where it saves at most 3%, at least 90% are found.
    """
    n_reached = int(result.is_reached.sum())
    is_comparable = result.rise <= _MAX_RISE
    reached = result.batch_size[result.is_reached]
    common: dict[str, Number] = {
        "n_sizes": len(result),
        "n_censored": len(result) - n_reached,
        "rise": result.rise,
        "budget": str(result.budget),
    }
    regimes = result.regimes
    n_perfect = regimes.count(ScalingRegime.PERFECT)
    numbers: dict[str, Number] = {
        "critical_batch_size": result.value,
        "low": result.low,
        "high": None if result.high is None or math.isinf(result.high) else result.high,
        "confidence": result.confidence,
        "minimal_steps": result.minimal_steps,
        "refusal": None if result.refusal is None else str(result.refusal),
        "noise": result.noise,
        "smallest": float(reached[0]) if n_reached else None,
        "largest": float(reached[-1]) if n_reached else None,
        "largest_perfect": float(reached[n_perfect - 1]) if n_perfect else None,
        "largest_useful": result.largest_useful,
        "noise_scale": None if noise_scale is None else noise_scale.value,
        "noise_scale_standard_error": None if noise_scale is None else noise_scale.standard_error,
    }
    saturates = is_comparable and n_reached >= _MIN_SIZES and ScalingRegime.MAXIMAL in regimes
    unknown = Verdict.TOO_LITTLE_DATA if result.value is None else Verdict.NO_EVIDENCE
    rises = Verdict.NO_EVIDENCE if is_comparable else Verdict.FLAG
    return [
        Finding(
            check="steps to target",
            subject="batch_size",
            verdict=rises if n_reached >= 2 or not is_comparable else Verdict.TOO_LITTLE_DATA,
            numbers=common,
            section=SECTION,
            error_rate=_RISE_ERROR_RATE,
        ),
        Finding(
            check="critical batch size",
            subject="batch_size",
            verdict=Verdict.FLAG if saturates else unknown,
            numbers=common | numbers,
            section=SECTION,
            error_rate=_SATURATION_ERROR_RATE,
        ),
    ]


def _columns(
    batch_sizes: ArrayLike, steps: ArrayLike, last_steps: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the three columns, checked, with +inf for a missed goal and 0 for an unknown last step."""
    sizes, counts = np.asarray(batch_sizes, dtype=np.float64), np.asarray(steps, dtype=np.float64)
    last = np.zeros(sizes.shape) if last_steps is None else np.asarray(last_steps, dtype=np.float64)
    if sizes.ndim != 1 or not np.all(np.isfinite(sizes) & (sizes > 0)):
        raise ValueError(
            f"`batch_sizes` is {sizes.tolist()}: batch sizes must be positive and finite. Pass one entry a "
            "measurement, in examples per step over all devices."
        )
    for name, column in (("steps", counts), ("last_steps", last)):
        if column.shape != sizes.shape:
            raise ValueError(
                f"`{name}` has the shape {column.shape}, but there are {len(sizes)} batch sizes: it has one entry a "
                "measurement. Fill what is unknown with NaN."
            )
    if np.any(counts <= 0):
        raise ValueError(
            f"`steps` is {counts.tolist()}: reaching a goal takes more than 0 steps. Pass +inf or NaN where the goal "
            "was not reached, and choose a goal that no untrained model reaches."
        )
    return sizes, np.where(np.isnan(counts), np.inf, counts), np.maximum(np.nan_to_num(last), 0.0)


def _mean_steps(counts: NDArray[np.float64]) -> float:
    counts = counts[np.isfinite(counts)]
    return float(np.exp(np.mean(np.log(counts)))) if len(counts) else math.inf


def _rise(level: NDArray[np.float64], at_least: NDArray[np.float64]) -> float:
    """Return the largest ratio of the steps of a size to those of a smaller one, given what each took at least."""
    if len(level) < 2:
        return 0.0
    return float(np.max(at_least[1:] / np.minimum.accumulate(level)[:-1]))


def _early_refusal(rise: float, n_sizes: int) -> Refusal | None:
    if rise > _MAX_RISE:
        return Refusal.NOT_MONOTONE
    return Refusal.FEW_SIZES if n_sizes < _MIN_SIZES else None


def _regime(gain: float) -> ScalingRegime | None:
    if math.isnan(gain):
        return None
    if gain >= NEARLY_DOUBLES * (1 - _ROUNDING):
        return ScalingRegime.PERFECT
    return ScalingRegime.DIMINISHING if gain >= PAYS * (1 - _ROUNDING) else ScalingRegime.MAXIMAL
