"""Are the best trials asked whether they trained stably, and a sweep of the learning rate what limits it?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from playbook_plugins.analysis import (
    Curve,
    Finding,
    Parameter,
    Role,
    Status,
    Trials,
    Verdict,
    check_learning_rate_limit,
    check_stability,
    check_trial_stability,
)

N_POINTS = 200
RATE = Parameter(name="learning_rate", kind="float", low=1e-4, high=1.0, log=True)
METHOD = Parameter(name="method", kind="categorical", choices=("a", "b"), role=Role.SCIENTIFIC)
DEPTH = Parameter(name="depth", kind="int", low=1, high=3)


def run(kind: str = "stable", seed: int = 0) -> Curve:
    """Return a run whose loss falls from 1.5 to 0.5, and goes wrong in the way that is named."""
    step = np.arange(N_POINTS)
    train = 0.5 + np.exp(-step / 30) + 0.01 * np.random.default_rng(seed).standard_normal(N_POINTS)
    if kind == "spike":
        train[120:125] += 1.0
    if kind == "recovers":
        train[3:12] += 1.0
    if kind == "rises":
        train[120:] += np.linspace(0, 1.0, N_POINTS - 120)
    if kind == "breaks":
        train[150:] = math.nan
    return Curve.from_columns(step, np.full(N_POINTS, 0.7) - step / 1000, train)


def sweep(kinds: dict[float, str], rate: Parameter = RATE, best: float = 0.01, **more: Any) -> Trials:
    """Return one trial a factor of the best rate, which is the better the closer to it; broken ones are infeasible."""
    factors = np.array(list(kinds))
    cost = np.abs(np.log(factors))
    cost[[kind == "breaks" for kind in kinds.values()]] = math.nan
    return Trials.from_columns(
        "s",
        [rate],
        {rate.name: best * factors},
        cost,
        curves=[run(kind, seed) for seed, kind in enumerate(kinds.values())],
        **more,
    )


def limit_of(trials: Trials) -> Finding | None:
    found = [one for one in check_trial_stability(trials) if one.check == "learning rate limit"]
    return found[0] if found else None


def flags(trials: Trials) -> list[tuple[str, str]]:
    return [(one.check, one.subject) for one in check_trial_stability(trials) if one.verdict is Verdict.FLAG]


def test_the_best_trial_of_a_study_is_asked() -> None:
    columns = {"learning_rate": [0.1, 0.2, 0.3], "depth": [1, 2, 3]}
    curves = [run("spike"), run(), run("rises")]
    for cost, expected in (([1.0, 2.0, 3.0], "trial 0"), ([3.0, 2.0, 1.0], "trial 2"), ([2.0, 1.0, 3.0], "trial 1")):
        trials = Trials.from_columns("s", [RATE, DEPTH], columns, cost, curves=curves)
        findings = check_trial_stability(trials)
        assert {one.subject for one in findings} == {expected}
        # What a run of so few columns cannot tell is left out.
        known = [
            one for one in check_stability(curves[int(expected[-1])]) if one.verdict is not Verdict.TOO_LITTLE_DATA
        ]
        assert [one.check for one in findings] == [one.check for one in known]
        assert [one.verdict for one in findings] == [one.verdict for one in known]
        for one, alone in zip(findings, known, strict=True):
            assert dict(one.numbers) == {**alone.numbers, "trial": int(expected[-1]), "value": None}
            assert (one.section, one.error_rate) == (alone.section, alone.error_rate)
    assert flags(Trials.from_columns("s", [RATE, DEPTH], columns, [1.0, 2.0, 3.0], curves=curves)) == [
        ("loss spike", "trial 0")
    ]


def test_the_best_trial_of_each_scientific_value_is_asked() -> None:
    columns = {"method": ["a", "b", "a", "b"], "learning_rate": [0.1, 0.2, 0.3, 0.4]}
    curves = [run("rises"), run("spike"), run("spike"), run()]
    trials = Trials.from_columns(
        "s", [METHOD, RATE], columns, [2.0, 1.0, 1.5, 3.0], curves=curves, number=[7, 8, 9, 10]
    )
    findings = check_trial_stability(trials)
    values = {(one.subject, one.numbers["trial"], one.numbers["value"]) for one in findings}
    assert values == {("trial 9", 9, "method=a"), ("trial 8", 8, "method=b")}
    assert sorted(flags(trials)) == [("loss spike", "trial 8"), ("loss spike", "trial 9")]


def test_minimizing_and_maximizing_are_dual_and_the_order_does_not_matter() -> None:
    kinds = {0.25: "stable", 0.5: "spike", 1.0: "recovers", 2.0: "breaks", 4.0: "rises"}
    trials = sweep(kinds)
    expected = check_trial_stability(trials)
    assert [one.check for one in expected if one.verdict is Verdict.FLAG] == [
        "early instability",
        "learning rate limit",
    ]
    order = np.random.default_rng(0).permutation(len(trials))
    assert check_trial_stability(trials.select(order)) == expected
    turned = Trials.from_columns(
        "s",
        [RATE],
        trials.values,
        -trials.objective,
        direction="maximize",
        status=list(trials.status),
        curves=[Curve.from_columns(one.step, -one.validation, one.train) for one in trials.curves if one is not None],
    )
    # The training loss stays a loss.
    others = [one for one in check_trial_stability(turned) if one.check != "no progress"]
    known = [one for one in expected if one.check != "no progress"]
    assert [(one.check, one.verdict) for one in others] == [(one.check, one.verdict) for one in known]
    assert others[-1].numbers == known[-1].numbers
    # Neither does the unit of the learning rate, nor that of the objective.
    scaled = Trials.from_columns(
        "s",
        [Parameter(name="lr", kind="float", low=1e-1, high=1e3, log=True)],
        {"lr": 1000 * trials.values["learning_rate"]},
        7 * trials.objective + 3,
        curves=trials.curves,
    )
    again = limit_of(scaled)
    assert again is not None
    assert again.numbers == expected[-1].numbers


def test_a_hand_worked_sweep() -> None:
    found = limit_of(sweep({0.5: "stable", 1.0: "stable", 2.0: "spike", 4.0: "breaks", 20.0: "breaks"}))
    assert found is not None
    assert (found.verdict, found.subject) == (Verdict.FLAG, "learning rate")
    # Twenty times the best rate is not judged.
    assert (found.numbers["n_runs"], found.numbers["n_unstable"]) == (4, 2)
    assert found.numbers["unstable_factor"] == pytest.approx(2.0)
    assert found.numbers["kind"] == "loss spike"
    assert found.numbers["stable_factor"] == pytest.approx(1.0)
    runs = {0.5: run(seed=0), 1.0: run(seed=1), 2.0: run("spike", 2), 4.0: run("breaks", 3)}
    [alone] = check_learning_rate_limit(runs)
    assert {**found.numbers, "unstable_factor": 2.0, "stable_factor": 1.0} == dict(alone.numbers)
    calm = limit_of(sweep({0.5: "stable", 1.0: "stable", 2.0: "stable", 8.0: "recovers"}))
    assert calm is not None
    assert (calm.verdict, calm.numbers["n_unstable"]) == (Verdict.NO_EVIDENCE, 1)


def test_the_better_of_two_trials_at_one_rate_stands_for_it() -> None:
    def study(better: str, worse: str) -> Trials:
        return Trials.from_columns(
            "s",
            [RATE],
            {"learning_rate": [0.01, 0.02, 0.02]},
            [0.0, 2.0, 1.0],
            curves=[run(), run(worse, 1), run(better, 2)],
        )

    for better, worse, verdict in (("stable", "spike", Verdict.NO_EVIDENCE), ("spike", "stable", Verdict.FLAG)):
        found = limit_of(study(better, worse))
        assert found is not None
        assert (found.verdict, found.numbers["n_runs"]) == (verdict, 2)
    # An infeasible one comes last.
    trials = study("stable", "breaks")
    lost = Trials.from_columns("s", [RATE], trials.values, [0.0, math.nan, 1.0], curves=trials.curves)
    found = limit_of(lost)
    assert found is not None
    assert found.verdict is Verdict.NO_EVIDENCE


@pytest.mark.parametrize("status", [Status.PRUNED, Status.FAILED, Status.RUNNING])
def test_only_judged_trials_limit_the_rate(status: Status) -> None:
    states = [Status.COMPLETE, Status.COMPLETE, status]
    trials = Trials.from_columns(
        "s",
        [RATE],
        {"learning_rate": [0.01, 0.005, 0.02]},
        [0.0, 1.0, math.nan],
        status=states,
        curves=[run(), run(seed=1), run("breaks")],
    )
    found = limit_of(trials)
    assert found is not None
    assert found.numbers["n_runs"] == 2


@pytest.mark.parametrize(
    ("parameters", "is_sweep"),
    [
        ([RATE], True),
        ([Parameter(name="lr", kind="float", low=0.0, high=1.0)], True),
        ([Parameter(name="adam.Learning_Rate", kind="float", low=0.0, high=1.0)], True),
        ([Parameter(name="learning_rate", kind="float", low=0.0, high=1.0, role=Role.SCIENTIFIC)], True),
        ([RATE, Parameter(name="decay", kind="float", low=0.0, high=1.0, role=Role.FIXED)], True),
        ([RATE, DEPTH], False),
        ([RATE, METHOD], False),
        ([Parameter(name="momentum", kind="float", low=0.0, high=1.0)], False),
        ([Parameter(name="lr", kind="int", low=1, high=3)], False),
        ([Parameter(name="lr", kind="categorical", choices=(0.1, 0.2))], False),
        ([Parameter(name="lr", kind="float", low=0.0, high=1.0, role=Role.FIXED)], False),
        ([], False),
    ],
)
def test_only_a_sweep_of_the_learning_rate_asks_what_limits_it(parameters: list[Parameter], is_sweep: bool) -> None:
    columns = {one.name: ["a", "b"] if one.name == "method" else [0.1, 0.2] for one in parameters}
    trials = Trials.from_columns("s", parameters, columns, [1.0, 2.0], curves=[run(), run(seed=1)])
    assert (limit_of(trials) is not None) == is_sweep
    assert any(one.check == "loss spike" for one in check_trial_stability(trials))


def test_studies_that_say_nothing() -> None:
    rates = {"learning_rate": [0.1, 0.2, 0.3]}
    for objective, more in (
        ([1.0, 2.0, 3.0], {}),
        ([math.nan] * 3, {"curves": [run("breaks")] * 3}),
        ([1.0, 2.0, 3.0], {"curves": [run()] * 3, "status": [Status.PRUNED] * 3}),
    ):
        assert check_trial_stability(Trials.from_columns("s", [RATE], rates, objective, **more)) == []  # type: ignore[arg-type]
    assert check_trial_stability(Trials.from_columns("s", [RATE], {"learning_rate": []}, [])) == []
    # The best trial has no curve; the others still tell what limits the rate.
    trials = Trials.from_columns("s", [RATE], rates, [1.0, 2.0, 3.0], curves=[None, run("spike"), run()])
    assert [one.check for one in check_trial_stability(trials)] == ["learning rate limit"]
    # A rate of 0 is no multiple, and no rate is one of 0.
    for zero in ([0.0, 0.2, 0.3], [0.1, 0.0, 0.3]):
        found = limit_of(Trials.from_columns("s", [RATE], {"learning_rate": zero}, [1.0, 2.0, 3.0], curves=[run()] * 3))
        assert found is None if zero[0] == 0 else found is not None and found.numbers["n_runs"] == 2
    # A single trial of a single evaluation, and one whose evaluations all failed.
    for curve in (Curve.from_columns([0], [1.0], [1.0]), Curve.from_columns([0, 1], [math.nan] * 2)):
        one = Trials.from_columns("s", [RATE], {"learning_rate": [0.1]}, [1.0], curves=[curve])
        assert all(finding.verdict is not Verdict.FLAG for finding in check_trial_stability(one))


def test_the_reason_and_the_planned_length_are_known_to_the_check() -> None:
    # The curve ends before the loss does: only the record of the trial says that it diverged.
    curves = [run(), run(seed=1), run(seed=2)]
    for reason, verdict in (("diverged: loss is nan", Verdict.FLAG), ("out of memory", Verdict.NO_EVIDENCE)):
        trials = Trials.from_columns(
            "s",
            [RATE],
            {"learning_rate": [0.01, 0.02, 0.001]},
            [0.0, math.nan, 1.0],
            reason=["", reason, ""],
            curves=curves,
        )
        found = limit_of(trials)
        assert found is not None
        assert found.verdict is verdict
    # A blow-up at step 60 of 200 is early only if 1,000 steps were planned.
    train = run().train.copy()
    train[60:70] += 1.0
    late = Curve.from_columns(np.arange(N_POINTS), run().validation, train)
    for max_steps, is_early in ((200, False), (1_000, True), (-1, False)):
        trials = Trials.from_columns("s", [RATE], {"learning_rate": [0.1]}, [1.0], curves=[late], max_steps=[max_steps])
        assert (("early instability", "trial 0") in flags(trials)) == is_early


def noisy_sweep(generator: np.random.Generator, spiked: int | None = None) -> Trials:
    """Return five healthy runs of 500 steps at 1/4 to 4 times the best rate, of which one may spike."""
    step = np.arange(500)
    curves = []
    for row in range(5):
        train = 0.3 + 2.0 * np.exp(-step / 80) + 0.1 * generator.standard_normal(500)
        if row == spiked:
            start = int(generator.integers(160, 470))
            train[start:] += 2.0 * np.exp(-np.arange(500 - start) / 5)
        curves.append(Curve.from_columns(step, np.full(500, 1.0) - step / 1e3, train))
    factors = 2.0 ** np.arange(-2, 3)
    return Trials.from_columns("s", [RATE], {"learning_rate": 0.01 * factors}, np.abs(np.log(factors)), curves=curves)


def test_healthy_sweeps_are_rarely_flagged_and_a_spike_at_twice_the_rate_is_found() -> None:
    generator = np.random.default_rng(15)
    n_studies = 100
    n_wrong = sum(bool(flags(noisy_sweep(generator))) for _ in range(n_studies))
    # At most 2% of runs, and 3% of sweeps, are flagged wrongly.
    assert n_wrong / n_studies <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / n_studies)
    n_found = 0
    for _ in range(n_studies):
        found = limit_of(noisy_sweep(generator, spiked=3))
        assert found is not None
        n_found += found.verdict is Verdict.FLAG and found.numbers["unstable_factor"] == pytest.approx(2.0)
    assert n_found >= 0.95 * n_studies
