from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from playbook_plugins.analysis import Parameter, Status, Trials, Verdict
from playbook_plugins.analysis.selection_bias import (
    SECTION,
    check_selection_bias,
    error_rate_noise,
    estimate_selection_bias,
    estimate_study_variance,
    expected_maximum,
    expected_selection_bias,
)

RATE = Parameter(name="rate", kind="float", low=0.0, high=1.0)


def make_study(objective: object, **more: object) -> Trials:
    column = np.linspace(0, 1, len(np.atleast_1d(objective)))  # type: ignore[arg-type]
    return Trials.from_columns("s", [RATE], {"rate": column}, objective, **more)  # type: ignore[arg-type]


def test_known_expected_maxima() -> None:
    # 1 / sqrt(pi), 3 / (2 sqrt(pi)), and tabled values of normal scores.
    known = {1: 0.0, 2: 1 / math.sqrt(math.pi), 3: 1.5 / math.sqrt(math.pi), 10: 1.53875, 100: 2.50759}
    for n_trials, expected in known.items():
        assert expected_maximum(n_trials) == pytest.approx(expected, abs=1e-5)
    message = "`n_trials` is 0: a maximum needs at least one trial. Pass a positive number."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        expected_maximum(0)


@pytest.mark.parametrize(("quality_sd", "n_trials"), [(0.0, 32), (0.01, 32), (0.03, 8)])
def test_the_bias_to_expect_before_a_search(quality_sd: float, n_trials: int) -> None:
    # Error rates on 500 examples around 0.5, whose noise is 0.0224 and nearly the same for all of them.
    generator = np.random.default_rng(0)
    quality = 0.5 + quality_sd * generator.normal(size=(4000, n_trials))
    rates = generator.binomial(500, quality) / 500
    winner = rates.argmin(axis=1)[:, None]
    lucky = np.take_along_axis(quality - rates, winner, axis=1)
    expected = expected_selection_bias(n_trials, error_rate_noise(0.5, 500), quality_sd)
    assert lucky.mean() == pytest.approx(expected, rel=0.05)
    assert expected_selection_bias(n_trials, 3.0, 4.0) == pytest.approx(9 / 5 * expected_maximum(n_trials))
    assert expected_selection_bias(n_trials, 0.0, 0.0) == 0


def test_a_hand_worked_noise_of_an_error_rate() -> None:
    assert error_rate_noise(0.5, 10_000) == pytest.approx(0.005)
    assert error_rate_noise(0.2, 100, correlation=0.75) == pytest.approx(0.02)
    assert error_rate_noise(0.2, 100) == error_rate_noise(0.8, 100) == pytest.approx(binom.std(100, 0.2) / 100)


