from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from playbook_plugins.analysis import Curve, Finding, Parameter, Role, Trials, Verdict, check_sensitivity, review

METHOD = Parameter(name="method", kind="categorical", choices=("a", "b"), role=Role.SCIENTIFIC)
RATE = Parameter(name="rate", kind="float", low=1e-4, high=1, log=True)


def test_what_to_do_first_comes_first() -> None:
    unit = np.linspace(0, 1, 64)
    cost = np.where(unit > 0.3, np.nan, (unit - 0.5) ** 2)
    trials = Trials.from_columns(
        "s", [METHOD, RATE], {"method": np.resize(["a", "b"], 64), "rate": 10 ** (4 * unit - 4)}, cost
    )
    findings = review(trials)
    assert [finding.check for finding in findings if finding.verdict is Verdict.FLAG][:2] == [
        "feasibility",
        "stability edge",
    ]
    ranks = [list(Verdict).index(finding.verdict) for finding in findings]
    assert ranks[0] == 0
    assert findings == review(trials)


def curve(end: float, *, rises: bool = False) -> Curve:
    step = np.arange(100) * 10
    fall = np.exp(-step / 200) + 0.005 * np.random.default_rng(0).standard_normal(100)
    return Curve.from_columns(step, end + fall, fall + (np.clip(step - 300, 0, None) / 500 if rises else 0))


def swept(n_trials: int = 24, rises: bool = False) -> Trials:
    unit = np.linspace(0, 1, n_trials)
    return Trials.from_columns(
        "s",
        [RATE],
        {"rate": 10 ** (4 * unit - 4)},
        (unit - 0.5) ** 2,
        curves=[curve(end, rises=rises) for end in (unit - 0.5) ** 2],
        best_step=[600] * n_trials,
        max_steps=[990] * n_trials,
    )


def test_a_bug_comes_before_everything_else() -> None:
    flags = [finding.check for finding in review(swept(rises=True)) if finding.verdict is Verdict.FLAG]
    assert flags[0] == "rising training loss"
    constant = Trials.from_columns("s", [RATE], {"rate": np.linspace(0.1, 1, 32)}, np.ones(32))
    first = review(constant)[0]
    assert (first.check, first.numbers["spread"]) == ("budget", 0)


def test_curves_and_stability_are_asked_of_the_best_trial() -> None:
    findings = {(finding.check, finding.subject) for finding in review(swept())}
    best = f"trial {swept().number[swept().ranking()[0]]}"
    assert {("overfitting", best), ("loss spike", best), ("still improving", best)} <= findings
    assert not any(check == "loss spike" for check, _ in {(one.check, one.subject) for one in review(studied(8))})


def studied(n_trials: int, **more: object) -> Trials:
    generator = np.random.default_rng(1)
    columns = {"method": np.resize(["a", "b"], n_trials), "rate": 10 ** generator.uniform(-4, 0, n_trials)}
    return Trials.from_columns("s", [METHOD, RATE], columns, generator.uniform(0.1, 0.2, n_trials), **more)


def by_check(findings: list[Finding], check: str) -> list[Finding]:
    return [finding for finding in findings if finding.check == check]


def test_the_luck_of_the_validation_set_is_told_where_its_size_is() -> None:
    assert not by_check(review(studied(32)), "selection bias")
    [few] = by_check(review(studied(32), n_validation_examples=100), "selection bias")
    [many] = by_check(review(studied(32), n_validation_examples=1_000_000), "selection bias")
    assert (few.verdict, many.verdict) == (Verdict.FLAG, Verdict.NO_EVIDENCE)
    assert few.numbers["expected_bias"] > many.numbers["expected_bias"]


def test_a_spread_over_retrains_is_taken_from_the_trials_or_from_the_user() -> None:
    trials = studied(32)
    assert by_check(review(trials), "budget")[0].numbers["retrain_sd"] is None
    assert by_check(review(trials, retrain_sd=0.01), "budget")[0].numbers["retrain_sd"] == 0.01
    rows = np.concatenate([np.arange(32), np.repeat(trials.ranking()[0], 5)])
    again = trials.select(rows)
    objective = again.objective.copy()
    objective[-5:] = [0.15, 0.16, 0.17, 0.16, 0.15]
    retrained = replace(again, objective=objective, number=np.arange(len(rows)))
    sd = float(np.std(np.append(objective[-5:], trials.objective[trials.ranking()[0]]), ddof=1))
    assert by_check(review(retrained), "budget")[0].numbers["retrain_sd"] == pytest.approx(sd)


