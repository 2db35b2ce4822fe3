from __future__ import annotations

import math
import re
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from playbook_plugins.analysis import Curve, Finding, Parameter, Role, Status, Trials, Verdict
from playbook_plugins.analysis.max_train_steps import (
    MaxTrainSteps,
    SweepRefusal,
    check_max_train_steps,
    pick_max_train_steps,
)

RATE = Parameter(name="learning_rate", kind="float", low=1e-4, high=1.0, log=True)
GRID = 10.0 ** np.linspace(-4, 0, 9)
STEPS = np.arange(0, 1001, 10)
HUNDREDS = [0, 100, 200, 300, 400, 500]


def curve(train: Any, step: Any = None, rate: Any = 0.1, **columns: Any) -> Curve:
    steps = 100 * np.arange(len(train)) if step is None else step
    return Curve.from_columns(steps, np.ones(len(steps)), train, np.resize(rate, len(steps)), **columns)


def sweep(rates: Any, curves: list[Curve | None], parameters: Any = (RATE,), **columns: Any) -> Trials:
    values = {"learning_rate": rates} | columns.pop("values", {})
    return Trials.from_columns("sweep", list(parameters), values, np.ones(len(rates)), curves=curves, **columns)


def exponential(rates: NDArray[np.float64], need: NDArray[np.float64]) -> Trials:
    """Return a sweep whose training loss falls to 0.01 in so many steps at each rate."""
    falls = np.exp(-math.log(100) * STEPS / need[:, None])
    return sweep(rates, [curve(fall, STEPS, rate) for rate, fall in zip(rates, falls, strict=True)])


def findings(result: MaxTrainSteps) -> dict[str, Finding]:
    found = check_max_train_steps(result)
    assert {one.check for one in found} == {"max_train_steps"}
    return {one.subject: one for one in found}


def numbers_of(result: MaxTrainSteps) -> dict[str, Any]:
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(result).items()
    } | {"steps_to_fit": np.nan_to_num(result.steps_to_fit, nan=-1, posinf=math.inf).tolist()}


THREE = sweep(
    [0.001, 0.01, 0.1],
    [
        curve([np.nan, 0.9, 0.8, 0.7, 0.6, 0.5]),
        # Once below the goal at 200, and on end from 300 on.
        curve([np.nan, 0.9, 0.0, 0.2, 0.01, 0.0]),
        curve([np.nan, 0.9, 0.5, 0.3, 0.1, 0.01]),
    ],
)


def test_a_hand_worked_value() -> None:
    result = pick_max_train_steps(THREE, 0.01)
    assert (result.max_train_steps, result.row, result.trial, result.learning_rate) == (400, 1, 1, 0.01)
    # The mean over the steps 201 to 300 missed the goal, so that the objective at 200 did.
    assert result.low == 200
    # The last trial meets the goal at its last evaluation: it may be luck.
    assert result.steps_to_fit.tolist() == [math.inf, 400, math.inf]
    assert result.last_step.tolist() == [500, 500, 500]
    assert (result.at_boundary, result.refusal, result.n_tied) == (None, None, 1)
    assert (result.n_smaller, result.n_larger, result.n_larger_diverged) == (1, 1, 0)
    assert {one.verdict for one in check_max_train_steps(result)} == {Verdict.NO_EVIDENCE}


def test_a_single_evaluation_is_a_fit_where_one_is_asked_for() -> None:
    single = pick_max_train_steps(THREE, 0.01, n_consecutive=1)
    assert (single.max_train_steps, single.low) == (200, 0)
    assert single.steps_to_fit.tolist() == [math.inf, 200, 500]
    assert pick_max_train_steps(THREE, 0.01, n_consecutive=3).refusal is SweepRefusal.NONE_FITS


def test_equal_to_the_goal_is_good_enough_and_unknown_is_not() -> None:
    zero = sweep([0.1], [curve([np.nan, 0.4, 0.0, np.nan, 0.0, 0.0])])
    result = pick_max_train_steps(zero, 0.0)
    assert (result.max_train_steps, result.low) == (400, 0)
    assert pick_max_train_steps(zero, -1e-9).refusal is SweepRefusal.NONE_FITS
    broken = sweep([0.1], [curve([np.nan, 0.4, -np.inf, -np.inf, np.inf, np.inf])])
    assert pick_max_train_steps(broken, 0.0).refusal is SweepRefusal.NONE_FITS


