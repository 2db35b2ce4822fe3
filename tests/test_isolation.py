from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from playbook_plugins.analysis import Finding, Parameter, Role, Status, Trials, Verdict, check_isolation, isolate
from playbook_plugins.analysis.precedence import chance_of_lead, chance_of_wins, find_lead, find_range_lead

METHOD = Parameter(name="method", kind="categorical", choices=("a", "b"), role=Role.SCIENTIFIC)
RATE = Parameter(name="rate", kind="float", low=1e-4, high=1.0, log=True)
WIDTH = Parameter(name="width", kind="int", low=1, high=4)
DECAY = Parameter(name="decay", kind="float", low=1e-4, high=1.0, log=True)


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
    assert second.expected_best == 2
    # One trial at the share 1 - sqrt(1 / 2) = 0.2929, by the ranks (n + 1/3) share + 1/3 = 1.6025 of 4, 1.0168 of 2.
    share = 1 - np.sqrt(0.5)
    assert first.median_best == pytest.approx((4 + 1 / 3) * share + 1 / 3)
    assert second.median_best == pytest.approx(2 + (2 + 1 / 3) * share + 1 / 3 - 1)


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


def test_two_equal_groups_of_8_and_64_win_the_fair_comparison_equally_often() -> None:
    generator = np.random.default_rng(0)
    wins = 0
    for _ in range(3_000):
        small, large = isolate(compare(["a"] * 8 + ["b"] * 64, generator.random(72)), "method").groups
        wins += small.median_best < large.median_best
    assert 0.45 < wins / 3_000 < 0.55


LETTERS = "abcdefghij"


def scientific(name: str, n_values: int) -> Parameter:
    return Parameter(name=name, kind="categorical", choices=tuple(LETTERS[:n_values]), role=Role.SCIENTIFIC)


def random_points(
    generator: np.random.Generator, counts: Sequence[int], objective: np.ndarray, n_choices: int = 10
) -> Trials:
    """Return trials at points of their own, so many of each value."""
    columns = {
        "method": np.repeat(list(LETTERS[: len(counts)]), counts),
        "rate": 10 ** generator.uniform(-4, 0, sum(counts)),
    }
    return Trials.from_columns("s", [scientific("method", n_choices), RATE], columns, objective)


def shared_points(
    generator: np.random.Generator, n_points: int, n_values: int, noise: float, gain: float = 0.0, shift: float = 0.0
) -> Trials:
    """Return trials of each value at the same points of two nuisances, whose effect has the standard deviation 0.1.

    The first value is better by ``gain``; the optimum of each lies at ``shift`` from the middle, in its own direction.
    """
    unit = generator.random((n_points, 2))
    angle = 2 * np.pi * np.arange(n_values) / n_values
    optimum = 0.5 + shift * np.column_stack([np.cos(angle), np.sin(angle)])
    cost = ((unit[:, None, :] - optimum) ** 2).sum(axis=2) + noise * generator.standard_normal((n_points, n_values))
    cost[:, 0] -= gain
    columns = {
        "method": np.tile(list(LETTERS[:n_values]), n_points),
        "rate": np.repeat(10 ** (4 * unit[:, 0] - 4), n_values),
        "decay": np.repeat(10 ** (4 * unit[:, 1] - 4), n_values),
    }
    return Trials.from_columns("s", [scientific("method", n_values), RATE, DECAY], columns, cost.ravel())


def flagged(draw: Callable[[], Trials], n_studies: int = 800) -> float:
    """Return the share of studies with any flag."""
    return float(
        np.mean([any(finding.verdict is Verdict.FLAG for finding in check_isolation(draw())) for _ in range(n_studies)])
    )


def bound(n_studies: int = 800) -> float:
    """Return 0.05 and two standard errors of the simulation."""
    return 0.05 + 2 * float(np.sqrt(0.05 * 0.95 / n_studies))


@pytest.mark.parametrize("counts", [(4, 60), (2, 6, 40), (1, 1, 30)])
def test_values_of_unequal_count_hold_the_rate(counts: tuple[int, ...]) -> None:
    generator = np.random.default_rng(1)
    assert flagged(lambda: random_points(generator, counts, generator.random(sum(counts)))) <= bound()


