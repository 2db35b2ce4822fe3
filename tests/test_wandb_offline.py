from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from table_equality import assert_equal_tables
from wandb_offline import wandb_folder as wandb_folder
from wandb_server import DEFAULT_ENTITY, LoopbackServer
from wandb_studies import make_record

from playbook_plugins.analysis import Curve, Parameter, Status, TrialRecord, Trials
from playbook_plugins.wandb import log_trial, trials_from_offline, trials_from_runs
from playbook_plugins.wandb.offline import find_run_files

KILLED = "the run's file has no end: the run was killed, or the machine stopped"


def log_trials(n_trials: int) -> list[str]:
    """Log trials of a study whose search space is known, and return the ids of their runs."""
    rate = Parameter(name="rate", kind="float", low=0.01, high=1.0)
    study = Trials.from_columns("s", [rate], {"rate": []}, [], number=[])
    return [
        log_trial(make_record(number), {"rate": 0.1 * (1 + number)}, study=study, number=number, project="p")
        for number in range(n_trials)
    ]


def file_of(folder: Path, id: str) -> Path:
    [file] = folder.rglob(f"run-{id}.wandb")
    return file


def test_any_folder_above_a_run_will_do(wandb_folder: Path) -> None:
    ids = log_trials(2)
    table = trials_from_offline(wandb_folder)
    assert len(table) == 2
    assert table.objective.tolist() == [make_record(number).objective for number in range(2)]
    assert_equal_tables(trials_from_offline(wandb_folder / "wandb"), table)
    assert_equal_tables(trials_from_offline(str(wandb_folder.parent)), table)
    for number, id in enumerate(ids):
        file = file_of(wandb_folder, id)
        for place in (file, file.parent):
            assert_equal_tables(trials_from_offline(place), table.select([number]))


def test_it_tells_what_the_clients_command_tells(wandb_folder: Path) -> None:
    [id] = log_trials(1)
    file = file_of(wandb_folder, id)
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(file)]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
    trials = trials_from_offline(file)
    assert told["summary"]["playbook_objective"] == trials.objective[0]
    assert told["config"]["playbook_number"] == trials.number[0]
    assert told["state"] == "finished"


def test_the_local_files_of_online_runs(wandb_server: LoopbackServer) -> None:
    log_trials(3)
    assert_equal_tables(trials_from_offline(os.environ["WANDB_DIR"]), trials_from_runs(DEFAULT_ENTITY, "p"))


def test_synced_runs_are_the_same(wandb_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log_trials(2)
    expected = trials_from_offline(wandb_folder)
    with LoopbackServer() as server:
        environment = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": server.api_key}
        del environment["WANDB_MODE"]
        files = [str(path.parent) for path in find_run_files(wandb_folder)]
        command = [sys.executable, "-m", "wandb", "sync", "--yes", "--entity", DEFAULT_ENTITY, *files]
        subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60)
        assert [run.state for run in server.runs] == ["finished"] * 2
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        wandb.teardown()
        assert_equal_tables(trials_from_runs(DEFAULT_ENTITY, "p"), expected)
        wandb.teardown()
    assert_equal_tables(trials_from_offline(wandb_folder), expected)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_off_spoils_no_other(share: float, wandb_folder: Path) -> None:
    ids = log_trials(2)
    whole = trials_from_offline(wandb_folder)
    file = file_of(wandb_folder, ids[0])
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    later = time.time() + 3600
    if share < 0.1:
        # Not even the configuration is there: the file cannot be told from one of another study, and is left out.
        message = (
            f"1 of 2 files are left out, because they do not even say which run they are of: {file} (it is cut off at "
            "its beginning)."
        )
        # An empty file is what an attempt to start a run leaves.
        expectation = pytest.warns(UserWarning, match=f"^{re.escape(message)}$") if share else nullcontext()
        with expectation:
            assert_equal_tables(trials_from_offline(wandb_folder, now=later), whole.select([1]))
        return
    broken = trials_from_offline(wandb_folder, now=later)
    assert broken.number.tolist() == [0, 1]
    assert_equal_tables(broken.select([1]), whole.select([1]))
    # The last byte to be lost is that of the end; all else was there.
    assert broken.status[0] in (Status.FAILED, Status.COMPLETE)
    assert broken.reason[0] in (KILLED, "")
    # What is still being written goes on, unless its own keys have told the end.
    now = trials_from_offline(wandb_folder)
    assert now.status[0] is (Status.RUNNING if broken.status[0] is Status.FAILED else Status.COMPLETE)


