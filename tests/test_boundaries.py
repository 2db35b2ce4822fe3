from __future__ import annotations

import time

import numpy as np
import pytest
from boundary_designs import (
    CELLS,
    DESIGNS,
    MORE_DESIGNS,
    N_STUDIES,
    Design,
    Objective,
    divergence_above,
    flagged,
    flat,
    halton_points,
    interior,
    make_study,
    paired,
    plain,
    power,
    random_divergence,
    rates,
    scientific_number,
    valley,
    valley_at,
    with_branches,
    with_method,
)
from scipy.stats import t

from playbook_plugins.analysis import Parameter, Role, Status, Trials, Verdict, check_boundaries


def test_an_optimum_at_a_bound_is_flagged_at_that_bound() -> None:
    generator = np.random.default_rng(0)
    unit = generator.random((32, 2))
    trials = make_study(unit, valley(np.array([1.2, 0.5]))(generator, unit))
    findings = check_boundaries(trials)
    assert flagged(findings) == ["x0, upper"]
    [finding] = [finding for finding in findings if finding.verdict is Verdict.FLAG]
    assert finding.numbers["bound"] == 1.0
    assert finding.numbers["n_points"] == 32
    assert finding.numbers["k"] == 7
    assert finding.numbers["best"] == trials.values["x0"][trials.ranking()[0]]


def test_a_hand_worked_chance() -> None:
    # 10 points, 2 of them in the outer fifth, both among the best 4: C(8, 2) / C(10, 4) = 28 / 210.
    unit = np.linspace(0.05, 0.95, 10)[:, None]
    cost = np.array([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], dtype=float)
    [lower, upper] = check_boundaries(make_study(unit, cost))
    assert upper.numbers["k"] == 4
    assert upper.numbers["k_outer"] == 2
    assert upper.numbers["p"] == pytest.approx(28 / 210)
    assert upper.numbers["allowed_p"] == pytest.approx(0.1)
    assert lower.numbers["k_outer"] == 0


def test_order_direction_and_scale_do_not_matter() -> None:
    generator = np.random.default_rng(3)
    unit, cost = generator.random((40, 3)), generator.random(40)
    cost[:9] = np.nan
    expected = check_boundaries(make_study(unit, cost))
    order = generator.permutation(40)
    for other in (
        check_boundaries(make_study(unit[order], cost[order])),
        check_boundaries(make_study(unit, -cost, "maximize")),
        check_boundaries(make_study(unit, 1e6 + 1e3 * cost)),
    ):
        for one, two in zip(expected, other, strict=True):
            assert (one.subject, one.verdict) == (two.subject, two.verdict)
            assert one.numbers == pytest.approx(two.numbers)


@pytest.mark.parametrize("n_trials", [0, 1, 7])
def test_too_few_trials_say_nothing(n_trials: int) -> None:
    generator = np.random.default_rng(0)
    findings = check_boundaries(make_study(generator.random((n_trials, 2)), generator.random(n_trials)))
    assert {finding.verdict for finding in findings} == {Verdict.TOO_LITTLE_DATA}
    findings = check_boundaries(make_study(generator.random((30, 2)), np.full(30, np.nan)))
    assert {finding.verdict for finding in findings} == {Verdict.TOO_LITTLE_DATA}


def test_a_constant_objective_is_no_evidence() -> None:
    findings = check_boundaries(make_study(np.random.default_rng(0).random((30, 2)), np.ones(30)))
    assert flagged(findings) == []


def test_divergence_beyond_the_best_trial_is_a_stability_edge_and_no_bound_to_widen() -> None:
    unit = np.random.default_rng(1).random((48, 2))
    cost = np.where(unit[:, 0] > 0.85, np.nan, (unit[:, 0] - 1.2) ** 2 + 0.1 * (unit[:, 1] - 0.5) ** 2)
    trials = make_study(unit, cost)
    findings = check_boundaries(trials)
    assert flagged(findings, "stability edge") == ["x0, upper"]
    assert flagged(findings) == []
    assert "x0, upper" not in {finding.subject for finding in findings if finding.check == "boundary"}
    [edge] = [finding for finding in findings if finding.check == "stability edge"]
    diverged = trials.is_infeasible
    assert edge.numbers["threshold"] == trials.values["x0"][diverged].min()
    assert edge.numbers["n_beyond"] == diverged.sum()
    assert edge.numbers["share_infeasible_beyond"] == 1
    assert edge.numbers["share_infeasible_before"] == 0


def test_divergence_far_from_the_best_trial_is_no_edge() -> None:
    unit = np.random.default_rng(1).random((48, 1))
    cost = np.where(unit[:, 0] > 0.8, np.nan, (unit[:, 0] - 0.3) ** 2)
    assert flagged(check_boundaries(make_study(unit, cost)), "stability edge") == []


