"""Does every finished trial reach the tracker, as the study has it, and does the study survive the tracker?"""

from __future__ import annotations

import re
from typing import Any

import optuna
import pytest

from playbook_plugins.analysis import Curve, InfeasibleError, Status, TrialRecord, Trials
from playbook_plugins.optuna import Round, create_exploitation_study, trial_callback, trials_from_study
from playbook_plugins.optuna.exploitation import exploitation_objective


class Tracker:
    """Keeps what it is handed."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, record: Any, config: Any, *, study: Trials, number: int, **more: Any) -> None:
        self.calls.append({"record": record, "config": config, "study": study, "number": number, **more})


def a_round(n_trials: int = 6) -> Round:
    return Round(
        "Which optimizer?",
        scientific={"optimizer": ["adam", "sgd"]},
        nuisance={"width": optuna.distributions.IntDistribution(8, 64, log=True)},
        conditional={
            "optimizer": {
                "adam": {"learning_rate": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True)},
                "sgd": {"learning_rate": optuna.distributions.FloatDistribution(1e-2, 10, log=True)},
            }
        },
        fixed={"batch_size": 32},
        n_trials=n_trials,
    )


def train(config: dict[str, Any], trial: optuna.Trial) -> TrialRecord:
    if config["learning_rate"] > 3:
        raise InfeasibleError("diverged at step 7")
    curve = Curve.from_columns([0, 10, 20], [1.0, 0.3, 0.4 + config["learning_rate"]])
    return TrialRecord(direction="minimize", curve=curve, max_steps=20, objective_name="val_error")


@pytest.mark.filterwarnings("ignore:.*trials.*:UserWarning")
def test_each_trial_of_a_round_arrives_with_its_whole_configuration() -> None:
    tracker, round = Tracker(), a_round()
    study = round.create_study(study_name="which")
    round.optimize(study, train, callbacks=[trial_callback(tracker, project="digits")])
    whole = trials_from_study(study)
    assert [call["number"] for call in tracker.calls] == whole.number.tolist() == list(range(6))
    for row, call in enumerate(tracker.calls):
        assert call["project"] == "digits"
        assert call["study"].name == "which"
        assert call["study"].parameters == whole.parameters == round.parameters
        assert call["config"].keys() == {"optimizer", "width", "learning_rate", "batch_size"}
        stored = whole.values[f"{call['config']['optimizer']}.learning_rate"][row]
        assert call["config"]["learning_rate"] == stored
        assert call["record"].status is whole.status[row]
        assert call["record"].objective == whole.objective[row]
    assert Status.INFEASIBLE in whole.status


def test_a_trial_of_a_plain_study_arrives_as_its_table() -> None:
    tracker = Tracker()
    study = optuna.create_study(study_name="plain", direction="maximize")

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("rate", 0.0, 1.0)
        trial.report(rate, 3)
        if trial.number == 1:
            raise optuna.TrialPruned
        if trial.number == 2:
            raise KeyError("data")
        return rate

    study.optimize(objective, n_trials=3, callbacks=[trial_callback(tracker)], catch=(KeyError,))
    records = [call["record"] for call in tracker.calls]
    assert all(isinstance(record, Trials) for record in records)
    assert [record.status[0] for record in records] == [Status.COMPLETE, Status.PRUNED, Status.FAILED]
    assert [dict(call["config"]) for call in tracker.calls] == [trial.params for trial in study.trials]


@pytest.mark.filterwarnings("ignore:.*trials.*:UserWarning")
def test_workers_in_threads_log_each_trial_once() -> None:
    tracker, round = Tracker(), a_round(12)
    study = round.create_study(study_name="threads")
    round.optimize(study, train, n_jobs=3, callbacks=[trial_callback(tracker)])
    assert sorted(call["number"] for call in tracker.calls) == trials_from_study(study).number.tolist()


def test_a_failing_tracker_is_warned_of_and_the_study_goes_on() -> None:
    def log(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    study = optuna.create_study(study_name="alone")
    message = "Trial 1 of 'alone' is in its storage, but was not logged: OSError('no route to host')"
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"), pytest.warns(UserWarning, match="^Trial 0 of"):
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2, callbacks=[trial_callback(log)])
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.COMPLETE] * 2


@pytest.mark.filterwarnings("ignore:.*trials.*:UserWarning")
def test_trials_of_the_bayesian_phase_have_their_fixed_values() -> None:
    tracker, round, storage = Tracker(), a_round(), optuna.storages.InMemoryStorage()
    study = round.create_study(study_name="explore", storage=storage)
    round.optimize(study, train)
    winner = {"optimizer": "adam"}
    phase = create_exploitation_study(
        study,
        study_name="exploit",
        storage=storage,
        scientific=winner,
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    phase.optimize(exploitation_objective(phase, train), n_trials=1, callbacks=[trial_callback(tracker)])
    [call] = tracker.calls
    assert call["config"].keys() == {"optimizer", "width", "learning_rate", "batch_size"}
    assert call["config"]["optimizer"] == "adam"
    assert isinstance(call["record"], TrialRecord)
