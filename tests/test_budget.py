from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, norm

from playbook_plugins.analysis import Finding, Parameter, Role, Status, Trials, Verdict, expected_best, median_best
from playbook_plugins.analysis.budget import best_of_m_weights, chance_of_improvement, check_budget, order_trend
from playbook_plugins.analysis.tuning_curve import quantile_best, tuning_curve
from playbook_plugins.optuna.halton import HaltonSequence

ARRAYS = ("m", "median", "better_quartile", "worse_quartile", "expected")


def table(cost: Any, points: Any = None, groups: Any = None, **columns: Any) -> Trials:
    """Return a study with one nuisance a column of points, and a scientific value a trial where groups are given."""
    outcome = np.asarray(cost, dtype=np.float64)
    where = np.linspace(0, 1, len(outcome))[:, None] if points is None else np.asarray(points)
    parameters = [Parameter(name=f"p{place}", kind="float", low=0, high=1) for place in range(where.shape[1])]
    values: dict[str, Any] = {parameter.name: where[:, place] for place, parameter in enumerate(parameters)}
    if groups is not None:
        choices = tuple(sorted(set(groups)))
        parameters.append(Parameter(name="method", kind="categorical", choices=choices, role=Role.SCIENTIFIC))
        values["method"] = list(groups)
    return Trials.from_columns("s", parameters, values, outcome, **columns)


def naive_expected_best(cost: Any, m: int) -> float:
    """Return the V-statistic: the expected best of m drawn with replacement."""
    above = np.arange(len(cost), -1, -1) / len(cost)
    return float(np.sort(cost) @ (above[:-1] ** m - above[1:] ** m))


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


# What opda 0.8.0 says: EmpiricalDistribution(COST).u_tuning_curve(SIZES, minimize=...) and v_tuning_curve.
COST = [0.31, 0.27, 0.42, 0.27, 0.9, 0.35, 0.55, 0.29]
SIZES = [1, 2, 3, 5, 8]
OPDA_LOWEST = [0.42, 0.30857142857142855, 0.28482142857142856, 0.2725, 0.27]
OPDA_HIGHEST = [0.42, 0.5314285714285715, 0.6191071428571429, 0.7535714285714286, 0.9]
OPDA_NAIVE = [0.42, 0.3225, 0.2947265625, 0.2785601806640625, 0.2726535487174988]


def test_it_agrees_with_opda() -> None:
    assert [expected_best(COST, m) for m in SIZES] == pytest.approx(OPDA_LOWEST, rel=1e-12)
    rows = np.array(SIZES) - 1
    np.testing.assert_allclose(tuning_curve(table(COST)).expected[rows], OPDA_LOWEST, rtol=1e-12)
    highest = tuning_curve(table(COST, direction="maximize")).expected
    np.testing.assert_allclose(highest[rows], OPDA_HIGHEST, rtol=1e-12)
    assert [naive_expected_best(COST, m) for m in SIZES] == pytest.approx(OPDA_NAIVE, rel=1e-12)


@given(st.integers(1, 40), st.data())
def test_the_weights_are_ratios_of_binomials(n_trials: int, data: st.DataObject) -> None:
    m = data.draw(st.integers(1, n_trials))
    expected = [math.comb(n_trials - rank, m - 1) / math.comb(n_trials, m) for rank in range(1, n_trials + 1)]
    np.testing.assert_allclose(best_of_m_weights(n_trials, m), expected, rtol=1e-12)


def test_the_expected_best_is_unbiased_and_the_naive_one_is_not() -> None:
    # Every sample of 5 of a population of 8, all equally likely: the mean of the estimates is their expectation.
    population = [1.0, 2, 4, 8, 16, 32, 64, 128]
    for m in range(2, 6):
        truth = np.mean([min(subset) for subset in itertools.combinations(population, m)])
        samples = list(itertools.combinations(population, 5))
        assert np.mean([expected_best(sample, m) for sample in samples]) == pytest.approx(truth)
        assert np.mean([naive_expected_best(sample, m) for sample in samples]) > 1.1 * truth


