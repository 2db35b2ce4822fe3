from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import wandb
from lightning.fabric.loggers.logger import _DummyExperiment
from lightning_toys import PACKAGES, make_loader, make_model, make_trainer
from table_equality import assert_equal_tables
from wandb_offline import wandb_folder as wandb_folder
from wandb_server import DEFAULT_ENTITY, LoopbackServer
from wandb_studies import make_record, make_round, plain_objective, train

from playbook_plugins.analysis import Curve, Parameter, Status, TrialRecord, Trials
from playbook_plugins.lightning.evaluation import PeriodicEvaluation
from playbook_plugins.lightning.recorder import TrialRecorder
from playbook_plugins.optuna import trial_callback, trials_from_study
from playbook_plugins.wandb import log_trial, trials_from_offline, trials_from_runs
from playbook_plugins.wandb.clients import import_reports
from playbook_plugins.wandb.outages import OUTAGE, Outage
from playbook_plugins.wandb.run_layout import StudyHeader

FEW = pytest.mark.filterwarnings("ignore:`n_trials` is:UserWarning")
RECORD = TrialRecord(
    direction="minimize",
    objective_name="val_error",
    curve=Curve.from_columns([0, 10, 20], [0.9, 0.2, math.nan], train=[math.nan, 0.5, 0.25]),
    max_steps=20,
)
TABLE = Trials.from_columns(
    "study",
    [Parameter(name="rate", kind="float", low=1e-4, high=1.0, log=True)],
    {"rate": [0.1, 0.2]},
    [0.2, 0.3],
    number=[4, 7],
)


@pytest.fixture(autouse=True)
def _no_outage() -> Iterator[None]:
    OUTAGE.end()
    yield
    OUTAGE.end()


def test_a_trial_is_one_run(wandb_server: LoopbackServer) -> None:
    config = {
        "rate": np.float32(0.5),
        "width": np.int64(8),
        "sizes": (3, np.int16(4)),
        "nothing": None,
        "nested": {"deep": np.array([1.0])},
        "infinite": math.inf,
        "kind": True,
    }
    path = log_trial(RECORD, config, study=TABLE, number=4, project="p", tags=("mine",), notes="why")
    run = wandb_server.find_run("study-4")
    assert path == f"{DEFAULT_ENTITY}/p/{run.name}"
    assert (run.group, run.job_type, run.state, run.notes) == ("study", "trial", "finished", "why")
    assert sorted(run.tags) == ["mine", "study"]
    kept = {key: entry["value"] for key, entry in run.config.items() if key != "_wandb"}
    assert kept.pop("playbook_study_name") == "study"
    header = StudyHeader.from_json(kept.pop("playbook_study"))
    assert (header.name, header.direction, header.objective_name) == ("study", "minimize", "val_error")
    assert header.parameters == TABLE.parameters
    # The table's value, not the configuration's: the study knows what it asked for.
    assert json.loads(kept.pop("playbook_values")) == {"rate": 0.1}
    assert kept.pop("playbook_number") == 4
    assert float(kept.pop("infinite")) == math.inf
    assert kept == {
        "rate": 0.5,
        "width": 8,
        "sizes": [3, 4],
        "nothing": None,
        "nested": {"deep": [1.0]},
        "kind": True,
    }
    assert {key: value for key, value in run.summary.items() if key.startswith("playbook_")} == {
        "playbook_objective": 0.2,
        "playbook_status": "complete",
        "playbook_reason": "",
        "playbook_best_step": 10,
        "playbook_max_steps": 20,
    }
    rows = [{key: value for key, value in row.items() if not key.startswith("_")} for row in run.history]
    assert rows == [
        {"playbook/step": 0, "playbook/validation": 0.9},
        {"playbook/step": 10, "playbook/validation": 0.2, "playbook/train": 0.5},
        {"playbook/step": 20, "playbook/train": 0.25},
    ]