def test_the_interval_holds_the_true_step_of_an_average() -> None:
    # An objective that falls linearly and passes the goal at 195: its mean over 101 to 200 still misses it.
    fine = 1 - np.arange(1, 601) / 195
    train = [np.nan, *fine.reshape(6, 100).mean(axis=1)]
    result = pick_max_train_steps(sweep([0.1], [curve(train)]), 0.0)
    assert result.low is not None
    assert result.max_train_steps is not None
    assert result.low < 195 <= result.max_train_steps
    # Of two trials, the slower one may have begun to fit first: it was evaluated less often.
    rare = curve([np.nan, 0.5, 0.0, 0.0], [0, 150, 450, 600])
    often = curve([np.nan, 0.5, 0.5, 0.5, 0.0, 0.0])
    assert pick_max_train_steps(sweep([0.1], [often]), 0.0).low == 200
    both = pick_max_train_steps(sweep([0.01, 0.1], [rare, often]), 0.0)
    assert (both.max_train_steps, both.low) == (400, 0)


@pytest.mark.parametrize("seed", range(3))
def test_identities(seed: int) -> None:
    generator = np.random.default_rng(seed)
    trials = exponential(GRID, 100 * 2 ** np.abs(np.arange(9) - 4.0) * np.exp(0.3 * generator.standard_normal(9)))
    expected = numbers_of(pick_max_train_steps(trials, 0.01))

    def remade(change: Any) -> Trials:
        return replace(trials, curves=tuple(replace(one, train=change(one.train)) for one in trials.curves if one))

    upwards = numbers_of(pick_max_train_steps(remade(np.negative), -0.01, direction="maximize"))
    assert upwards == expected | {"goal": -0.01}
    # The direction is that of training, not of the study.
    turned = replace(trials, direction="maximize", objective=-trials.objective)
    assert numbers_of(pick_max_train_steps(turned, 0.01)) == expected
    scaled = numbers_of(pick_max_train_steps(remade(lambda train: 8 * train), 0.08))
    assert scaled == expected | {"goal": 0.08}
    order = generator.permutation(9)
    shuffled = pick_max_train_steps(trials.select(order), 0.01)
    assert shuffled.row is not None
    assert (shuffled.trial, shuffled.learning_rate) == (expected["trial"], expected["learning_rate"])
    assert order[shuffled.row] == expected["row"]
    assert shuffled.steps_to_fit.tolist() == [expected["steps_to_fit"][row] for row in order]
    assert findings(shuffled) == findings(pick_max_train_steps(trials, 0.01))


def test_equal_rates_are_taken_by_the_fastest() -> None:
    fast, slow = curve([1, 0, 0, 0, 0, 0]), curve([1, 1, 1, 0, 0, 0])
    result = pick_max_train_steps(sweep([0.1, 0.1, 0.01, 1.0], [slow, fast, slow, slow]), 0.0)
    assert (result.row, result.max_train_steps, result.at_boundary) == (1, 100, None)
    assert (result.n_smaller, result.n_larger) == (1, 1)
    # Rates that differ by rounding are one: none is larger.
    edge = pick_max_train_steps(sweep([0.01, 0.1 + 0.2, 0.3], [slow, slow, fast]), 0.0)
    assert (edge.learning_rate, edge.at_boundary) == (0.3, "upper")


def test_ties_within_the_time_between_evaluations() -> None:
    curves = [curve([1, 0.004, 0, 0, 0, 0]), curve([1, 0.002, 0, 0, 0, 0]), curve([1, 0.003, 0, 0, 0, 0])]
    result = pick_max_train_steps(sweep([0.001, 0.01, 0.1], curves), 0.01)
    assert (result.learning_rate, result.n_tied) == (0.01, 3)
    # Where they cannot be told apart at all, the best rate is not shown to be at the boundary.
    same = [curve([1, 0, 0, 0, 0, 0])] * 3
    result = pick_max_train_steps(sweep([0.1, 0.001, 0.01], same), 0.0)
    assert (result.learning_rate, result.at_boundary, result.n_tied) == (0.01, None, 3)


@pytest.mark.parametrize(("best", "side"), [(0, "lower"), (4, None), (8, "upper")])
def test_the_best_rate_at_the_boundary(best: int, side: str | None) -> None:
    result = pick_max_train_steps(exponential(GRID, 100.0 * 2 ** np.abs(np.arange(9) - best)), 0.01)
    assert (result.max_train_steps, result.at_boundary) == (100, side)
    finding = findings(result)["learning_rate"]
    assert finding.verdict is (Verdict.NO_EVIDENCE if side is None else Verdict.FLAG)
    assert finding.numbers["at_boundary"] == side
    assert finding.numbers["stability_edge"] == 0


