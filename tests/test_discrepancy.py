from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import qmc

from playbook_plugins.optuna.discrepancy import JUDGED_COUNTS, N_CELLS, kernels_of, score


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_the_score_is_built_from_scipys_discrepancy(seed: int) -> None:
    cells = np.random.default_rng(seed).integers(0, N_CELLS, size=(3, 128))
    points = (cells + 0.5) / N_CELLS

    def ratio(columns: list[int], count: int) -> float:
        # The mean over random points, from which scipy's value is taken as a share.
        spread = ((5 / 4) ** len(columns) - (13 / 12) ** len(columns)) / count
        return float(qmc.discrepancy(points[columns, :count].T, method="CD")) / spread

    kernels = kernels_of(cells)
    worst = [max(ratio([2], count), ratio([2, 0], count), ratio([2, 1], count)) for count in JUDGED_COUNTS]
    found = score(kernels_of(cells[2:]), [kernels.of(0), kernels.of(1)])
    np.testing.assert_allclose(found, [np.mean(np.power(worst, 4))], rtol=1e-3)
    alone = score(kernels_of(cells[2:]), [])
    np.testing.assert_allclose(alone, [np.mean([ratio([2], count) ** 4 for count in JUDGED_COUNTS])], rtol=1e-3)


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