@pytest.mark.parametrize(
    ("status", "state", "objective"),
    [
        (Status.COMPLETE, "finished", 0.2),
        (Status.INFEASIBLE, "finished", math.inf),
        (Status.PRUNED, "finished", 0.2),
        (Status.FAILED, "failed", 0.2),
    ],
)
def test_only_a_failed_trial_is_a_failed_run(
    status: Status, state: str, objective: float, wandb_server: LoopbackServer
) -> None:
    record = TrialRecord(direction="minimize", curve=RECORD.curve, status=status, reason="why")
    log_trial(record, {}, study="s", project="p")
    run = wandb_server.find_run("s")
    assert run.state == state
    assert run.summary["playbook_status"] == str(status)
    assert float(run.summary["playbook_objective"]) == objective


def test_the_users_own_run_stays_as_it_is(wandb_server: LoopbackServer) -> None:
    own = wandb.init(project="mine", config={"a": 1})
    own.log({"loss": 1.0})
    log_trial(RECORD, {"rate": 0.1}, study="s", number=0, project="p")
    assert wandb.run is own
    own.log({"loss": 0.5})
    own.finish()
    [mine] = [run for run in wandb_server.runs if run.project.name == "mine"]
    assert [row["loss"] for row in mine.history] == [1.0, 0.5]
    assert set(mine.config) - {"_wandb"} == {"a"}
    assert not any(key.startswith("playbook") for key in mine.summary)


def test_a_live_run_gets_the_keys_and_stays_open(wandb_server: LoopbackServer) -> None:
    run = wandb.init(project="p", tags=["early"], config={"rate": 0.1, "seed": 3})
    for step in range(5):
        # The keys that a logger of Lightning writes when training ends, an older objective among them.
        run.log({"val_loss": 1.0 / (step + 1), "trainer/global_step": step, "playbook_objective": 5.0})
    path = log_trial(RECORD, {"rate": 0.1, "more": 2}, study=TABLE, number=4, run=run, tags=("late",))
    assert path == f"{DEFAULT_ENTITY}/p/{run.id}"
    run.log({"after": 1})
    run.finish()
    [kept] = wandb_server.runs
    assert sorted(kept.tags) == ["early", "late", "study"]
    assert kept.summary["playbook_objective"] == 0.2
    assert kept.summary["after"] == 1
    assert {"rate", "seed", "more", "playbook_number"} <= set(kept.config)
    trials = trials_from_runs(DEFAULT_ENTITY, "p")
    assert trials.number.tolist() == [4]
    assert trials.config(0) == {"rate": 0.1}
    [curve] = trials.curves
    assert curve is not None
    np.testing.assert_array_equal(curve.validation, RECORD.curve.validation)
    np.testing.assert_array_equal(curve.step, RECORD.curve.step)
    # Only the rows from the first of ours on were asked for.
    [page] = [request for request in wandb_server.requests if request.operation == "HistoryPage"]
    assert page.variables is not None
    assert page.variables["minStep"] == 5


def test_a_study_is_logged_from_threads(wandb_server: LoopbackServer) -> None:
    def log(number: int) -> str:
        return log_trial(make_record(number), {"rate": number}, study="s", number=number, project="p")

    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(log, range(12)))
    assert len(set(paths)) == 12
    trials = trials_from_runs(DEFAULT_ENTITY, "p")
    assert trials.number.tolist() == list(range(12))
    for number, curve in enumerate(trials.curves):
        assert curve is not None
        np.testing.assert_array_equal(curve.validation, make_record(number).curve.validation)


def test_threads_that_log_first_all_reach_the_users_server(
    wandb_server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client shows its settings to other threads before it has read them from the environment: a thread that comes
    # a moment after the first would send its trial to the public server.
    read = wandb.Settings.update_from_system_settings

    def read_slowly(settings: wandb.Settings) -> None:
        time.sleep(0.3)
        read(settings)

    monkeypatch.setattr(wandb.Settings, "update_from_system_settings", read_slowly)
    wandb.teardown()
    first = threading.Barrier(4)

    def log(number: int) -> str:
        first.wait()
        time.sleep(0.05 * number)
        return log_trial(make_record(number), {"rate": number}, study="s", number=number, project="p")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(log, range(4)))
    assert sorted(run.settings["playbook_number"] for run in wandb_server.runs) == [0, 1, 2, 3]


WORKER = """
import sys
from wandb_studies import make_record
from playbook_plugins.wandb import log_trial
first = int(sys.argv[1])
for number in range(first, first + 3):
    log_trial(make_record(number), {"rate": number}, study="s", number=number, project="p")
"""


