from __future__ import annotations

import collections
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from playbook_plugins.optuna.coordinates import assign_dimensions, rank_claims, value_at

UNIT = FloatDistribution(0, 1)


def refused(message: str) -> Any:
    """Expect a ValueError with exactly this message."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def test_nested_branches_and_scientific_names_are_numbered() -> None:
    space = {
        "a": UNIT,
        "p": {1: {"b": UNIT, "q": {True: {"c": UNIT}, False: {}}}, 2: {"d": UNIT, "e": UNIT, "f": UNIT, "g": UNIT}},
        "h": UNIT,
    }
    assert assign_dimensions(space, without=()) == {
        "a": 0, "p": 1, "b": 2, "q": 3, "c": 4, "d": 2, "e": 3, "f": 4, "g": 5, "h": 6
    }  # fmt: skip
    assert assign_dimensions(space, without={"p", "a"})["h"] == 4


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 4), max_size=8), st.integers(0, 3))
def test_any_claims_give_every_name_its_own_dimension(claims: dict[str, int], start: int) -> None:
    ranks = rank_claims(claims, start)
    assert sorted(ranks.values()) == list(range(start, start + len(claims)))
    assert all(ranks[a] < ranks[b] for a in claims for b in claims if claims[a] < claims[b])


finite = st.floats(-1e6, 1e6)
distributions = st.one_of(
    st.tuples(finite, finite).map(lambda ends: FloatDistribution(min(ends), max(ends))),
    st.tuples(st.floats(1e-300, 1e300), st.floats(1e-300, 1e300)).map(
        lambda ends: FloatDistribution(min(ends), max(ends), log=True)
    ),
    st.tuples(st.integers(-50, 50), st.integers(0, 1000), st.sampled_from([0.1, 0.25, 1.0, 3.0])).map(
        lambda grid: FloatDistribution(grid[0] / 10, grid[0] / 10 + grid[1] * grid[2], step=grid[2])
    ),
    st.tuples(st.integers(-(10**18), 10**18), st.integers(0, 10**6), st.integers(1, 10**9)).map(
        lambda grid: IntDistribution(grid[0], grid[0] + grid[1] * grid[2], step=grid[2])
    ),
    st.tuples(st.integers(1, 10**9), st.integers(1, 10**9)).map(
        lambda ends: IntDistribution(min(ends), max(ends), log=True)
    ),
    st.lists(st.integers(), min_size=1, unique=True).map(CategoricalDistribution),
)


@pytest.mark.filterwarnings("ignore:The distribution is specified by")
@given(st.one_of(st.floats(0, 1, exclude_max=True), st.just(math.nextafter(1, 0)), st.just(0.0)), distributions)
def test_every_coordinate_means_a_value_of_the_distribution(unit: float, distribution: BaseDistribution) -> None:
    value = value_at(unit, distribution)
    if isinstance(distribution, IntDistribution):
        assert distribution.low <= value <= distribution.high
        assert (value - distribution.low) % distribution.step == 0
        assert type(value) is int
    elif isinstance(distribution, FloatDistribution):
        assert distribution._contains(value)
        assert type(value) is float
    else:
        assert isinstance(distribution, CategoricalDistribution)
        assert value in distribution.choices


@pytest.mark.parametrize(
    "distribution",
    [
        FloatDistribution(0, 1, step=0.25),
        IntDistribution(-2, 2),
        IntDistribution(0, 20, step=5),
        CategoricalDistribution(list("abcde")),
    ],
)
def test_the_values_of_a_grid_get_equal_shares(distribution: BaseDistribution) -> None:
    counts = collections.Counter(value_at((k + 0.5) / 1000, distribution) for k in range(1000))
    assert list(counts.values()) == [200] * 5


def test_scales_by_hand() -> None:
    assert value_at(0.5, FloatDistribution(1e-4, 1e-2, log=True)) == pytest.approx(1e-3)
    assert value_at(0.25, FloatDistribution(-1, 3)) == 0.0
    # The share of 1 among 1..8 runs from log 0.5 to log 1.5 of the whole from log 0.5 to log 8.5.
    share = math.log(3) / math.log(17)
    assert value_at(share - 1e-9, IntDistribution(1, 8, log=True)) == 1
    assert value_at(share + 1e-9, IntDistribution(1, 8, log=True)) == 2
    widest = FloatDistribution(-1.7e308, 1.7e308)
    assert value_at(0.5, widest) == 0.0
    with refused(
        "`distribution` is 'uniform': the sampler draws floats, integers and categorical values. Suggest with "
        "suggest_float, suggest_int or suggest_categorical."
    ):
        value_at(0.5, "uniform")  # type: ignore[arg-type]
