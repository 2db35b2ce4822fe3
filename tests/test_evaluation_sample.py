from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, hypergeom, ttest_1samp

from playbook_plugins.analysis import Finding, Verdict
from playbook_plugins.analysis.evaluation_sample import check_evaluation_sample, check_sample_classes

DRAWS: dict[str, Callable[[np.random.Generator, Any], Any]] = {
    "correctness": lambda generator, size: (generator.random(size) < 0.9).astype(float),
    "normal": lambda generator, size: generator.standard_normal(size),
    "exponential": lambda generator, size: generator.exponential(size=size),
    "cross entropy": lambda generator, size: np.logaddexp(0, -generator.normal(3, 3, size)),
    "lognormal": lambda generator, size: generator.lognormal(size=size),
    "lognormal, sigma 2": lambda generator, size: generator.lognormal(sigma=2, size=size),
}


def mean_of(findings: list[Finding]) -> Finding:
    assert findings[0].check == "evaluation sample"
    assert findings[0].subject == "mean"
    return findings[0]


def test_a_correctness_by_hand() -> None:
    # 100 examples, 80 right; of 25 sampled, 15 right: 5 fewer than 20.
    full = np.repeat([1.0, 0.0], [80, 20])
    sample = np.repeat([1.0, 0.0], [15, 10])
    numbers = mean_of(check_evaluation_sample(sample, full)).numbers
    assert numbers["difference"] == pytest.approx(-0.2)
    # S² = 0.8 · 0.2 · 100 / 99; SE² = S² / 25 · (1 - 25 / 100).
    error = math.sqrt(0.16 * 100 / 99 / 25 * 0.75)
    assert numbers["standard_error"] == pytest.approx(error)
    assert numbers["z"] == pytest.approx(-0.2 / error)
    # Twice the chance of at most 15 right, by counting.
    ways = sum(math.comb(80, k) * math.comb(20, 25 - k) for k in range(5, 16)) / math.comb(100, 25)
    assert numbers["p"] == pytest.approx(2 * ways)
    assert numbers["p"] == pytest.approx(0.01257, abs=1e-5)
    # Two uncorrelated trials: (1.960 + 0.842) · sqrt(2) standard errors.
    assert numbers["resolvable_difference"] == pytest.approx(2.8016 * math.sqrt(2) * error)


def test_a_loss_by_hand() -> None:
    full = np.array([1.0] * 20 + [3.0] * 20)
    sample = np.array([1.0] * 20)
    finding = mean_of(check_evaluation_sample(sample, full))
    # Mean 2, S² = 40 / 39, SE² = S² / 20 · 1/2.
    assert finding.numbers["standard_error"] == pytest.approx(math.sqrt(40 / 39 / 40))
    assert finding.numbers["difference"] == -1
    # Of the draws none is as far off (the chance is 2 / C(40, 20)): p is 1 of 2000.
    assert finding.numbers["p"] == 1 / 2000
    assert finding.verdict is Verdict.FLAG


def test_the_whole_set_is_no_sample_and_equal_values_have_no_skew() -> None:
    full = np.random.default_rng(0).exponential(size=50)
    for values in (full, np.full(50, 0.1), np.ones(50), np.zeros(50)):
        numbers = mean_of(check_evaluation_sample(values[::-1], values)).numbers
        assert (numbers["difference"], numbers["z"], numbers["p"]) == (0, 0, 1)
        assert numbers["standard_error"] == numbers["resolvable_difference"] == 0
    numbers = mean_of(check_evaluation_sample(np.full(30, 0.1), np.full(1000, 0.1))).numbers
    assert (numbers["z"], numbers["p"]) == (0, 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(DRAWS)))
