"""Does every check answer any study: conditional, pruned, repeated, infeasible, constant, of any size and direction?"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from playbook_plugins.analysis import Curve, Finding, Parameter, Role, Status, Trials, Verdict, review
from playbook_plugins.report import word

METHOD = Parameter(name="method", kind="categorical", choices=("a", "b", 3), role=Role.SCIENTIFIC)
DEPTH = Parameter(name="depth", kind="int", low=1, high=4, role=Role.SCIENTIFIC)
RATE = Parameter(name="learning_rate", kind="float", low=1e-4, high=1.0, log=True)
WIDTH = Parameter(name="width", kind="int", low=8, high=512, log=True)
NORM = Parameter(name="norm", kind="categorical", choices=(True, False, None))
SINGLE = Parameter(name="single", kind="float", low=0.5, high=0.5)
MOMENTUM = Parameter(name="a.momentum", kind="float", low=0.0, high=1.0, condition=("method", "a"))
DECAY = Parameter(name="b.decay", kind="float", low=1e-6, high=1e-2, log=True, condition=("method", "b"))
SPACES = [
    (),
    (RATE,),
    (METHOD,),
    (RATE, WIDTH),
    (METHOD, RATE, MOMENTUM, DECAY),
    (METHOD, DEPTH, RATE, WIDTH, NORM, SINGLE),
    (DEPTH, NORM, RATE, SINGLE),
]
STATUSES = [Status.COMPLETE, Status.COMPLETE, Status.INFEASIBLE, Status.PRUNED, Status.FAILED, Status.RUNNING]


def place(parameter: Parameter, unit: float) -> Any:
    if parameter.kind == "categorical":
        return parameter.choices[min(int(unit * len(parameter.choices)), len(parameter.choices) - 1)]
    number = parameter.from_unit(unit)
    return round(number) if parameter.kind == "int" else number


def some_curve(generator: np.random.Generator, sign: float) -> Curve | None:
    n_evaluations = int(generator.choice([0, 1, 5, 60]))
    if n_evaluations == 0:
        return None
    step = np.arange(n_evaluations) * 10
    fall = np.exp(-step / 100) + generator.choice([0.0, 0.05]) * generator.standard_normal(n_evaluations)
    train = None if generator.random() < 0.3 else fall
    fall = np.where(generator.random(n_evaluations) < generator.choice([0.0, 0.2]), np.nan, fall)
    norm = np.exp(generator.standard_normal(n_evaluations)) if generator.random() < 0.5 else None
    return Curve.from_columns(step, sign * fall, train, gradient_norm=norm, metrics={"val_loss": fall})


def some_study(seed: int, space: int, n_trials: int, kind: str, direction: str = "minimize") -> Trials:
    """Return a study of a kind: plain, constant, infeasible, repeated or few-valued; the same up to its direction."""
    generator = np.random.default_rng(seed)
    parameters = SPACES[space]
    sign = 1.0 if direction == "minimize" else -1.0
    units = generator.random((n_trials, len(parameters)))
    if kind == "repeated":
        units = units[generator.integers(max(1, n_trials // 4), size=n_trials)]
    values: dict[str, list[Any]] = {parameter.name: [] for parameter in parameters}
    for row in units:
        config = {parameter.name: place(parameter, unit) for parameter, unit in zip(parameters, row, strict=True)}
        for parameter in parameters:
            absent = parameter.condition is not None and config[parameter.condition[0]] != parameter.condition[1]
            values[parameter.name].append(
                (math.nan if parameter.is_numeric else None) if absent else config[parameter.name]
            )
    cost = units.sum(axis=1) + 0.3 * generator.standard_normal(n_trials)
    if kind == "constant":
        cost = np.full(n_trials, 0.25)
    if kind == "few":
        cost = np.round(cost)
    status = list(generator.choice(np.array(STATUSES, dtype=object), n_trials))
    if kind == "infeasible":
        status = [Status.INFEASIBLE] * n_trials
    if kind in ("plain", "constant") and generator.random() < 0.5:
        status = [Status.COMPLETE] * n_trials
    lacks = [one in (Status.FAILED, Status.RUNNING) for one in status]
    curves = [some_curve(generator, sign) for _ in range(n_trials)]
    return Trials.from_columns(
        "s",
        parameters,
        values,
        np.where(lacks, np.nan, sign * cost),
        direction=direction,
        status=status,
        best_step=generator.integers(-1, 600, n_trials),
        max_steps=generator.choice([-1, 600], n_trials),
        curves=curves if generator.random() < 0.5 else None,
        fixed={"weight_decay": 0.1},
    )


STUDIES = {
    "seed": st.integers(0, 2**32 - 1),
    "space": st.integers(0, len(SPACES) - 1),
    "n_trials": st.sampled_from([0, 1, 2, 3, 7, 16, 40, 90]),
    "kind": st.sampled_from(["plain", "constant", "infeasible", "repeated", "few"]),
}


def told(findings: list[Finding]) -> dict[tuple[str, str, str], Verdict]:
    return {(one.check, one.subject, str(one.numbers.get("value"))): one.verdict for one in findings}


def check_answers(trials: Trials, **options: Any) -> list[Finding]:
    """Return the findings of a review, of which every one has finite numbers of Python and can be worded."""
    findings = review(trials, **options)
    for finding in findings:
        for name, number in finding.numbers.items():
            assert number is None or isinstance(number, str) or math.isfinite(number), (finding.check, name)
            # They are written as JSON.
            assert not isinstance(number, np.generic), (finding.check, name)
        assert word(finding).headline
    return findings


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(**STUDIES)
def test_every_check_answers_any_study(seed: int, space: int, n_trials: int, kind: str) -> None:
    trials = some_study(seed, space, n_trials, kind)
    findings = check_answers(trials)
    assert {"feasibility", "best step", "budget"} <= {finding.check for finding in findings}
    names = [(finding.check, finding.subject, finding.numbers.get("value")) for finding in findings]
    assert len(names) == len(set(names))
    for finding in findings:
        if kind == "infeasible":
            assert finding.verdict is not Verdict.FLAG or finding.check == "feasibility"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(**STUDIES)
def test_minimizing_and_maximizing_are_dual(seed: int, space: int, n_trials: int, kind: str) -> None:
    low, high = (review(some_study(seed, space, n_trials, kind, way)) for way in ("minimize", "maximize"))
    # The training loss stays a loss, and a validation objective that is no loss is not judged as one.
    own = {"feasibility", "boundary", "stability edge", "best step", "budget", "isolation", "adoption", "sensitivity"}
    own |= {"good region", "interaction"}
    expected = {key: verdict for key, verdict in told(low).items() if key[0] in own}
    assert expected == {key: verdict for key, verdict in told(high).items() if key[0] in own}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(**STUDIES, shift=st.sampled_from([-3.0, 0.0]), scale=st.sampled_from([0.25, 1.0, 64.0]))
def test_the_scale_of_the_objective_does_not_matter(
    seed: int, space: int, n_trials: int, kind: str, shift: float, scale: float
) -> None:
    trials = some_study(seed, space, n_trials, kind)
    moved = Trials.from_columns(
        trials.name,
        trials.parameters,
        trials.values,
        scale * trials.objective + shift,
        status=list(trials.status),
        best_step=trials.best_step,
        max_steps=trials.max_steps,
    )
    still = trials.select(np.arange(len(trials)))
    still = Trials.from_columns(
        still.name,
        still.parameters,
        still.values,
        still.objective,
        status=list(still.status),
        best_step=still.best_step,
        max_steps=still.max_steps,
    )
    # The last doubling is judged in units of retraining, which the repeated points measure in the same unit.
    assert told(review(moved)) == told(review(still))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(**STUDIES)
def test_the_order_of_the_trials_does_not_matter(seed: int, space: int, n_trials: int, kind: str) -> None:
    trials = some_study(seed, space, n_trials, kind)
    if kind in ("few", "constant"):
        # Equal objectives are told apart by their order.
        return
    order = np.random.default_rng(seed).permutation(n_trials)
    same, other = told(review(trials)), told(review(trials.select(order)))
    # The budget asks whether later trials are better; retrains are told from the search's own trial by their number.
    for findings in (same, other):
        for key in [key for key in findings if key[0] == "budget"]:
            del findings[key]
    assert same == other


@pytest.mark.parametrize("n_trials", [0, 1, 12])
def test_studies_of_one_round_are_reviewed_together(n_trials: int) -> None:
    generator = np.random.default_rng(0)
    studies = [
        Trials.from_columns(
            name,
            [RATE],
            {"learning_rate": 10 ** generator.uniform(-4, 0, n_trials)},
            generator.random(n_trials),
            fixed={"method": name},
        )
        for name in ("a", "b")
    ]
    findings = review(studies)
    assert ("isolation", "method") in {(finding.check, finding.subject) for finding in findings}
    assert findings == review(Trials.concat(studies))


# What a loss can be while the trial still counts as complete, and what a table can say of a trial that is not.
OBJECTIVES = {
    "infinite": lambda cost: np.where(np.arange(len(cost)) % 5 == 0, np.inf, cost),
    "infinitely good": lambda cost: np.where(np.arange(len(cost)) % 5 == 0, -np.inf, cost),
    "all infinite": lambda cost: np.full(len(cost), np.inf),
    "all unknown": lambda cost: np.full(len(cost), np.nan),
    "huge": lambda cost: 1e300 * cost,
    "one blown up": lambda cost: np.where(np.arange(len(cost)) == 3, 1e308, cost),
    "tiny": lambda cost: 1e-310 * cost,
    "equal but for rounding": lambda cost: 1e16 + cost,
}


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("space", [1, 4, 5])
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_objectives_at_the_ends_of_float64(kind: str, space: int, direction: str) -> None:
    plain = some_study(3, space, 48, "repeated", direction)
    sign = 1.0 if direction == "minimize" else -1.0
    changed = sign * OBJECTIVES[kind](sign * plain.objective)
    findings = check_answers(replace(plain, objective=np.where(plain.is_infeasible, plain.objective, changed)))
    if kind.startswith("all"):
        assert not any(one.verdict is Verdict.FLAG for one in findings if one.check != "feasibility")


def test_complete_trials_with_an_infinite_objective_are_not_judged() -> None:
    rate = np.geomspace(1e-4, 1, 30)
    outcome = np.where(np.arange(30) < 10, np.inf, np.log(rate) ** 2)
    lost = Trials.from_columns("s", [RATE], {"learning_rate": rate}, outcome, status=[Status.COMPLETE] * 30)
    assert lost.is_judged.sum() == 20
    assert told(check_answers(lost)) == told(check_answers(lost.select(lost.is_judged)))


@pytest.mark.parametrize("n_odd", [1, 30, 60])
@pytest.mark.parametrize("name", ["learning_rate", "width"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -1.0, 1e308, 2.0**63, 5e-324])
def test_values_without_a_place_in_the_search_space(value: float, name: str, n_odd: int) -> None:
    # A learning rate of 0 has no place on a logarithmic scale, and NaN none in a column that every trial should have.
    units = np.random.default_rng(0).random((60, 2))
    values: dict[str, Any] = {
        "learning_rate": [place(RATE, unit) for unit in units[:, 0]],
        "width": [float(place(WIDTH, unit)) for unit in units[:, 1]],
        "norm": np.resize(np.array([True, False, None, "unheard of"], dtype=object), 60),
    }
    values[name][:n_odd] = [value] * n_odd
    trials = Trials.from_columns("s", [RATE, WIDTH, NORM], values, units.sum(axis=1))
    findings = check_answers(trials)
    has_place = trials.has(name)
    assert has_place[n_odd:].all()
    if math.isinf(value) or value <= 0:
        assert not has_place[:n_odd].any()
        # Questions about this hyperparameter are asked of the others only.
        sensitivity = next(one for one in findings if (one.check, one.subject) == ("sensitivity", name))
        assert sensitivity.numbers["n_points"] == 60 - n_odd
    # What the trial ran with is still told.
    told_value = int(value) if name == "width" and math.isfinite(value) else value
    assert trials.config(0).get(name) == (None if math.isnan(value) else told_value)


def test_ranges_and_steps_beyond_int64() -> None:
    units = np.random.default_rng(0).random((40, 1))
    deep = Parameter(name="deep", kind="int", low=0, high=2**70)
    wide = Parameter(name="wide", kind="float", low=1e-300, high=1e300, log=True)
    values = {"deep": [int(unit * 2**62) * 256 for unit in units[:, 0]], "wide": 10 ** (600 * units[:, 0] - 300)}
    steps = np.full(40, 2**62)
    check_answers(
        Trials.from_columns("s", [deep, wide], values, units[:, 0], best_step=steps, max_steps=steps, number=steps)
    )


# From the steps to the validation objective and the training loss.
CURVES = {
    "falls": lambda step: (np.exp(-step / 100), np.exp(-step / 100)),
    "infinite now and then": lambda step: (np.where(step % 3, 1.0, np.inf), np.where(step % 40, 1.0, -np.inf)),
    "infinite": lambda step: (np.full(len(step), np.inf), np.full(len(step), np.inf)),
    "unknown": lambda step: (np.full(len(step), np.nan), np.full(len(step), np.nan)),
    "trained to infinity": lambda step: (np.exp(-step / 100), np.where(step > 100, np.inf, 1.0)),
    "huge": lambda step: (1e300 * np.exp(-step / 100), 1e300 * np.exp(-step / 100)),
    "swings over float64": lambda step: (np.where(step % 20, -1.7e308, 1.7e308), np.where(step % 20, 1.7e308, -1e308)),
    "constant": lambda step: (np.ones(len(step)), np.ones(len(step))),
    "tiny": lambda step: (1e-310 * np.exp(-step / 100), 1e-310 * np.exp(-step / 100)),
}


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("n_evaluations", [1, 2, 12, 60])
@pytest.mark.parametrize("kind", CURVES)
def test_curves_of_any_length_at_the_ends_of_float64(kind: str, n_evaluations: int, direction: str) -> None:
    step = 10 * np.arange(n_evaluations)
    rate = np.geomspace(1e-3, 1, 7)
    for first_step in (0, 2**62):
        curve = Curve.from_columns(first_step + step, *CURVES[kind](step))
        trials = Trials.from_columns(
            "s",
            [RATE],
            {"learning_rate": rate},
            np.log(rate) ** 2,
            direction=direction,  # type: ignore[arg-type]
            curves=[curve] * 7,
            max_steps=np.full(7, first_step + step[-1]),
        )
        check_answers(trials)
        if np.isfinite(curve.validation).any():
            check_answers(trials.with_objective("final"))


@pytest.mark.parametrize("retrain_sd", [1e-300, 1e300])
def test_a_retrain_standard_deviation_of_any_size(retrain_sd: float) -> None:
    rate = 10 ** np.random.default_rng(0).uniform(-4, 0, 40)
    trials = Trials.from_columns("s", [RATE], {"learning_rate": rate}, np.log(rate) ** 2)
    [finding] = [one for one in check_answers(trials, retrain_sd=retrain_sd) if one.check == "budget"]
    # Any gain is more than the one, and any effect less than the other.
    assert (finding.verdict, finding.numbers["insensitive"]) == (Verdict.FLAG, int(retrain_sd > 1))


@pytest.mark.parametrize("kind", ["plain", "repeated", "infeasible"])
def test_every_check_answers_100_000_trials(kind: str) -> None:
    unit = np.random.default_rng(0).random((100_000, 4))
    if kind == "repeated":
        unit = unit[np.arange(100_000) // 4]
    method = np.where(unit[:, 3] < 0.5, "a", "b")
    cost = unit.sum(axis=1) + np.random.default_rng(1).standard_normal(100_000)
    cost[(unit[:, 2] > 0.95) | (kind == "infeasible")] = np.nan
    trials = Trials.from_columns(
        "s",
        [METHOD, RATE, WIDTH, NORM, MOMENTUM],
        {
            "method": method.astype(object),
            "learning_rate": 10 ** (4 * unit[:, 0] - 4),
            "width": np.round(8 * 64 ** unit[:, 1]),
            "norm": np.array([True, False, None], dtype=object)[np.floor(3 * unit[:, 2]).astype(int)],
            "a.momentum": np.where(method == "a", unit[:, 3], np.nan),
        },
        cost,
        best_step=np.full(100_000, 500),
        max_steps=np.full(100_000, 990),
    )
    begun = time.perf_counter()
    findings = check_answers(trials)
    assert time.perf_counter() - begun < 15
    flags = {(one.check, one.subject) for one in findings if one.verdict is Verdict.FLAG}
    assert ("feasibility", "study") in flags if kind == "infeasible" else ("boundary", "learning_rate, lower") in flags