def test_a_single_rate_is_no_sweep() -> None:
    result = pick_max_train_steps(sweep([0.1, 0.1], [curve([1, 0.5, 0, 0])] * 2), 0.0)
    assert (result.max_train_steps, result.at_boundary) == (200, "both")
    assert findings(result)["learning_rate"].verdict is Verdict.FLAG


def test_where_all_larger_rates_diverged_there_is_an_edge_of_stability_and_no_boundary() -> None:
    slow, fast = curve([1, 1, 1, 0, 0, 0]), curve([1, 0, 0, 0, 0, 0])
    broken = curve([1, 0, 0, np.nan])
    status = [Status.COMPLETE, Status.COMPLETE, Status.INFEASIBLE, Status.INFEASIBLE]
    # A trial that diverged does not count, whatever it reached before; nor need it have a curve.
    result = pick_max_train_steps(sweep([0.01, 0.1, 0.3, 1.0], [slow, fast, broken, None], status=status), 0.0)
    assert (result.learning_rate, result.at_boundary, result.is_at_stability_edge) == (0.1, None, True)
    assert result.steps_to_fit.tolist() == [300, 100, math.inf, math.inf]
    assert result.last_step.tolist() == [500, 500, 200, -1]
    finding = findings(result)["learning_rate"]
    assert finding.verdict is Verdict.NO_EVIDENCE
    assert (finding.numbers["stability_edge"], finding.numbers["n_larger_diverged"]) == (1, 2)
    # One of them completed: it was slower.
    status[2] = Status.COMPLETE
    calm = pick_max_train_steps(sweep([0.01, 0.1, 0.3, 1.0], [slow, fast, slow, None], status=status), 0.0)
    assert (calm.at_boundary, calm.is_at_stability_edge, calm.n_larger) == (None, False, 2)


@pytest.mark.parametrize("status", [Status.PRUNED, Status.FAILED, Status.RUNNING])
def test_trials_that_were_stopped_count_as_far_as_they_were_watched(status: Status) -> None:
    slow, fast = curve([1, 1, 1, 0, 0, 0]), curve([1, 1, 0, 0, 0, 0])
    states = [Status.COMPLETE, Status.COMPLETE, status]
    # Stopped before the fastest fitted: it might have been faster, so the fastest has no larger rate beside it.
    short = pick_max_train_steps(sweep([0.01, 0.1, 1.0], [slow, fast, curve([1, 1])], status=states), 0.0)
    assert (short.at_boundary, short.n_larger) == ("upper", 0)
    long = pick_max_train_steps(sweep([0.01, 0.1, 1.0], [slow, fast, curve([1, 1, 1])], status=states), 0.0)
    assert (long.at_boundary, long.n_larger) == (None, 1)
    # What it reached before it was stopped, it reached.
    fitted = pick_max_train_steps(sweep([0.01, 0.1, 1.0], [slow, fast, curve([1, 0, 0])], status=states), 0.0)
    assert (fitted.learning_rate, fitted.max_train_steps, fitted.at_boundary) == (1.0, 100, "upper")


def test_no_trial_fits() -> None:
    result = pick_max_train_steps(THREE, -1.0)
    assert (result.max_train_steps, result.row, result.trial, result.refusal) == (None, None, None, "no trial fits")
    found = findings(result)
    assert found["fit"].verdict is Verdict.FLAG
    assert (found["fit"].numbers["n_watched"], found["fit"].numbers["n_fit"]) == (3, 0)
    assert found["fit"].numbers["last_step"] == 500
    assert found["learning_rate"].verdict is Verdict.TOO_LITTLE_DATA
    all_broken = sweep([0.1, 1.0], [None, None], status=[Status.INFEASIBLE] * 2)
    assert pick_max_train_steps(all_broken, 0.0).refusal is SweepRefusal.NONE_FITS


@pytest.mark.parametrize("n_trials", [0, 1, 5])
def test_without_curves_or_training_objective_nothing_is_known(n_trials: int) -> None:
    for one in (None, curve([np.nan] * 6)):
        result = pick_max_train_steps(sweep([0.1] * n_trials, [one] * n_trials), 0.0)
        assert result.refusal is SweepRefusal.NOT_WATCHED
        assert np.isnan(result.steps_to_fit).all()
        assert {finding.verdict for finding in check_max_train_steps(result)} == {Verdict.TOO_LITTLE_DATA}