def test_a_bound_beyond_mostly_infeasible_trials_is_not_flagged_by_a_bent_fit() -> None:
    generator = np.random.default_rng(0)
    flags = 0
    for _ in range(50):
        unit = generator.random((40, 2))
        cost = np.where(unit[:, 0] > 0.3, np.nan, (unit[:, 0] - 0.15) ** 2 + 0.01 * generator.normal(size=40))
        flags += "x0, upper" in flagged(check_boundaries(make_study(unit, cost)))
    assert flags == 0


def test_a_shared_nuisance_is_also_asked_of_each_scientific_value() -> None:
    generator = np.random.default_rng(0)
    n_points = 32
    decay = np.repeat(10 ** generator.uniform(-4, 0, n_points), 2)
    method = np.array(["a", "b"] * n_points)
    unit = (np.log10(decay) + 4) / 4
    # One value is best at the upper bound, the other, better one in the middle.
    cost = np.where(method == "a", (unit - 1) ** 2 + 1, (unit - 0.5) ** 2)
    trials = Trials.from_columns(
        "s",
        [
            Parameter(name="method", kind="categorical", choices=("a", "b"), role=Role.SCIENTIFIC),
            Parameter(name="decay", kind="float", low=1e-4, high=1, log=True),
        ],
        {"method": method, "decay": decay},
        cost,
    )
    findings = check_boundaries(trials)
    [finding] = [finding for finding in findings if finding.verdict is Verdict.FLAG]
    assert (finding.subject, finding.numbers["value"]) == ("decay, upper", "method=a")
    assert {finding.numbers["n_points"] for finding in findings} == {n_points}


def test_a_hand_worked_chance_of_the_crowding_and_the_best_together() -> None:
    # Of the first of the best 4 in the outer fifth, 2 / 10; then the other one among the next 3 of 9: 3 / 9.
    unit = np.linspace(0.05, 0.95, 10)[:, None]
    [lower, upper] = check_boundaries(make_study(unit, np.arange(10, 0, -1.0)))
    assert upper.numbers["p_with_best"] == pytest.approx(2 / 10 * 3 / 9)
    assert upper.numbers["allowed_p_with_best"] == pytest.approx(0.05 / 2)
    assert lower.numbers["p_with_best"] == 1


def test_a_hand_worked_slope() -> None:
    # Nine places v = -4..4. On ranks r: b = sum v r / 60 = -58 / 60 and, on 3 v^2 - 20, q = 6 / 2772. Outwards at v = 4
    # the fit changes by b + 24 q and at v = -4 by -b + 24 q; the residual squares are 60 - 58^2 / 60 - 6^2 / 2772.
    ranks = np.array([9, 7, 8, 6, 5, 4, 3, 1, 2], dtype=float)
    variance = (60 - 58**2 / 60 - 6**2 / 2772) / 6 * (1 / 60 + 24**2 / 2772)
    expected = [t.cdf((sign * 58 / 60 + 24 * 6 / 2772) / np.sqrt(variance), 6) for sign in (1, -1)]
    assert expected == pytest.approx([0.981, 0.0271], rel=1e-2)
    findings = check_boundaries(make_study(np.linspace(0, 1, 9)[:, None], 10 + ranks**3))
    assert [finding.numbers["slope_p"] for finding in findings] == pytest.approx(expected)


def test_the_slope_of_several_hyperparameters_is_that_of_least_squares() -> None:
    generator = np.random.default_rng(4)
    unit, cost = generator.random((40, 3)), generator.random(40)
    design = np.column_stack([np.ones(40), unit, unit**2])
    ranks = 1.0 + np.argsort(np.argsort(cost))
    weights, [residual], _, _ = np.linalg.lstsq(design, ranks, rcond=None)
    # The derivative by x1 at its upper bound, 1, is its linear weight and twice its quadratic one.
    contrast = np.array([0, 0, 1, 0, 0, 2, 0])
    spread = residual / 33 * contrast @ np.linalg.solve(design.T @ design, contrast)
    [finding] = [finding for finding in check_boundaries(make_study(unit, cost)) if finding.subject == "x1, upper"]
    assert finding.numbers["slope_p"] == pytest.approx(t.cdf(contrast @ weights / np.sqrt(spread), 33))


def test_two_values_have_no_slope() -> None:
    width = Parameter(name="width", kind="int", low=1, high=2)
    values = np.array([1, 2] * 10)
    rate = Parameter(name="rate", kind="float", low=0, high=1)
    trials = Trials.from_columns(
        "s", [width, rate], {"width": values, "rate": np.linspace(0, 1, 20)}, 3.0 - values + np.linspace(0, 0.1, 20)
    )
    findings = [finding for finding in check_boundaries(trials) if finding.subject.startswith("width")]
    assert [finding.numbers["slope_p"] for finding in findings] == [1, 1]


