"""Does each configuration of a plan get trained exactly once, whoever is killed, and does another plan stay out?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import optuna
import pytest

from playbook_plugins.analysis import Curve, InfeasibleError, Status, TrialRecord
from playbook_plugins.optuna import study_sheet
from playbook_plugins.optuna.plans import Plan, run_plan

SWEEP = Plan(
    goal="Which learning rate?",
    points=tuple({"learning_rate": rate} for rate in (0.001, 0.01, 0.1, 1.0)),
    fixed={"width": 8},
    log=("learning_rate",),
)


def train(config: dict[str, Any]) -> TrialRecord:
    if config["learning_rate"] >= 1:
        raise InfeasibleError("diverged at step 3")
    curve = Curve.from_columns([0, 10], [1.0, config["learning_rate"]])
    return TrialRecord(direction="minimize", curve=curve, max_steps=10)


def test_every_point_is_trained_once_in_order() -> None:
    seen: list[dict[str, Any]] = []
    trials = run_plan(SWEEP, lambda config: seen.append(config) or train(config), study_name="sweep")
    assert seen == [SWEEP.config(place) for place in range(4)]
    assert trials.values["learning_rate"].tolist() == [0.001, 0.01, 0.1, 1.0]
    assert trials.status.tolist() == [Status.COMPLETE] * 3 + [Status.INFEASIBLE]
    assert (trials.goal, dict(trials.fixed)) == ("Which learning rate?", {"width": 8})
    [rate] = trials.parameters
    assert (rate.low, rate.high, rate.log) == (0.001, 1.0, True)


def test_a_broken_procedure_goes_on_where_it_stopped(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    calls: list[float] = []

    def breaking(config: dict[str, Any]) -> TrialRecord:
        calls.append(config["learning_rate"])
        if calls == [0.001, 0.01]:
            raise KeyError("data")
        return train(config)

    with pytest.raises(KeyError):
        run_plan(SWEEP, breaking, study_name="sweep", storage=storage)
    trials = run_plan(SWEEP, breaking, study_name="sweep", storage=storage)
    assert sorted(calls) == [0.001, 0.01, 0.01, 0.1, 1.0]
    assert trials.values["learning_rate"].tolist() == [0.001, 0.01, 0.1, 1.0]
    again = run_plan(SWEEP, breaking, study_name="sweep", storage=storage)
    assert len(calls) == 5
    assert again.objective.tolist() == trials.objective.tolist()
    [row] = study_sheet(storage)
    assert (row["notes"], row["n_trials"]) == ("Which learning rate?", 4)


def test_retrains_are_one_configuration() -> None:
    plan = Plan(goal="How noisy?", points=({},) * 3, passed=({"seed": 0}, {"seed": 1}, {"seed": 2}))
    seeds: list[int] = []

    def seeded(config: dict[str, Any]) -> TrialRecord:
        seeds.append(config["seed"])
        return TrialRecord(direction="minimize", curve=Curve.from_columns([5], [config["seed"]]), max_steps=5)

    trials = run_plan(plan, seeded, study_name="noise")
    assert seeds == [0, 1, 2]
    assert trials.parameters == ()
    assert trials.objective.tolist() == [0, 1, 2]


def test_another_plan_is_refused() -> None:
    storage = optuna.storages.InMemoryStorage()
    run_plan(SWEEP, train, study_name="sweep", storage=storage)
    other = Plan(goal="Which learning rate?", points=SWEEP.points[:2], log=("learning_rate",))
    message = (
        "`study_name` is 'sweep': this study was begun with other runs, so that it cannot go on with these. Call the "
        "procedure with the arguments it was begun with, or choose another name."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        run_plan(other, train, study_name="sweep", storage=storage)


def test_a_study_of_another_kind_is_refused() -> None:
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(study_name="mine", storage=storage).add_trial(optuna.create_trial(value=1.0))
    message = (
        "`study_name` is 'mine': this study has trials, but no plan is kept in it. Choose another name for the "
        "procedure's study."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        run_plan(SWEEP, train, study_name="mine", storage=storage)


def test_an_enqueued_trial_has_no_place() -> None:
    storage = optuna.storages.InMemoryStorage()
    run_plan(SWEEP, train, study_name="sweep", storage=storage)
    study = optuna.load_study(study_name="sweep", storage=storage)
    study.enqueue_trial({"learning_rate": 0.5})
    message = (
        "`study` 'sweep' has the enqueued trial 4: a planned study trains the configurations of its plan and no "
        "others. Train yours in a study of its own."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        run_plan(SWEEP, train, study_name="sweep", storage=storage)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": ()}, "`points` is empty: a plan has at least one run. Pass the configurations to be trained."),
        (
            {"points": ({"rate": 1.0}, {"rate": 2.0}), "passed": ({"seed": 0},)},
            "`passed` has 1 entries for 2 points: it must have one a point, or none at all. Pass as many.",
        ),
        (
            {"points": ({"rate": 1.0},), "fixed": {"rate": 2.0}},
            "`points` varies 'rate', which `fixed` holds at 2.0: a run can have one value only. Leave it out of one of "
            "them.",
        ),
        (
            {"points": ({"sizes": (1, 2)},)},
            "`points` has (1, 2) for 'sizes': a study can hold Python's numbers, text, booleans and None. Name the "
            "value by one of these, and let `train` look it up.",
        ),
    ],
)
def test_what_makes_no_plan_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Plan(goal="Which?", **arguments)
