"""How lucky is the best trial of a search? What a retrain, fresh data or a second search would find instead.

Playbook: "Determining whether to adopt a training pipeline change or hyperparameter configuration". The best of n noisy
results is chosen for its luck too (the winner's curse). Where the luck is the seed's, retraining shows it; where it is
that of a finite validation set, every retrain is judged by the same examples and only fresh ones, in the end the test
set, show it. Study variance is what another draw of the same search would have chosen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.records import Direction
from playbook_plugins.analysis.trials import Trials

SECTION = "Determining whether to adopt a training pipeline change or hyperparameter configuration"
# Trials this many noise standard deviations behind the best say nothing about its luck.
_REACH = 10.0
_GRID_STEP = 0.1
_N_ITERATIONS = 100
_MAX_TRIALS = 2000
_MIN_TRIALS = 8
# A bias below half the noise of one result is one that no reader of the result would notice.
_NOTICEABLE = 0.5


@dataclass(frozen=True, kw_only=True)
class SelectionBias:
    """How much better the winner looks than it is.

    Attributes
    ----------
    n_trials
        The feasible trials that it was chosen from.
    best
        Its objective, in the objective's unit.
    noise_sd
        The standard deviation of the noise of one trial that was assumed, in the same unit.
    expected_bias
        How much better than its true quality it is expected to look, >= 0, in the same unit.
    largest_bias
        What that would be were all trials equally good: noise_sd times the expected maximum of n standard normals.
    shrunken
        ``best`` less the expected bias: the estimate of its true quality, in the same unit.
    """

    n_trials: int
    best: float
    noise_sd: float
    expected_bias: float
    largest_bias: float
    shrunken: float


@dataclass(frozen=True, kw_only=True)
class StudyVariance:
    """What a second search of the same space with as many trials would have found.

    Attributes
    ----------
    n_trials
        The trials of the search, infeasible ones included.
    best
        Its best objective, in the objective's unit; NaN where none is feasible.
    bound
        A fresh search is at least as good as this with probability ``bound_probability``, in the same unit; infinite
        on the worse side where only an infeasible trial bounds it; NaN below 3 trials.
    bound_probability
        At least 0.9, exact for any distribution of the objective; NaN below 3 trials.
    resampled_sd
        The standard deviation of the best of n trials drawn from these n with replacement, in the same unit.
    resampled_low, resampled_high
        The central 80% of these bests, low <= high. No confidence interval: see `estimate_study_variance`.
    """

    n_trials: int
    best: float
    bound: float
    bound_probability: float
    resampled_sd: float
    resampled_low: float
    resampled_high: float


def expected_maximum(n_trials: int) -> float:
    """Return the expected maximum of n independent standard normals: 0 for 1, 0.564 for 2, 2.07 for 32.

    Parameters
    ----------
    n_trials
        At least 1.

    Raises
    ------
    ValueError
        When there is no trial.
    """
    if n_trials < 1:
        raise ValueError(f"`n_trials` is {n_trials}: a maximum needs at least one trial. Pass a positive number.")
    # E[X] = integral of 1 - F above 0, less that of F below, by the midpoint rule.
    x = np.arange(-12.0, 12.0, 0.001) + 0.0005
    below = np.exp(n_trials * scipy.special.log_ndtr(x))
    return float(np.where(x > 0, 1.0 - below, -below).sum() * 0.001)


def expected_selection_bias(n_trials: int, noise_sd: float, quality_sd: float) -> float:
    """Return the bias of the best of n to expect before a search, for qualities of a known, normal spread.

    The bias is the part of a result that is noise, noise_sd^2 / (noise_sd^2 + quality_sd^2), of the winner's lead over
    the mean trial, which is the expected maximum of n normals times the spread of the results.

    Parameters
    ----------
    n_trials
        At least 1.
    noise_sd, quality_sd
        The standard deviations of the noise of one result and of the true qualities of the trials, both >= 0, in the
        objective's unit. A search whose good trials crowd near an optimum has a small spread where it counts: take
        that of its better trials.

    Returns
    -------
    float
        In the objective's unit, >= 0.
    """
    total = math.hypot(noise_sd, quality_sd)
    return noise_sd**2 / total * expected_maximum(n_trials) if total > 0 else 0.0


def error_rate_noise(rate: float, n_examples: int, correlation: float = 0.0) -> float:
    """Return how much an error rate or accuracy differs from its value on infinitely many examples, for one trial.

    Parameters
    ----------
    rate
        The error rate or the accuracy, in [0, 1].
    n_examples
        The number of independent validation examples, at least 1.
    correlation
        How alike the trials are in what they get wrong, in [0, 1): the correlation over examples of the indicators of
        error of two trials. All share that part of the noise, so it favours none. At 0 the result is an upper bound;
        good models of one family usually share more than half of their errors.

    Returns
    -------
    float
        sqrt((1 - correlation) rate (1 - rate) / n_examples), in the unit of the rate.

    Raises
    ------
    ValueError
        When an argument is out of its range.
    """
    if not 0 <= rate <= 1:
        raise ValueError(
            f"`rate` is {rate}: an error rate or an accuracy lies in [0, 1]. Divide a percentage by 100; for another "
            "metric, such as a loss, pass its noise to `estimate_selection_bias` directly."
        )
    if n_examples < 1:
        raise ValueError(
            f"`n_examples` is {n_examples}: a rate needs at least one validation example. Pass how many there are."
        )
    if not 0 <= correlation < 1:
        raise ValueError(
            f"`correlation` is {correlation}: it must lie in [0, 1). Pass 0 for the upper bound of the noise."
        )
    return math.sqrt((1.0 - correlation) * rate * (1.0 - rate) / n_examples)


def estimate_selection_bias(objective: ArrayLike, noise_sd: float, direction: Direction) -> SelectionBias:
    """Estimate the winner's curse: the optimism of the best of n trials, and what it is without it.

    Model: each result is the trial's true quality plus independent normal noise of a known standard deviation. The
    distribution of the qualities is fitted without assuming a shape (maximum likelihood over mixtures, Kiefer and
    Wolfowitz, 1956, by 100 steps of EM on a grid of 0.1 noise standard deviations from the best trial to 10 behind
    it), and the expected quality of the winner given its result is read off (Robbins, 1956). Searches have many good
    trials near an optimum and a long tail of bad ones; a normal distribution fitted to that finds down to a
    hundredth of the bias.

    Simulated over qualities that are equal, normal (spread 0.5 to 10 noises), quadratic in 1 to 4 dimensions, and
    log-normal, n = 8 to 128: on average the estimate is within 0.45 noises of the true bias: too small, by a fifth,
    where the trials are nearly alike, and too large, by 0.2 noises, where few lie near the best. For one study it has
    a root mean square error of 0.6 to 1.25 noises, which is that of the raw result or less wherever the true bias is
    above 0.75 noises.

    Parameters
    ----------
    objective
        Shape (n_trials,), in the objective's unit; what is not finite is left out, because it cannot win.
    noise_sd
        In the objective's unit, >= 0: the standard deviation over retrains, `error_rate_noise`, or the root of the
        sum of their squares.
    direction
        ``"minimize"`` or ``"maximize"``.

    Returns
    -------
    SelectionBias
        NaN where no trial is feasible; no bias for one trial, or without noise.

    Raises
    ------
    ValueError
        When the noise is negative or not finite, or the direction is neither.
    """
    check_direction(direction)
    if not (math.isfinite(noise_sd) and noise_sd >= 0):
        raise ValueError(
            f"`noise_sd` is {noise_sd}: the noise of one result must be finite and at least 0, in the objective's "
            "unit. Measure it with `estimate_trial_variance`, or take `error_rate_noise`."
        )
    sign = 1.0 if direction == "minimize" else -1.0
    cost = sign * np.asarray(objective, dtype=np.float64).reshape(-1)
    cost = np.sort(cost[np.isfinite(cost)])
    if not len(cost):
        nan = math.nan
        return SelectionBias(n_trials=0, best=nan, noise_sd=noise_sd, expected_bias=nan, largest_bias=nan, shrunken=nan)
    bias = noise_sd * _expected_luck((cost - cost[0]) / noise_sd) if noise_sd > 0 and len(cost) > 1 else 0.0
    return SelectionBias(
        n_trials=len(cost),
        best=float(sign * cost[0]),
        noise_sd=noise_sd,
        expected_bias=bias,
        largest_bias=noise_sd * expected_maximum(len(cost)),
        shrunken=float(sign * (cost[0] + bias)),
    )


def estimate_study_variance(objective: ArrayLike, direction: Direction) -> StudyVariance:
    """Say how far the best of a second, equal search may lie from that of this one.

    The bound is exact for independent trials from one distribution (and cautious for evenly spread ones): all 2 n
    trials of both searches being exchangeable, the fresh best is worse than this search's i-th best only if the first
    i of all belong to this search, which has the chance C(2n - i, n) / C(2n, n), about 2^-i. How much *better* a
    second search may be, n trials cannot say: it beats this one with probability 1/2 by an amount never seen.

    The spread of resampled searches is what is usually shown. It holds the best trial 64% of the time and can never
    go beyond it: simulated, the central 80% of it covers a second search's best 37% to 40% of the time. It is given
    under the name of what it is.

    Neither holds for an adaptive search, whose trials depend on each other.

    Parameters
    ----------
    objective
        Shape (n_trials,), in the objective's unit; what is not finite counts as worst.
    direction
        ``"minimize"`` or ``"maximize"``.

    Returns
    -------
    StudyVariance
        With NaN for what so few trials cannot say; the resampled spread is NaN where 1% or more of resampled searches
        find no feasible trial.

    Raises
    ------
    ValueError
        When the direction is neither.
    """
    check_direction(direction)
    sign = 1.0 if direction == "minimize" else -1.0
    values = sign * np.asarray(objective, dtype=np.float64).reshape(-1)
    cost = np.sort(np.where(np.isfinite(values), values, np.inf))
    n_trials = len(cost)
    n_feasible = int(np.isfinite(cost).sum())
    nan = math.nan
    # P(the i-th best is better than the best of a fresh search), i = 1 ... n.
    place = np.arange(n_trials)
    worse = np.cumprod((n_trials - place) / (2.0 * n_trials - place))
    enough = np.flatnonzero(worse <= 0.1)
    low = high = spread = nan
    if n_feasible:
        # P(rank i is the best of n drawn with replacement); the rounding of 1 - (1 - i / n)^n must not go below 0.
        reached = 1.0 - (1.0 - np.arange(1, n_trials + 1) / n_trials) ** n_trials
        if reached[n_feasible - 1] > 0.99:
            share = np.diff(reached[:n_feasible], prepend=0.0) / reached[n_feasible - 1]
            mean = float(share @ (cost[:n_feasible] - cost[0]))
            spread = math.sqrt(max(0.0, float(share @ (cost[:n_feasible] - cost[0]) ** 2) - mean**2))
            cumulative = np.cumsum(share)
            ends = [sign * float(cost[np.searchsorted(cumulative, quantile - 1e-12)]) for quantile in (0.1, 0.9)]
            low, high = min(ends), max(ends)
    return StudyVariance(
        n_trials=n_trials,
        best=float(sign * cost[0]) if n_feasible else nan,
        bound=float(sign * cost[enough[0]]) if len(enough) else nan,
        bound_probability=float(1.0 - worse[enough[0]]) if len(enough) else nan,
        resampled_sd=spread,
        resampled_low=low,
        resampled_high=high,
    )


def check_selection_bias(
    trials: Trials, n_examples: int, *, trial_sd: float = 0.0, correlation: float = 0.0
) -> list[Finding]:
    """Ask whether the best error rate or accuracy of a study is noticeably flattered by being the best.

    FLAG where the expected bias of `estimate_selection_bias` is at least half the noise of one result. Retrains are
    judged by the same validation examples and do not show it; fresh examples do. It is an estimate and no test, hence
    without an ``error_rate``: over the same simulations, at least 93% of studies are flagged where the true bias is on
    average above 1.3 noises, and 15% to 45% where it is below 0.25.

    Parameters
    ----------
    trials
        The study; its objective is an error rate or an accuracy in [0, 1].
    n_examples
        The number of independent validation examples, at least 1.
    trial_sd
        The standard deviation over retrains, in the objective's unit; 0 leaves the luck of the seed out.
    correlation
        As in `error_rate_noise`, at whose 0 the noise is an upper bound, and so is the bias.

    Returns
    -------
    list of Finding
        One, subject ``"validation set"``. Numbers: ``n_examples`` and the fields of `SelectionBias`; of
        ``noise_sd``, the part of the validation set is ``sampling_sd``. TOO_LITTLE_DATA below 8 feasible trials.

    Raises
    ------
    ValueError
        When an argument is out of its range, or the best objective is no rate.
    """
    ranking = trials.ranking()
    numbers: dict[str, Number] = {"n_examples": n_examples, "n_trials": len(ranking)}
    verdict = Verdict.TOO_LITTLE_DATA
    if len(ranking):
        # Of the trials that compete with the best, whose rate alone would make the noise of a perfect score 0.
        rivals = trials.objective[ranking[: max(1, math.ceil(len(ranking) / 5))]]
        sampling_sd = error_rate_noise(float(np.mean(rivals)), n_examples, correlation)
        bias = estimate_selection_bias(trials.objective[ranking], math.hypot(sampling_sd, trial_sd), trials.direction)
        numbers |= {"sampling_sd": sampling_sd, **vars(bias)}
        if len(ranking) >= _MIN_TRIALS:
            is_noticeable = bias.expected_bias > 0 and bias.expected_bias >= _NOTICEABLE * bias.noise_sd
            verdict = Verdict.FLAG if is_noticeable else Verdict.NO_EVIDENCE
    return [
        Finding(check="selection bias", subject="validation set", verdict=verdict, numbers=numbers, section=SECTION)
    ]


def _expected_luck(behind: NDArray[np.float64]) -> float:
    """Return the expected true distance behind its result of the best, given all distances, shape (n,), from 0 up.

    All in units of the noise.
    """
    near = behind[behind <= _REACH]
    if len(near) > _MAX_TRIALS:
        # The mean of equal shares of a long ranking says as much about the distribution as its members.
        near = np.append(0.0, [share.mean() for share in np.array_split(near[1:], _MAX_TRIALS)])
    grid = np.arange(0.0, near[-1] + _GRID_STEP, _GRID_STEP)
    likelihood = np.exp(-0.5 * (near[:, None] - grid) ** 2)
    weight = np.full(len(grid), 1.0 / len(grid))
    for _ in range(_N_ITERATIONS):
        weight = weight * (likelihood.T @ (1.0 / (likelihood @ weight))) / len(near)
    posterior = likelihood[0] * weight
    return float(posterior @ grid / posterior.sum())


def check_direction(direction: str) -> None:
    """Refuse what is neither of the two directions."""
    if direction not in ("minimize", "maximize"):
        raise ValueError(
            f"`direction` is {direction!r}: it must be 'minimize' or 'maximize'. Pass the direction in which the "
            "objective gets better."
        )