def test_ties_crowd_nowhere_and_in_any_order() -> None:
    grid = np.linspace(0, 1, 30)[:, None]
    assert flagged(check_boundaries(make_study(grid, np.ones(30)))) == []
    generator = np.random.default_rng(5)
    unit = generator.random((60, 2))
    cost = np.round(2 * (unit[:, 0] - 1.2) ** 2 + 0.2 * generator.random(60), 1)
    order = generator.permutation(60)
    one, two = check_boundaries(make_study(unit, cost)), check_boundaries(make_study(unit[order], cost[order]))
    for name in ("k_outer", "p", "p_with_best", "slope_p"):
        assert [finding.numbers[name] for finding in one] == pytest.approx([finding.numbers[name] for finding in two])
    assert flagged(one) == flagged(two) == ["x0, upper"]


def test_numbers_of_a_log_and_of_an_integer_hyperparameter_are_in_their_units() -> None:
    generator = np.random.default_rng(2)
    unit = np.column_stack([generator.random(40), generator.integers(0, 11, 40) / 10])
    parameters = [
        Parameter(name="rate", kind="float", low=1e-5, high=1e-1, log=True),
        Parameter(name="layers", kind="int", low=2, high=12),
    ]
    columns = {"rate": 10 ** (4 * unit[:, 0] - 5), "layers": np.rint(2 + 10 * unit[:, 1])}
    cost = valley(np.array([-0.2, 1.2]))(generator, unit)
    findings = check_boundaries(Trials.from_columns("s", parameters, columns, cost))
    assert flagged(findings) == ["rate, lower", "layers, upper"]
    assert [finding.numbers["bound"] for finding in findings] == pytest.approx([1e-5, 1e-1, 2, 12])
    best = int(np.argmin(cost))
    assert findings[0].numbers["best"] == columns["rate"][best]
    assert findings[3].numbers["best"] == columns["layers"][best]
    # The same places of linear ranges give the same evidence.
    for one, two in zip(findings, check_boundaries(make_study(unit, cost)), strict=True):
        for name in ("k_outer", "p", "p_with_best", "slope_p"):
            assert one.numbers[name] == pytest.approx(two.numbers[name])


@pytest.mark.parametrize("build", [with_method, with_branches])
def test_maximizing_the_opposite_finds_the_same(build: Design) -> None:
    generator = np.random.default_rng(6)
    unit = generator.random((48, 4))
    costs = [valley_at(1.2)(generator, unit) for _ in range(2)]
    costs[0][unit[:, 1] > 0.8] = np.nan
    findings = check_boundaries(build(unit, costs))
    assert flagged(findings) != []
    assert findings == check_boundaries(build(unit, [-cost for cost in costs], direction="maximize"))


def test_pruned_failed_and_running_trials_are_not_asked() -> None:
    generator = np.random.default_rng(7)
    unit = generator.random((60, 2))
    cost = valley_at(1.2)(generator, unit)
    trials = make_study(unit[:48], cost[:48])
    status = [Status.COMPLETE] * 48 + [Status.PRUNED, Status.FAILED, Status.RUNNING] * 4
    more = Trials.from_columns(
        "s",
        trials.parameters,
        {f"x{place}": 10 ** (4 * unit[:, place] - 4) for place in range(2)},
        np.append(cost[:48], [np.nan, -9.0, np.nan] * 4),
        status=status,
    )
    assert check_boundaries(more) == check_boundaries(trials)


def test_a_number_that_some_trials_lack_is_asked_of_the_others() -> None:
    unit = np.random.default_rng(8).random((40, 2))
    cost = (unit[:, 0] - 1.2) ** 2
    unit[:20, 1] = np.nan
    findings = check_boundaries(make_study(unit, cost))
    assert flagged(findings) == ["x0, upper"]
    assert [finding.numbers["n_points"] for finding in findings] == [40, 40, 20, 20]


def test_a_scientific_number_is_asked_of_all_its_values_at_a_point() -> None:
    generator = np.random.default_rng(9)

    def deep(_: np.random.Generator, unit: np.ndarray) -> np.ndarray:
        return (unit[:, -1] - 1.2) ** 2 + 0.1 * (unit[:, 0] - 0.5) ** 2

    findings = check_boundaries(scientific_number(generator, 16, 2, deep))
    assert flagged(findings) == ["layers, upper"]
    assert [finding.numbers["n_points"] for finding in findings] == [16, 16, 80, 80]