def test_a_damaged_file_spoils_no_other(wandb_folder: Path) -> None:
    ids = log_trials(3)
    whole = trials_from_offline(wandb_folder)
    for id, damage in ((ids[0], b"\x00" * 400), (ids[1], np.random.default_rng(0).bytes(400))):
        file = file_of(wandb_folder, id)
        content = bytearray(file.read_bytes())
        content[1200 : 1200 + len(damage)] = damage
        file.write_bytes(bytes(content))
    read = trials_from_offline(wandb_folder, now=time.time() + 3600)
    assert_equal_tables(read.select(read.number == 2), whole.select([2]))


def test_a_file_of_something_else_is_no_trial(wandb_folder: Path) -> None:
    log_trials(1)
    folder = wandb_folder / "wandb" / "offline-run-20260101_000000-odd"
    folder.mkdir()
    (folder / "run-odd.wandb").write_bytes(np.random.default_rng(0).bytes(1000))
    (folder / "notes.wandb").write_text("no run")
    with pytest.warns(UserWarning, match="^1 of 2 files are left out"):
        assert len(trials_from_offline(wandb_folder)) == 1


def test_a_file_that_is_being_written_out_is_waited_for(wandb_folder: Path) -> None:
    [id] = log_trials(1)
    whole = trials_from_offline(wandb_folder)
    file = file_of(wandb_folder, id)
    content = file.read_bytes()
    file.write_bytes(content[:7])
    writer = threading.Timer(0.4, lambda: file.write_bytes(content))
    writer.start()
    assert_equal_tables(trials_from_offline(wandb_folder), whole)
    writer.join()


KILL = """
import os, signal, time
import wandb
run = wandb.init(project="p", config={"rate": 0.25}, settings=wandb.Settings(console="off"))
for step in range(2000):
    run.log({"val_loss": 1 / (1 + step), "step": step})
time.sleep(1)
print("ready", flush=True)
time.sleep(60)
"""