def test_identities(seed: int, name: str) -> None:
    generator = np.random.default_rng(seed)
    full = DRAWS[name](generator, 200)
    indices = generator.choice(200, 40, replace=False)
    numbers = mean_of(check_evaluation_sample(full[indices], full)).numbers
    # Errors and correct predictions, losses and their negatives, say the same.
    flipped = 1 - full
    mirrored = mean_of(check_evaluation_sample(flipped[indices], flipped)).numbers
    assert mirrored["difference"] == pytest.approx(-float(str(numbers["difference"])))
    assert mirrored["p"] == pytest.approx(numbers["p"])
    # What is left out is as skewed, the other way, and as unlikely.
    rest = mean_of(check_evaluation_sample(np.delete(full, indices), full)).numbers
    assert rest["z"] == pytest.approx(-float(str(numbers["z"])), rel=1e-6)
    assert float(str(rest["p"])) == pytest.approx(float(str(numbers["p"])), abs=1e-3)
    # The order of the sample, and of the full set where it is counted, does not matter.
    again = mean_of(check_evaluation_sample(generator.permutation(full[indices]), full)).numbers
    assert again == pytest.approx(numbers)


def test_the_seed_redraws() -> None:
    full = np.random.default_rng(0).exponential(size=500)
    found = {mean_of(check_evaluation_sample(full[:50], full, seed=seed)).numbers["p"] for seed in (0, 0, 1, 2)}
    assert len(found) == 3
    assert max(found) - min(found) < 0.05  # type: ignore[type-var, operator]


def test_redrawing_agrees_with_counting() -> None:
    # Correctness times 2 is counted by redrawing; by itself it is counted exactly, ties included.
    generator = np.random.default_rng(3)
    full = (generator.random(300) < 0.7).astype(float)
    for _ in range(20):
        sample = generator.choice(full, 60, replace=False)
        exact = hypergeom(300, int(full.sum()), 60)
        far = abs(sample.sum() - 60 * full.mean()) - 1e-9
        hits = np.arange(61)
        expected = exact.pmf(hits)[abs(hits - 60 * full.mean()) >= far].sum()
        redrawn = mean_of(check_evaluation_sample(2 * sample, 2 * full)).numbers["p"]
        assert redrawn == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 1999) + 1e-3)


def flags(name: str, n: int, n_runs: int, seed: int, mean_only: bool = False) -> float:
    generator = np.random.default_rng(seed)
    full = DRAWS[name](generator, 3_000)
    found = 0
    for run in range(n_runs):
        sample = generator.choice(full, n, replace=False)
        whole = float(full.mean()) if mean_only else full
        options: dict[str, Any] = {"n_full": len(full)} if mean_only else {"seed": run}
        found += mean_of(check_evaluation_sample(sample, whole, **options)).verdict is Verdict.FLAG
    return found / n_runs


def bound(rate: float, n_runs: int) -> float:
    return rate + 3 * math.sqrt(rate * (1 - rate) / n_runs)


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWS)
def test_one_random_sample_in_a_hundred_is_flagged(name: str) -> None:
    assert flags(name, 20, 300, seed=20) <= bound(0.01, 300)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "allowed"), [("correctness", 0.01), ("normal", 0.01), ("lognormal", 0.05)])
def test_false_flags_where_only_the_mean_is_known(name: str, allowed: float) -> None:
    assert flags(name, 100, 1_000, seed=1, mean_only=True) <= bound(allowed, 1_000)


@pytest.mark.parametrize(("name", "rate"), [("exponential", 0.017), ("lognormal", 0.035)])
def test_long_tails_raise_the_rate_where_only_the_mean_is_known(name: str, rate: float) -> None:
    generator = np.random.default_rng(11)
    n_runs, found = 6_000, 0
    samples = DRAWS[name](generator, (n_runs, 100))
    mean = {"exponential": 1.0, "lognormal": math.exp(0.5)}[name]
    for sample in samples:
        found += mean_of(check_evaluation_sample(sample, mean)).verdict is Verdict.FLAG
    assert found / n_runs == pytest.approx(rate, abs=2 * math.sqrt(rate / n_runs) + 0.0005)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["correctness", "normal", "exponential"])