def test_a_study_is_logged_from_processes(wandb_server: LoopbackServer) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    workers = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", WORKER, str(first)], env=environment) for first in (0, 3)
    ]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    trials = trials_from_runs(DEFAULT_ENTITY, "p")
    assert trials.number.tolist() == list(range(6))
    assert trials.objective.tolist() == [make_record(number).objective for number in range(6)]


@FEW
@pytest.mark.parametrize("n_jobs", [1, 3])
def test_a_round_comes_back_equal(n_jobs: int, wandb_server: LoopbackServer) -> None:
    design = make_round()
    study = design.create_study(study_name="digits: adam or nesterov?")
    design.optimize(study, train, n_jobs=n_jobs, callbacks=[trial_callback(log_trial, project="p")])
    trials = trials_from_runs(DEFAULT_ENTITY, "p")
    assert len(trials) == 12
    assert {str(status) for status in trials.status} == {"complete", "infeasible", "pruned"}
    assert_equal_tables(trials, trials_from_study(study))


@FEW
def test_a_round_comes_back_equal_from_disk(wandb_folder: Path) -> None:
    design = make_round()
    study = design.create_study(study_name="digits: adam or nesterov?")
    design.optimize(study, train, callbacks=[trial_callback(log_trial, project="p")])
    assert_equal_tables(trials_from_offline(wandb_folder), trials_from_study(study))


