"""Is a change worth adopting? Retrains of a candidate and of the baseline, compared beyond the noise of retraining.

Playbook: "Determining whether to adopt a training pipeline change or hyperparameter configuration". Of its three
sources of variation, the trial variance is here; what a search adds to it (study variance, the luck of its winner) and
what a finite validation set does to the winner are in selection_bias.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit
from scipy.stats import chi2, rankdata

from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.groups import scientific_categories
from playbook_plugins.analysis.parameters import Parameter
from playbook_plugins.analysis.points import point_codes
from playbook_plugins.analysis.records import Direction
from playbook_plugins.analysis.selection_bias import check_direction
from playbook_plugins.analysis.trials import Trials

SECTION = "Determining whether to adopt a training pipeline change or hyperparameter configuration"
_ALPHA = 0.05
# Simulated: Welch's approximation is a little liberal for few retrains of unequal spread (tests/test_adoption.py).
_ERROR_RATE = 0.06
# So many retrains a group of 2 or of 3 may face before Welch's number of degrees of freedom is too liberal.
_LARGEST_PARTNER = {2: 2, 3: 10}
# Larger objectives are cut to it: no verdict changes, and squares of differences stay within float64.
_HUGE = 1e100
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


@dataclass(frozen=True, kw_only=True)
class TrialVariance:
    """How much retrains of one configuration differ.

    Attributes
    ----------
    sd
        The standard deviation over retrains, pooled over the configurations, in the objective's unit.
    low, high
        Its 95% interval for normal noise, in the same unit.
    freedom
        The degrees of freedom behind it: retrains less configurations. Pass it on with ``sd`` as ``known_freedom``.
    n_groups
        The configurations that had at least two finite retrains.
    """

    sd: float
    low: float
    high: float
    freedom: int
    n_groups: int


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
        p = float(ndtr(z) if is_normal else stdtr(freedom, z))
        probability = 1.0 - p
        margin = -error * float(ndtri(tail) if is_normal else stdtrit(freedom, tail))
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


def estimate_trial_variance(groups: Sequence[ArrayLike]) -> TrialVariance:
    """Pool the spread of retrains over several configurations.

    It takes the spread to be the same for all of them, which fails where some train unstably. Usually it needs to be
    measured again only after major changes to the pipeline.

    Parameters
    ----------
    groups
        One array a configuration, shape (n_retrains,), in the objective's unit. What is not finite is left out, and
        so is a configuration with fewer than two finite retrains.

    Returns
    -------
    TrialVariance
        The pooled standard deviation with its interval; all NaN without any group of two.
    """
    arrays = [_cut(group) for group in groups]
    kept = [array[np.isfinite(array)] for array in arrays]
    kept = [array for array in kept if len(array) > 1]
    freedom = sum(len(array) - 1 for array in kept)
    if not freedom:
        return TrialVariance(sd=math.nan, low=math.nan, high=math.nan, freedom=0, n_groups=0)
    squares = float(sum(np.sum((array - array.mean()) ** 2) for array in kept))
    return TrialVariance(
        sd=math.sqrt(squares / freedom),
        low=math.sqrt(squares / float(chi2.isf(0.025, freedom))),
        high=math.sqrt(squares / float(chi2.ppf(0.025, freedom))),
        freedom=freedom,
        n_groups=len(kept),
    )


def collect_retrains(trials: Trials) -> list[NDArray[np.intp]]:
    """Return the trials of each configuration that was trained more than once.

    Parameters
    ----------
    trials
        The study. Pruned, running and failed trials are left out.

    Returns
    -------
    list of ndarray
        Row indices of the trials of one configuration, in the order of the trial numbers, shape (n_retrains + 1,):
        the first is the trial that the search made, unless the study has no other configuration.
    """
    return [point for point in _points(trials) if len(point) > 1]


def check_adoption(
    trials: Trials,
    *,
    baseline: ArrayLike | None = None,
    known_sd: float | None = None,
    known_freedom: float = math.inf,
) -> list[Finding]:
    """Ask whether the winner's advantage holds when it is retrained.

    The repeated points of a study are retrains. Of each, the first trial was made by the search: it chooses the
    candidate and is left out of the comparison, because the winner of a search is lucky (simulated with 20 equally
    good points: with it, 4 retrains are adopted falsely at a rate of 0.10, without it at 0.05; the winner's own result
    alone, in a z-test, at 0.6). FLAG where `compare_retrains` gives p <= 0.05,
    divided by the number of questions: the candidate is better beyond the noise of retraining. Whether it outweighs
    the complexity that it adds is not a question of numbers; nor is p > 0.05 a reason to keep a simpler baseline.

    Parameters
    ----------
    trials
        The study.
    baseline
        Shape (n,): the retrains of the baseline, in the objective's unit. Then the best of the retrained points is
        compared with it. Without it, for each categorical scientific hyperparameter, the best retrained point of the
        best value with that of the runner-up.
    known_sd, known_freedom
        As in `compare_retrains`.

    Returns
    -------
    list of Finding
        One a question, subject ``"baseline"`` or the scientific hyperparameter's name. Numbers: ``n_questions``,
        ``n_retrained`` (points); ``search_winner`` and ``candidate``, the trial numbers of the best point and of the
        best retrained one; ``search_best``, the objective that the candidate was chosen by; ``winner`` and
        ``runner_up`` (scientific values); the fields of `RetrainComparison`, None for
        NaN or infinite; ``allowed_p``. TOO_LITTLE_DATA where a side lacks retrains: two a side, one with
        ``known_sd``, the search's own trial not counted.
    """
    subjects: list[Parameter | None] = [*scientific_categories(trials)]
    if baseline is not None:
        subjects = [None]
    if not subjects:
        return []
    needed = 2 if known_sd is None else 1
    points = _points(trials)
    # Where nothing was chosen between points, no trial is a lucky one.
    is_search = len(points) > 1
    is_feasible = trials.is_feasible
    retrained = [point for point in points if len(point) - is_search >= needed and is_feasible[point[0]]]
    retrained.sort(key=lambda point: float(trials.cost[point[0]]))
    first = np.array([point[0] for point in points], dtype=np.intp)
    ranking = first[is_feasible[first]]
    ranking = ranking[np.argsort(trials.cost[ranking], kind="stable")]
    findings = []
    for subject in subjects:
        numbers: dict[str, Number] = {"n_questions": len(subjects), "n_retrained": len(retrained)}
        if len(ranking):
            numbers["search_winner"] = int(trials.number[ranking[0]])
        verdict = Verdict.TOO_LITTLE_DATA
        pair = _pair(trials, retrained, subject, baseline, int(is_search), numbers)
        if pair is not None and min(len(side) for side in pair) >= needed:
            result = compare_retrains(*pair, trials.direction, known_sd, known_freedom=known_freedom)
            allowed = _ALPHA / len(subjects)
            numbers |= {name: _plain(value) for name, value in vars(result).items()}
            numbers["allowed_p"] = allowed
            verdict = Verdict.FLAG if result.p <= allowed else Verdict.NO_EVIDENCE
        findings.append(
            Finding(
                check="adoption",
                subject="baseline" if subject is None else subject.name,
                verdict=verdict,
                numbers=numbers,
                section=SECTION,
                error_rate=_ERROR_RATE,
            )
        )
    return findings


def _pair(
    trials: Trials,
    retrained: list[NDArray[np.intp]],
    subject: Parameter | None,
    baseline: ArrayLike | None,
    n_skipped: int,
    numbers: dict[str, Number],
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return the retrains of the candidate and of what it is compared with, None where one of them has none."""
    best: dict[str, NDArray[np.intp]] = {}
    for point in retrained:
        if subject is None:
            best.setdefault("", point)
        elif subject.rank(trials.values[subject.name][point[0]]) is not None:
            best.setdefault(str(trials.values[subject.name][point[0]]), point)
    if not best:
        return None
    [winner, *others] = best
    candidate = best[winner]
    numbers |= {"candidate": int(trials.number[candidate[0]]), "search_best": float(trials.objective[candidate[0]])}
    if subject is None:
        return trials.objective[candidate[n_skipped:]], np.asarray(baseline, dtype=np.float64).reshape(-1)
    numbers["winner"] = winner
    if not others:
        return None
    numbers["runner_up"] = others[0]
    return trials.objective[candidate[n_skipped:]], trials.objective[best[others[0]][n_skipped:]]


