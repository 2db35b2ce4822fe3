from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from playbook_plugins.analysis import Curve, Finding, Parameter, Role, Status, Trials, Verdict, check_best_steps

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


METHODS = Parameter(name="method", kind="categorical", choices=("a", "b"), role=Role.SCIENTIFIC)


def two_methods(best_step: list[int], cost: list[float], *, rate: Any = None, **columns: Any) -> list[Finding]:
    """Return the findings of a study whose trials have the methods a and b in turn."""
    n_trials = len(best_step)
    trials = Trials.from_columns(
        "s",
        [RATE, METHODS],
        {"rate": np.linspace(0, 1, n_trials) if rate is None else rate, "method": np.resize(["a", "b"], n_trials)},
        cost,
        best_step=best_step,
        max_steps=[100] * n_trials,
        **columns,
    )
    return check_best_steps(trials)


@pytest.mark.parametrize("seed", range(3))
def test_direction_order_scale_and_unit_of_the_objective_do_not_matter(seed: int) -> None:
    generator = np.random.default_rng(seed)
    best, cost = generator.integers(60, 101, 12), np.round(generator.random(12), 1)
    trials = Trials.from_columns(
        "s", [RATE], {"rate": np.linspace(0, 1, 12)}, cost, best_step=best, max_steps=[100] * 12
    )
    expected = check_best_steps(trials)
    turned = replace(trials, direction="maximize", objective=-cost)
    scaled = replace(trials, objective=8 * cost + 3)
    longer = replace(trials, best_step=7 * best, max_steps=7 * trials.max_steps)
    # The objectives are rounded: some trials tie with the last of the better half.
    shuffled = trials.select(generator.permutation(12))
    for same in (turned, scaled, longer, shuffled):
        assert check_best_steps(same) == expected


def test_trials_that_tie_with_the_last_of_the_better_half_belong_to_it() -> None:
    constant = Trials.from_columns(
        "s",
        [RATE],
        {"rate": np.linspace(0, 1, 10)},
        [0.5] * 10,
        best_step=[100] * 5 + [50] * 5,
        max_steps=[100] * 10,
    )
    [finding] = check_best_steps(constant)
    assert (finding.numbers["n_better_half"], finding.numbers["share_late"]) == (10, 0.5)
    assert finding.verdict is Verdict.NO_EVIDENCE


@pytest.mark.parametrize("status", [Status.PRUNED, Status.FAILED, Status.RUNNING, Status.INFEASIBLE])
def test_trials_that_did_not_complete_do_not_count(status: Status) -> None:
    # A trial that is stopped early was best at its end. Here these are the best ones, too.
    late, states = [100] * 8 + [50] * 8, [status] * 8 + [Status.COMPLETE] * 8
    finding = check(late, status=states)
    assert (finding.verdict, finding.numbers["n_feasible"]) == (Verdict.NO_EVIDENCE, 8)
    assert finding.numbers["share_late"] == 0
    few = check([100] * 15, status=[status] * 8 + [Status.COMPLETE] * 7)
    assert few.verdict is Verdict.TOO_LITTLE_DATA
    assert check([100] * 8, status=[status] * 8).numbers == {"n_feasible": 0, "n_points": 0}


@pytest.mark.parametrize("n_trials", [0, 1])
def test_hardly_any_trial_says_nothing(n_trials: int) -> None:
    finding = check([100] * n_trials)
    assert (finding.verdict, finding.error_rate) == (Verdict.TOO_LITTLE_DATA, None)


def test_repeated_points_count_once_by_their_best() -> None:
    # Five retrains of one late point, and nine other points: of the better half, five points, one is late.
    rate = [0.5] * 5 + list(np.linspace(0, 1, 9) + 0.01)
    trials = Trials.from_columns(
        "s",
        [replace(RATE, high=2)],
        {"rate": rate},
        np.arange(14.0),
        best_step=[100] * 5 + [50] * 9,
        max_steps=[100] * 14,
    )
    [finding] = check_best_steps(trials)
    assert finding.numbers["n_feasible"] == 14
    assert finding.numbers["n_points"] == 10
    assert finding.numbers["n_better_half"] == 5
    assert finding.numbers["share_late"] == 0.2


def test_a_value_that_needs_longer_training_is_found_behind_a_better_one() -> None:
    # Method b is worse throughout and late; the better half of the study holds method a only.
    best = [50, 100] * 16
    cost = [float(row if row % 2 == 0 else 100 + row) for row in range(32)]
    study, a, b = two_methods(best, cost)
    assert (study.verdict, study.numbers["share_late"]) == (Verdict.NO_EVIDENCE, 0)
    assert (a.verdict, a.numbers["value"]) == (Verdict.NO_EVIDENCE, "method=a")
    assert (b.verdict, b.numbers["value"]) == (Verdict.FLAG, "method=b")
    assert b.numbers["late_p"] == pytest.approx(0.5**8)
    assert b.numbers["allowed_late_p"] == 0.025
    # A schedule of one value says nothing of the other.
    decaying = Curve.from_columns([0, 50, 100], [3, 2, 1], learning_rate=[np.nan, 1.0, 0.1])
    _, _, quiet = two_methods(best, cost, curves=[None, decaying] * 16)
    assert (quiet.verdict, quiet.numbers["learning_rate_decays"]) == (Verdict.NO_EVIDENCE, 1)
    # Eight trials of a value could all be late by noise, after training has levelled off.
    few = two_methods([100] * 16, list(np.arange(16.0)))
    assert [one.verdict for one in few] == [Verdict.FLAG, Verdict.TOO_LITTLE_DATA, Verdict.TOO_LITTLE_DATA]
    early = two_methods([0] * 16, list(np.arange(16.0)))
    assert [one.verdict for one in early] == [Verdict.FLAG] * 3