def test_a_value_without_a_feasible_trial_makes_no_winner_of_one_of_two_equal_ones() -> None:
    generator = np.random.default_rng(2)

    def draw() -> Trials:
        return random_points(generator, (8, 8, 8), np.where(np.arange(24) < 16, generator.random(24), np.nan))

    # With the third in the count of orders, a lead of 4 would do: 2 * C(8, 4) / C(16, 4) = 0.077 of studies have it.
    assert flagged(draw) <= bound()


@pytest.mark.parametrize(("counts", "share"), [((6, 6, 6, 6), 0.8), ((3,) * 8, 0.9), ((12, 12), 0.5)])
def test_many_infeasible_trials_hold_the_rate(counts: tuple[int, ...], share: float) -> None:
    generator = np.random.default_rng(3)

    def draw() -> Trials:
        n_trials = sum(counts)
        return random_points(
            generator, counts, np.where(generator.random(n_trials) < share, np.nan, generator.random(n_trials))
        )

    assert flagged(draw) <= bound()


def test_one_feasible_value_leads_over_those_that_have_none() -> None:
    trials = random_points(np.random.default_rng(0), (8, 8), np.r_[np.arange(8.0), np.full(8, np.nan)])
    [finding] = check_isolation(trials)
    assert finding.verdict is Verdict.FLAG
    assert finding.numbers["winner"] == "a"
    assert finding.numbers["lead"] == 8
    assert finding.numbers["p"] == pytest.approx(2 / 12870)
    assert "runner_up" not in finding.numbers


def test_the_winner_is_told_from_the_values_that_are_merely_not_the_worst() -> None:
    # Of a and b the first leads by 2 only; c is far behind both.
    cost = np.r_[0.0, 1.0, np.arange(3.0, 17.0), 2.0, np.arange(17.0, 32.0), np.arange(50.0, 98.0)]
    [finding] = check_isolation(random_points(np.random.default_rng(0), (16, 16, 48), cost))
    assert finding.numbers["lead"] == 2
    assert finding.numbers["p_winner"] == pytest.approx(chance_of_lead(2, [16, 16]))
    assert finding.numbers["p_winner"] > finding.numbers["p"]


def test_a_hand_worked_lead_over_shared_points() -> None:
    # The winner is the best at the first 11 of 12 points, and the last 12 points are not compared.
    n_points = 24
    rate = np.repeat(10 ** np.linspace(-4, 0, n_points), 2)
    cost = np.repeat(np.arange(n_points, dtype=float), 2)
    cost[0:22:2] -= 0.5
    cost[23::2] -= 0.5
    trials = Trials.from_columns("s", [METHOD, RATE], {"method": ["a", "b"] * n_points, "rate": rate}, cost)
    [finding] = check_isolation(trials)
    assert finding.numbers["winner"] == "a"
    assert (finding.numbers["n_points"], finding.numbers["n_wins"]) == (12, 11)
    assert finding.numbers["p"] == pytest.approx(12 / 2**11)
    assert finding.verdict is Verdict.FLAG
    # The order of the trials, and any rescaling that keeps it, say nothing.
    order = np.random.default_rng(0).permutation(len(trials))
    [again] = check_isolation(trials.select(order))
    assert again == finding


def test_points_that_lack_a_value_count_with_their_own_chance() -> None:
    place = np.array([0, 1, 2, 0, 1, 0, 2, 1, 2, 0])
    point = np.array([0, 0, 0, 1, 1, 2, 2, 3, 3, 4])
    cost = np.array([1.0, 5, 5, 2, 5, 3, 5, 0, 5, 9])
    # The best trial is b's at the point 3; of the others with b and with company, it wins none.
    lead = find_lead(cost, place, point)
    assert lead is not None
    assert (lead.winner, lead.n_points, lead.n_wins, lead.p) == (1, 3, 1, 1.0)
    cost[7] = 6.0
    lead = find_lead(cost, place, point)
    assert lead is not None
    # Now a's at the point 0; the others have two values each.
    assert (lead.winner, lead.n_points, lead.n_wins, lead.p) == (0, 3, 3, 0.25)


