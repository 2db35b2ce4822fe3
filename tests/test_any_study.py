"""Does every check answer any study: conditional, pruned, repeated, infeasible, constant, of any size and direction?"""

from __future__ import annotations

import math
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


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(**STUDIES)
def test_every_check_answers_any_study(seed: int, space: int, n_trials: int, kind: str) -> None:
    trials = some_study(seed, space, n_trials, kind)
    findings = review(trials, n_validation_examples=None)
    assert {"feasibility", "best step", "budget"} <= {finding.check for finding in findings}
    names = [(finding.check, finding.subject, finding.numbers.get("value")) for finding in findings]
    assert len(names) == len(set(names))
    for finding in findings:
        for name, number in finding.numbers.items():
            assert number is None or isinstance(number, str) or math.isfinite(number), (finding.check, name)
            # Numbers of Python: they are written as JSON.
            assert not isinstance(number, np.generic), (finding.check, name)
        assert word(finding).headline
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
