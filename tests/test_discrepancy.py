from __future__ import annotations

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import qmc

from playbook_plugins.optuna.discrepancy import JUDGED_COUNTS, N_CELLS, kernels_of, score


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
@example(151611)
def test_the_score_is_built_from_scipys_discrepancy(seed: int) -> None:
    cells = np.random.default_rng(seed).integers(0, N_CELLS, size=(3, 128))
    points = (cells + 0.5) / N_CELLS

    def ratio(columns: list[int], count: int) -> float:
        # The mean over random points, from which scipy's value is taken as a share.
        spread = ((5 / 4) ** len(columns) - (13 / 12) ** len(columns)) / count
        return float(qmc.discrepancy(points[columns, :count].T, method="CD")) / spread

    def assert_near(found: float, ratios: list[float]) -> None:
        # The single kernels are rounded by up to half a unit of 2^-18. Twice their mean enters the squared
        # discrepancy, times at most 9/8 where another coordinate multiplies them, twice over for two roundings; a
        # small discrepancy is a small difference of larger sums, so the error counts in absolute terms.
        counts = np.array(JUDGED_COUNTS)
        rounding = 2 * (2 * 9 / 8) * 2.0**-19 * counts / (5 / 4 - 13 / 12)
        bound = np.mean(4 * (np.array(ratios) + rounding) ** 3 * rounding)
        assert abs(found - np.mean(np.power(ratios, 4))) <= bound

    kernels = kernels_of(cells)
    worst = [max(ratio([2], count), ratio([2, 0], count), ratio([2, 1], count)) for count in JUDGED_COUNTS]
    [found] = score(kernels_of(cells[2:]), [kernels.of(0), kernels.of(1)])
    assert_near(found, worst)
    [alone] = score(kernels_of(cells[2:]), [])
    assert_near(alone, [ratio([2], count) for count in JUDGED_COUNTS])


def test_random_points_score_about_one_at_each_count() -> None:
    # The ratio's mean over random points is 1, so the mean of its fourth power is above 1 but of that order.
    cells = np.random.default_rng(0).integers(0, N_CELLS, size=(200, 128))
    assert 1 < np.median(score(kernels_of(cells), [])) ** 0.25 < 3


def test_a_mirrored_candidate_scores_the_same() -> None:
    cells = np.random.default_rng(0).integers(0, N_CELLS, size=(1, 128))
    assert score(kernels_of(cells), [])[0] == score(kernels_of(N_CELLS - 1 - cells), [])[0]


def test_sums_are_exact_whatever_their_order() -> None:
    cells = np.random.default_rng(0).integers(0, N_CELLS, size=(2, 128))
    pairs = kernels_of(cells).pairs
    assert np.all(pairs == np.floor(pairs))
    exact = sum(int(a) * int(b) for a, b in zip(*pairs, strict=True))
    assert exact < 2**53
    assert float(pairs[0] @ pairs[1]) == float(pairs[0][::-1] @ pairs[1][::-1]) == exact