def _points(trials: Trials) -> list[NDArray[np.intp]]:
    """Return the rows of each distinct configuration, all hyperparameters alike, in the order of their numbers."""
    rows = np.flatnonzero(trials.is_judged)
    rows = rows[np.argsort(trials.number[rows], kind="stable")]
    if not len(rows):
        return []
    # The last hyperparameter tells the points apart first, as ever: of equal ones the order decides.
    codes = point_codes([trials.unit(parameter.name)[rows] for parameter in reversed(trials.parameters)], len(rows))
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order])) + 1
    return [rows[members] for members in np.split(order, starts)]


def _plain(value: float | int | str) -> Number:
    return value if isinstance(value, int | str) or math.isfinite(value) else None


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
    ranks = np.rint(2 * rankdata(np.concatenate([first, second]))).astype(np.intp)
    size, total = len(first), len(ranks)
    if total > _MAX_EXACT:
        excess = float(ranks[:size].sum() - size * ranks.mean())
        spread = math.sqrt(size * (total - size) / (total - 1) * float(ranks.var()))
        if spread == 0.0:
            return 1.0, 0.5
        chance = float(ndtr(-excess / spread))
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


def _cut(values: ArrayLike) -> NDArray[np.float64]:
    """Return the values in one dimension, those that are finite cut to where their squares stay within float64."""
    group = np.asarray(values, dtype=np.float64).reshape(-1)
    return np.where(np.isfinite(group), np.clip(group, -_HUGE, _HUGE), group)


def _read(values: ArrayLike, name: str, known_sd: float | None) -> NDArray[np.float64]:
    group = _cut(values)
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