def test_the_naive_estimate_by_enumeration() -> None:
    cost = [3.0, 1.0, 7.0, 4.0]
    draws = [min(draw) for draw in itertools.product(cost, repeat=3)]
    assert naive_expected_best(cost, 3) == pytest.approx(np.mean(draws))


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
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        quantile_best([1, 2, 3], 4, 0.5)


def test_a_hand_worked_quantile() -> None:
    # Of single trials, the median of four lies half way between the second and the third. The best of two exceeds it
    # with the chance 1 / 4: it is the worse quartile of the best of two.
    assert quantile_best([10, 20, 30, 50], 1, 0.5) == pytest.approx(25)
    assert quantile_best([50, 30, 20, 10], 2, 0.75) == pytest.approx(25)
    assert quantile_best([7], 1, 0.5) == 7
    # Their difference is no floating-point number.
    assert quantile_best([-1.5e308, 1.5e308], 1, 0.5) == 0


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.floats(0.01, 0.99), st.data())
def test_a_quantile_of_the_best_is_one_of_a_single_trial(cost: list[int], share: float, data: st.DataObject) -> None:
    m = data.draw(st.integers(1, len(cost)))
    place = 1 - (1 - share) ** (1 / m)
    reference = np.quantile(cost, place, method="median_unbiased")
    assert quantile_best(cost, m, share) == pytest.approx(reference, abs=1e-6)