def test_points_without_a_feasible_trial_are_not_compared() -> None:
    cost = np.where(np.arange(28) < 12, np.arange(28.0), np.inf)
    lead = find_lead(cost, np.resize([0, 1], 28), np.repeat(np.arange(14), 2))
    assert lead is not None
    assert (lead.n_points, lead.n_wins, lead.p) == (6, 6, 0.5**5)


def test_the_chance_of_wins_is_the_binomial_tail() -> None:
    for n_wins in range(8):
        assert chance_of_wins(n_wins, np.full(7, 0.25)) == pytest.approx(binom.sf(n_wins - 1, 7, 0.25))
    assert chance_of_wins(2, np.array([0.5, 0.25, 0.2])) == pytest.approx(0.5 * 0.25 + 0.5 * 0.2 + 0.05 - 2 * 0.025)


def test_the_chance_of_a_lead_is_that_of_all_orders() -> None:
    generator = np.random.default_rng(4)
    labels = np.repeat([0, 1, 2], [2, 3, 5])
    orders = np.array([generator.permutation(labels) for _ in range(20_000)])
    for lead in (1, 2, 3):
        share = np.mean((orders[:, :lead] == orders[:, :1]).all(axis=1))
        assert chance_of_lead(lead, [2, 3, 5]) == pytest.approx(share, abs=0.012)


@pytest.mark.parametrize(("n_points", "n_values"), [(12, 2), (24, 4), (48, 3)])
@pytest.mark.parametrize("shift", [0.0, 0.25])
def test_shared_points_hold_the_rate(n_points: int, n_values: int, shift: float) -> None:
    generator = np.random.default_rng(5)
    assert flagged(lambda: shared_points(generator, n_points, n_values, 0.02, shift=shift)) <= bound()


def test_shared_points_with_lost_and_infeasible_trials_hold_the_rate() -> None:
    generator = np.random.default_rng(6)

    def draw() -> Trials:
        trials = shared_points(generator, 24, 3, 0.02)
        trials.objective[generator.random(72) < 0.3] = np.inf
        status = [Status.COMPLETE if np.isfinite(cost) else Status.INFEASIBLE for cost in trials.objective]
        for row in np.flatnonzero(generator.random(72) < 0.2):
            status[row] = Status.FAILED
        trials.status[:] = status
        return trials

    assert flagged(draw) <= bound()


def test_shared_points_find_what_the_precedence_test_overlooks() -> None:
    generator = np.random.default_rng(7)
    found = flagged(lambda: shared_points(generator, 24, 2, 0.02, gain=0.04), 400)
    assert found > 0.9

    def at_own_points() -> Trials:
        parts = [shared_points(generator, 24, 2, 0.02, gain=0.04) for _ in range(2)]
        return Trials.concat(
            [part.select(part.values["method"] == value) for part, value in zip(parts, "ab", strict=True)]
        )

    assert 0.25 < flagged(at_own_points, 400) < 0.36

    def precedence_alone() -> Trials:
        # A nuisance that the table tells apart, though it has no effect: the points look like the trials' own.
        trials = shared_points(generator, 24, 2, 0.02, gain=0.04)
        return replace(trials, values={**trials.values, "rate": trials.values["rate"] * 1.001 ** np.arange(48)})

    assert flagged(precedence_alone, 400) < 0.3


def test_retrains_of_one_configuration_count_once() -> None:
    method, rate = ["a"] * 6 + ["b"] * 6, np.r_[[0.1] * 6, [0.2] * 5, 0.3]
    cost = [1, 2, 3, 4, 5, 6, 0.5, 7, 8, 9, 10, 11]
    trials = Trials.from_columns("s", [METHOD, RATE], {"method": method, "rate": rate}, cost)
    [finding] = check_isolation(trials)
    assert finding.numbers["n_trials"] == 3
    assert finding.verdict is Verdict.TOO_LITTLE_DATA
    assert [group.n_trials for group in isolate(trials, "method").groups] == [1, 2]


def test_a_value_that_is_retrained_more_is_not_flagged_for_it() -> None:
    generator = np.random.default_rng(8)

    def draw() -> Trials:
        # Twelve configurations of each value, those of a trained five times, and nothing but noise.
        row = np.r_[np.arange(24), np.repeat(np.arange(0, 24, 2), 4)]
        columns = {"method": np.resize(["a", "b"], 24)[row], "rate": (10 ** generator.uniform(-4, 0, 24))[row]}
        return Trials.from_columns("s", [METHOD, RATE], columns, generator.random(len(row)))

    assert flagged(draw) <= bound()