def test_divergence_at_the_other_end_is_no_crowding() -> None:
    # 40% of the trials diverge above 0.6, so that all of the best lie below it, and the objective is flat.
    flags = 0
    for seed in range(60):
        flags += bool(flagged(check_boundaries(divergence_above(0.6)(np.random.default_rng(seed), 128, 2, flat))))
    assert flags / 60 <= 0.09


def test_a_side_at_which_all_diverge_is_not_short_of_trials() -> None:
    # More of them would diverge, too: the trials there have answered.
    unit = np.random.default_rng(0).random((96, 2))
    cost = np.where(unit[:, 0] > 0.6, np.nan, (unit[:, 0] - 0.2) ** 2 + (unit[:, 1] - 0.5) ** 2)
    verdicts = {finding.subject: finding.verdict for finding in check_boundaries(make_study(unit, cost))}
    assert verdicts["x0, upper"] is Verdict.NO_EVIDENCE


def test_an_edge_needs_more_than_the_best_trial_beside_it() -> None:
    unit = np.linspace(0, 1, 50)[:, None]
    cost = np.where(unit[:, 0] > 0.6, np.nan, (unit[:, 0] - 0.25) ** 2)
    assert flagged(check_boundaries(make_study(unit, cost)), "stability edge") == []
    cost[29] = -1.0
    assert flagged(check_boundaries(make_study(unit, cost)), "stability edge") == []


def test_a_large_study_takes_seconds() -> None:
    generator = np.random.default_rng(0)
    unit = generator.random((33_334, 8))
    costs = [interior(generator, unit) for _ in range(3)]
    for cost in costs:
        cost[generator.random(len(cost)) < 0.1] = np.nan
    trials = with_method(unit, costs)
    start = time.perf_counter()
    findings = check_boundaries(trials)
    # It takes about one; the machines of a test suite are shared.
    assert time.perf_counter() - start < 10
    assert len(findings) == 2 * 8 * 4


def assert_at_most(rate: float, found: np.ndarray) -> None:
    """Check each cell by its own standard error, and all of a design together by theirs."""
    error = np.sqrt(rate * (1 - rate) / N_STUDIES)
    assert found.max() <= rate + 2 * error, found
    assert found.mean() <= rate + 2 * error / np.sqrt(len(found)), found


@pytest.mark.slow
@pytest.mark.parametrize("objective", [flat, interior])
@pytest.mark.parametrize("design", DESIGNS)
def test_studies_without_a_bad_bound_are_rarely_flagged(design: str, objective: Objective) -> None:
    if design == "divergence above 0.6" and objective is interior:
        objective = valley_at(0.25)
    found = rates(DESIGNS[design], objective, CELLS)
    assert_at_most(0.09, found)
    assert found.mean() <= 0.05, found


@pytest.mark.slow
@pytest.mark.parametrize("objective", [flat, interior])
@pytest.mark.parametrize("design", MORE_DESIGNS)
def test_repeated_and_cut_spaces_are_rarely_flagged(design: str, objective: Objective) -> None:
    assert_at_most(0.09, rates(MORE_DESIGNS[design], objective, [(2, 64), (4, 32)]))


@pytest.mark.slow
@pytest.mark.parametrize("objective", [flat, interior])
def test_quasi_random_points_are_rarely_flagged(objective: Objective) -> None:
    assert_at_most(0.09, rates(plain, objective, [(2, 32), (4, 64)], points=halton_points))


@pytest.mark.slow
@pytest.mark.parametrize("design", ["random divergence", "divergence above 0.6"])
@pytest.mark.parametrize("objective", [flat, valley_at(0.25)], ids=["flat", "far"])
def test_divergence_away_from_the_best_is_rarely_called_a_stability_edge(design: str, objective: Objective) -> None:
    cells = [(d, n) for d in (2, 4, 8) for n in (32, 48, 128)]
    assert_at_most(0.05, rates(DESIGNS[design], objective, cells, "stability edge"))


@pytest.mark.slow
@pytest.mark.parametrize(("d", "least"), [(2, 0.98), (4, 0.98), (8, 0.85)])
def test_an_optimum_beyond_a_bound_is_found(d: int, least: float) -> None:
    assert power(plain, d, 64) >= least
    assert power(paired(2), d, 64) >= least


@pytest.mark.slow
@pytest.mark.parametrize(("d", "least"), [(2, 0.93), (4, 0.83), (8, 0.45)])
def test_an_optimum_beyond_a_bound_is_found_among_random_divergence(d: int, least: float) -> None:
    assert power(random_divergence, d, 64) >= least


@pytest.mark.slow
@pytest.mark.parametrize(("d", "least"), [(2, 0.97), (4, 0.95), (8, 0.83)])
def test_an_optimum_beyond_a_stability_edge_is_found(d: int, least: float) -> None:
    assert power(divergence_above(0.7), d, 64, "stability edge") >= least
