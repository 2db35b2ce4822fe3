"""Are steps to target, scaling regimes and the critical batch size right, and refused where the data cannot tell?"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import curve_fit

from playbook_plugins.analysis import Curve, Finding, Parameter, Status, Trials, Verdict
from playbook_plugins.analysis.batch_size import (
    SECTION,
    CriticalBatchSize,
    Refusal,
    ScalingRegime,
    check_critical_batch_size,
    critical_batch_size,
)
from playbook_plugins.analysis.batch_size_fit import fit_critical_size
from playbook_plugins.analysis.gradient_noise import gradient_noise_scale
from playbook_plugins.analysis.steps_to_target import Budget, fewest_steps, held_budget, steps_to_target

PERFECT, DIMINISHING, MAXIMAL = ScalingRegime.PERFECT, ScalingRegime.DIMINISHING, ScalingRegime.MAXIMAL


def sizes(n_sizes: int, smallest: float = 64) -> np.ndarray:
    return smallest * 2.0 ** np.arange(n_sizes)


def law(batch_sizes: np.ndarray, critical: float, minimal: float = 1000) -> np.ndarray:
    return minimal * (1 + critical / batch_sizes)


# Steps to target


def curve(values: Any, step: Any = None) -> Curve:
    return Curve.from_columns(10 * np.arange(len(values)) if step is None else step, values)


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        # The line from 1.5 at step 10 to 0.5 at step 20 crosses 1 in the middle; 0.9 lies a fifth beyond.
        ([2, 1.5, 0.5, 3], 15),
        ([2, 1.4, 0.9], 18),
        # Equal is not better: the goal is left behind at the last evaluation that equals it.
        ([2, 1, 1, 0.5], 20),
        ([2, 1, 1], math.inf),
        # Nothing to draw a line from.
        ([0.5, 0.4], 0),
        ([2, math.nan, 0.5], 20),
        ([math.inf, 0.5], 10),
        ([2, -math.inf], 10),
        # NaN is never better.
        ([2, math.nan], math.inf),
        ([], math.inf),
    ],
)
def test_hand_worked_steps_to_target(values: list[float], steps: float) -> None:
    reached = steps_to_target(curve(values), 1.0, "minimize")
    assert reached.steps == pytest.approx(steps)
    assert reached.is_censored == math.isinf(steps)
    # Maximizing the negative is the same question.
    assert steps_to_target(curve([-value for value in values]), -1.0, "maximize") == reached


def test_a_run_is_watched_to_its_last_known_evaluation() -> None:
    assert steps_to_target(curve([2, 1.5, math.nan]), 1.0, "minimize").last_step == 10
    assert steps_to_target(curve([]), 1.0, "minimize").last_step == -1


def test_without_the_line_between_evaluations_a_critical_batch_size_would_look_smaller() -> None:
    # Losses that cross 1 at the steps of the law, evaluated every 400 steps.
    batch_sizes, step = sizes(7), np.arange(0, 60_000, 400)
    curves = [curve(2 - step / steps, step=step) for steps in law(batch_sizes, critical=1000)]
    between = [steps_to_target(one, 1.0, "minimize").steps for one in curves]
    at_evaluations = [float(one.step[np.flatnonzero(one.validation < 1)[0]]) for one in curves]
    assert critical_batch_size(batch_sizes, between).value == pytest.approx(1000, rel=1e-6)
    rounded = critical_batch_size(batch_sizes, at_evaluations).value
    assert rounded is not None
    assert rounded < 850


def study(**columns: Any) -> Trials:
    """Return seven trials that reach 1 at step 15, 18, never, 15 (infeasible), 15 (pruned), never, unknown."""
    curves = [[2, 1.5, 0.5], [2, 1.4, 0.9], [2, 2, 2, 2], [2, 1.5, 0.5], [2, 1.5, 0.5], [2, 2]]
    states = [Status.COMPLETE] * 3 + [Status.INFEASIBLE, Status.PRUNED, Status.FAILED, Status.COMPLETE]
    given = {
        "max_steps": [20, 20, 20, 20, 20, 20, 20],
        "curves": [*[curve(values) for values in curves], None],
        "status": states,
    } | columns
    return Trials.from_columns(
        "s",
        [Parameter(name="batch_size", kind="int", low=1, high=4096)],
        {"batch_size": [64, 64, 128, 128, 256, 256, 512]},
        [0.5, 0.9, 2, math.inf, 0.5, math.nan, 0.1],
        **given,
    )


def test_the_fewest_steps_at_each_batch_size() -> None:
    found = fewest_steps(study(), 1.0)
    assert found.batch_size.tolist() == [64, 128, 256]
    assert found.steps.tolist() == [15, math.inf, 15]
    assert found.last_step.tolist() == [20, 30, 20]
    assert found.n_trials.tolist() == [2, 1, 2]
    assert found.best_row.tolist() == [0, -1, 4]
    assert found.budget is Budget.STEP
    nothing = fewest_steps(study(curves=[None] * 7), 1.0)
    assert (len(nothing.batch_size), nothing.budget) == (0, Budget.UNKNOWN)
    result = critical_batch_size(nothing.batch_size, nothing.steps, last_steps=nothing.last_step)
    assert result.refusal is Refusal.FEW_SIZES
    assert {finding.verdict for finding in check_critical_batch_size(result)} == {Verdict.TOO_LITTLE_DATA}


def test_order_scale_and_direction_do_not_matter_to_the_fewest_steps() -> None:
    trials = study()
    expected = fewest_steps(trials, 1.0)
    order = np.random.default_rng(0).permutation(7)
    shuffled = fewest_steps(trials.select(order), 1.0)
    # The objective in another unit and turned round, at steps a hundred times as far apart.
    curves = [
        None if one is None else Curve.from_columns(100 * one.step, 3 - 7 * one.validation) for one in trials.curves
    ]
    turned = study(curves=curves, max_steps=[2000] * 7, status=list(trials.status))
    scaled = fewest_steps(replace(turned, direction="maximize"), 3 - 7 * 1.0)
    for other, factor in ((shuffled, 1), (scaled, 100)):
        assert other.batch_size.tolist() == expected.batch_size.tolist()
        assert other.steps == pytest.approx(factor * expected.steps)
        assert other.last_step.tolist() == (factor * expected.last_step).tolist()
        assert other.n_trials.tolist() == expected.n_trials.tolist()
        assert other.budget is expected.budget
    assert [order[row] if row >= 0 else -1 for row in shuffled.best_row] == expected.best_row.tolist()


def test_all_infeasible_and_categorical_batch_sizes() -> None:
    assert len(fewest_steps(study(status=[Status.INFEASIBLE] * 7), 1.0).batch_size) == 0
    trials = Trials.from_columns(
        "s",
        [Parameter(name="examples", kind="categorical", choices=(64, 128))],
        {"examples": [128, 64, None]},
        [0.5, 0.5, 0.5],
        direction="maximize",
        curves=[curve([-2, 0.0]), curve([-2, 1.0]), curve([3, 4])],
    )
    found = fewest_steps(trials, -1.0, parameter="examples")
    assert found.batch_size.tolist() == [64, 128]
    assert found.steps == pytest.approx([10 / 3, 5])


@pytest.mark.parametrize(
    ("max_steps", "budget"),
    [
        ([1000, 1000, 1005], Budget.STEP),
        ([1000, 500, 250], Budget.EPOCH),
        # 333 examples: 5.2, 2.6 and 1.3 batches, padded or dropped.
        ([6, 2, 1], Budget.EPOCH),
        ([1000, 700, 500], Budget.MIXED),
        ([-1, -1, 1000], Budget.UNKNOWN),
    ],
)
def test_what_was_held(max_steps: list[int], budget: Budget) -> None:
    assert held_budget([64, 128, 256], max_steps) is budget
    assert held_budget([64, 64, 64], max_steps) is Budget.UNKNOWN


# The curve


def test_a_hand_worked_critical_batch_size() -> None:
    # 100 (1 + 30 / B): at B = 30 twice the fewest steps, and twice the fewest examples, 3000.
    result = critical_batch_size([10, 20, 30, 60], [400, 250, 200, 150])
    assert result.value == pytest.approx(30)
    assert result.minimal_steps == pytest.approx(100)
    assert result.examples == pytest.approx([4000, 5000, 6000, 9000])
    assert (result.low, result.high) == pytest.approx((30, 30))
    assert result.noise == pytest.approx(0, abs=1e-9)
    assert (result.refusal, result.rise) == (None, 0.8)


def noisy(n_sizes: int = 7, critical: float = 500, noise: float = 0.05, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return sizes(n_sizes), law(sizes(n_sizes), critical) * np.exp(noise * generator.normal(size=n_sizes))


def summary(result: CriticalBatchSize) -> list[Any]:
    return [result.value, result.low, result.high, result.noise, result.minimal_steps]


def test_order_scale_and_missed_goals_do_not_matter() -> None:
    batch_sizes, steps = noisy()
    expected = critical_batch_size(batch_sizes, steps)
    flipped = critical_batch_size(batch_sizes[::-1], steps[::-1])
    assert flipped.steps.tolist() == expected.steps.tolist()
    # The noise of the bootstrap goes with the rows: the ends differ by the error of the simulation.
    assert summary(flipped) == pytest.approx(summary(expected), rel=0.05)
    assert flipped.value == pytest.approx(expected.value)
    scaled = critical_batch_size(4 * batch_sizes, 10 * steps)
    assert summary(scaled) == pytest.approx(np.array(summary(expected)) * [4, 4, 4, 1, 10], rel=1e-3)
    missed = critical_batch_size([8, *batch_sizes], [math.nan, *steps], last_steps=[100, *[-1] * 7])
    assert summary(missed) == summary(expected)
    assert missed.regimes == (None, *expected.regimes)


@pytest.mark.parametrize("seed", range(5))
def test_the_fit_is_that_of_an_independent_optimizer(seed: int) -> None:
    batch_sizes, steps = noisy(seed=seed)
    other, covariance = curve_fit(
        lambda b, log_minimal, log_critical: log_minimal + np.log1p(np.exp(log_critical) / b),
        batch_sizes,
        np.log(steps),
        p0=[7, 6],
    )
    result = critical_batch_size(batch_sizes, steps, n_resamples=4000)
    assert result.value == pytest.approx(np.exp(other[1]), rel=1e-5)
    assert result.minimal_steps == pytest.approx(np.exp(other[0]), rel=1e-5)
    # Where the noise is small the interval is close to Student's, with 5 degrees of freedom.
    width = 2 * 2.5706 * math.sqrt(covariance[1, 1])
    assert math.log(result.high / result.low) == pytest.approx(width, rel=0.1)  # type: ignore[operator]


def test_repeats_of_a_batch_size_are_averaged_in_logarithms_and_narrow_the_interval() -> None:
    batch_sizes, steps = noisy()
    result = critical_batch_size(np.tile(batch_sizes, 2), np.concatenate([steps * 1.01, steps / 1.01]))
    assert len(result) == 7
    assert result.steps == pytest.approx(steps)
    once = critical_batch_size(batch_sizes, steps)
    assert result.value == pytest.approx(once.value)
    assert result.high / result.low < once.high / once.low  # type: ignore[operator]


def test_the_seed_changes_the_interval_and_nothing_else() -> None:
    one, other = (critical_batch_size(*noisy(), n_resamples=100, seed=seed) for seed in (0, 1))
    assert one.value == other.value
    assert (one.low, one.high) != (other.low, other.high)
    assert summary(critical_batch_size(*noisy(), n_resamples=100, seed=0)) == summary(one)


def test_a_higher_confidence_widens_the_interval() -> None:
    narrow, wide = (critical_batch_size(*noisy(), confidence=confidence) for confidence in (0.8, 0.95))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high  # type: ignore[operator]


@pytest.mark.parametrize(
    ("batch_sizes", "steps", "last_steps", "refusal"),
    [
        (sizes(5), law(sizes(5), 2000), None, Refusal.NOT_REACHED),
        # Perfect scaling, no end in sight.
        (sizes(5), 1e6 / sizes(5), None, Refusal.NOT_REACHED),
        (sizes(5), law(sizes(5), 20), None, Refusal.NOT_BELOW),
        (sizes(5), np.full(5, 1000.0), None, Refusal.NOT_BELOW),
        (sizes(3), law(sizes(3), 100), None, Refusal.FEW_SIZES),
        # Repeats are not batch sizes.
        (np.repeat(sizes(3), 3), law(np.repeat(sizes(3), 3), 100), None, Refusal.FEW_SIZES),
        (sizes(5), [1000, 500, math.inf, math.nan, 200], None, Refusal.FEW_SIZES),
        (sizes(5), [1000, 500, 300, 250, 313], None, Refusal.NOT_MONOTONE),
        # Watched for longer than a smaller batch took, and not there.
        (sizes(5), [1000, 500, 300, 250, math.inf], [-1, -1, -1, -1, 400], Refusal.NOT_MONOTONE),
        ([64], [1000], None, Refusal.FEW_SIZES),
        ([], [], None, Refusal.FEW_SIZES),
    ],
)
def test_refusals(batch_sizes: Any, steps: Any, last_steps: Any, refusal: Refusal) -> None:
    result = critical_batch_size(batch_sizes, steps, last_steps=last_steps)
    assert result.refusal is refusal
    assert (result.value, result.low, result.high, result.minimal_steps) == (None, None, None, None)
    for finding in check_critical_batch_size(result):
        json.dumps(dict(finding.numbers), allow_nan=False)


def test_a_rise_of_a_quarter_and_a_short_watch_are_no_refusal() -> None:
    assert critical_batch_size(sizes(5), [1000, 600, 400, 300, 375]).refusal is None
    short = critical_batch_size(sizes(5), [1000, 600, 400, 320, math.inf], last_steps=[-1, -1, -1, -1, 100])
    assert short.refusal is None
    assert short.rise == 0.8


# The regimes


def test_hand_worked_regimes() -> None:
    # Steps halve, halve, fall by a third, by a tenth of themselves, and stay.
    result = critical_batch_size(sizes(6), [1200, 600, 300, 200, 180, 180])
    assert result.gain == pytest.approx([2, 2, 2, 1.5, 10 / 9, 1])
    assert result.regimes == (PERFECT, PERFECT, PERFECT, DIMINISHING, DIMINISHING, MAXIMAL)
    assert result.largest_useful == 1024
    assert critical_batch_size([64], [10]).regimes == (None,)
    assert critical_batch_size([64], [10]).largest_useful is None
    # No doubling saves anything: the smallest will do.
    assert critical_batch_size(sizes(5), np.full(5, 7.0)).largest_useful == 64


def test_on_the_curve_the_regimes_end_at_a_quarter_and_nine_times_the_critical_batch_size() -> None:
    # The gain at B is (B + 2 B_crit) / (B + B_crit).
    batch_sizes = sizes(13, smallest=1)
    for critical in (16, 17, 100):
        result = critical_batch_size(batch_sizes, law(batch_sizes, critical))
        by_rule = np.where(
            batch_sizes <= critical / 4, PERFECT, np.where(batch_sizes > 9 * critical, MAXIMAL, DIMINISHING)
        )
        assert list(result.regimes[1:]) == by_rule[1:].tolist()
        assert result.value == pytest.approx(critical, rel=1e-6)


# The findings


def check(batch_sizes: Any, steps: Any, **options: Any) -> list[Finding]:
    return check_critical_batch_size(critical_batch_size(batch_sizes, steps, **options))


def test_the_findings() -> None:
    result = critical_batch_size(sizes(9), law(sizes(9), 512), budget=Budget.STEP)
    scale = gradient_noise_scale([9.0, 13.0], [3.0, 4.0], 1, 4)
    [steps, critical] = check_critical_batch_size(result, noise_scale=scale)
    assert (steps.check, steps.subject, steps.section) == ("steps to target", "batch_size", SECTION)
    assert (critical.check, critical.subject, critical.section) == ("critical batch size", "batch_size", SECTION)
    assert (steps.verdict, critical.verdict) == (Verdict.NO_EVIDENCE, Verdict.FLAG)
    assert dict(steps.numbers) == {"n_sizes": 9, "n_censored": 0, "rise": result.rise, "budget": "step budget"}
    assert critical.numbers["critical_batch_size"] == pytest.approx(512)
    assert critical.numbers["minimal_steps"] == pytest.approx(1000)
    names = ("smallest", "largest", "largest_perfect", "largest_useful", "refusal", "confidence")
    assert [critical.numbers[name] for name in names] == [64, 16384, 128, 4096, None, 0.95]
    assert critical.numbers["noise_scale"] == pytest.approx(10)
    assert critical.numbers["noise_scale_standard_error"] == pytest.approx(2)


def test_verdicts() -> None:
    by_case = {
        "saves everywhere": check(sizes(5), law(sizes(5), 500)),
        "not reached": check(sizes(5), law(sizes(5), 5000)),
        "all beyond": check(sizes(5), np.full(5, 7.0)),
        "rises": check(sizes(5), [1000, 500, 300, 300, 400]),
        "one size": check([64], [1000]),
        "three sizes": check(sizes(3), [500, 500, 500]),
    }
    few, none, flag = Verdict.TOO_LITTLE_DATA, Verdict.NO_EVIDENCE, Verdict.FLAG
    assert {case: [finding.verdict for finding in found] for case, found in by_case.items()} == {
        "saves everywhere": [none, none],
        "not reached": [none, few],
        "all beyond": [none, flag],
        "rises": [flag, few],
        "one size": [few, few],
        "three sizes": [none, few],
    }
    numbers = by_case["not reached"][1].numbers
    assert (numbers["refusal"], numbers["high"]) == ("no measured batch size reaches it", None)


def test_an_interval_without_an_upper_end_is_told_as_unknown() -> None:
    batch_sizes, steps = noisy(n_sizes=4, critical=400, noise=0.12, seed=9)
    result = critical_batch_size(batch_sizes, steps)
    assert result.high == math.inf
    assert check_critical_batch_size(result)[1].numbers["high"] is None


# The error rates


@pytest.mark.parametrize(
    ("n_sizes", "tails", "size"),
    [
        (5, "gaussian", 0.03),
        *[
            pytest.param(n_sizes, tails, size, marks=pytest.mark.slow)
            for n_sizes in (4, 7, 9)
            for tails in ("gaussian", "t3")
            for size in (0.03, 0.12)
        ],
    ],
)
def test_the_interval_covers_the_critical_batch_size(n_sizes: int, tails: str, size: float) -> None:
    generator = np.random.default_rng(7)
    n_runs, covered, given = 300, 0, 0
    for run in range(n_runs):
        critical = 64 * 2 ** ((n_sizes - 1) * generator.uniform(0.3, 0.7))
        noise = generator.normal(size=n_sizes) if tails == "gaussian" else generator.standard_t(3, n_sizes) / 3**0.5
        steps = law(sizes(n_sizes), critical) * np.exp(size * noise)
        result = critical_batch_size(sizes(n_sizes), steps, n_resamples=400, seed=run)
        if result.low is not None and result.high is not None:
            given += 1
            covered += result.low <= critical <= result.high
    # Much noise is often refused, as steps that rise.
    assert given >= (0.95 if size < 0.1 else 0.75) * n_runs
    error = math.sqrt(0.05 * 0.95 / n_runs)
    assert 0.92 - 2 * error <= covered / given <= 0.98 + 2 * error


@pytest.mark.slow
def test_the_percentiles_of_resampled_residuals_would_cover_too_seldom() -> None:
    generator = np.random.default_rng(7)
    batch_sizes, n_runs, covered = sizes(5), 1500, 0
    for _ in range(n_runs):
        critical = 64 * 2 ** (4 * generator.uniform(0.3, 0.7))
        y = np.log(law(batch_sizes, critical)) + 0.03 * generator.normal(size=5)
        fitted = np.log1p(np.exp(fit_critical_size(batch_sizes, y[np.newaxis])[0][0]) / batch_sizes)
        residual = y - y.mean() - fitted + fitted.mean()
        # Two parameters were spent.
        drawn = fitted + math.sqrt(5 / 3) * residual[generator.integers(5, size=(300, 5))]
        low, high = np.quantile(fit_critical_size(batch_sizes, drawn)[0], [0.025, 0.975])
        covered += low <= math.log(critical) <= high
    assert covered / n_runs == pytest.approx(0.85, abs=2 * math.sqrt(0.85 * 0.15 / n_runs))


def rates(n_sizes: int, critical: float, noise: float = 0.05, n_runs: int = 300) -> tuple[float, float, float]:
    """Return how often a number is given, the steps are said to rise, and to fall no longer."""
    generator = np.random.default_rng(8)
    counts = np.zeros(3)
    for _ in range(n_runs):
        steps = law(sizes(n_sizes), critical) * np.exp(noise * generator.normal(size=n_sizes))
        result = critical_batch_size(sizes(n_sizes), steps, n_resamples=100)
        flags = [finding.verdict is Verdict.FLAG for finding in check_critical_batch_size(result)]
        counts += [result.value is not None, *flags]
    given, rising, saturated = counts / n_runs
    return float(given), float(rising), float(saturated)


@pytest.mark.parametrize("n_sizes", [4, 9])
def test_no_number_where_no_batch_size_comes_near(n_sizes: int) -> None:
    # At a quarter of the critical batch size, and under perfect scaling, even with a tenth of noise.
    largest = sizes(n_sizes)[-1]
    for critical in (4 * largest, 1e9 * largest):
        given, _, saturated = rates(n_sizes, critical, noise=0.1)
        assert (given, saturated) == pytest.approx((0, 0), abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("n_sizes", [4, 9])
def test_false_and_true_flags(n_sizes: int) -> None:
    largest, error = sizes(n_sizes)[-1], math.sqrt(0.05 * 0.95 / 1000)
    [steps, critical] = check(sizes(5), law(sizes(5), 500))
    assert (steps.error_rate, critical.error_rate) == (0.03, 0.05)
    # A gain of 1.25, a fifth of the steps.
    assert rates(n_sizes, largest / 3, n_runs=1000)[2] <= 0.05 + 2 * error
    # A gain of 1.03.
    assert rates(n_sizes, largest / 36, n_runs=1000)[2] >= 0.9
    # Equal steps everywhere; with much noise the rule is not to be trusted.
    assert rates(n_sizes, 1e-6, n_runs=1000)[1] <= 0.03 + 2 * math.sqrt(0.03 * 0.97 / 1000)
    assert rates(5, 1e-6, noise=0.1)[1] == pytest.approx(1 / 3, abs=0.08)
    assert rates(9, 1e-6, noise=0.1)[1] == pytest.approx(2 / 3, abs=0.08)


@pytest.mark.slow
def test_a_rise_is_found() -> None:
    generator = np.random.default_rng(9)
    level = np.array([1.0, 1.0, 1.0, 1.0, 1.5])
    found = [check(sizes(5), level * np.exp(0.05 * generator.normal(size=5)))[0].verdict for _ in range(500)]
    assert np.mean([verdict is Verdict.FLAG for verdict in found]) >= 0.95


# Messages


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            ([0, 64], [1, 2]),
            {},
            "`batch_sizes` is [0.0, 64.0]: batch sizes must be positive and finite. Pass one entry a measurement, in "
            "examples per step over all devices.",
        ),
        (
            ([64, 128], [1]),
            {},
            "`steps` has the shape (1,), but there are 2 batch sizes: it has one entry a measurement. Fill what is "
            "unknown with NaN.",
        ),
        (
            ([64, 128], [2, 1]),
            {"last_steps": [1, 2, 3]},
            "`last_steps` has the shape (3,), but there are 2 batch sizes: it has one entry a measurement. Fill what "
            "is unknown with NaN.",
        ),
        (
            ([64, 128], [1, 0]),
            {},
            "`steps` is [1.0, 0.0]: reaching a goal takes more than 0 steps. Pass +inf or NaN where the goal was not "
            "reached, and choose a goal that no untrained model reaches.",
        ),
        (
            ([64], [1]),
            {"confidence": 95},
            "`confidence` is 95: it is the coverage of an interval and must lie between 0 and 1. Pass for instance "
            "0.95.",
        ),
        (
            ([64], [1]),
            {"n_resamples": 10},
            "`n_resamples` is 10: the ends of an interval need at least 100 resamples. Pass 1000, or leave it out.",
        ),
    ],
)
def test_messages(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        critical_batch_size(*arguments, **options)


def test_messages_of_steps_to_target() -> None:
    for goal, direction, message in (
        (
            math.nan,
            "minimize",
            "`goal` is nan: a goal must be finite. Pass the value of the objective that is to be beaten.",
        ),
        (
            1.0,
            "min",
            "`direction` is 'min': it must be 'minimize' or 'maximize'. Pass the direction in which the objective gets "
            "better.",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            steps_to_target(curve([2, 1]), goal, direction)  # type: ignore[arg-type]