def test_points_that_another_scientific_value_repeats_are_no_witnesses_of_their_own() -> None:
    generator = np.random.default_rng(9)

    def draw() -> Trials:
        # Each point has one method, and all of six batch sizes, whose trials are as good as copies.
        point = np.repeat(np.arange(24), 6)
        unit = generator.random(24)
        columns = {
            "method": generator.choice(["a", "b"], 24)[point],
            "batch": np.tile(list(LETTERS[:6]), 24),
            "rate": 10 ** (4 * unit[point] - 4),
        }
        cost = (unit[point] - 0.5) ** 2 + 1e-3 * generator.standard_normal(len(point))
        return Trials.from_columns("s", [METHOD, scientific("batch", 6), RATE], columns, cost)

    assert flagged(draw, 400) <= bound(400)


def numeric(kind: str, unit: np.ndarray, cost: np.ndarray, generator: np.random.Generator) -> Trials:
    subject = {
        "float": Parameter(name="decay", kind="float", low=1e-4, high=1.0, log=True, role=Role.SCIENTIFIC),
        "int": Parameter(name="decay", kind="int", low=1, high=5, role=Role.SCIENTIFIC),
    }[kind]
    columns = {
        "decay": 10 ** (4 * unit - 4) if kind == "float" else 1 + np.floor(5 * unit),
        "rate": 10 ** generator.uniform(-4, 0, len(unit)),
    }
    return Trials.from_columns("s", [subject, RATE], columns, cost)


@pytest.mark.parametrize("kind", ["float", "int"])
@pytest.mark.parametrize(("n_trials", "power", "share"), [(16, 1, 0.0), (80, 1, 0.5), (80, 4, 0.0)])
def test_numbers_hold_the_rate(kind: str, n_trials: int, power: float, share: float) -> None:
    generator = np.random.default_rng(10)

    def draw() -> Trials:
        # A power of uniform numbers crowds them into the lowest buckets.
        cost = np.where(generator.random(n_trials) < share, np.nan, generator.random(n_trials))
        return numeric(kind, generator.random(n_trials) ** power, cost, generator)

    assert flagged(draw) <= bound()


def test_the_better_part_of_a_range_is_found() -> None:
    generator = np.random.default_rng(11)

    def draw(kind: str, n_trials: int) -> Trials:
        unit = generator.random(n_trials)
        is_better = (unit >= 0.4) & (unit < 0.6) if kind == "int" else (unit > 0.5) & (unit < 0.7)
        return numeric(kind, unit, generator.standard_normal(n_trials) - 2 * is_better, generator)

    assert flagged(lambda: draw("float", 80), 400) > 0.65
    assert flagged(lambda: draw("int", 80), 400) > 0.75


def test_a_hand_worked_lead_of_a_range() -> None:
    # 32 trials in 4 buckets: the best three lie in the second and the third, the fourth in the first.
    unit = (np.arange(32) + 0.5) / 32
    cost = np.arange(10.0, 42.0)
    cost[[12, 17, 15, 3]] = [0, 1, 2, 3]
    [finding] = check_isolation(numeric("float", unit, cost, np.random.default_rng(0)))
    assert finding.numbers["lead"] == 3
    # Three pairs of neighbours of 16 trials each.
    assert finding.numbers["p"] == pytest.approx(3 * 560 / 4960)
    assert finding.numbers["winner_low"] == pytest.approx(1e-3)
    assert finding.numbers["winner_high"] == pytest.approx(1e-1)
    assert finding.numbers["runner_up_low"] == pytest.approx(1e-4)
    assert finding.numbers["runner_up_high"] == pytest.approx(1e-3)
    assert (finding.numbers["best"], finding.numbers["runner_up_best"], finding.numbers["gap"]) == (0, 3, 3)
    assert "winner" not in finding.numbers
    assert finding.numbers["p_winner"] is None
    assert finding.verdict is Verdict.NO_EVIDENCE