def test_a_fit_at_the_first_evaluation_says_nothing() -> None:
    # As of an accuracy that is taken for an error.
    accuracy = sweep([0.01, 0.1, 1.0], [curve([np.nan, 0.2, 0.5, 0.9, 1, 1])] * 3)
    wrong = pick_max_train_steps(accuracy, 0.99)
    assert (wrong.max_train_steps, wrong.at_first_evaluation) == (100, True)
    assert findings(wrong)["fit"].verdict is Verdict.FLAG
    right = pick_max_train_steps(accuracy, 0.99, direction="maximize")
    assert (right.max_train_steps, right.at_first_evaluation) == (400, False)
    assert findings(right)["fit"].verdict is Verdict.NO_EVIDENCE


def test_learning_rates_that_decay_are_refused() -> None:
    train = [1, 1, 0.5, 0, 0, 0]
    cosine = 0.1 * np.cos(np.linspace(0, np.pi / 2, 6))
    result = pick_max_train_steps(sweep([0.01, 0.1, 1.0], [curve(train, rate=cosine)] * 3), 0.0)
    assert (result.max_train_steps, result.refusal, result.n_not_constant) == (None, "the learning rates decay", 3)
    found = findings(result)
    assert found["schedule"].verdict is Verdict.FLAG
    assert found["fit"].verdict is Verdict.TOO_LITTLE_DATA
    # Trials that diverged before their rate could decay make no sweep of constant rates.
    broken = [curve([1, np.nan], rate=0.1), None]
    left = sweep(
        [0.01, 0.1, 1.0], [curve(train, rate=cosine), *broken], status=[Status.COMPLETE, *[Status.INFEASIBLE] * 2]
    )
    assert pick_max_train_steps(left, 0.0).refusal is SweepRefusal.NOT_CONSTANT
    # A rate that warms up and stays, or that decays after the fit, was constant until then.
    warm, late = [np.nan, 0.02, 0.1, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1, 0.1, 0.001]
    kept = [curve(train, rate=warm), curve(train, rate=late)]
    constant = pick_max_train_steps(sweep([0.01, 0.1], kept), 0.0)
    assert (constant.max_train_steps, constant.n_not_constant) == (300, 0)
    assert findings(constant)["schedule"].verdict is Verdict.NO_EVIDENCE
    # The fastest of all decays: it is left out, and told.
    mixed = pick_max_train_steps(sweep([0.01, 0.1, 1.0], [*kept, curve([1, 0, 0, 0, 0, 0], rate=cosine)]), 0.0)
    assert (mixed.max_train_steps, mixed.n_not_constant, mixed.n_larger) == (300, 1, 1)
    np.testing.assert_array_equal(mixed.steps_to_fit, [300, 300, np.nan])
    assert findings(mixed)["schedule"].verdict is Verdict.FLAG


def test_an_unknown_schedule_is_taken_to_be_constant() -> None:
    unknown = pick_max_train_steps(sweep([0.01, 0.1, 1.0], [curve([1, 1, 0, 0], rate=np.nan)] * 3), 0.0)
    assert (unknown.max_train_steps, unknown.n_unknown_schedule) == (200, 3)
    assert findings(unknown)["schedule"].verdict is Verdict.TOO_LITTLE_DATA


def test_regularization_is_told() -> None:
    decay = Parameter(name="adam.weight_decay", kind="float", low=0.0, high=1.0, condition=("optimizer", "adam"))
    augment = Parameter(name="augmentation", kind="categorical", choices=("none", "mixup"))
    curves = [curve([1, 1, 0, 0]), curve([1, 0, 0, 0]), curve([1, 1, 0, 0])]
    fixed = {"dropout": 0.1, "label_smoothing": 0.0, "l2": 0, "batch_size": 64, "num_layers": 2}
    values = {"adam.weight_decay": [1e-4, 0.0, np.nan], "augmentation": ["none", "mixup", "none"]}
    trials = sweep([0.01, 0.1, 1.0], curves, (RATE, decay, augment), values=values, fixed=fixed)
    result = pick_max_train_steps(trials, 0.0)
    assert result.regularizers == ("dropout", "augmentation")
    finding = findings(result)["regularization"]
    assert finding.verdict is Verdict.FLAG
    assert finding.numbers == {"n_regularizers": 2, "regularizers": "dropout, augmentation"}
    # Without a fastest trial, all of them.
    assert pick_max_train_steps(trials, -1.0).regularizers == ("dropout", "adam.weight_decay", "augmentation")
    assert pick_max_train_steps(replace(trials, fixed={}).select([2, 0]), 0.0).regularizers == ("adam.weight_decay",)