def test_numeric_scientific_parameters_and_missing_categories_make_no_group() -> None:
    layers = Parameter(name="layers", kind="int", low=1, high=4, role=Role.SCIENTIFIC)
    branch = replace(METHODS, condition=("layers", 1))
    trials = Trials.from_columns(
        "s",
        [RATE, layers, branch],
        {"rate": np.linspace(0, 1, 16), "layers": [1, 2] * 8, "method": ["a", None] * 8},
        np.arange(16.0),
        best_step=[50] * 16,
        max_steps=[100] * 16,
    )
    found = check_best_steps(trials)
    assert [one.numbers.get("value") for one in found] == [None, "method=a", "method=b"]
    assert [one.numbers["n_feasible"] for one in found] == [16, 8, 0]


def flag_rate(n_trials: int, first: int, *, n_studies: int = 4000, n_values: int = 1, is_paired: bool = False) -> float:
    """Return the share of studies with any flag whose best steps lie anywhere from a step on, of 100."""
    generator = np.random.default_rng(0)
    n_all = n_trials * n_values
    choices = tuple("abcde"[:n_values])
    method = Parameter(name="method", kind="categorical", choices=choices, role=Role.SCIENTIFIC)
    place = np.arange(n_all) // n_values if is_paired else np.arange(n_all)
    values = {"rate": place / n_all, "method": np.resize(choices, n_all)}
    trials = Trials.from_columns("s", [RATE, method], values, np.arange(n_all), max_steps=[100] * n_all)
    flags = 0
    for _ in range(n_studies):
        study = replace(trials, best_step=generator.integers(first, 101, n_all), objective=generator.random(n_all))
        flags += any(finding.verdict is Verdict.FLAG for finding in check_best_steps(study))
    return flags / n_studies


@pytest.mark.parametrize(
    ("n_trials", "levelled_off", "anywhere"),
    [(8, 0.0625, 0.0040), (10, 0.1875, 0.0161), (16, 0.0352, 0.0004), (32, 0.0106, 0.0)],
)
def test_the_rate_of_false_flags_is_the_stated_one(n_trials: int, levelled_off: float, anywhere: float) -> None:
    error = 3 * np.sqrt(levelled_off / 4000)
    assert flag_rate(n_trials, 51) == pytest.approx(levelled_off, abs=error)
    assert flag_rate(n_trials, 1) == pytest.approx(anywhere, abs=3 * np.sqrt(anywhere / 4000) + 0.0003)
    assert check([50] * n_trials).error_rate == pytest.approx(levelled_off, abs=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("is_paired", [False, True])
@pytest.mark.parametrize(("n_values", "n_trials"), [(2, 8), (2, 16), (2, 32), (3, 16), (5, 10), (5, 32)])
def test_asking_each_value_keeps_the_stated_rate(n_values: int, n_trials: int, is_paired: bool) -> None:
    # The study as a whole has n_trials points where the values are paired, and n_values times as many where not.
    n_points = n_trials if is_paired else n_trials * n_values
    stated = check([50] * n_points).error_rate
    assert stated is not None
    n_studies = 1000
    rate = flag_rate(n_trials, 51, n_studies=n_studies, n_values=n_values, is_paired=is_paired)
    assert rate <= stated + 0.05 + 3 * np.sqrt((stated + 0.05) / n_studies)
    assert flag_rate(n_trials, 1, n_studies=n_studies, n_values=n_values, is_paired=is_paired) <= 0.03


def test_longer_training_is_asked_for_where_it_is_needed() -> None:
    # Nine of ten best steps lie in the last quarter, as where the objective still falls faster than it varies.
    generator = np.random.default_rng(3)
    flags = [
        check(np.where(generator.random(32) < 0.9, generator.integers(76, 101, 32), 50).tolist()).verdict
        for _ in range(500)
    ]
    assert np.mean([flag is Verdict.FLAG for flag in flags]) > 0.9


@pytest.mark.parametrize(("n_trials", "has_curves", "seconds"), [(100_000, False, 0.2), (1_000, True, 0.1)])
def test_large_studies_take_a_moment(n_trials: int, has_curves: bool, seconds: float) -> None:
    generator = np.random.default_rng(0)
    steps = np.arange(200)
    curves = [Curve.from_columns(steps, np.ones(200), learning_rate=np.ones(200))] * n_trials if has_curves else None
    trials = Trials.from_columns(
        "s",
        [RATE],
        {"rate": generator.random(n_trials)},
        generator.random(n_trials),
        best_step=generator.integers(1, 101, n_trials),
        max_steps=[100] * n_trials,
        curves=curves,
    )
    taken = []
    for _ in range(5):
        begun = time.perf_counter()
        check_best_steps(trials)
        taken.append(time.perf_counter() - begun)
    assert min(taken) <= seconds