def test_ties_leave_a_range_no_lead() -> None:
    lead = find_range_lead(np.ones(40), np.repeat(np.arange(5), 8))
    assert lead is not None
    assert (lead.lead, lead.p) == (0, 1.0)
    assert (lead.winner, lead.last) == (0, 0)
    assert find_range_lead(np.ones(40), np.repeat(np.arange(5), 8)[::-1]) == lead


def test_an_integer_winner_is_a_number() -> None:
    unit = np.resize([0.1, 0.3, 0.5, 0.7, 0.9], 40)
    cost = np.where(unit == 0.5, 0.0, 1.0) + np.arange(40)[::-1] / 100
    [finding] = check_isolation(numeric("int", unit, cost, np.random.default_rng(0)))
    assert finding.numbers["winner"] == 3
    assert finding.numbers["lead"] == 8
    assert finding.verdict is Verdict.FLAG


OPTIMIZER, ACTIVATION = scientific("optimizer", 2), scientific("activation", 3)


def two_questions(generator: np.random.Generator, n_points: int = 24, gain: float = 0.0) -> Trials:
    """Return every combination of two scientific hyperparameters at the same points; (b, c) is better by gain."""
    unit = np.repeat(generator.random(n_points), 6)
    optimizer, activation = np.tile(list("aaabbb"), n_points), np.tile(list("abcabc"), n_points)
    cost = (unit - 0.5) ** 2 + 0.02 * generator.standard_normal(len(unit))
    cost -= gain * ((optimizer == "b") & (activation == "c"))
    columns = {"optimizer": optimizer, "activation": activation, "rate": 10 ** (4 * unit - 4)}
    return Trials.from_columns("s", [OPTIMIZER, ACTIVATION, RATE], columns, cost)


def test_combinations_are_the_tuples_that_are_present() -> None:
    trials = two_questions(np.random.default_rng(0))
    trials = trials.select((trials.values["optimizer"] == "a") | (trials.values["activation"] != "b"))
    isolation = isolate(trials, ["activation", "optimizer"])
    assert isolation.parameter == "activation, optimizer"
    assert [group.value for group in isolation.groups] == [("a", "a"), ("a", "b"), ("b", "a"), ("c", "a"), ("c", "b")]
    assert {group.n_trials for group in isolation.groups} == {24}
    whole = isolate(trials, "optimizer").groups
    assert min(group.best for group in isolation.groups) == min(group.best for group in whole)
    assert [group.value for group in isolate(trials, ["optimizer"]).groups] == [("a",), ("b",)]


def test_a_point_counts_once_a_value_by_the_best_of_the_other_questions() -> None:
    trials = two_questions(np.random.default_rng(0))
    groups = isolate(trials, "optimizer").groups
    assert [group.n_trials for group in groups] == [24, 24]
    for group in groups:
        assert group.best == trials.objective[trials.values["optimizer"] == group.value].min()


def test_the_winning_combination_is_named() -> None:
    findings = check_isolation(two_questions(np.random.default_rng(0), gain=0.1))
    assert [finding.subject for finding in findings] == ["optimizer", "activation", "optimizer, activation"]
    assert [finding.numbers["winner"] for finding in findings] == ["b", "c", "b, c"]
    assert {finding.verdict for finding in findings} == {Verdict.FLAG}
    assert {finding.numbers["allowed_p"] for finding in findings} == {0.05 / 3}


@pytest.mark.slow
def test_several_questions_hold_the_rate_together() -> None:
    generator = np.random.default_rng(12)
    assert flagged(lambda: two_questions(generator)) <= bound()

    def at_random() -> Trials:
        decay = Parameter(name="decay", kind="float", low=1e-4, high=1.0, log=True, role=Role.SCIENTIFIC)
        columns = {
            "optimizer": generator.choice(list("ab"), 60),
            "activation": generator.choice(list("abc"), 60),
            "decay": 10 ** generator.uniform(-4, 0, 60),
            "rate": 10 ** generator.uniform(-4, 0, 60),
        }
        return Trials.from_columns("s", [OPTIMIZER, ACTIVATION, decay, RATE], columns, generator.random(60))

    assert flagged(at_random) <= bound()