def test_batch_sizes_are_compared_where_a_goal_is_given() -> None:
    size = Parameter(name="batch_size", kind="categorical", choices=(16, 32, 64, 128, 256))
    steps = [800 * (1 + 100 / batch) for batch in size.choices]
    curves = [Curve.from_columns(np.arange(101) * 100, 1 - 0.1 * np.arange(101) * 100 / (2 * need)) for need in steps]
    trials = Trials.from_columns(
        "s", [size], {"batch_size": size.choices}, [one.validation[-1] for one in curves], curves=curves
    )
    assert not by_check(review(trials), "critical batch size")
    [finding] = by_check(review(trials, goal=0.95), "critical batch size")
    assert finding.numbers["critical_batch_size"] == pytest.approx(100, rel=0.01)
    with pytest.raises(ValueError, match=r"^`parameter` is 'batch_size'"):
        review(studied(8), goal=0.5)


def test_nobody_is_told_to_widen_a_range_and_to_fix_the_same_hyperparameter() -> None:
    # Only the better third depends on x1, to its upper bound; the study as a whole hardly does.
    unit = np.random.default_rng(0).random((1000, 2))
    cost = np.where(unit[:, 0] < 0.33, -unit[:, 1], unit[:, 0])
    numbers = [Parameter(name=f"x{place}", kind="float", low=0, high=1) for place in range(2)]
    trials = Trials.from_columns("s", numbers, {"x0": unit[:, 0], "x1": unit[:, 1]}, cost)
    assert [one.verdict for one in check_sensitivity(trials) if one.subject == "x1"] == [Verdict.FLAG]
    findings = {(one.check, one.subject): one for one in review(trials)}
    assert findings["boundary", "x1, upper"].verdict is Verdict.FLAG
    assert findings["sensitivity", "x1"].verdict is Verdict.NO_EVIDENCE
    assert findings["sensitivity", "x1"].numbers["is_at_bound"] == 1


def test_nobody_is_told_to_fix_what_must_be_tuned_together_with_another() -> None:
    unit = np.random.default_rng(0).random((600, 3))
    cost = 4 * unit[:, 0] ** 2 + 2 * (unit[:, 1] - 0.5) * (unit[:, 2] - 0.5)
    numbers = [Parameter(name=f"x{place}", kind="float", low=0, high=1) for place in range(3)]
    trials = Trials.from_columns("s", numbers, {f"x{place}": unit[:, place] for place in range(3)}, cost)
    assert {one.subject for one in check_sensitivity(trials) if one.verdict is Verdict.FLAG} == {"x1", "x2"}
    findings = {(one.check, one.subject): one for one in review(trials)}
    assert findings["interaction", "x1, x2"].verdict is Verdict.FLAG
    for name in ("x1", "x2"):
        assert findings["sensitivity", name].verdict is Verdict.NO_EVIDENCE
        assert findings["sensitivity", name].numbers["interacts"] == 1


def test_a_sweep_of_the_learning_rate_says_what_limits_it() -> None:
    rate = Parameter(name="learning_rate", kind="float", low=1e-3, high=1.0, log=True)
    rates = 0.01 * 2.0 ** np.arange(-3, 4)
    curves = [curve((np.log10(one) + 2) ** 2) for one in rates]
    broken = Curve.from_columns([0, 10], [1.0, np.nan], [1.0, np.nan])
    trials = Trials.from_columns(
        "s",
        [rate],
        {"learning_rate": rates},
        [np.nan if one > 0.01 else (np.log10(one) + 2) ** 2 for one in rates],
        reason=["diverged at step 10" if one > 0.01 else "" for one in rates],
        curves=[broken if one > 0.01 else known for one, known in zip(rates, curves, strict=True)],
    )
    [finding] = by_check(review(trials), "learning rate limit")
    assert (finding.verdict, finding.numbers["unstable_factor"]) == (Verdict.FLAG, 2.0)
    assert not by_check(review(studied(8)), "learning rate limit")


def test_every_check_answers_any_study() -> None:
    for n_trials in (0, 1, 5):
        trials = Trials.from_columns(
            "s", [METHOD, RATE], {"method": ["a"] * n_trials, "rate": [0.1] * n_trials}, [1.0] * n_trials
        )
        findings = review(trials)
        assert {finding.check for finding in findings} == {
            *("feasibility", "boundary", "overfitting", "best step", "budget", "isolation", "adoption", "sensitivity"),
            *("good region", "interaction"),
        }
        assert {finding.verdict for finding in findings} <= {Verdict.TOO_LITTLE_DATA, Verdict.NO_EVIDENCE}
