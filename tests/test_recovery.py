from __future__ import annotations

import datetime
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from playbook_plugins.optuna import HaltonSampler, redo_lost, trials_from_study
from playbook_plugins.optuna.indices import sequence_indices
from playbook_plugins.optuna.masking import MASK
from playbook_plugins.optuna.recovery import WORKER_KEY, sign
from playbook_plugins.optuna.running import run_round

N_TRIALS = 12

# A worker whose training takes a moment, so that kills fall everywhere.
WORKER = """
    import sys, time
    import optuna
    from optuna.distributions import FloatDistribution
    from playbook_plugins.analysis import Curve, TrialRecord
    from playbook_plugins.optuna import Round

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url, log, n_trials = sys.argv[1], sys.argv[2], int(sys.argv[3])

    def train(config, trial):
        time.sleep(0.05)
        curve = Curve.from_columns([0, 1], [1.0, config["rate"]])
        return TrialRecord(direction="minimize", curve=curve, max_steps=1)

    def note(study, trial):
        with open(log, "a") as file:
            file.write(f"{trial.number}\\n")

    design = Round(
        "Which is better?",
        scientific={"method": ["a", "b"]},
        nuisance={"rate": FloatDistribution(0.0, 1.0)},
        n_trials=n_trials,
    )
    study = design.create_study(study_name="s", storage=url, load_if_exists=True)
    design.optimize(study, train, callbacks=[note])
"""


def start_worker(url: str, log: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(WORKER), url, str(log), str(N_TRIALS)])


def assert_complete(url: str) -> None:
    """Check that every index has exactly one COMPLETE trial at the point of the sequence, and none is RUNNING."""
    study = optuna.load_study(study_name="s", storage=url)
    indices = sequence_indices(study.trials)
    done = {trial.number: trial for trial in study.trials if trial.state is TrialState.COMPLETE}
    assert sorted(indices[number] for number in done) == list(range(N_TRIALS))
    assert not [trial for trial in study.trials if trial.state in (TrialState.RUNNING, TrialState.WAITING)]
    undisturbed = optuna.create_study(
        study_name="s",
        sampler=HaltonSampler(
            search_space={"rate": optuna.distributions.FloatDistribution(0, 1)}, scientific={"method": ["a", "b"]}
        ),
    )
    for index in range(N_TRIALS):
        trial = undisturbed.ask()
        trial.suggest_categorical("method", ["a", "b"])
        trial.suggest_float("rate", 0.0, 1.0)
        [twin] = [other for number, other in done.items() if indices[number] == index]
        assert twin.params == trial.params
    assert len(trials_from_study(study)) == N_TRIALS