def test_too_many_combinations_are_not_asked_about() -> None:
    generator = np.random.default_rng(0)
    columns = {
        "one": generator.choice(list(LETTERS[:5]), 200),
        "two": generator.choice(list(LETTERS[:5]), 200),
        "rate": 10 ** generator.uniform(-4, 0, 200),
    }
    trials = Trials.from_columns(
        "s", [scientific("one", 5), scientific("two", 5), RATE], columns, generator.random(200)
    )
    one, two, both = check_isolation(trials)
    assert both.verdict is Verdict.TOO_LITTLE_DATA
    assert both.numbers == {"n_trials": 200, "n_pruned": 0, "n_combinations": 25}
    # It is no question, and costs the others nothing.
    assert one.numbers["allowed_p"] == two.numbers["allowed_p"] == 0.025


def test_a_conditional_question_is_asked_of_the_trials_that_have_it() -> None:
    generator = np.random.default_rng(13)
    variant = replace(scientific("variant", 2), condition=("optimizer", "a"))
    optimizer = np.resize(["a", "b"], 48)
    of_a = np.where(optimizer == "a", np.where(np.arange(48) % 4 == 0, "a", "b"), None)
    cost = generator.random(48) + (optimizer == "a") - 0.9 * (of_a == "b")
    columns: dict[str, Any] = {"optimizer": optimizer, "variant": of_a, "rate": 10 ** generator.uniform(-4, 0, 48)}
    trials = Trials.from_columns("s", [OPTIMIZER, variant, RATE], columns, cost)
    findings = check_isolation(trials)
    assert [finding.subject for finding in findings] == ["optimizer", "variant"]
    assert [finding.numbers["n_trials"] for finding in findings] == [48, 24]
    assert findings[1].numbers["winner"] == "b"
    assert findings[1].verdict is Verdict.FLAG
    one_value = trials.select(of_a != "a")
    [_, finding] = check_isolation(one_value)
    assert finding.verdict is Verdict.TOO_LITTLE_DATA
    assert finding.numbers == {"n_trials": 12, "n_pruned": 0}
    # A question that cannot be asked costs the others nothing.
    assert check_isolation(one_value)[0].numbers["allowed_p"] == 0.05


def test_pruned_trials_are_left_out_and_counted() -> None:
    status = [Status.COMPLETE] * 8 + [Status.PRUNED] * 3 + [Status.RUNNING, Status.FAILED]
    trials = Trials.from_columns(
        "s",
        [METHOD, RATE],
        {"method": ["a", "b"] * 6 + ["a"], "rate": 10 ** np.linspace(-4, 0, 13)},
        [*range(5, 13), 0, 1, np.nan, np.nan, np.nan],
        status=status,
    )
    [finding] = check_isolation(trials)
    assert finding.numbers["n_pruned"] == 3
    assert finding.numbers["n_trials"] == 8
    assert finding.numbers["best"] == 5


def shuffled(trials: Trials, generator: np.random.Generator) -> Trials:
    return trials.select(generator.permutation(len(trials)))


def verdicts(findings: list[Finding]) -> list[tuple[Any, ...]]:
    kept = ("n_trials", "winner", "winner_low", "runner_up", "lead", "n_points", "n_wins", "p", "p_winner")
    return [(finding.subject, finding.verdict, *map(finding.numbers.get, kept)) for finding in findings]


def test_order_direction_and_scale_do_not_matter() -> None:
    generator = np.random.default_rng(14)
    for _ in range(20):
        base = two_questions(generator, 12, gain=0.05)
        cost = np.where(generator.random(72) < 0.2, np.nan, np.round(base.objective, 2))
        decay = replace(DECAY, role=Role.SCIENTIFIC)
        columns = {**base.values, "decay": 10 ** generator.uniform(-4, 0, 72)}
        # With decay each trial has a point of its own; without, the points are shared.
        for parameters in ([OPTIMIZER, ACTIVATION, RATE], [OPTIMIZER, ACTIVATION, RATE, decay]):
            trials = Trials.from_columns("s", parameters, columns, cost)
            findings = check_isolation(trials)
            assert check_isolation(shuffled(trials, generator)) == findings
            turned = check_isolation(Trials.from_columns("s", parameters, columns, -cost, direction="maximize"))
            assert verdicts(turned) == verdicts(findings)
            assert [one.numbers.get("best") for one in turned] == [-one.numbers["best"] for one in findings]
            rescaled = check_isolation(Trials.from_columns("s", parameters, columns, np.exp(30 * cost)))
            assert verdicts(rescaled) == verdicts(findings)


