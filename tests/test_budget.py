from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from playbook_plugins.analysis import expected_best, median_best
from playbook_plugins.analysis.budget import best_of_m_weights


def test_a_hand_worked_value() -> None:
    # The best of 2 of {1, 2, 4}: pairs (1, 2), (1, 4), (2, 4) have the best 1, 1, 2.
    np.testing.assert_allclose(best_of_m_weights(3, 2), [2 / 3, 1 / 3, 0])
    assert expected_best([4, 1, 2], 2) == pytest.approx(4 / 3)
    assert median_best([4, 1, 2], 2) == 1


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.data())
def test_it_equals_the_mean_over_all_subsets(cost: list[int], data: st.DataObject) -> None:
    m = data.draw(st.integers(1, len(cost)))
    bests = sorted(min(subset) for subset in itertools.combinations(cost, m))
    assert expected_best(cost, m) == pytest.approx(np.mean(bests))
    assert median_best(cost, m) == bests[(len(bests) + 1) // 2 - 1]


def test_infeasible_trials_count_as_worst() -> None:
    cost = [0.1, 0.2, 0.3, np.inf, np.inf]
    assert expected_best(cost, 2) == np.inf
    assert np.isfinite(expected_best(cost, 3))
    assert median_best(cost, 2) == 0.2
    assert median_best([0.1, np.inf, np.inf, np.inf], 1) == np.inf


def test_weights_sum_to_one_for_many_trials() -> None:
    for m in (1, 10, 5_000, 10_000):
        assert best_of_m_weights(10_000, m).sum() == pytest.approx(1)


def test_bad_input_is_refused() -> None:
    message = (
        "`m` is 4: it must lie between 1 and the number of trials, 3, because trials are drawn without replacement. "
        "Pass a smaller m, or run more trials."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        expected_best([1, 2, 3], 4)