@pytest.mark.parametrize("share", [0.0, 1.0, np.nan])
def test_the_share_of_a_quantile_lies_between_0_and_1(share: float) -> None:
    message = (
        f"`share` is {share}: it is the chance that the best of m trials is at least so good and must lie between 0 "
        "and 1. Pass 0.5 for the median."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        quantile_best([1, 2, 3], 2, share)


def test_quantiles_between_infeasible_trials() -> None:
    cost = [1.0, 2.0, np.inf, np.inf]
    assert quantile_best(cost, 1, 0.5) == np.inf
    assert quantile_best(cost, 1, 0.9) == np.inf
    assert quantile_best([np.inf] * 3, 2, 0.5) == np.inf
    assert quantile_best(cost, 4, 0.5) == pytest.approx(
        np.quantile([1, 2, 9, 9], 1 - 0.5**0.25, method="median_unbiased")
    )
    # The rank of the place is 2, a whole one, but for rounding: the infinite neighbour must not enter.
    assert quantile_best(cost, 1, (2 - 1 / 3) / (4 + 1 / 3)) == 2


@pytest.mark.parametrize("draw", ["random", "normal", "exponential"])
def test_quantiles_are_too_low_as_often_as_too_high(draw: str) -> None:
    generator = np.random.default_rng(0)
    studies = getattr(generator, draw)(size=(2_000, 32))
    for m, share in itertools.product((8, 16), (0.25, 0.5, 0.75)):
        place = 1 - (1 - share) ** (1 / m)
        truth = {"random": place, "normal": norm.ppf(place), "exponential": -np.log1p(-place)}[draw]
        low = np.mean([quantile_best(study, m, share) < truth for study in studies])
        if (m, share) == (16, 0.25):
            # No estimate is better than the best trial, whose chance to be better than this is 1 - 0.75^2.
            assert low == pytest.approx(1 - 0.75**2, abs=0.035)
        else:
            assert low == pytest.approx(0.5, abs=0.06)
    # The median over resamples is the best trial itself at m = n / 2: too good in three of four studies.
    too_good = np.mean(
        [median_best(study, 16) < {"random": 1 - 0.5 ** (1 / 16)}.get(draw, np.inf) for study in studies]
    )
    assert draw != "random" or too_good == pytest.approx(0.75, abs=0.03)


def test_the_chance_of_improvement() -> None:
    assert chance_of_improvement(30, 10) == 0.25
    assert chance_of_improvement(5, 0) == 0
    # Of all orders of six trials, the best is among the last two in a third.
    orders = list(itertools.permutations(range(6)))
    assert np.mean([min(order[4:]) < min(order[:4]) for order in orders]) == pytest.approx(chance_of_improvement(4, 2))


@pytest.mark.parametrize(
    ("n_trials", "n_more", "message"),
    [
        (0, 1, "`n_trials` is 0: it is a number of trials and must be at least 1. Count them anew."),
        (1, -1, "`n_more` is -1: it is a number of trials and must be at least 0. Count them anew."),
    ],
)
def test_a_chance_needs_counts(n_trials: int, n_more: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        chance_of_improvement(n_trials, n_more)


def test_a_hand_worked_trend() -> None:
    # Orders -1, 0, 1 against ranks 1, 0, -1: covariance -2, of variance 2 * 2 / 2.
    assert order_trend(table([3, 2, 1])) == pytest.approx(norm.cdf(-math.sqrt(2)))
    assert order_trend(table([1, 2, 3])) == pytest.approx(norm.cdf(math.sqrt(2)))
    assert order_trend(table([1])) == order_trend(table([])) == order_trend(table([1, 1, 1])) == 1


def test_the_trend_is_that_of_all_permutations() -> None:
    cost = [4.0, 2.0, np.inf, 2.0, 1.0]
    ranks = np.array([4, 2.5, 5, 2.5, 1])
    covariances = [np.arange(-2, 3) @ np.array(order) for order in itertools.permutations(ranks)]
    z = (np.arange(-2, 3) @ ranks) / np.std(covariances)
    assert order_trend(table(cost)) == pytest.approx(norm.cdf(z))


def test_studies_of_scientific_values_one_after_the_other_are_no_trend() -> None:
    generator = np.random.default_rng(0)
    cost = np.concatenate([10 + generator.random(30), generator.random(30)])
    assert order_trend(table(cost)) < 1e-6
    assert order_trend(table(cost, groups=["a"] * 30 + ["b"] * 30)) > 0.05


def test_a_hand_worked_tuning_curve() -> None:
    curve = tuning_curve(table([4, 1, 2]))
    assert curve.n_points == 3
    assert list(curve.m) == [1, 2, 3]
    np.testing.assert_allclose(curve.expected, [7 / 3, 4 / 3, 1])
    assert curve.median[0] == 2
    assert curve.boxes == ()
    [box] = tuning_curve(table([1, 2, 3, 4])).boxes
    assert (box.m, box.median) == (1, 2.5)


def test_minimizing_and_maximizing_are_dual() -> None:
    generator = np.random.default_rng(0)
    cost = np.where(generator.random(40) < 0.3, np.inf, generator.normal(size=40))
    for objective in (cost, generator.normal(size=40)):
        low, high = tuning_curve(table(objective)), tuning_curve(table(-objective, direction="maximize"))
        for name in ARRAYS[1:]:
            np.testing.assert_array_equal(getattr(low, name), -getattr(high, name))
        assert [box.worse_end for box in low.boxes] == pytest.approx(
            [-box.worse_end for box in high.boxes], nan_ok=True
        )
        [one], [other] = (
            check_budget(table(objective), 0.1),
            check_budget(table(-objective, direction="maximize"), 0.1),
        )
        assert one.verdict is other.verdict
        turned = {**other.numbers, "best": -float(other.numbers["best"] or 0)}
        assert one.numbers == pytest.approx(turned)


def test_the_order_of_trials_and_the_scale_do_not_matter() -> None:
    generator = np.random.default_rng(1)
    cost, points = generator.normal(size=50), generator.random((50, 2))
    shuffle = generator.permutation(50)
    curve, other = tuning_curve(table(cost, points)), tuning_curve(table(100 * cost[shuffle] + 7, points[shuffle]))
    for name in ARRAYS[1:]:
        np.testing.assert_allclose(100 * getattr(curve, name) + 7, getattr(other, name))
    [one], [two] = check_budget(table(cost, points), 0.5), check_budget(table(100 * cost + 7, points), 50)
    assert one.verdict is two.verdict
    assert two.numbers["gain"] == pytest.approx(100 * float(one.numbers["gain"] or 0))
    assert two.numbers["insensitive_p"] == pytest.approx(one.numbers["insensitive_p"])
    assert two.numbers["trend_p"] == one.numbers["trend_p"]


@given(st.lists(st.one_of(st.integers(0, 9), st.just(np.inf)), min_size=1, max_size=40))
def test_the_curve_falls_and_is_never_infinite(cost: list[float]) -> None:
    curve = tuning_curve(table(cost))
    for name in ARRAYS[1:]:
        values = getattr(curve, name)
        assert not np.isinf(values).any()
        known = values[np.isfinite(values)]
        assert (np.diff(known) <= 1e-9).all()
        # Once there is a value, more trials do not take it away.
        assert np.isfinite(values[len(values) - len(known) :]).all()
    filled = [np.nan_to_num(values, nan=1e9) for values in (curve.better_quartile, curve.median, curve.worse_quartile)]
    assert (filled[0] <= filled[1]).all()
    assert (filled[1] <= filled[2]).all()


def test_boxes_go_up_to_a_quarter_of_the_trials() -> None:
    curve = tuning_curve(table(np.arange(70.0)))
    assert [box.m for box in curve.boxes] == [1, 2, 4, 8, 16]
    for box in curve.boxes:
        row = box.m - 1
        assert box.median == curve.median[row]
        assert (box.better_quartile, box.worse_quartile) == (curve.better_quartile[row], curve.worse_quartile[row])
        assert box.better_end < box.better_quartile < box.median < box.worse_quartile < box.worse_end
    assert [box.m for box in tuning_curve(table(np.arange(64.0))).boxes] == [1, 2, 4, 8, 16]
    assert [box.m for box in tuning_curve(table(np.arange(63.0))).boxes] == [1, 2, 4, 8]


def test_only_judged_points_count_and_each_once() -> None:
    status = [Status.COMPLETE] * 4 + [Status.PRUNED, Status.RUNNING, Status.FAILED, Status.INFEASIBLE]
    places = np.array([0.1, 0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])[:, None]
    curve = tuning_curve(table([3, 1, 2, 4, 0, np.nan, np.nan, np.nan], places, status=status))
    assert (curve.n_points, curve.n_infeasible) == (4, 1)
    assert curve.better_quartile[-1] == 1


@pytest.mark.parametrize("cost", [[], [1.0], [np.inf], [np.inf] * 20, [3.0] * 20, [np.inf] * 19 + [1.0]])
def test_studies_that_say_little(cost: list[float]) -> None:
    curve = tuning_curve(table(cost))
    assert curve.n_points == len(curve.m) == len(curve.median) == len(cost)
    for sd in (None, 1.0):
        [finding] = check_budget(table(cost), sd)
        is_constant = cost == [3.0] * 20
        assert finding.verdict is (Verdict.FLAG if is_constant else Verdict.TOO_LITTLE_DATA)
        assert finding.numbers["insensitive"] == int(is_constant)
        assert not any(isinstance(value, float) and not math.isfinite(value) for value in finding.numbers.values())


def halves(best: float = 0.0) -> np.ndarray:
    """Return 25 objectives whose half of 13 is 1 at best without the best trial, in an order without a trend."""
    cost = np.array([best, *[1.0] * 12, *[100.0] * 12])
    return cost[np.random.default_rng(0).permutation(25)]


def test_a_hand_worked_gain() -> None:
    # 13 of 25 trials hold the best one with the chance 13 / 25; without it their best is 1.
    [finding] = check_budget(table(halves()), 0.47)
    assert finding.verdict is Verdict.FLAG
    assert finding.numbers["gain"] == pytest.approx(12 / 25)
    assert finding.numbers["best"] == 0
    assert (finding.numbers["n_more"], finding.numbers["chance_of_improvement"]) == (7, 7 / 32)
    [finding] = check_budget(table(halves()), 0.49)
    assert finding.verdict is Verdict.NO_EVIDENCE
    assert finding.numbers["insensitive"] == 0
    [finding] = check_budget(table(halves()))
    assert finding.verdict is Verdict.TOO_LITTLE_DATA
    assert finding.numbers["gain"] == pytest.approx(12 / 25)


def test_the_gain_leaves_out_halves_without_a_feasible_trial() -> None:
    cost = np.where(np.arange(24) < 4, np.arange(24.0), np.inf)
    bests = [min(half) for half in itertools.combinations([0, 1, 2, 3, *[np.inf] * 4], 4)]
    expected = np.mean([best for best in bests if best < np.inf])
    [finding] = check_budget(table([0, 1, 2, 3, *[np.inf] * 4]))
    assert finding.numbers["gain"] == pytest.approx(expected)
    # 16 feasible trials are the least that is judged.
    assert check_budget(table(cost), 0.1)[0].verdict is Verdict.TOO_LITTLE_DATA
    order = np.random.default_rng(0).permutation(24)
    cost = np.where(np.arange(24) < 16, np.arange(24.0), np.inf)[order]
    assert check_budget(table(cost), 0.1)[0].verdict is Verdict.FLAG
    cost = np.where(np.arange(24) < 15, np.arange(24.0), np.inf)[order]
    assert check_budget(table(cost), 0.1)[0].verdict is Verdict.TOO_LITTLE_DATA


def test_a_flat_study_is_insensitive() -> None:
    noise = np.random.default_rng(0).normal(size=32)
    [finding] = check_budget(table(noise), 1.0)
    assert finding.verdict is Verdict.FLAG
    assert finding.numbers["insensitive"] == 1
    assert finding.numbers["spread"] == pytest.approx(noise.std(ddof=1))
    assert finding.numbers["insensitive_p"] == pytest.approx(chi2.cdf(31 * noise.var(ddof=1) / 2, 31))
    assert finding.numbers["allowed_insensitive_p"] == 0.05
    # Were the noise half as large, the hyperparameters would explain most.
    assert check_budget(table(noise), 0.5)[0].numbers["insensitive"] == 0
    # What breaks training at some points is not insensitive.
    noise[3] = np.inf
    assert check_budget(table(noise), 1.0)[0].numbers["insensitive"] == 0


def test_the_study_is_insensitive_only_if_every_scientific_value_is() -> None:
    generator = np.random.default_rng(0)
    points = np.repeat(generator.random((64, 1)), 2, axis=0)
    kinds = ["a", "b"] * 64
    flat = generator.normal(size=128)
    study, first, second = check_budget(table(flat, points, kinds), 1.0)
    assert [finding.numbers["insensitive"] for finding in (study, first, second)] == [1, 1, 1]
    assert [finding.numbers.get("value") for finding in (study, first, second)] == [None, "method=a", "method=b"]
    assert [finding.numbers["n_points"] for finding in (study, first, second)] == [64, 64, 64]
    assert study.numbers["allowed_insensitive_p"] == 0.025
    # b depends on its hyperparameter; the best of both hardly does.
    sloped = np.where(np.array(kinds) == "b", 5 + 10 * points[:, 0] + flat, flat)
    study, first, second = check_budget(table(sloped, points, kinds), 1.0)
    assert [finding.numbers["insensitive"] for finding in (study, first, second)] == [0, 1, 0]
    assert study.numbers["insensitive_p"] == second.numbers["insensitive_p"]


def test_an_adaptive_search_has_no_tuning_curve() -> None:
    [finding] = check_budget(table(np.linspace(10, 0, 40)), 0.01)
    assert finding.verdict is Verdict.TOO_LITTLE_DATA
    assert float(finding.numbers["trend_p"] or 0) < 0.01 == finding.numbers["allowed_trend_p"]
    assert finding.numbers["gain"] is None
    assert finding.numbers["chance_of_improvement"] is None
    assert order_trend(table(np.linspace(10, 0, 40))) == finding.numbers["trend_p"]
    # It gathers where all is alike, so that it must not be called insensitive for varying little.
    [finding] = check_budget(table(np.linspace(1, 0, 40)), 1.0)
    assert (finding.verdict, finding.numbers["insensitive"]) == (Verdict.TOO_LITTLE_DATA, 0)
    assert finding.numbers["insensitive_p"] is None
    # The same trials the other way round are no adaptive search.
    [finding] = check_budget(table(np.linspace(0, 10, 40)), 0.01)
    assert finding.verdict is Verdict.FLAG


def test_a_space_with_branches_and_categories() -> None:
    generator = np.random.default_rng(0)
    kinds = ["adam", "sgd"] * 20
    is_adam = np.array(kinds) == "adam"
    parameters = [
        Parameter(name="optimizer", kind="categorical", choices=("adam", "sgd"), role=Role.SCIENTIFIC),
        Parameter(name="beta", kind="float", low=0, high=1, condition=("optimizer", "adam")),
        Parameter(name="layers", kind="int", low=1, high=8),
        Parameter(name="norm", kind="categorical", choices=(None, True, 1)),
    ]
    values = {
        "optimizer": kinds,
        "beta": np.where(is_adam, generator.random(40), np.nan),
        "layers": generator.integers(1, 9, 40),
        "norm": [(None, True, 1)[place] for place in generator.integers(0, 3, 40)],
    }
    trials = Trials.from_columns("s", parameters, values, generator.random(40), direction="maximize")
    study, adam, sgd = check_budget(trials, 0.01)
    assert (adam.numbers["value"], sgd.numbers["value"]) == ("optimizer=adam", "optimizer=sgd")
    assert study.numbers["best"] == max(float(adam.numbers["best"] or 0), float(sgd.numbers["best"] or 0))
    assert tuning_curve(trials).n_points == study.numbers["n_points"]


@pytest.mark.parametrize("retrain_sd", [0.0, -1.0, np.inf, np.nan])
def test_a_standard_deviation_must_be_positive(retrain_sd: float) -> None:
    message = (
        f"`retrain_sd` is {retrain_sd}: it is a standard deviation in the objective's unit and must be positive and "
        "finite. Retrain one configuration with several seeds to measure it, or pass None."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_budget(table([1, 2, 3]), retrain_sd)


def test_many_trials() -> None:
    curve = tuning_curve(table(np.random.default_rng(0).random(100_000)))
    assert len(curve.m) <= 200
    assert (curve.m[0], curve.m[-1]) == (1, 100_000)
    # The best of m uniform numbers; the standard error is sqrt(m / n) of it.
    few = curve.m < 100
    np.testing.assert_allclose(curve.expected[few], 1 / (curve.m[few] + 1), rtol=0.1)
    [finding] = check_budget(table(np.random.default_rng(0).random(100_000)), 0.001)
    assert finding.verdict is Verdict.NO_EVIDENCE


def says_points_are_missing(findings: list[Finding]) -> bool:
    return any(finding.verdict is Verdict.FLAG and not finding.numbers["insensitive"] for finding in findings)


def allowed(rate: float, n_studies: int) -> float:
    """Return a rate plus two standard errors of its simulation."""
    return rate + 2 * math.sqrt(rate * (1 - rate) / n_studies)


def noise_study(generator: np.random.Generator, n_points: int, n_values: int, design: str) -> Trials:
    """Return a study whose objective is noise of standard deviation 1; each scientific value has n_points."""
    paired = "paired" in design
    n_trials = n_points * n_values
    points = generator.random((n_points if paired else n_trials, 2))
    infeasible = generator.random(len(points)) < (0.4 if "infeasible" in design else 0.0)
    repeat = n_values if paired else 1
    cost = np.where(np.repeat(infeasible, repeat), np.inf, generator.normal(size=n_trials))
    groups = list("abcde"[:n_values]) * n_points if n_values > 1 else None
    return table(cost, np.repeat(points, repeat, axis=0), groups)


@pytest.mark.slow
@pytest.mark.parametrize("design", ["plain", "paired", "infeasible", "paired infeasible"])
@pytest.mark.parametrize("n_values", [1, 2, 5])
def test_noise_alone_rarely_says_that_points_are_missing(n_values: int, design: str) -> None:
    generator = np.random.default_rng(20)
    n_studies = 400
    for n_points in (16, 32):
        found = [check_budget(noise_study(generator, n_points, n_values, design), 1.0) for _ in range(n_studies)]
        rate = found[0][0].error_rate
        assert rate == 0.06
        assert np.mean([says_points_are_missing(findings) for findings in found]) <= allowed(rate, n_studies)
        # Nor does it look like an adaptive search.
        trends = [float(findings[0].numbers["trend_p"] or 0) <= 0.01 for findings in found]
        assert np.mean(trends) <= allowed(0.01, n_studies)


@pytest.mark.slow
def test_flat_studies_are_found_insensitive() -> None:
    generator = np.random.default_rng(21)
    for n_points, power in ((16, 0.5), (32, 0.85), (64, 0.98)):
        found = [check_budget(noise_study(generator, n_points, 1, "plain"), 1.0)[0] for _ in range(400)]
        share = np.mean([finding.numbers["insensitive"] for finding in found])
        assert share == pytest.approx(power, abs=2 * math.sqrt(power * (1 - power) / 400) + 0.02)


def effect(points: np.ndarray, kind: str) -> np.ndarray:
    if kind == "linear":
        return points[:, 0]
    if kind == "steep":
        return np.exp(4 * points[:, 0])
    if kind == "narrow":
        return np.where(points[:, 0] > 0.9, 1.0, 0.0)
    return np.sum((points - 0.4) ** 2, axis=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "n_parameters", "rate"),
    [("linear", 1, 0.06), ("quadratic", 1, 0.06), ("quadratic", 8, 0.06), ("steep", 1, 0.06), ("narrow", 1, 0.15)],
)
def test_what_matters_as_much_as_retraining_is_rarely_called_insensitive(
    kind: str, n_parameters: int, rate: float
) -> None:
    generator = np.random.default_rng(22)
    sd = effect(generator.random((100_000, n_parameters)), kind).std()
    n_studies = 500
    for n_points in (16, 64):
        n_wrong = 0
        for _ in range(n_studies):
            points = generator.random((n_points, n_parameters))
            cost = effect(points, kind) / sd + generator.normal(size=n_points)
            n_wrong += bool(check_budget(table(cost, points), 1.0)[0].numbers["insensitive"])
        assert n_wrong / n_studies <= allowed(rate, n_studies)


@pytest.mark.slow
@pytest.mark.parametrize("n_parameters", [2, 4, 8])
def test_a_doubling_that_gains_is_found(n_parameters: int) -> None:
    generator = np.random.default_rng(23)
    n_studies = 300
    for n_points in (16, 64):

        def best_of(m: int) -> float:
            return float(np.mean([effect(generator.random((m, n_parameters)), "").min() for _ in range(3_000)]))

        gain = best_of(n_points // 2) - best_of(n_points)
        shares = []
        for ratio in (0.5, 1.0, 2.0):
            sd = gain / ratio
            n_found = 0
            for _ in range(n_studies):
                points = generator.random((n_points, n_parameters))
                cost = effect(points, "") + sd * generator.normal(size=n_points)
                n_found += says_points_are_missing(check_budget(table(cost, points), sd))
            shares.append(n_found / n_studies)
        assert shares == pytest.approx([0.18, 0.48, 0.81], abs=0.09)


@pytest.mark.slow
def test_adaptive_searches_are_seen_and_quasi_random_ones_are_not() -> None:
    generator = np.random.default_rng(24)
    n_seen = n_wrong = 0
    sequences = [HaltonSequence(seed) for seed in range(10)]
    for study in range(300):
        # Thirty stretches of each of ten sequences.
        points = sequences[study % 10].points(32 * (study // 10) + np.arange(32), np.arange(4))
        error = 0.05 * generator.normal(size=32)
        n_wrong += order_trend(table(effect(points, "") + error, points)) <= 0.01
        points[16:] = np.clip(0.4 + 0.1 * generator.normal(size=(16, 4)), 0, 1)
        n_seen += order_trend(table(effect(points, "") + error, points)) <= 0.01
    # 99%, less two standard errors.
    assert n_seen >= 300 * (0.99 - 2 * math.sqrt(0.99 * 0.01 / 300))
    assert n_wrong <= 300 * allowed(0.01, 300)