@pytest.mark.parametrize("objective", [[], [0.3], [np.nan], [np.nan] * 16, [0.3] * 16])
def test_studies_that_say_nothing(objective: list[float]) -> None:
    n_trials = len(objective)
    parameters = [
        OPTIMIZER,
        ACTIVATION,
        RATE,
        replace(WIDTH, role=Role.SCIENTIFIC),
        replace(DECAY, role=Role.SCIENTIFIC),
    ]
    unit = (np.arange(n_trials) + 0.5) / max(1, n_trials)
    columns: dict[str, Any] = {
        "optimizer": np.resize(["a", "b"], n_trials) if n_trials else [],
        "activation": np.resize(["a", "b", "c"], n_trials) if n_trials else [],
        "rate": 10 ** (4 * unit - 4),
        "width": 1 + np.arange(n_trials) % 4,
        "decay": 10 ** (4 * unit[::-1] - 4),
    }
    trials = Trials.from_columns("s", parameters, columns, objective)
    findings = check_isolation(trials)
    assert [finding.subject for finding in findings] == [
        "optimizer",
        "activation",
        "width",
        "decay",
        "optimizer, activation",
    ]
    # Equal objectives are data, though they show no difference.
    expected = {Verdict.NO_EVIDENCE} if n_trials == 16 and objective[0] == 0.3 else {Verdict.TOO_LITTLE_DATA}
    assert {finding.verdict for finding in findings} <= expected | {Verdict.TOO_LITTLE_DATA}
    for name in columns:
        isolate(trials, name)


def test_a_single_value_is_no_question() -> None:
    fixed = Parameter(name="width", kind="int", low=3, high=3, role=Role.SCIENTIFIC)
    trials = Trials.from_columns(
        "s", [scientific("method", 1), fixed], {"method": ["a"] * 4, "width": [3] * 4}, [1, 2, 3, 4]
    )
    assert check_isolation(trials) == []


def test_an_imported_integer_beyond_its_bounds_counts_with_the_nearest() -> None:
    columns = {"width": [0, 1, 4, 9], "rate": 10 ** np.linspace(-4, 0, 4)}
    groups = isolate(Trials.from_columns("s", [WIDTH, RATE], columns, [1, 2, 3, 4]), "width").groups
    assert [group.n_trials for group in groups] == [2, 0, 0, 2]


def test_combinations_refuse_what_is_taken_in_buckets() -> None:
    trials = two_questions(np.random.default_rng(0))
    message = (
        "`parameter` is ['optimizer', 'rate'], of which ['rate'] are taken in buckets: combinations need categories or "
        "integers of at most 10 values. Isolate those by themselves."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        isolate(trials, ["optimizer", "rate"])


@pytest.mark.parametrize("names", [[], ["optimizer", "optimizer"]])
def test_combinations_need_different_names(names: list[str]) -> None:
    message = (
        f"`parameter` is {names}: a combination names at least one hyperparameter, and each once. Pass different "
        "names, or a single name as text."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        isolate(two_questions(np.random.default_rng(0)), names)


def test_a_hundred_thousand_trials_take_under_a_second() -> None:
    generator = np.random.default_rng(0)
    n_trials = 100_000
    columns = {
        "optimizer": generator.choice(["a", "b"], n_trials),
        "decay": 10 ** generator.uniform(-4, 0, n_trials),
        "rate": 10 ** generator.uniform(-4, 0, n_trials),
    }
    trials = Trials.from_columns(
        "s", [OPTIMIZER, replace(DECAY, role=Role.SCIENTIFIC), RATE], columns, generator.random(n_trials)
    )
    begin = time.process_time()
    assert len(check_isolation(trials)) == 2
    assert time.process_time() - begin < 1
    begin = time.process_time()
    isolate(trials, "optimizer")
    isolate(trials, "rate")
    assert time.process_time() - begin < 1


def test_a_gap_beyond_floating_point_is_unknown() -> None:
    [finding] = check_isolation(compare(["a"] * 6 + ["b"] * 6, [-1.7e308] * 6 + [1.7e308] * 6))
    assert (finding.verdict, finding.numbers["gap"]) == (Verdict.FLAG, None)
