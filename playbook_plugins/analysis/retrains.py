"""Is a candidate better than the baseline beyond the noise of retraining? The retrains of both, compared.

Playbook: "Determining whether to adopt a training pipeline change or hyperparameter configuration".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from playbook_plugins.analysis.findings import Number
from playbook_plugins.analysis.records import Direction
from playbook_plugins.analysis.selection_bias import check_direction
from playbook_plugins.analysis.trial_variance import cut_huge

# The level at which a candidate is adopted, and of candidates that are no better the share that then is, simulated:
# Welch's approximation is a little liberal for few retrains of unequal spread (tests/test_adoption.py).
ALPHA, ERROR_RATE = 0.05, 0.06
# So many retrains a group of 2 or of 3 may face before Welch's number of degrees of freedom is too liberal.
_LARGEST_PARTNER = {2: 2, 3: 10}
# Up to so many retrains the rank test counts every split; beyond, its sum is normal for any purpose.
_MAX_EXACT = 100


@dataclass(frozen=True, kw_only=True)
class RetrainComparison:
    """What the retrains say about a candidate against the baseline.

    Attributes
    ----------
    method
        ``"welch"``; ``"known sd"``; or ``"rank"``, where a retrain diverged or no retrain differs from another.
    n_candidate, n_baseline
        The retrains compared, diverged ones included.
    n_diverged_candidate, n_diverged_baseline
        How many of them have no finite objective.
    candidate_mean, baseline_mean
        In the objective's unit, over the finite ones; NaN where there are none.
    improvement
        How much better the candidate's mean is, in the objective's unit: positive is better in either direction.
    standard_error
        Of the improvement, in the same unit; NaN for ``"rank"``.
    low, high
        The interval of the improvement, in the same unit; NaN for ``"rank"``.
    confidence
        The two-sided coverage of the interval, in (0, 1). At the default 0.9 it lies above 0 exactly where p < 0.05.
    freedom
        The degrees of freedom; infinite for a standard deviation known exactly; NaN for ``"rank"``.
    p
        The one-sided chance, in [0, 1], of an improvement this large were the two equally good.
    probability
        The probability, in [0, 1], that the candidate is better, for someone who took any improvement for as likely
        as its opposite: 1 - p (flat priors), for ``"rank"`` too, with half of a tie. Most changes that are tried do
        little; who knows that believes less.
    """

    method: Literal["welch", "known sd", "rank"]
    n_candidate: int
    n_baseline: int
    n_diverged_candidate: int
    n_diverged_baseline: int
    candidate_mean: float
    baseline_mean: float
    improvement: float
    standard_error: float
    low: float
    high: float
    confidence: float
    freedom: float
    p: float
    probability: float


def compare_retrains(
    candidate: ArrayLike,
    baseline: ArrayLike,
    direction: Direction,
    known_sd: float | None = None,
    *,
    known_freedom: float = math.inf,
    confidence: float = 0.9,
) -> RetrainComparison:
    """Compare retrains of a candidate with retrains of the baseline.

    Welch's t-test (1947), which lets the two differ in spread; with ``known_sd``, the trial variance of earlier
    retrains, a z-test (a t-test where ``known_freedom`` says how well it is known), which one retrain a side is
    enough for. The trial that won a search is no retrain: leave it out, it was chosen for its luck.

    Simulated false positives at p <= 0.05 are at most 0.06, for 2 to 30 retrains a side and spreads that differ up to
    tenfold. To keep that, a group of 2 against a larger one gets one degree of freedom and one of 3 against more than
    10 gets two (Mickey and Brown, 1966): Welch's own number leads to 0.08 and to 0.061. It costs so much power that a
    third retrain pays. An improvement of two standard deviations is found by 2, 3, 5 and 10 retrains a side in 0.23,
    0.57, 0.89 and 0.99 of cases, and with ``known_sd`` in 0.64, 0.79, 0.94 and 0.998.

    Where a retrain diverged no mean exists; where no retrain differs from another of its group, no spread. Then p is
    that of the rank-sum test (over all splits of up to 100 retrains), with diverged ones as worst, and the improvement
    is that of the medians. A ``known_sd`` does not change that for a diverged retrain.

    Parameters
    ----------
    candidate, baseline
        Shape (n,): the objectives of the retrains, in the objective's unit; NaN or infinite where one diverged.
    direction
        ``"minimize"`` or ``"maximize"``.
    known_sd
        The historical standard deviation over retrains, in the objective's unit, for both.
    known_freedom
        The degrees of freedom behind ``known_sd``; infinite where it is known for sure.
    confidence
        The coverage of the interval, in (0, 1).

    Returns
    -------
    RetrainComparison
        The effect, its interval and its probability; no pass or fail.

    Raises
    ------
    ValueError
        When a group is too small, or an argument is out of its range.
    """
    _check_arguments(direction, known_sd, known_freedom, confidence)
    sign = 1.0 if direction == "maximize" else -1.0
    groups = [_read(candidate, "candidate", known_sd), _read(baseline, "baseline", known_sd)]
    # Turned so that higher is better; what diverged is worst.
    first, second = (np.where(np.isfinite(group), sign * group, -np.inf) for group in groups)
    finite = [group[np.isfinite(group)] for group in (first, second)]
    diverged = [len(group) - len(one) for group, one in zip(groups, finite, strict=True)]
    means = [float(sign * one.mean()) if len(one) else math.nan for one in finite]
    improvement = error = low = high = freedom = math.nan
    method: Literal["welch", "known sd", "rank"] = "rank"
    if not any(diverged):
        improvement = float(first.mean() - second.mean())
        error, freedom = _standard_error(first, second, known_sd, known_freedom)
        scale = max(float(np.abs(first).max()), float(np.abs(second).max()))
        if error > 1e-12 * scale:
            method = "welch" if known_sd is None else "known sd"
    if method == "rank":
        p, probability = _rank_sum(first, second)
        error = freedom = math.nan
        medians = [_median(first), _median(second)]
        improvement = 0.0 if medians[0] == medians[1] else medians[0] - medians[1]
    else:
        is_normal = math.isinf(freedom)
        z, tail = -improvement / error, (1.0 - confidence) / 2.0
        p = float(scipy.special.ndtr(z) if is_normal else scipy.special.stdtr(freedom, z))
        probability = 1.0 - p
        margin = -error * float(scipy.special.ndtri(tail) if is_normal else scipy.special.stdtrit(freedom, tail))
        low, high = improvement - margin, improvement + margin
    return RetrainComparison(
        method=method,
        n_candidate=len(first),
        n_baseline=len(second),
        n_diverged_candidate=diverged[0],
        n_diverged_baseline=diverged[1],
        candidate_mean=means[0],
        baseline_mean=means[1],
        improvement=improvement,
        standard_error=error,
        low=low,
        high=high,
        confidence=confidence,
        freedom=freedom,
        p=p,
        probability=probability,
    )


def comparison_numbers(comparison: RetrainComparison) -> dict[str, Number]:
    """Return what a comparison says as the numbers of a finding, None for what is not finite."""
    return {
        name: value if isinstance(value, int | str) or math.isfinite(value) else None
        for name, value in vars(comparison).items()
    }


def _median(values: NDArray[np.float64]) -> float:
    """Return the median, of two middle values the better where the other diverged; shape (n,), higher is better."""
    ranked = np.sort(values)
    middle = ranked[[(len(ranked) - 1) // 2, len(ranked) // 2]]
    return float(middle.mean() if np.isfinite(middle[0]) else middle[1])


def _standard_error(
    first: NDArray[np.float64], second: NDArray[np.float64], known_sd: float | None, known_freedom: float
) -> tuple[float, float]:
    """Return the standard error of the difference of the means and its degrees of freedom."""
    sizes = (len(first), len(second))
    if known_sd is not None:
        return known_sd * math.sqrt(1 / sizes[0] + 1 / sizes[1]), known_freedom
    parts = [float(group.var(ddof=1)) / len(group) for group in (first, second)]
    total = sum(parts)
    if total == 0.0:
        return 0.0, math.nan
    shares = [part / total for part in parts]
    freedom = 1.0 / sum(share**2 / (size - 1) for share, size in zip(shares, sizes, strict=True))
    fewest = min(sizes)
    if fewest in _LARGEST_PARTNER and max(sizes) > _LARGEST_PARTNER[fewest]:
        freedom = fewest - 1.0
    return math.sqrt(total), freedom


def _rank_sum(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float]:
    """Return P(rank sum >= the observed one) over all splits of the pooled retrains, and 1 - P with half of a tie."""
    # Doubled mid-ranks are whole numbers, so that the splits can be counted by their sum.
    ranks = np.rint(2 * scipy.stats.rankdata(np.concatenate([first, second]))).astype(np.intp)
    size, total = len(first), len(ranks)
    if total > _MAX_EXACT:
        excess = float(ranks[:size].sum() - size * ranks.mean())
        spread = math.sqrt(size * (total - size) / (total - 1) * float(ranks.var()))
        if spread == 0.0:
            return 1.0, 0.5
        chance = float(scipy.special.ndtr(-excess / spread))
        return chance, 1.0 - chance
    shares = np.zeros((size + 1, int(ranks.sum()) + 1))
    shares[0, 0] = 1.0
    for n_seen, rank in enumerate(ranks):
        # Shares instead of counts, which would leave float64: of all subsets of the same size.
        grown = shares * np.array([max(0.0, 1 - k / (n_seen + 1)) for k in range(size + 1)])[:, None]
        moved = shares[:-1, : shares.shape[1] - rank] * (np.arange(1, size + 1) / (n_seen + 1))[:, None]
        grown[1:, rank:] += moved
        shares = grown
    observed = int(ranks[:size].sum())
    above = float(shares[size, observed + 1 :].sum())
    tie = float(shares[size, observed])
    return min(1.0, above + tie), max(0.0, 1.0 - above - tie / 2)


def _read(values: ArrayLike, name: str, known_sd: float | None) -> NDArray[np.float64]:
    group = cut_huge(values)
    needed = 2 if known_sd is None else 1
    if len(group) < needed:
        raise ValueError(
            f"`{name}` has {len(group)} retrains: without `known_sd` at least 2 are needed for a spread, and with it "
            "at least 1. Retrain with other seeds, or pass the standard deviation of earlier retrains."
        )
    return group


def _check_arguments(direction: str, known_sd: float | None, known_freedom: float, confidence: float) -> None:
    check_direction(direction)
    if known_sd is not None and not (math.isfinite(known_sd) and known_sd > 0):
        raise ValueError(
            f"`known_sd` is {known_sd}: the standard deviation over retrains must be positive and finite. Measure it "
            "with `estimate_trial_variance`, or leave it out."
        )
    if not known_freedom >= 1:
        raise ValueError(
            f"`known_freedom` is {known_freedom}: the degrees of freedom behind `known_sd` must be at least 1. Pass "
            "the number of retrains less the number of configurations, or leave it out."
        )
    if not 0 < confidence < 1:
        raise ValueError(
            f"`confidence` is {confidence}: the coverage of the interval must lie between 0 and 1. Pass 0.9 for 90%."
        )
