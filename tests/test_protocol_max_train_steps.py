"""Does the sweep of constant rates find the planted number of steps, and doubt it where the rates are wrong?"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from planted_training import PlantedFit, run_two_workers, survive_kills

from playbook_plugins.analysis import TrialRecord, Verdict
from playbook_plugins.optuna.max_train_steps import pick_max_train_steps
from playbook_plugins.optuna.protocols import ProtocolResult

RATES = (0.01, 0.03, 0.1, 0.3, 1.0)


def pick(train: Any, config: dict[str, Any] | None = None, **arguments: Any) -> ProtocolResult:
    usual = {"learning_rates": RATES, "goal": 0.0, "max_train_steps": 1000, "study_name": "s"}
    return pick_max_train_steps(train, config or {}, **{**usual, **arguments})


@settings(max_examples=20, deadline=None)
@given(fit_constant=st.floats(3.0, 80.0), n_stable=st.integers(1, 5), every=st.sampled_from([1, 10]))
@example(fit_constant=3.0, n_stable=5, every=10)
def test_it_recovers_the_planted_steps(fit_constant: float, n_stable: int, every: int) -> None:
    unstable = (*RATES, math.inf)[n_stable]
    planted = PlantedFit(fit_constant=fit_constant, unstable_rate=unstable, every=every)
    result = pick(planted, max_train_steps=20_000)
    steps = planted.steps_to_fit(RATES[n_stable - 1])
    assert result.recommendation == {"max_train_steps": steps}
    fit, rate, schedule, regularization = result.findings
    assert fit.numbers["max_train_steps"] == steps
    assert fit.verdict is schedule.verdict is regularization.verdict is Verdict.NO_EVIDENCE
    # Larger rates that diverge are no end of the sweep, but the edge of stability; the smallest rate is an end. The
    # largest is none where the one before it is as fast.
    is_tied = n_stable == 5 and planted.steps_to_fit(RATES[3]) == steps
    side = "upper" if n_stable == 5 and not is_tied else "lower" if n_stable == 1 else None
    assert rate.numbers["at_boundary"] == side
    assert rate.verdict is (Verdict.FLAG if side else Verdict.NO_EVIDENCE)


def test_a_goal_that_is_never_reached_recommends_nothing() -> None:
    result = pick(PlantedFit(fit_constant=5000.0))
    assert result.recommendation == {}
    assert result.findings[0].verdict is Verdict.FLAG
    assert result.findings[0].numbers["n_fit"] == 0


def test_a_goal_that_is_reached_at_once_recommends_nothing() -> None:
    result = pick(PlantedFit(), goal=2.0)
    assert result.recommendation == {}
    assert result.findings[0].numbers["at_first_evaluation"] == 1


def test_regularization_is_told_and_the_names_are_the_user_s() -> None:
    planted = PlantedFit(fit_constant=5.0)

    def train(config: dict[str, Any]) -> TrialRecord:
        assert config == {"lr": config["lr"], "steps": 1000, "dropout": 0.1}
        return planted({"learning_rate": config["lr"], "max_train_steps": config["steps"]})

    result = pick(
        train,
        {"dropout": 0.1, "steps": 1000},
        learning_rates=RATES[::-1],
        learning_rate="lr",
        max_train_steps_name="steps",
    )
    assert result.recommendation == {"steps": 10}
    assert result.findings[3].verdict is Verdict.FLAG
    assert result.findings[3].numbers["regularizers"] == "dropout"
    assert result.trials["constant rates"].values["lr"].tolist() == list(RATES)


CALL = """
from playbook_plugins.optuna.max_train_steps import pick_max_train_steps
result = pick_max_train_steps(
    logged(PlantedFit(unstable_rate=0.5)), {}, learning_rates=(0.03, 0.1, 0.2, 0.3, 1.0), goal=0.0,
    max_train_steps=500, **options,
)
"""


@pytest.mark.slow
def test_it_survives_kills(tmp_path: Path) -> None:
    assert survive_kills(tmp_path, CALL, n_kills=2, seed=2) == {"max_train_steps": 40}


@pytest.mark.slow
def test_two_workers_share_it(tmp_path: Path) -> None:
    assert run_two_workers(tmp_path, CALL) == {"max_train_steps": 40}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"learning_rates": []},
            "`learning_rates` is []: a sweep has at least 3 distinct positive rates, because the fastest of fewer is "
            "always at its boundary. Pass a grid over several orders of magnitude.",
        ),
        (
            {"learning_rates": [0.1, 0.2, 0.2]},
            "`learning_rates` is [0.1, 0.2, 0.2]: a sweep has at least 3 distinct positive rates, because the fastest "
            "of fewer is always at its boundary. Pass a grid over several orders of magnitude.",
        ),
        (
            {"learning_rates": [-0.1, 0.1, 0.2]},
            "`learning_rates` is [-0.1, 0.1, 0.2]: a sweep has at least 3 distinct positive rates, because the fastest "
            "of fewer is always at its boundary. Pass a grid over several orders of magnitude.",
        ),
        (
            {"goal": math.nan},
            "`goal` is nan: a goal must be finite. Pass the training objective that counts as a perfect fit.",
        ),
        (
            {"max_train_steps": 0},
            "`max_train_steps` is 0: it must be at least 1. Pass a larger number.",
        ),
        (
            {"config": {"max_train_steps": 5}},
            "`config` has 'max_train_steps' = 5, which this procedure sets itself. Leave the entry out, or name the "
            "one to set by `max_train_steps_name`.",
        ),
        (
            {"config": {"f": max}},
            "`config` is {'f': <built-in function max>}: it is kept in the study as JSON, and Object of type "
            "builtin_function_or_method is not JSON serializable. Use numbers, text, booleans, None, lists and dicts.",
        ),
    ],
)
def test_what_makes_no_sweep_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        pick(PlantedFit(), **arguments)