def test_a_run_that_is_killed_or_goes_on(wandb_folder: Path) -> None:
    for name in ("a", "b"):
        own = wandb.init(project="p", config={"rate": 0.5}, name=name, settings=wandb.Settings(console="off"))
        own.log({"val_loss": 2.0, "step": 0})
        own.finish()
    process = subprocess.Popen([sys.executable, "-c", KILL], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    asked: dict[str, Any] = {
        "objective": "val_loss",
        "direction": "minimize",
        "curves": {"validation": "val_loss", "step": "step"},
    }
    live = trials_from_offline(wandb_folder, **asked)
    process.kill()
    process.wait()
    process.stdout.close()
    assert list(live.status) == [Status.COMPLETE, Status.COMPLETE, Status.RUNNING]
    curve = live.curves[2]
    assert curve is not None
    assert 100 < len(curve) <= 2000
    np.testing.assert_array_equal(curve.validation, 1 / (1 + curve.step))
    dead = trials_from_offline(wandb_folder, now=time.time() + 3600, **asked)
    assert list(dead.status) == [Status.COMPLETE, Status.COMPLETE, Status.FAILED]
    assert dead.reason[2] == KILLED


def test_runs_of_others(wandb_folder: Path) -> None:
    values = [(0, 0.5), (1, 0.25), (0, math.nan), (0, math.inf), (1, math.nan)]
    for number, (exit_code, last) in enumerate(values):
        run = wandb.init(
            project="p",
            config={"model": {"width": 8 * (1 + number)}, "kind": ["a", "b"][number % 2]},
            settings=wandb.Settings(console="off"),
            reinit="create_new",
        )
        run.define_metric("val/loss", summary="min")
        for step, value in enumerate([1.0, 0.75, last]):
            run.log({"val/loss": value, "acc": 1 - value, "nested": {"part": step}})
        run.summary["gone"] = 1
        del run.summary["gone"]
        run.summary["last/loss"] = last
        run.finish(exit_code=exit_code)
    asked: dict[str, Any] = {"objective": "last/loss", "direction": "minimize"}
    trials = trials_from_offline(wandb_folder, curves={"validation": "val/loss", "accuracy": "acc"}, **asked)
    assert [str(status) for status in trials.status] == ["complete", "failed", "infeasible", "infeasible", "infeasible"]
    assert trials.values["model.width"].tolist() == [8, 16, 24, 32, 40]
    assert trials.values["kind"].tolist() == ["a", "b", "a", "b", "a"]
    assert all(curve is not None and curve.step.tolist() == [0, 1, 2] for curve in trials.curves)
    assert trials.best_step.tolist() == [2, 2, 1, 1, 1]
    minima = trials_from_offline(wandb_folder, objective="val/loss.min", direction="minimize")
    assert minima.objective[0] == 0.5
    parts = trials_from_offline(wandb_folder, objective="nested.part", direction="minimize")
    assert parts.objective[0] == 2
    with pytest.raises(ValueError, match="`objective` is 'gone'"):
        trials_from_offline(wandb_folder, objective="gone", direction="minimize")


def test_a_resumed_run_is_one_trial(wandb_folder: Path) -> None:
    settings = wandb.Settings(console="off")
    for first, values in ((0, [0.5, 0.4]), (2, [0.3])):
        run = wandb.init(project="p", id="same", resume="allow", settings=settings, config={f"part{first}": first})
        for step, value in enumerate(values, first):
            run.log({"loss": value, "global_step": step})
        run.finish()
        # Folders are named by the second.
        time.sleep(1.1)
    trials = trials_from_offline(
        wandb_folder, objective="loss", direction="minimize", curves={"validation": "loss", "step": "global_step"}
    )
    assert trials.objective.tolist() == [0.3]
    assert trials.fixed == {"part0": 0, "part2": 2}
    [curve] = trials.curves
    assert curve is not None
    assert curve.validation.tolist() == [0.5, 0.4, 0.3]


def test_several_studies_in_one_folder(wandb_folder: Path) -> None:
    record = TrialRecord(direction="minimize", curve=Curve.from_columns([0], [0.5]))
    for study in ("b", "a", "b"):
        log_trial(record, {}, study=study, project="p")
    assert len(trials_from_offline(wandb_folder, study="b")) == 2
    message = (
        f"`study` is None, but the runs in folder {wandb_folder} belong to the studies ['a', 'b']: a table holds one. "
        "Pass study= one of them, and join tables of one round with Trials.concat."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        trials_from_offline(wandb_folder)


def test_a_folder_without_runs(tmp_path: Path) -> None:
    message = (
        f"`folder` is {str(tmp_path)!r}: there is no W&B run in it, nor in the folders below. Pass the folder that "
        "holds offline-run-... folders, usually called wandb."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        trials_from_offline(tmp_path)
    message = f"`folder` is {str(tmp_path / 'no')!r}: there is no such folder. Pass one that holds W&B runs."
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
        trials_from_offline(tmp_path / "no")


def test_a_hundred_runs_are_read_fast(wandb_folder: Path) -> None:
    [id] = log_trials(1)
    # The copies are made of a file that was written out.
    assert len(trials_from_offline(wandb_folder)) == 1
    source = file_of(wandb_folder, id).parent
    for number in range(99):
        folder = source.parent / f"offline-run-20260101_{number:06}-copy{number}"
        shutil.copytree(source, folder)
        [file] = folder.glob("run-*.wandb")
        file.rename(folder / f"run-copy{number}.wandb")
    start = time.monotonic()
    # The copies are one run, which was begun a hundred times.
    trials = trials_from_offline(wandb_folder)
    assert time.monotonic() - start < 10
    assert len(find_run_files(wandb_folder)) == 100
    assert trials.number.tolist() == [0]
