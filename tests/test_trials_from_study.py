from __future__ import annotations

import math
import re

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from playbook_plugins.analysis import Curve, Status, TrialRecord
from playbook_plugins.optuna import record_trial, trials_from_study


def foreign_study() -> optuna.Study:
    """Return a study made without this package, with every way for a trial to end."""
    study = optuna.create_study(
        study_name="foreign", direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0)
    )

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("rate", 1e-4, 1e-1 * (1 + trial.number), log=True)
        if trial.suggest_categorical("kind", ["a", "b"]) == "b":
            trial.suggest_int("width", 1, 8)
        trial.report(0.1, 0)
        trial.report(rate, 10)
        if trial.number == 1:
            raise optuna.TrialPruned
        if trial.number == 2:
            raise RuntimeError("a bug")
        return -math.inf if trial.number == 3 else rate

    study.optimize(objective, n_trials=6, catch=(RuntimeError,))
    study.enqueue_trial({"rate": 0.05})
    study.ask()
    study.enqueue_trial({"rate": 0.07})
    return study


def test_any_study_becomes_a_table() -> None:
    study = foreign_study()
    trials = trials_from_study(study)
    assert [str(status) for status in trials.status] == [
        "complete",
        "pruned",
        "failed",
        "infeasible",
        "complete",
        "complete",
        "running",
    ]
    assert trials.direction == "maximize"
    assert trials.reason[3] == "the objective is -inf"
    assert trials.objective[3] == -np.inf
    assert np.isnan(trials.objective[[2, 6]]).all()
    assert trials.objective[0] == study.trials[0].value
    # The widest range that any trial saw.
    assert trials.parameter("rate").low == 1e-4
    assert trials.parameter("rate").high == pytest.approx(0.6)
    assert trials.parameter("kind").choices == ("a", "b")
    is_b = np.array([trial.params.get("kind") == "b" for trial in study.trials[:7]])
    assert (~np.isnan(trials.values["width"]) == is_b).all()
    curve = trials.curves[0]
    assert curve is not None
    assert curve.step.tolist() == [0, 10]
    assert trials.goal == ""


def test_a_float_grid_stays_a_grid_when_its_range_moves() -> None:
    study = optuna.create_study()
    for low, high in ((0.0, 1.0), (0.5, 2.0)):
        trial = study.ask()
        trial.suggest_float("grid", low, high, step=0.25)
        trial.suggest_float("off", low + (low > 0) * 0.1, high + (low > 0) * 0.1, step=0.25)
        study.tell(trial, 1.0)
    trials = trials_from_study(study)
    grid, off = trials.parameter("grid"), trials.parameter("off")
    assert (grid.low, grid.high, grid.step) == (0.0, 2.0, 0.25)
    assert off.step is None


def test_violated_constraints_are_infeasible() -> None:
    study = optuna.create_study()
    for constraint in (-1.0, 0.0, 0.5):
        trial = study.ask()
        if hasattr(trial, "set_constraint"):
            trial.set_constraint("mine", constraint)
        else:
            trial.storage.set_trial_system_attr(trial._trial_id, "constraints", [constraint])
        study.tell(trial, 1.0)
    assert list(trials_from_study(study).status) == [Status.COMPLETE, Status.COMPLETE, Status.INFEASIBLE]


def test_a_failed_trial_that_reported_no_number_has_diverged() -> None:
    study = optuna.create_study()

    def objective(trial: optuna.Trial) -> float:
        for step, value in enumerate([1.0, math.nan] if trial.number == 0 else [math.nan, 1.0]):
            trial.report(value, step)
        raise RuntimeError("stopped")

    study.optimize(objective, n_trials=2, catch=(RuntimeError,))
    trials = trials_from_study(study)
    assert list(trials.status) == [Status.INFEASIBLE, Status.FAILED]
    assert trials.reason == ("diverged: reported nan at step 1", "ended without a result")


def test_a_record_travels_through_a_study(tmp_path: object) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="s", storage=storage)
    good = TrialRecord(
        direction="minimize",
        objective_name="val_error",
        curve=Curve.from_columns([0, 10, 20], [0.9, 0.3, 0.4], learning_rate=[np.nan, 1, 0.5]),
        max_steps=20,
    )
    bad = TrialRecord(
        direction="minimize", curve=Curve.from_columns([0], [0.9]), status=Status.INFEASIBLE, reason="diverged"
    )
    told = []
    for record in (good, bad):
        trial = study.ask()
        told.append(study.tell(trial, record_trial(trial, record)).value)
    assert told == [0.3, np.inf]
    trials = trials_from_study(optuna.load_study(study_name="s", storage=storage))
    assert list(trials.status) == [Status.COMPLETE, Status.INFEASIBLE]
    assert trials.best_step.tolist() == [10, 0]
    assert trials.max_steps.tolist() == [20, -1]
    assert trials.reason == ("", "diverged")
    assert trials.curves[0] is not None
    np.testing.assert_array_equal(trials.curves[0].learning_rate, [np.nan, 1, 0.5])


def test_samplers_that_learn_see_the_constraint() -> None:
    study = optuna.create_study()
    trial = study.ask()
    curve = Curve.from_columns([0], [0.9])
    record = TrialRecord(direction="minimize", curve=curve, status=Status.INFEASIBLE, reason="diverged")
    study.tell(trial, record_trial(trial, record))
    assert study.trials[0].state is TrialState.COMPLETE
    frozen = study.trials[0]
    # Optuna 5 keeps constraints by name, 4.8 as a list.
    kept = getattr(frozen, "constraints", None) or frozen.system_attrs["constraints"]
    assert list(kept.values() if isinstance(kept, dict) else kept) == [1.0]


def test_a_pruned_record_prunes_the_trial() -> None:
    study = optuna.create_study()
    record = TrialRecord(
        direction="minimize", curve=Curve.from_columns([0], [0.9]), status=Status.PRUNED, reason="hopeless"
    )
    study.optimize(lambda trial: record_trial(trial, record), n_trials=1)
    trials = trials_from_study(study)
    assert list(trials.status) == [Status.PRUNED]
    assert trials.reason == ("hopeless",)


@pytest.mark.parametrize(
    ("record", "error", "message"),
    [
        (
            TrialRecord(direction="maximize", curve=Curve.from_columns([0], [0.9])),
            ValueError,
            "`record` has the direction 'maximize', but the study 's' is to minimize its objective: both must agree. "
            "Create the study with direction='maximize', or record with the other mode.",
        ),
        (
            TrialRecord(
                direction="minimize", curve=Curve.from_columns([], []), status=Status.FAILED, reason="KeyError"
            ),
            RuntimeError,
            "`record` has the status 'failed' (KeyError): only a finished training run has a result. Let the exception "
            "that ended training reach Optuna instead.",
        ),
    ],
)
def test_bad_records_are_refused(record: TrialRecord, error: type[Exception], message: str) -> None:
    study = optuna.create_study(study_name="s")
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        record_trial(study.ask(), record)


def test_several_objectives_are_refused() -> None:
    study = optuna.create_study(study_name="s", directions=["minimize", "minimize"])
    message = "`study` 's' has 2 objectives: the playbook compares trials by one. Use a study with one objective."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        trials_from_study(study)