def test_a_conditional_learning_rate_is_asked_of_its_branch() -> None:
    optimizer = Parameter(name="optimizer", kind="categorical", choices=("adam", "sgd"), role=Role.SCIENTIFIC)
    branch = replace(RATE, name="adam.learning_rate", condition=("optimizer", "adam"))
    curves = [curve([1, 1, 0, 0]), curve([1, 1, 1, 0, 0]), curve([1, 0, 0, 0]), curve([1, 1, 1, 0, 0])]
    trials = Trials.from_columns(
        "s",
        [optimizer, branch],
        {"optimizer": ["adam", "adam", "sgd", "adam"], "adam.learning_rate": [0.01, 0.001, np.nan, 0.1]},
        np.ones(4),
        curves=curves,
    )
    result = pick_max_train_steps(trials, 0.0, learning_rate="adam.learning_rate")
    assert (result.max_train_steps, result.row, result.at_boundary) == (200, 0, None)
    assert math.isnan(result.steps_to_fit[2])
    assert "adam.learning_rate" in findings(result)


def test_another_metric_can_be_asked_for() -> None:
    two = [curve([3.0, 2, 1, 1], metrics={"train_error": [0.9, 0.1, 0.0, 0.0]}), curve([3.0, 2, 1, 1])]
    result = pick_max_train_steps(sweep([0.1, 0.2], two), 0.0, metric="train_error")
    assert (result.max_train_steps, result.refusal) == (200, None)
    assert result.last_step.tolist() == [300, -1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"goal": math.nan},
            "`goal` is nan: a goal must be finite. Pass the training objective that counts as a perfect fit.",
        ),
        (
            {"direction": "up"},
            "`direction` is 'up': it must be 'minimize' or 'maximize'. Pass the direction in which the training "
            "objective gets better.",
        ),
        (
            {"n_consecutive": 0},
            "`n_consecutive` is 0: it is a number of evaluations on end and must be at least 1. Pass 1 to take a "
            "single evaluation for a fit.",
        ),
        (
            {"metric": "error"},
            "`metric` is 'error': no curve holds it. Pass one of [], or None for the training objective.",
        ),
        (
            {"learning_rate": "optimizer"},
            "`learning_rate` is 'optimizer', which is categorical: learning rates have an order. Pass the "
            "hyperparameter that holds the learning rate as a number.",
        ),
        (
            {"learning_rate": "lr"},
            "`parameter` is 'lr': the study 'sweep' has no such hyperparameter. Pass one of ['learning_rate', "
            "'optimizer'].",
        ),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, Any], message: str) -> None:
    optimizer = Parameter(name="optimizer", kind="categorical", choices=("adam",))
    trials = sweep([0.1], [curve([1, 0])], (RATE, optimizer), values={"optimizer": ["adam"]})
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        pick_max_train_steps(trials, **({"goal": 0.0} | arguments))


@pytest.mark.parametrize(("n_consecutive", "share"), [(1, 1.0), (2, 0.65), (3, 0.16)])
def test_the_share_of_lucky_fits_is_the_stated_one(n_consecutive: int, share: float) -> None:
    # The objective levels off one standard deviation above the goal and never fits.
    noise = 1 + np.random.default_rng(0).standard_normal((2000, 50))
    trials = sweep(np.full(2000, 0.1), [curve(row) for row in noise])
    lucky = np.isfinite(pick_max_train_steps(trials, 0.0, n_consecutive=n_consecutive).steps_to_fit)
    assert lucky.mean() == pytest.approx(share, abs=0.01)


def boundary_rate(best: float) -> float:
    """Return the share of sweeps with a boundary; steps double with each step of the grid, seeds vary them by 10%."""
    generator = np.random.default_rng(1)
    need = 100 * 2 ** np.abs(np.arange(9) - best) * np.exp(0.1 * generator.standard_normal((400, 9)))
    return float(np.mean([pick_max_train_steps(exponential(GRID, row), 0.01).at_boundary is not None for row in need]))


@pytest.mark.parametrize("best", [1, 4])
def test_a_best_rate_inside_the_sweep_is_rarely_taken_for_a_boundary(best: float) -> None:
    assert boundary_rate(best) < 0.01


@pytest.mark.parametrize("best", [0, -1, 9])
def test_a_best_rate_at_or_beyond_the_end_is_found(best: float) -> None:
    assert boundary_rate(best) > 0.99


def test_a_thousand_long_curves_take_a_moment() -> None:
    fall = np.exp(-np.arange(200) / 60)
    trials = sweep(np.geomspace(1e-4, 1, 1000), [curve(fall)] * 1000)
    begun = time.perf_counter()
    assert pick_max_train_steps(trials, 0.05).max_train_steps == 18000
    assert time.perf_counter() - begun < 1.0