def test_a_skewed_sample_is_found(name: str) -> None:
    generator = np.random.default_rng(12)
    full, n, n_runs = DRAWS[name](generator, 3_000), 200, 200
    score = (full - full.mean()) / full.std()
    found = {}
    for n_errors in (2, 4):
        # Examples are the likelier to be drawn the larger their value is.
        weight = np.clip(1 + n_errors * math.sqrt((1 - n / 3_000) / n) * score, 0, None)
        verdicts = [
            mean_of(
                check_evaluation_sample(
                    generator.choice(full, n, replace=False, p=weight / weight.sum()), full, seed=run
                )
            ).verdict
            for run in range(n_runs)
        ]
        found[n_errors] = float(np.mean([verdict is Verdict.FLAG for verdict in verdicts]))
    assert found[2] == pytest.approx(0.25, abs=2 * math.sqrt(0.25 * 0.75 / n_runs) + 0.03)
    assert found[4] >= 0.85 - 2 * math.sqrt(0.85 * 0.15 / n_runs)


def test_a_class_that_is_drawn_too_often_is_found() -> None:
    generator = np.random.default_rng(13)
    full = np.repeat(np.arange(10), 300)
    weight = np.where(full == 0, 2.0, 1.0)
    found = 0
    for _ in range(300):
        [finding] = check_sample_classes(generator.choice(full, 200, replace=False, p=weight / weight.sum()), full)
        found += finding.verdict is Verdict.FLAG and finding.numbers["class"] == "0"
    assert found / 300 == pytest.approx(0.55, abs=2 * math.sqrt(0.25 / 300))


def test_the_first_of_a_sorted_set_are_flagged() -> None:
    loss = np.sort(np.random.default_rng(0).exponential(size=1000))
    finding = mean_of(check_evaluation_sample(loss[:100], loss))
    assert finding.verdict is Verdict.FLAG
    assert finding.error_rate == 0.01
    assert finding.section == "Choosing a sample for periodic evaluation"


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_the_resolvable_difference_is_resolved_in_80_percent(correlation: float) -> None:
    generator = np.random.default_rng(7)
    noise = generator.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], 5_000).T
    n = 250
    rows = generator.choice(5_000, n, replace=False)
    rival = noise[1][rows] if correlation else None
    finding = mean_of(check_evaluation_sample(noise[0][rows], noise[0], rival=rival))
    size = float(str(finding.numbers["resolvable_difference"]))
    differences = noise[1] - noise[0]
    differences += size - differences.mean()
    spread = differences.std(ddof=1) * math.sqrt((1 - n / 5_000) / n)
    seen = [generator.choice(differences, n, replace=False).mean() > 1.96 * spread for _ in range(2_000)]
    # One sample's estimate of the spread is itself known to 1 / sqrt(2 n) = 4.5%.
    assert np.mean(seen) == pytest.approx(0.8, abs=0.09)


def test_paired_trials_resolve_more() -> None:
    generator = np.random.default_rng(2)
    hard = generator.exponential(size=400)
    sample, rival = hard[:100], hard[:100] + 0.01 * generator.standard_normal(100)
    alone = mean_of(check_evaluation_sample(sample, hard)).numbers
    paired = mean_of(check_evaluation_sample(sample, hard, rival=rival)).numbers
    expected = 2.8016 * np.std(sample - rival, ddof=1) * math.sqrt(0.75 / 100)
    assert paired["resolvable_difference"] == pytest.approx(expected)
    assert float(str(paired["resolvable_difference"])) < 0.02 * float(str(alone["resolvable_difference"]))