def plain_study() -> optuna.Study:
    study = optuna.create_study(study_name="plain", direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    callback = trial_callback(log_trial, project="p")
    study.optimize(plain_objective, n_trials=9, catch=(RuntimeError,), callbacks=[callback])
    return study


def test_a_study_without_a_round_comes_back_equal(wandb_server: LoopbackServer) -> None:
    study = plain_study()
    trials = trials_from_runs(DEFAULT_ENTITY, "p")
    assert {str(status) for status in trials.status} == {"complete", "infeasible", "pruned", "failed"}
    assert_equal_tables(trials, trials_from_study(study))


def test_a_study_without_a_round_comes_back_equal_from_disk(wandb_folder: Path) -> None:
    study = plain_study()
    assert_equal_tables(trials_from_offline(wandb_folder), trials_from_study(study))


def test_disabled_logs_nothing_and_asks_nobody(wandb_server: LoopbackServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert "/" not in log_trial(RECORD, {"rate": 0.1}, study="s", project="p")
    assert wandb_server.requests == []


def test_long_names_fit(wandb_server: LoopbackServer) -> None:
    name = "a study with a very long name " * 6
    log_trial(RECORD, {}, study=name, number=3, project="p")
    [run] = wandb_server.runs
    assert [len(tag) for tag in run.tags] == [64]
    assert len(run.group or "") == len(run.display_name) == 128
    assert trials_from_runs(DEFAULT_ENTITY, "p", study=name).name == name


# When W&B cannot be reached


def logged_with_warning(**more: Any) -> tuple[str, str, float]:
    """Return what log_trial returned, its warning, and how long it took in seconds."""
    start = time.monotonic()
    with pytest.warns(UserWarning, match="W&B could not be reached") as caught:
        path = log_trial(RECORD, {"rate": 0.1}, study=TABLE, number=4, project="p", **more)
    [warning] = [str(one.message) for one in caught]
    return path, warning, time.monotonic() - start


def command_in(warning: str) -> list[str]:
    found = re.search(r"later with: (wandb sync .+)\. For the next 5 minutes", warning)
    assert found is not None
    return shlex.split(found[1])


def run_command(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", [503, 429, "drop", "hang"])
def test_a_server_that_is_down_sends_the_trial_to_disk(kind: int | str, wandb_server: LoopbackServer) -> None:
    wandb_server.fail(kind, times=None)
    path, warning, seconds = logged_with_warning(settings={"init_timeout": 2})
    assert seconds < 10
    assert "/" not in path
    assert wandb_server.api_key not in warning
    assert wandb_server.runs == []
    # The next ones do not wait, and do not repeat the warning.
    start = time.monotonic()
    log_trial(RECORD, {"rate": 0.2}, study=TABLE, number=7, project="p")
    assert time.monotonic() - start < 2
    wandb_server.heal()
    trials = trials_from_offline(os.environ["WANDB_DIR"])
    assert trials.number.tolist() == [4, 7]
    # The command in the warning brings the trial to W&B.
    run_command(command_in(warning))
    assert_equal_tables(trials_from_runs(DEFAULT_ENTITY, "p"), trials.select([0]))


@pytest.mark.parametrize("kind", [503, "drop", "hang"])
def test_a_server_that_breaks_during_the_upload_loses_nothing(kind: int | str, wandb_server: LoopbackServer) -> None:
    def finish_late(**options: Any) -> Any:
        run = real_init(**options)
        wandb_server.fail(kind, times=None)
        return run

    real_init = wandb.init
    with pytest.MonkeyPatch.context() as patch:
        # Only to break the server between the start and the end of the run.
        patch.setattr(wandb, "init", finish_late)
        path, warning, seconds = logged_with_warning(settings={"finish_timeout": 2})
    assert seconds < 10
    assert path.startswith(f"{DEFAULT_ENTITY}/p/")
    wandb_server.heal()
    assert trials_from_offline(command_in(warning)[-1]).number.tolist() == [4]
    run_command(command_in(warning))
    trials = trials_from_runs(DEFAULT_ENTITY, "p")
    assert trials.objective.tolist() == [0.2]
    assert trials.curves[0] is not None


def test_a_short_outage_is_not_noticed(wandb_server: LoopbackServer) -> None:
    wandb_server.fail(503, times=1, operation="UpsertBucket")
    wandb_server.fail("drop", times=1, path="file_stream")
    path = log_trial(RECORD, {"rate": 0.1}, study=TABLE, number=4, project="p")
    assert "/" in path
    assert wandb_server.find_run("study-4").state == "finished"
    assert len(wandb_server.find_run("study-4").history) == 3


@pytest.mark.parametrize("kind", [401, 403])
def test_a_refusal_is_the_users_to_see(kind: int, wandb_server: LoopbackServer) -> None:
    wandb_server.fail(kind, times=None)
    with pytest.raises(wandb.errors.CommError):
        log_trial(RECORD, {}, study="s", project="p")
    wandb_server.heal()
    # The refusal is not taken for an outage.
    assert "/" in log_trial(RECORD, {}, study="s", project="p")


def test_an_outage_ends() -> None:
    now = 50.0
    outage = Outage(300.0, clock=lambda: now)
    assert not outage.is_on()
    outage.begin()
    assert outage.is_on()
    now = 349.9
    assert outage.is_on()
    now = 350.0
    assert not outage.is_on()
    outage.begin()
    outage.end()
    assert not outage.is_on()


def test_the_key_is_in_nothing_that_is_kept(wandb_server: LoopbackServer, capfd: pytest.CaptureFixture[str]) -> None:
    log_trial(RECORD, {"rate": 0.1}, study=TABLE, number=4, project="p")
    key = wandb_server.api_key.encode()
    assert not any(key in body for body in wandb_server.received)
    assert not any(key in path.read_bytes() for path in Path(os.environ["WANDB_DIR"]).rglob("*") if path.is_file())
    out, err = capfd.readouterr()
    assert wandb_server.api_key not in out + err


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"record": 0.3},
            "`record` is 0.3: it must be a TrialRecord. Pass the `.record` of a TrialRecorder, or build one from the "
            "evaluations.",
        ),
        (
            {"number": -1},
            "`number` is -1: trials are numbered from 0. Pass the trial's number, or leave it out.",
        ),
        (
            {"number": True},
            "`number` is True: trials are numbered from 0. Pass the trial's number, or leave it out.",
        ),
        (
            {"study": ""},
            "`study` is '': it must be the study's name or a table of it. Pass one of them.",
        ),
        (
            {"config": [1]},
            "`config` is [1]: it must map names of hyperparameters to values. Pass the configuration that training "
            "got.",
        ),
        (
            {"config": {1: 2}},
            "`config` is {1: 2}: it must map names of hyperparameters to values. Pass the configuration that training "
            "got.",
        ),
        (
            {"config": {"playbook_number": 3, "a": 1}},
            "`config` has the keys ['playbook_number']: names that begin with 'playbook_' belong to this package. Give "
            "them other names.",
        ),
        (
            {"record": TrialRecord(direction="maximize", curve=RECORD.curve), "study": TABLE},
            "`record` has the direction 'maximize', but the study 'study' is to minimize its objective: both must "
            "agree. Record with the other mode.",
        ),
        (
            {"record": TABLE, "number": 5},
            "`record` is a table of 2 trials, and `number` is 5: the table does not tell which trial is meant. Pass "
            "the number of one of its trials.",
        ),
        (
            {"record": TrialRecord(direction="minimize", curve=RECORD.curve, status=Status.RUNNING)},
            "`record` has the status 'running': only a finished trial is logged. Take the record after training.",
        ),
        (
            {"run": 3},
            "`run` is 3: it must be a live run of W&B. Pass what wandb.init returned, or the `experiment` of a "
            "WandbLogger.",
        ),
        (
            {"run": object(), "project": "p", "name": "n"},
            "`run` is a live run, and ['project', 'name'] are given too: they describe a new run. Leave them out, or "
            "leave out `run`.",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str, wandb_folder: Path) -> None:
    given = {"record": RECORD, "config": {}, "study": "s", **arguments}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        log_trial(given.pop("record"), given.pop("config"), **given)
    assert list(wandb_folder.iterdir()) == []


def test_an_interrupt_ends_the_run_as_failed(wandb_server: LoopbackServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(wandb.Run, "define_metric", interrupt)
    with pytest.raises(KeyboardInterrupt):
        log_trial(RECORD, {}, study="s", project="p")
    assert wandb_server.find_run("s").state == "failed"


def test_no_thread_is_left(wandb_folder: Path) -> None:
    log_trial(RECORD, {}, study="s", project="p")
    before = threading.active_count()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(3):
            log_trial(RECORD, {}, study="s", number=number, project="p")
    assert threading.active_count() <= before


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.filterwarnings("ignore")
def test_a_run_of_lightning_is_a_trial(package: Any, wandb_folder: Path) -> None:
    for number in range(2):
        logger = package.loggers.WandbLogger(save_dir=wandb_folder, project="p")
        logger.experiment.config.update({"rate": 0.1 * (1 + number)})
        recorder = TrialRecorder("val_loss", "min")
        trainer = make_trainer(package, [recorder, PeriodicEvaluation(4)], max_steps=10, logger=[logger])
        trainer.fit(make_model(package), make_loader(5), make_loader(2, seed=1))
        if number:
            log_trial(recorder.record, {"rate": 0.1 * (1 + number)}, study="s", number=7, run=logger.experiment)
        logger.experiment.finish()
    # What the recorder logs by itself is enough for a table; the curve has the names of Lightning.
    keys = {"validation": "val_loss", "step": "trainer/global_step"}
    trials = trials_from_offline(wandb_folder / "wandb" / "latest-run", direction="minimize", curves=keys)
    every = [
        trials_from_offline(file, direction="minimize", curves=keys)
        for file in sorted(wandb_folder.rglob("run-*.wandb"))
    ]
    assert {str(status) for table in every for status in table.status} == {"complete"}
    assert len(trials) == 1
    whole = trials_from_offline(wandb_folder)
    assert (whole.name, whole.number.tolist()) == ("s", [7])
    [curve] = whole.curves
    assert curve is not None
    expected = recorder.record
    np.testing.assert_array_equal(curve.validation, expected.curve.validation)
    np.testing.assert_array_equal(curve.learning_rate, expected.curve.learning_rate)
    assert whole.objective.tolist() == [expected.objective]
    assert whole.max_steps.tolist() == [10]


def test_the_stand_in_of_other_ranks_is_left_alone() -> None:
    assert log_trial(RECORD, {}, study="s", run=_DummyExperiment()) == ""


def test_the_client_is_loaded_at_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import sys, playbook_plugins.wandb; print(sorted({'wandb', 'optuna', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    monkeypatch.setitem(sys.modules, "wandb", None)
    message = "wandb logs runs and reads them and is not installed. Run: pip install 'playbook-plugins[wandb]'"
    with pytest.raises(ImportError, match=f"^{re.escape(message)}$"):
        log_trial(RECORD, {}, study="s")
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    message = "wandb-workspaces builds reports and is not installed. Run: pip install 'playbook-plugins[wandb]'"
    with pytest.raises(ImportError, match=f"^{re.escape(message)}$"):
        import_reports()