REFUSED: dict[str, Callable[[], object]] = {
    "`rate` is 93.2: an error rate or an accuracy lies in [0, 1]. Divide a percentage by 100; for another metric, such "
    "as a loss, pass its noise to `estimate_selection_bias` directly.": lambda: error_rate_noise(93.2, 100),
    "`n_examples` is 0: a rate needs at least one validation example. Pass how many there are.": lambda: (
        error_rate_noise(0.5, 0)
    ),
    "`correlation` is 1: it must lie in [0, 1). Pass 0 for the upper bound of the noise.": lambda: error_rate_noise(
        0.5, 10, 1
    ),
    "`noise_sd` is -1: the noise of one result must be finite and at least 0, in the objective's unit. Measure it with "
    "`estimate_trial_variance`, or take `error_rate_noise`.": lambda: estimate_selection_bias([1], -1, "minimize"),
    "`direction` is 'up': it must be 'minimize' or 'maximize'. Pass the direction in which the objective gets "
    "better.": lambda: estimate_study_variance([1], "up"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused(message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        REFUSED[message]()


def test_a_hand_worked_bias() -> None:
    # Two results one noise apart, ten steps of the grid. At the best mixture of the maximum-likelihood kind both are
    # explained by one quality between them: the winner's expected quality is the middle, half a noise worse.
    bias = estimate_selection_bias([3.0, 4.0], 1.0, "minimize")
    assert bias.best == 3
    assert bias.expected_bias == pytest.approx(0.5, abs=0.01)
    assert bias.shrunken == pytest.approx(3.5, abs=0.01)
    assert bias.largest_bias == pytest.approx(1 / math.sqrt(math.pi))


def test_what_has_no_bias() -> None:
    assert estimate_selection_bias([3.0], 1.0, "minimize").expected_bias == 0
    assert estimate_selection_bias([3.0, 3.1], 0.0, "minimize").expected_bias == 0
    assert estimate_selection_bias(np.ones(20), 0.1, "minimize").expected_bias == 0
    # A winner that is alone within ten noises is not lucky but good.
    assert estimate_selection_bias([0.0, 11.0, 12.0], 1.0, "minimize").expected_bias == 0
    nothing = estimate_selection_bias([np.inf, np.nan], 1.0, "minimize")
    assert nothing.n_trials == 0
    assert math.isnan(nothing.expected_bias)


def test_the_bias_knows_no_direction_order_or_scale() -> None:
    generator = np.random.default_rng(0)
    objective = generator.normal(size=30)
    one = estimate_selection_bias(objective, 0.7, "minimize")
    turned = estimate_selection_bias(-objective, 0.7, "maximize")
    assert (turned.expected_bias, turned.best, turned.shrunken) == (one.expected_bias, -one.best, -one.shrunken)
    assert estimate_selection_bias(generator.permutation(objective), 0.7, "minimize") == one
    scaled = estimate_selection_bias(100 * objective + 7, 70, "minimize")
    assert scaled.expected_bias == pytest.approx(100 * one.expected_bias)
    # Trials that cannot win, infeasible or far behind, change nothing but their number.
    more = estimate_selection_bias([*objective, np.inf, np.nan, 1e9], 0.7, "minimize")
    assert more.expected_bias == pytest.approx(one.expected_bias)
    assert more.n_trials == 31
    assert 0 < one.expected_bias < one.largest_bias


def test_many_trials_are_summarised_alike() -> None:
    objective = np.random.default_rng(0).normal(size=8000)
    few = estimate_selection_bias(np.append(objective[:2000], objective.min()), 0.5, "minimize")
    many = estimate_selection_bias(objective, 0.5, "minimize")
    assert many.expected_bias == pytest.approx(few.expected_bias, rel=0.25)
    assert many.n_trials == 8000


# The true qualities of n trials, in noises: nearly alike, or as in a search of a quadratic, or with a long tail.
QUALITIES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "equal": lambda generator, n: np.zeros(n),
    "normal 0.5": lambda generator, n: 0.5 * generator.normal(size=n),
    "normal 1": lambda generator, n: generator.normal(size=n),
    "normal 3": lambda generator, n: 3 * generator.normal(size=n),
    "normal 10": lambda generator, n: 10 * generator.normal(size=n),
    "quadratic 1": lambda generator, n: 10 * (generator.random(n) - 0.5) ** 2,
    "quadratic 2": lambda generator, n: 50 * ((generator.random((n, 2)) - 0.5) ** 2).sum(axis=1),
    "quadratic 4": lambda generator, n: 50 * ((generator.random((n, 4)) - 0.5) ** 2).sum(axis=1),
    "log-normal": lambda generator, n: np.exp(2 * generator.normal(size=n)),
}


def simulate(kind: str, n_trials: int, n_studies: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Return the true and the estimated bias of each simulated study, shape (n_studies,) each, in noises."""
    generator = np.random.default_rng(n_trials)
    true, estimated = [], []
    for _ in range(n_studies):
        quality = QUALITIES[kind](generator, n_trials)
        result = quality + generator.normal(size=n_trials)
        winner = np.argmin(result)
        true.append(quality[winner] - result[winner])
        estimated.append(estimate_selection_bias(result, 1.0, "minimize").expected_bias)
    return np.array(true), np.array(estimated)


@pytest.mark.slow
@pytest.mark.parametrize("n_trials", [8, 32, 128])
@pytest.mark.parametrize("kind", QUALITIES)
def test_the_bias_is_near_the_truth(kind: str, n_trials: int) -> None:
    true, estimated = simulate(kind, n_trials)
    noise = 2 * float(np.std(true - estimated)) / math.sqrt(len(true))
    assert abs(estimated.mean() - true.mean()) <= 0.45 + noise
    error = math.sqrt(np.mean((estimated - true) ** 2))
    assert 0.55 <= error <= 1.25
    # The check flags an estimate of half the noise or more.
    flagged = float(np.mean(estimated >= 0.5))
    if true.mean() > 1.3:
        assert flagged >= 0.93
    if true.mean() < 0.25:
        assert 0.15 <= flagged <= 0.45
    if true.mean() > 0.75:
        assert error <= math.sqrt(np.mean(true**2))
        assert estimated.mean() >= 0.75 * true.mean()


def test_a_normal_fit_would_miss_the_bias_of_a_search_with_a_long_tail() -> None:
    generator = np.random.default_rng(0)
    true, fitted, normal = [], [], []
    for _ in range(100):
        quality = QUALITIES["log-normal"](generator, 32)
        result = quality + generator.normal(size=32)
        winner = np.argmin(result)
        true.append(quality[winner] - result[winner])
        fitted.append(estimate_selection_bias(result, 1.0, "minimize").expected_bias)
        normal.append(min(1.0, 1 / result.var(ddof=1)) * (result.mean() - result.min()))
    assert np.mean(fitted) > 0.7 * np.mean(true)
    assert np.mean(normal) < 0.2 * np.mean(true)


def test_a_finite_validation_set_flatters_the_best_of_many_equal_models() -> None:
    # 64 models with an error rate of 0.1 on 1000 examples: the best looks 2.4 standard errors of 0.0095 better.
    generator = np.random.default_rng(0)
    flags, biases = 0, []
    for _ in range(50):
        [finding] = check_selection_bias(make_study(generator.binomial(1000, 0.1, 64) / 1000), 1000)
        flags += finding.verdict is Verdict.FLAG
        assert isinstance(finding.numbers["expected_bias"], float)
        biases.append(finding.numbers["expected_bias"])
    expected = expected_maximum(64) * error_rate_noise(0.1, 1000)
    assert flags == 50
    assert 0.75 * expected < np.mean(biases) < 1.1 * expected


def test_shared_examples_favour_no_model() -> None:
    # Models that share most of their errors differ by less, and the winner is luckier by less.
    generator = np.random.default_rng(0)
    correlation, n_examples = 0.75, 2000
    true, told, untold = [], [], []
    for _ in range(60):
        is_shared = generator.random((32, n_examples)) < math.sqrt(correlation)
        errors = np.where(is_shared, generator.random(n_examples) < 0.1, generator.random((32, n_examples)) < 0.1)
        rates = errors.mean(axis=1)
        # The part that all share favours none: it is no bias of the selection.
        true.append(rates.mean() - rates.min())
        for kept, known in ((told, correlation), (untold, 0.0)):
            [finding] = check_selection_bias(make_study(rates), n_examples, correlation=known)
            kept.append(finding.numbers["expected_bias"])
    assert np.mean(told) == pytest.approx(np.mean(true), rel=0.25)
    # Without the correlation the noise is overstated; the estimate stays between the truth and its upper bound.
    assert np.mean(told) <= np.mean(untold) <= expected_maximum(32) * error_rate_noise(0.1, n_examples)


def test_the_check_says_what_it_found() -> None:
    # An accuracy: the noise is that of the five best of twenty-four.
    accuracy = np.append(np.linspace(0.5, 0.88, 19), [0.9] * 5)
    [finding] = check_selection_bias(make_study(accuracy, direction="maximize"), 100, trial_sd=0.04)
    assert (finding.check, finding.subject, finding.section) == ("selection bias", "validation set", SECTION)
    assert finding.error_rate is None
    numbers = finding.numbers
    assert (numbers["n_examples"], numbers["n_trials"], numbers["best"]) == (100, 24, 0.9)
    assert numbers["sampling_sd"] == pytest.approx(0.03)
    assert numbers["noise_sd"] == pytest.approx(0.05)
    # A million examples leave nothing to luck where the trials differ.
    spread = make_study(np.linspace(0.1, 0.9, 24))
    assert check_selection_bias(spread, 10**6)[0].verdict is Verdict.NO_EVIDENCE
    assert check_selection_bias(spread, 25)[0].verdict is Verdict.FLAG


def test_studies_that_say_little() -> None:
    for objective in ([], [0.1], [0.1] * 7, [np.nan] * 20, [0.1, np.nan, 0.2] * 3):
        [finding] = check_selection_bias(make_study(objective), 1000)
        assert finding.verdict is Verdict.TOO_LITTLE_DATA
    pruned = make_study([0.1] * 20, status=[Status.PRUNED] * 20)
    assert check_selection_bias(pruned, 1000)[0].verdict is Verdict.TOO_LITTLE_DATA
    assert check_selection_bias(make_study([0.1] * 20), 1000)[0].verdict is Verdict.NO_EVIDENCE
    # A perfect score leaves no noise to be lucky with.
    assert check_selection_bias(make_study([0.0] * 20), 1000)[0].verdict is Verdict.NO_EVIDENCE


def test_a_hand_worked_study_variance() -> None:
    # Of six exchangeable trials, that the three best are all of one given search: 1 / C(6, 3) = 1/20.
    variance = estimate_study_variance([5.0, 1.0, 2.0], "minimize")
    assert (variance.n_trials, variance.best) == (3, 1)
    assert (variance.bound, variance.bound_probability) == (5, pytest.approx(0.95))
    # With replacement, the best of 3 is 1, 2 or 5 with the chances 19, 7 and 1 of 27.
    mean = (19 + 14 + 5) / 27
    assert variance.resampled_sd == pytest.approx(math.sqrt((19 + 28 + 25) / 27 - mean**2))
    assert (variance.resampled_low, variance.resampled_high) == (1, 2)


def test_the_study_variance_knows_no_direction_order_or_scale() -> None:
    generator = np.random.default_rng(0)
    objective = generator.normal(size=20)
    one = estimate_study_variance(objective, "minimize")
    assert estimate_study_variance(generator.permutation(objective), "minimize") == one
    turned = estimate_study_variance(-objective, "maximize")
    assert (turned.best, turned.bound, turned.resampled_low) == (-one.best, -one.bound, -one.resampled_high)
    assert turned.resampled_sd == one.resampled_sd
    scaled = estimate_study_variance(10 * objective + 3, "minimize")
    assert (scaled.bound, scaled.resampled_sd) == pytest.approx((10 * one.bound + 3, 10 * one.resampled_sd))


def test_infeasible_trials_count_as_worst_in_the_study_variance() -> None:
    variance = estimate_study_variance([1.0, 2.0, *[np.inf] * 30], "minimize")
    assert (variance.best, variance.bound) == (1.0, np.inf)
    assert math.isnan(variance.resampled_sd)
    variance = estimate_study_variance([*np.arange(20.0), *[np.nan] * 20], "maximize")
    assert (variance.n_trials, variance.best) == (40, 19)
    assert np.isfinite([variance.bound, variance.resampled_sd, variance.resampled_low]).all()
    constant = estimate_study_variance(np.ones(10), "minimize")
    assert (constant.resampled_sd, constant.resampled_low, constant.resampled_high, constant.bound) == (0, 1, 1, 1)
    for objective in ([], [np.nan]):
        nothing = estimate_study_variance(objective, "minimize")
        assert math.isnan(nothing.best)
        assert math.isnan(nothing.bound)
    single = estimate_study_variance([1.0], "minimize")
    assert (single.best, single.resampled_sd) == (1, 0)
    assert math.isnan(single.bound_probability)


@pytest.mark.parametrize("n_trials", [16, 64])
@pytest.mark.parametrize("kind", ["normal", "quadratic"])
def test_the_bound_covers_a_second_search_and_the_resampled_spread_does_not(kind: str, n_trials: int) -> None:
    generator = np.random.default_rng(n_trials)

    def search() -> np.ndarray:
        if kind == "normal":
            return generator.normal(size=n_trials)
        return ((generator.random((n_trials, 3)) - 0.5) ** 2).sum(axis=1)

    n_studies = 1500
    bounded = covered = beaten = 0
    for _ in range(n_studies):
        variance = estimate_study_variance(search(), "minimize")
        second = search().min()
        bounded += second <= variance.bound
        covered += variance.resampled_low <= second <= variance.resampled_high
        beaten += second < variance.best
    probability = variance.bound_probability
    assert probability >= 0.9
    assert abs(bounded / n_studies - probability) <= 3 * math.sqrt(probability * (1 - probability) / n_studies)
    assert 0.34 <= covered / n_studies <= 0.43
    assert abs(beaten / n_studies - 0.5) <= 3 * math.sqrt(0.25 / n_studies)