def test_where_only_the_mean_is_known() -> None:
    sample = np.repeat([1.0, 0.0], [15, 10])
    numbers = mean_of(check_evaluation_sample(sample, 0.8)).numbers
    assert numbers["p"] == pytest.approx(2 * binom(25, 0.8).cdf(15))
    assert numbers["standard_error"] == pytest.approx(math.sqrt(0.16 / 25))
    assert numbers["n_full"] is None
    full = np.repeat([1.0, 0.0], [80, 20])
    known = mean_of(check_evaluation_sample(sample, 0.8, n_full=100)).numbers
    assert known == pytest.approx(mean_of(check_evaluation_sample(sample, full)).numbers)
    # A sample without an error is no proof of a skew: the spread is not read off it.
    assert mean_of(check_evaluation_sample(np.ones(25), 0.95)).verdict is Verdict.NO_EVIDENCE
    losses = np.random.default_rng(0).exponential(size=150)
    finding = mean_of(check_evaluation_sample(losses, 1.2))
    reference = ttest_1samp(losses, 1.2)
    assert (finding.numbers["z"], finding.numbers["p"]) == pytest.approx((reference.statistic, reference.pvalue))
    assert finding.error_rate == 0.05


def test_the_same_examples_in_two_evaluations() -> None:
    generator = np.random.default_rng(4)
    full = generator.exponential(size=1000)
    indices = generator.choice(1000, 200, replace=False)
    same = check_evaluation_sample(full[indices], full, indices=indices)[1]
    assert (same.subject, same.verdict) == ("same examples", Verdict.NO_EVIDENCE)
    assert (same.numbers["n_differing"], same.numbers["t"], same.numbers["p"]) == (0, 0, 1)
    # Dropout left on: each example comes out a little worse, far below what the draw alone would show.
    worse = full[indices] + generator.normal(0.02, 0.05, 200)
    mean, same = check_evaluation_sample(worse, full, indices=indices)
    assert mean.verdict is Verdict.NO_EVIDENCE
    assert mean.numbers["difference"] == pytest.approx(full[indices].mean() - full.mean())
    assert same.verdict is Verdict.FLAG
    reference = ttest_1samp(worse - full[indices], 0)
    assert (same.numbers["t"], same.numbers["p"]) == pytest.approx((reference.statistic, reference.pvalue))
    assert same.numbers["standard_error"] == pytest.approx(np.std(worse - full[indices], ddof=1) / math.sqrt(200))
    # Rounding, as of another precision, has no direction.
    noisy = full[indices] + generator.normal(0, 0.001, 200)
    same = check_evaluation_sample(noisy, full, indices=indices)[1]
    assert (same.numbers["n_differing"], same.verdict) == (200, Verdict.NO_EVIDENCE)
    constant = check_evaluation_sample(np.ones(40), np.zeros(50), indices=np.arange(40))[1]
    assert (constant.verdict, constant.numbers["t"], constant.numbers["p"]) == (Verdict.FLAG, math.inf, 0)


def test_same_examples_are_rarely_flagged_without_a_cause() -> None:
    generator = np.random.default_rng(9)
    n_runs, found = 1_000, 0
    for _ in range(n_runs):
        noise = generator.standard_t(3, 30)
        found += check_evaluation_sample(noise, np.zeros(30), indices=np.arange(30))[1].verdict is Verdict.FLAG
    assert 0 < found / n_runs <= bound(0.01, n_runs)


def test_few_examples_are_too_little_data() -> None:
    full = np.arange(500.0)
    for n, verdict in ((1, Verdict.TOO_LITTLE_DATA), (19, Verdict.TOO_LITTLE_DATA), (20, Verdict.FLAG)):
        findings = check_evaluation_sample(full[:n], full, indices=np.arange(n))
        assert findings[0].verdict is verdict
        assert (findings[1].verdict is Verdict.TOO_LITTLE_DATA) == (n < 20)
    losses = np.random.default_rng(0).exponential(size=100)
    assert mean_of(check_evaluation_sample(losses[:99], 9.0)).verdict is Verdict.TOO_LITTLE_DATA
    assert mean_of(check_evaluation_sample(losses, 9.0)).verdict is Verdict.FLAG
    assert check_sample_classes(np.zeros(19), np.zeros(40))[0].verdict is Verdict.TOO_LITTLE_DATA


