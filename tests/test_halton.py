from __future__ import annotations

import hashlib
import itertools
import math
import pickle
import re
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import qmc

from playbook_plugins.optuna.halton import MAX_DIMENSIONS, MAX_INDEX, HaltonSequence, draw_permutations

SEQUENCE = HaltonSequence(seed=3)
_SEQUENCES = [HaltonSequence(seed) for seed in range(20)]
indices = st.lists(st.integers(0, MAX_INDEX - 1), min_size=1, max_size=5)
dimensions = st.lists(st.integers(0, 11), min_size=1, max_size=5)


def worst_pair(points: NDArray[np.float64]) -> float:
    pairs = itertools.combinations(range(points.shape[1]), 2)
    return math.sqrt(max(qmc.discrepancy(points[:, pair], method="CD") for pair in pairs))


def refused(message: str) -> Any:
    """Expect a ValueError with exactly this message."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


@settings(max_examples=20, deadline=None)
@given(indices, dimensions)
def test_each_coordinate_depends_on_its_own_index_and_dimension_only(rows: list[int], columns: list[int]) -> None:
    together = SEQUENCE.points(rows, columns)
    fresh = HaltonSequence(seed=3)
    alone = [[fresh.points([row], [column])[0, 0] for column in columns] for row in rows]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < 1)).all()


@settings(deadline=None)
@given(st.integers(0, 2**40 - 2**11), st.integers(0, 11))
def test_each_run_of_a_power_of_the_base_falls_into_each_cell_once(start: int, dimension: int) -> None:
    base = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37][dimension]
    # Any base^m consecutive points hit each interval of length base^-m once: the property that makes it a Halton
    # sequence, kept by any permutation of digits.
    for n_cells in (base, base**2):
        points = SEQUENCE.points(range(start, start + n_cells), [dimension])[:, 0]
        assert sorted(np.floor(points * n_cells).astype(int)) == list(range(n_cells))


def test_a_point_is_its_permuted_digits_read_backwards() -> None:
    # Dimension 2 has base 5. Its first digits are told by the points 0 to 4, its second by the points 0, 5, ..., 20.
    first = np.floor(SEQUENCE.points(range(5), [2])[:, 0] * 5).astype(int)
    second = np.floor(SEQUENCE.points(range(0, 25, 5), [2])[:, 0] * 25).astype(int) % 5
    assert sorted(first) == sorted(second) == [0, 1, 2, 3, 4]
    for index in range(25):
        cell = math.floor(SEQUENCE.points([index], [2])[0, 0] * 25)
        assert cell == 5 * first[index % 5] + second[index // 5]


def test_numbers_never_change() -> None:
    # A study is continued with the same points under any later version, on any machine.
    points = HaltonSequence(seed=0).points([0, 1, 2, 100, 1_000_000, MAX_INDEX - 1], range(40))
    digest = hashlib.sha256(points.tobytes()).hexdigest()
    assert digest == "5b9d750ecf8839a08287ebf46a848be34ccc851b6e97176ab45cc091a0155e7d"


def test_points_are_distinct_up_to_the_last_index() -> None:
    rows = [*range(1000), *range(10**6, 10**6 + 1000), *range(MAX_INDEX - 1000, MAX_INDEX)]
    points = HaltonSequence(seed=1).points(rows, [0, 1, 11, 60])
    for column in points.T:
        assert len(np.unique(column)) == len(rows)


def test_seeds_give_different_points() -> None:
    draws = [HaltonSequence(seed).points(range(16), range(4)) for seed in (0, 1, 2**32, 2**32 + 1)]
    for one, other in itertools.combinations(draws, 2):
        assert not np.isclose(one, other).all(axis=0).any()


def test_a_sequence_is_its_seed() -> None:
    sequence = HaltonSequence(seed=np.int64(5))  # type: ignore[arg-type]
    sequence.points([0], [3])
    copied = pickle.loads(pickle.dumps(sequence))
    assert copied == sequence != HaltonSequence(6)
    assert hash(copied) == hash(sequence)
    assert repr(copied) == "HaltonSequence(seed=5)"
    assert (copied.points(range(9), range(6)) == sequence.points(range(9), range(6))).all()
    assert sequence != 5


def test_threads_grow_one_sequence() -> None:
    shared = HaltonSequence(seed=8)
    found: dict[int, NDArray[np.float64]] = {}

    def draw(count: int) -> None:
        found[count] = shared.points(range(10), range(count))

    threads = [threading.Thread(target=draw, args=(count,)) for count in (12, 3, 7, 12, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = HaltonSequence(seed=8).points(range(10), range(12))
    assert sorted(found) == [1, 3, 7, 12]
    for count, points in found.items():
        assert (points == expected[:, :count]).all()


def test_nothing_asked_gives_nothing() -> None:
    assert SEQUENCE.points([], range(3)).shape == (0, 3)
    assert SEQUENCE.points(range(3), []).shape == (3, 0)


@pytest.mark.parametrize("n_dimensions", [4, 8, 16, pytest.param(32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("n", [16, 32, 64, 128])
def test_the_worst_pair_covers_twice_as_well_as_random_points(n: int, n_dimensions: int) -> None:
    ours = [worst_pair(sequence.points(range(n), range(n_dimensions))) for sequence in _SEQUENCES]
    random = [worst_pair(np.random.default_rng(seed).random((n, n_dimensions))) for seed in range(20)]
    assert np.mean(ours) <= 0.45 * np.mean(random)


def test_few_points_cover_each_leading_dimension() -> None:
    # Six trials are what each of five scientific values gets of thirty; 0.048 is the least that six points can have.
    for dimension in range(4):
        columns = [sequence.points(range(6), [dimension]) for sequence in _SEQUENCES]
        assert np.mean([math.sqrt(qmc.discrepancy(column, method="CD")) for column in columns]) < 0.08


@pytest.mark.slow
def test_two_hundred_dimensions_are_built_and_cover() -> None:
    points = HaltonSequence(seed=2).points(range(128), range(200))
    assert points.shape == (128, 200)
    random = np.random.default_rng(2).random((128, 200))
    assert worst_pair(points[:, 100:]) < 0.7 * worst_pair(random[:, 100:])


def test_permutations_are_permutations_and_uniform() -> None:
    (drawn,) = draw_permutations(0, (1, 2), (6000, 3))
    assert (np.sort(drawn, axis=1) == [0, 1, 2]).all()
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    # Six permutations, 1000 each; five standard deviations are 144.
    assert len(counts) == 6
    assert abs(counts - 1000).max() < 145


@pytest.mark.parametrize("seed", [-1, 1.5, "3", True, None])
def test_a_bad_seed_is_refused(seed: Any) -> None:
    with refused(
        f"`seed` is {seed!r}: it must be a whole number, 0 or greater. Pass an int; another one gives another draw."
    ):
        HaltonSequence(seed)


def test_a_range_that_the_sequence_does_not_have_is_refused() -> None:
    with refused(
        "`indices` contains -1: the sequence has indices from 0 to 1099511627775. Pass numbers in that range."
    ):
        SEQUENCE.points([3, -1], [0])
    with refused("`dimensions` contains 1000: the sequence has dimensions from 0 to 999. Pass numbers in that range."):
        SEQUENCE.points([3], [MAX_DIMENSIONS])


@pytest.mark.parametrize("numbers", [[0.5], 3, [[1]]])
def test_what_is_no_list_of_whole_numbers_is_refused(numbers: Any) -> None:
    with refused(
        f"`indices` is {numbers!r}: it must be a one-dimensional sequence of whole numbers. Pass for instance "
        "range(8) or [3]."
    ):
        SEQUENCE.points(numbers, [0])
