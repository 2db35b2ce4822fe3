from __future__ import annotations

import numpy as np
import pytest

from playbook_plugins.analysis import Parameter, Role, Trials, Verdict, check_isolation, isolate

METHOD = Parameter(name="method", kind="categorical", choices=("a", "b"), role=Role.SCIENTIFIC)
RATE = Parameter(name="rate", kind="float", low=1e-4, high=1.0, log=True)
WIDTH = Parameter(name="width", kind="int", low=1, high=4)


def compare(method: list[str], objective: list[float], direction: str = "minimize") -> Trials:
    return Trials.from_columns("s", [METHOD], {"method": method}, objective, direction=direction)


def test_a_hand_worked_lead() -> None:
    # The best three of six are all b's; any one value leads by 3 in 2 of C(6, 3) = 20 orders.
    [finding] = check_isolation(compare(list("ababab"), [4, 1, 5, 2, 6, 3]))
    assert finding.numbers["winner"] == "b"
    assert finding.numbers["runner_up"] == "a"
    assert finding.numbers["gap"] == 3
    assert finding.numbers["lead"] == 3
    assert finding.numbers["p"] == pytest.approx(2 / 20)
    # No result of 3 against 3 could have been significant at 0.05.
    assert finding.verdict is Verdict.TOO_LITTLE_DATA
    [finding] = check_isolation(compare(list("ab") * 6, [10, 1] * 6))
    assert finding.numbers["p"] == pytest.approx(2 / 924)
    assert finding.verdict is Verdict.FLAG


def test_ties_shorten_the_lead() -> None:
    [finding] = check_isolation(compare(list("ab") * 6, [1, 1] * 6))
    assert finding.numbers["lead"] == 0
    assert finding.numbers["p"] == 1
    assert finding.verdict is Verdict.NO_EVIDENCE


def test_minimizing_and_maximizing_are_dual() -> None:
    generator = np.random.default_rng(0)
    method = list(generator.choice(["a", "b"], 30))
    objective = generator.random(30)
    objective[:5] = np.nan
    [low] = check_isolation(compare(method, objective))
    [high] = check_isolation(compare(method, -objective, "maximize"))
    assert low.numbers["p"] == high.numbers["p"]
    assert low.numbers["best"] == -high.numbers["best"]
    for one, other in zip(
        isolate(compare(method, objective), "method").groups,
        isolate(compare(method, -objective, "maximize"), "method").groups,
        strict=True,
    ):
        assert one.median_best == -other.median_best
        assert one.n_infeasible == other.n_infeasible


def test_false_flags_stay_below_the_level() -> None:
    generator = np.random.default_rng(7)
    flags = 0
    for _ in range(2_000):
        objective = generator.random(24)
        objective[generator.random(24) < 0.3] = np.nan
        [finding] = check_isolation(compare(list("ab") * 12, objective))
        flags += finding.verdict is Verdict.FLAG
    # Two standard errors of the simulation.
    assert flags / 2_000 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 2_000)


def test_groups_of_different_size_are_compared_at_equal_m() -> None:
    isolation = isolate(compare(list("aaaabb"), [1, 2, 3, 4, 2, 3]), "method")
    first, second = isolation.groups
    assert isolation.equal_count == 2
    assert (first.n_trials, second.n_trials) == (4, 2)
    assert (first.best, second.best) == (1, 2)
    # The best of 2 of {1, 2, 3, 4}: 1 in 3 pairs, 2 in 2, 3 in 1.
    assert first.expected_best == pytest.approx(10 / 6)
    assert second.expected_best == second.median_best == 2


def test_numbers_are_taken_in_buckets_of_the_search_scale() -> None:
    rates = 10 ** np.linspace(-4, 0, 32)
    trials = Trials.from_columns("s", [RATE], {"rate": rates}, np.arange(32.0))
    groups = isolate(trials, "rate").groups
    np.testing.assert_allclose([group.low for group in groups], [1e-4, 1e-3, 1e-2, 1e-1])
    np.testing.assert_allclose([group.high for group in groups], [1e-3, 1e-2, 1e-1, 1])
    assert [group.n_trials for group in groups] == [8, 8, 8, 8]
    assert [group.best_row for group in groups] == [0, 8, 16, 24]


def test_few_integers_are_taken_one_by_one() -> None:
    columns = {"width": [1, 2, 2, 4, 4, 4], "rate": 10 ** np.linspace(-4, 0, 6)}
    trials = Trials.from_columns("s", [WIDTH, RATE], columns, [1, 2, 3, np.nan, np.nan, np.nan])
    groups = isolate(trials, "width").groups
    assert [group.value for group in groups] == [1, 2, 3, 4]
    assert [group.n_trials for group in groups] == [1, 2, 0, 3]
    assert [group.n_infeasible for group in groups] == [0, 0, 0, 3]
    assert groups[3].best_row is None
    assert groups[3].median_best == np.inf
    assert np.isnan(groups[2].median_best)


def test_repeated_points_of_a_nuisance_count_once() -> None:
    trials = Trials.from_columns(
        "s",
        [METHOD, RATE],
        {"method": ["a", "b"] * 8, "rate": np.repeat(10 ** np.linspace(-4, 0, 8), 2)},
        np.arange(16.0),
    )
    assert [group.n_trials for group in isolate(trials, "rate").groups] == [4, 4]
    assert [group.n_trials for group in isolate(trials, "method").groups] == [8, 8]