@pytest.mark.parametrize("n_kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, n_kills: int) -> None:
    url, log = f"sqlite:///{tmp_path}/study.db", tmp_path / "log"
    chance = random.Random(n_kills)
    for _ in range(n_kills):
        worker = start_worker(url, log)
        # The start takes about a second: some kills fall before the first trial, some between trials.
        time.sleep(chance.uniform(0.3, 2.5))
        worker.kill()
        worker.wait()
    worker = start_worker(url, log)
    assert worker.wait(timeout=120) == 0
    assert_complete(url)
    # No trial that was seen to finish was trained a second time.
    assert max(Counter(log.read_text().split()).values()) == 1


@pytest.mark.slow
def test_workers_that_run_at_once_and_get_killed_share_the_round(tmp_path: Path) -> None:
    url, log = f"sqlite:///{tmp_path}/study.db", tmp_path / "log"
    chance = random.Random(0)
    start_worker(url, log).wait()  # makes the tables without a race
    workers = [start_worker(url, log) for _ in range(2)]
    for _ in range(4):
        time.sleep(chance.uniform(0.8, 2.0))
        place = chance.randrange(2)
        workers[place].send_signal(signal.SIGKILL)
        workers[place].wait()
        workers[place] = start_worker(url, log)
    for worker in workers:
        assert worker.wait(timeout=120) == 0
    assert_complete(url)


def make_study() -> optuna.Study:
    return optuna.create_study(sampler=HaltonSampler(seed=0))


def test_a_trial_of_a_living_process_is_left_alone() -> None:
    study = make_study()
    sign(study.ask())
    assert redo_lost(study) == []
    assert study.trials[0].state is TrialState.RUNNING


def test_a_trial_of_a_dead_process_is_queued_again_at_its_point() -> None:
    study = make_study()
    trial = study.ask()
    point = trial.suggest_float("x", 0, 1)
    sign(trial)
    signature = dict(trial.user_attrs[WORKER_KEY])
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    signature["process"] = [dead.pid, signature["process"][1]]
    trial.set_user_attr(WORKER_KEY, signature)
    assert redo_lost(study) == [0]
    assert redo_lost(study) == []
    assert [other.state for other in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    again = study.ask()
    assert again.number == 1
    assert again.suggest_float("x", 0, 1) == point
    # The signature of the dead does not travel to the new attempt.
    assert redo_lost(study) == []


def test_a_process_number_used_again_does_not_keep_a_trial_alive() -> None:
    study = make_study()
    trial = study.ask()
    sign(trial)
    signature = dict(trial.user_attrs[WORKER_KEY])
    signature["process"] = [os.getpid(), 1]
    trial.set_user_attr(WORKER_KEY, signature)
    assert redo_lost(study) == [0]


@pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed to be used with Study.optimize")
def test_a_trial_of_another_machine_is_lost_when_its_heart_has_stopped(tmp_path: Path) -> None:
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        storage = RDBStorage(f"sqlite:///{tmp_path}/study.db", heartbeat_interval=1, grace_period=2)
    study = optuna.create_study(storage=storage, sampler=HaltonSampler(seed=0))
    trial = study.ask()
    sign(trial)
    trial.set_user_attr(WORKER_KEY, {**trial.user_attrs[WORKER_KEY], "machine": "elsewhere", "process": [1, 1]})
    storage.record_heartbeat(trial._trial_id)
    assert redo_lost(study) == []
    time.sleep(4)
    assert redo_lost(study) == [0]


def die_elsewhere(study: optuna.Study) -> None:
    """Leave a trial as a worker does that is killed in the middle of it."""
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    sign(trial)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    trial.set_user_attr(WORKER_KEY, {**trial.user_attrs[WORKER_KEY], "process": [dead.pid, 1]})


def test_what_a_worker_leaves_that_dies_meanwhile_is_done_by_the_others() -> None:
    study = make_study()

    def objective(trial: optuna.Trial) -> float:
        # One dies in the middle, one when every point has been begun, one while it redoes what another left.
        if trial.number in (2, 4, 6):
            die_elsewhere(study)
        return trial.suggest_float("x", 0, 1)

    run(study, objective, 6)
    indices = sequence_indices(study.trials)
    done = {indices[trial.number]: trial for trial in study.trials if trial.state is TrialState.COMPLETE}
    assert sorted(done) == list(range(6))
    lost = [trial for trial in study.trials if trial.state is TrialState.FAIL]
    assert [(indices[trial.number], trial.params) for trial in lost] == [(n, done[n].params) for n in (3, 5, 5)]


def test_an_error_that_the_user_catches_is_not_tried_again_in_the_same_call() -> None:
    study = make_study()

    def objective(trial: optuna.Trial) -> float:
        point = trial.suggest_float("x", 0, 1)
        if trial.number in (1, 4):
            raise ValueError("of the user's own")
        return point

    for states in ("CFCC", "CFCCF", "CFCCFC"):
        run_round(study, objective, 4, n_jobs=1, timeout=None, callbacks=(), catch=(ValueError,), older_than=None)
        assert "".join(trial.state.name[0] for trial in study.trials) == states


def test_workers_do_not_try_the_errors_of_each_other_again() -> None:
    study = make_study()

    def fail(trial: optuna.Trial) -> float:
        trial.suggest_float("x", 0, 1)
        raise ValueError("no data at https://me:secret@data.example")

    def objective(trial: optuna.Trial) -> float:
        if trial.number == 1:
            # Another worker, whose only trial fails.
            stop = [lambda study, _: study.stop()]
            run_round(
                optuna.load_study(study_name=study.study_name, storage=study._storage, sampler=study.sampler),
                fail,
                4,
                n_jobs=1,
                timeout=None,
                callbacks=stop,
                catch=(ValueError,),
                older_than=None,
            )
        return trial.suggest_float("x", 0, 1)

    run(study, objective, 4)
    assert "".join(trial.state.name[0] for trial in study.trials) == "CCFC"
    assert trials_from_study(study).reason[2] == f"ValueError: no data at https://me:{MASK}@data.example"
    run(study, objective, 4)
    assert "".join(trial.state.name[0] for trial in study.trials) == "CCFCC"


def test_a_trial_of_another_machine_is_lost_only_by_age() -> None:
    study = make_study()
    trial = study.ask()
    sign(trial)
    trial.set_user_attr(WORKER_KEY, {**trial.user_attrs[WORKER_KEY], "machine": "elsewhere", "process": [1, 1]})
    assert redo_lost(study) == []
    assert redo_lost(study, older_than=datetime.timedelta(hours=1)) == []
    assert redo_lost(study, older_than=datetime.timedelta(0)) == [0]


def test_finished_trials_are_never_queued_again() -> None:
    study = make_study()
    study.tell(study.ask(), 1.0)
    study.tell(study.ask(), state=TrialState.PRUNED)
    study.tell(study.ask(), state=TrialState.FAIL)
    assert redo_lost(study, older_than=datetime.timedelta(0)) == [2]


def test_a_lost_enqueued_trial_keeps_its_values() -> None:
    study = make_study()
    study.enqueue_trial({"x": 0.25})
    study.tell(study.ask(), state=TrialState.FAIL)
    assert redo_lost(study) == [0]
    assert study.ask().suggest_float("x", 0, 1) == 0.25


def test_a_failed_trial_copied_from_another_study_is_its_own_first_attempt() -> None:
    study = make_study()
    copied = optuna.create_trial(state=TrialState.FAIL, system_attrs={"failed_trial": 7, "retry_history": [7]})
    study.add_trial(copied)
    assert redo_lost(study) == [0]
    assert redo_lost(study) == []
    assert study.trials[1].system_attrs == {"failed_trial": 0, "retry_history": [0]}


def run(study: optuna.Study, objective: Callable[[optuna.Trial], float], n_trials: int) -> None:
    run_round(study, objective, n_trials, n_jobs=1, timeout=None, callbacks=(), catch=(), older_than=None)


@pytest.mark.parametrize("ending", ["returns", "writes", "raises"])
def test_a_living_worker_whose_trial_is_taken_away_goes_on_with_the_next(ending: str) -> None:
    study = make_study()

    def objective(trial: optuna.Trial) -> float:
        point = trial.suggest_float("x", 0, 1)
        if trial.number == 1:
            # As Optuna's heartbeat does in another worker when this one misses its beats.
            study.tell(trial.number, state=TrialState.FAIL)
            if ending == "writes":
                trial.set_user_attr("key", "value")
            if ending == "raises":
                raise KeyError("x")
        return point

    run(study, objective, 4)
    states = [trial.state for trial in study.trials]
    assert states == [
        TrialState.COMPLETE,
        TrialState.FAIL,
        TrialState.COMPLETE,
        TrialState.COMPLETE,
        TrialState.COMPLETE,
    ]
    assert study.trials[2].params == study.trials[1].params


@pytest.mark.parametrize("ending", ["returns", "writes", "raises"])
def test_a_trial_that_another_worker_finishes_first_is_done(ending: str) -> None:
    study = make_study()

    def objective(trial: optuna.Trial) -> float:
        point = trial.suggest_float("x", 0, 1)
        if trial.number == 1:
            # On SQLite two workers can take the same waiting trial; the other one is faster.
            study.tell(trial.number, 7.0)
            if ending == "writes":
                trial.set_user_attr("key", "value")
            if ending == "raises":
                raise KeyError("x")
        return point

    run(study, objective, 4)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 4
    assert study.trials[1].value == 7.0


def test_an_error_of_the_objective_is_seen_whatever_its_type() -> None:
    study = make_study()

    def objective(trial: optuna.Trial) -> float:
        raise ValueError("of the user's own")

    with pytest.raises(ValueError, match=r"^of the user's own$"):
        run(study, objective, 4)
    assert len(study.trials) == 1