def test_classes_by_hand() -> None:
    full = np.repeat(["cat", "dog", "owl"], [60, 30, 10])
    [finding] = check_sample_classes(np.repeat(["cat", "dog"], [20, 20]), full)
    assert finding.subject == "classes"
    assert finding.numbers["n_missing"] == 1
    assert (finding.numbers["class"], finding.numbers["n_sampled"]) == ("dog", 20)
    assert finding.numbers["expected"] == pytest.approx(12)
    ways = sum(math.comb(30, k) * math.comb(70, 40 - k) for k in range(20, 31)) / math.comb(100, 40)
    assert finding.numbers["p"] == pytest.approx(2 * ways)
    assert finding.numbers["allowed_p"] == pytest.approx(0.01 / 3)
    assert finding.verdict is Verdict.FLAG
    [stratified] = check_sample_classes(np.repeat(["cat", "dog", "owl"], [24, 12, 4]), full)
    assert (stratified.verdict, stratified.numbers["p"]) == (Verdict.NO_EVIDENCE, 1)
    [whole] = check_sample_classes(full, full)
    assert (whole.verdict, whole.numbers["p"]) == (Verdict.NO_EVIDENCE, 1)


@pytest.mark.parametrize("n_classes", [2, 30])
def test_classes_of_a_random_sample_are_rarely_flagged(n_classes: int) -> None:
    generator = np.random.default_rng(n_classes)
    full = generator.choice(n_classes, 1_000, p=generator.dirichlet(np.ones(n_classes)))
    n_runs = 400 if n_classes == 2 else 100
    found = 0
    for _ in range(n_runs):
        [finding] = check_sample_classes(generator.choice(full, 100, replace=False), full)
        found += finding.verdict is Verdict.FLAG
    assert found / n_runs <= bound(0.01, n_runs)


def refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(ValueError, match="`") as caught:
        check_evaluation_sample(*arguments, **options)
    return str(caught.value)


def test_messages() -> None:
    values = np.zeros(30)
    finite = (
        "it must be one finite number for each example, at least one. Pass the per-example values, and mend those that "
        "are not finite."
    )
    assert refused([0.0, math.nan], values) == f"`sample` has shape (2,) and 1 values that are not finite: {finite}"
    assert refused(values, [[0.0]]) == f"`full` has shape (1, 1) and 0 values that are not finite: {finite}"
    assert refused([], values) == f"`sample` has shape (0,) and 0 values that are not finite: {finite}"
    assert refused(values, math.inf) == f"`full` has shape (1,) and 1 values that are not finite: {finite}"
    assert refused(values, values[:9]) == (
        "`sample` has 30 values, and the full set 9: the sample must be a part of it. Pass the sample first."
    )
    assert refused(values, 0.0, n_full=9).startswith("`sample` has 30 values, and the full set 9: ")
    assert refused(values, values, n_full=30) == (
        "`n_full` is 30, and `full` has 30 values: leave n_full out beside values."
    )
    assert refused(values, 0.5, indices=range(30)) == (
        "`indices` are given, and `full` is a mean: pass the values of the full set as full."
    )
    assert refused(values, values, rival=values[:3]) == (
        "`rival` has 3 values, and the sample 30: they are compared example by example. Pass those of the same "
        "examples."
    )
    for indices in (np.zeros(30, dtype=int), np.arange(1, 31), np.arange(-1, 29), np.arange(29)):
        assert refused(values, values, indices=indices) == (
            f"`indices` has shape ({len(indices)},), from {indices.min()} to {indices.max()}: it must name 30 "
            "different examples of the 30, in the order of the sample. Pass the indices that the sample was made with."
        )
    message = (
        "`sample_classes` has 2 examples that are no part of the 3 of `full_classes`: some class has more of them. "
        "Pass the classes of the full set that the sample was drawn from."
    )
    for sample in ([0, 0], [1, 3]):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            check_sample_classes(sample, [0, 1, 1])
