from __future__ import annotations

import numpy as np

from playbook_plugins.analysis import Curve, Finding, Parameter, Trials, Verdict, check_best_steps

RATE = Parameter(name="rate", kind="float", low=0, high=1)


def check(best_steps: list[int], curves: list[Curve | None] | None = None, **columns: object) -> Finding:
    n_trials = len(best_steps)
    trials = Trials.from_columns(
        "s",
        [RATE],
        {"rate": np.linspace(0, 1, n_trials)},
        np.arange(float(n_trials)),
        best_step=best_steps,
        max_steps=[100] * n_trials,
        curves=curves,
        **columns,
    )
    [finding] = check_best_steps(trials)
    return finding


def test_late_best_steps_ask_for_longer_training() -> None:
    # Only the better half, the first five, counts; four of five is 80%.
    finding = check([80, 90, 100, 76, 40, 50, 50, 50, 50, 50])
    assert finding.verdict is Verdict.FLAG
    assert finding.numbers["n_better_half"] == 5
    assert finding.numbers["share_late"] == 0.8
    assert check([80, 90, 75, 76, 40, 50, 50, 50, 50, 50]).verdict is Verdict.NO_EVIDENCE


def test_early_best_steps_ask_for_shorter_training() -> None:
    finding = check([0, 10, 5, 9, 90, 90, 90, 90, 90])
    assert finding.verdict is Verdict.FLAG
    assert finding.numbers["share_early"] == 0.8


def test_late_best_steps_say_nothing_under_a_decaying_learning_rate() -> None:
    decaying = Curve.from_columns([0, 50, 100], [3, 2, 1], learning_rate=[np.nan, 1.0, 0.1])
    constant = Curve.from_columns([0, 50, 100], [3, 2, 1], learning_rate=[np.nan, 1.0, 1.0])
    finding = check([100] * 8, [decaying] * 8)
    assert finding.verdict is Verdict.NO_EVIDENCE
    assert finding.numbers["learning_rate_decays"] == 1
    assert finding.numbers["share_late"] == 1
    assert check([100] * 8, [constant] * 8).verdict is Verdict.FLAG
    assert check([0] * 8, [decaying] * 8).verdict is Verdict.FLAG


def test_few_or_unknown_steps_say_nothing() -> None:
    assert check([100] * 7).verdict is Verdict.TOO_LITTLE_DATA
    assert check([-1] * 20).verdict is Verdict.TOO_LITTLE_DATA
