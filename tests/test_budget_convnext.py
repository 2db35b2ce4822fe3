"""The tuning curve of a real random search: 512 trials of ConvNeXt-tiny on ImageNet, 44% of them infeasible."""

from __future__ import annotations

import numpy as np
import pytest
from real_studies import convnext, needs_convnext

from playbook_plugins.analysis import Trials, Verdict
from playbook_plugins.analysis.budget import best_of_m_weights, check_budget, expected_best, median_best
from playbook_plugins.analysis.tuning_curve import TuningCurve, quantile_best, tuning_curve

N_SUBSAMPLES = 200
N_TRIALS = 32

pytestmark = needs_convnext


@pytest.fixture(scope="module")
def pool() -> Trials:
    return convnext()


def best_by_rank(cost: np.ndarray, m: int, share: float) -> float:
    """Return what the best of m of all these trials reaches with a chance, from the exact weights of the ranks."""
    reached = np.cumsum(best_of_m_weights(len(cost), m))
    return float(np.sort(cost)[np.searchsorted(reached, share - 1e-12)])


def naive_expected_best(cost: np.ndarray, m: int) -> float:
    """Return the V-statistic: the expected best of m drawn with replacement."""
    n_trials = len(cost)
    above = np.arange(n_trials, -1, -1) / n_trials
    return float(np.sort(cost) @ (above[:-1] ** m - above[1:] ** m))


def curves(pool: Trials, seed: int) -> list[TuningCurve]:
    generator = np.random.default_rng(seed)
    draws = (generator.choice(len(pool), N_TRIALS, replace=False) for _ in range(N_SUBSAMPLES))
    return [tuning_curve(pool.select(np.sort(draw))) for draw in draws]


def test_the_pool_is_the_one_described(pool: Trials) -> None:
    assert len(pool) == 512
    assert pool.is_infeasible.mean() == pytest.approx(0.438, abs=0.001)


def test_the_quantiles_agree_with_those_of_the_pool(pool: Trials) -> None:
    found = curves(pool, seed=0)
    for m in (N_TRIALS // 4, N_TRIALS // 2):
        for name, share in (("better_quartile", 0.25), ("median", 0.5), ("worse_quartile", 0.75)):
            truth = -best_by_rank(pool.cost, m, share)
            error = np.array([getattr(curve, name)[m - 1] for curve in found]) - truth
            # Within a quarter of the subsampling error of one study, in the middle; the skewed tails move the mean.
            assert abs(np.median(error)) <= 0.25 * error.std(), (m, name)
            assert abs(np.mean(error)) <= 0.5 * error.std(), (m, name)


def test_the_median_of_resamples_is_too_good_beyond_a_quarter_of_the_trials(pool: Trials) -> None:
    generator = np.random.default_rng(1)
    m = N_TRIALS // 2
    truth = best_by_rank(pool.cost, m, 0.5)
    draws = [generator.choice(pool.cost, N_TRIALS, replace=False) for _ in range(N_SUBSAMPLES)]
    resampled = np.array([median_best(draw, m) for draw in draws]) - truth
    estimated = np.array([quantile_best(draw, m, 0.5) for draw in draws]) - truth
    assert np.median(resampled) < -0.5 * resampled.std()
    assert abs(np.median(estimated)) < 0.25 * estimated.std()


def test_nothing_infinite_comes_out(pool: Trials) -> None:
    found = curves(pool, seed=2)
    assert sum(curve.n_infeasible for curve in found) > 0
    for curve in [*found, tuning_curve(pool)]:
        for name in ("median", "better_quartile", "worse_quartile", "expected"):
            assert not np.isinf(getattr(curve, name)).any()
        assert np.isnan(curve.expected).all()
        assert all(np.isfinite(box.median) or np.isnan(box.median) for box in curve.boxes)
    # Of single trials 44% are infeasible: the median exists, the worse quartile does not.
    whole = tuning_curve(pool)
    assert np.isfinite(whole.median[0])
    assert np.isnan(whole.worse_quartile[0])


@pytest.mark.parametrize("m", [N_TRIALS // 4, N_TRIALS // 2, N_TRIALS])
def test_the_expected_best_is_unbiased_on_feasible_trials_and_the_naive_one_is_not(pool: Trials, m: int) -> None:
    cost = pool.cost[pool.is_feasible]
    truth = expected_best(cost, m)
    generator = np.random.default_rng(3)
    draws = [generator.choice(cost, N_TRIALS, replace=False) for _ in range(N_SUBSAMPLES)]
    error = np.array([expected_best(draw, m) for draw in draws]) - truth
    naive = np.array([naive_expected_best(draw, m) for draw in draws]) - truth
    assert abs(error.mean()) < 0.25 * error.std()
    # The naive estimate takes the best of m for worse than it is.
    assert naive.mean() > 0.25 * naive.std()
    assert naive.mean() > 2 * abs(error.mean())


def test_a_real_random_search_shows_no_trend_and_gains_less_from_each_doubling(pool: Trials) -> None:
    # The retrain standard deviation of these trials is not known; 0.1 points of accuracy is assumed.
    [finding] = check_budget(pool, retrain_sd=0.001)
    assert float(finding.numbers["trend_p"] or 0) > 0.01
    assert finding.numbers["n_points"] == 512
    assert finding.numbers["best"] == pytest.approx(0.74888)
    assert finding.numbers["chance_of_improvement"] == pytest.approx(0.2)
    assert finding.numbers["insensitive"] == 0
    [few] = check_budget(pool.select(np.arange(48)), retrain_sd=0.001)
    assert few.verdict is Verdict.FLAG
    assert float(few.numbers["gain"] or 0) > float(finding.numbers["gain"] or 0)
