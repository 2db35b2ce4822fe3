"""Does a worker of a procedure wait for what others have in hand, say so, and go on when one of them dies?"""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import InMemoryStorage

from playbook_plugins.analysis import Curve, Status, TrialRecord, Trials
from playbook_plugins.optuna import Plan, run_plan
from playbook_plugins.optuna.waiting import finish_together

PLAN = Plan(goal="Which width?", points=({"width": 8}, {"width": 16}, {"width": 32}))


def make_record(config: dict[str, Any]) -> TrialRecord:
    return TrialRecord(
        direction="minimize", curve=Curve.from_columns([0, 1], [1.0, 1.0 / config["width"]]), max_steps=1
    )


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    optuna.logging.enable_propagation()
    yield caplog
    optuna.logging.disable_propagation()
    optuna.logging.set_verbosity(verbosity)


def test_a_worker_waits_for_the_run_of_another_and_says_so(said: pytest.LogCaptureFixture) -> None:
    storage = InMemoryStorage()
    begun, may_end = threading.Event(), threading.Event()
    trained: list[int] = []

    def train_slowly(config: dict[str, Any]) -> TrialRecord:
        begun.set()
        assert may_end.wait(60)
        trained.append(config["width"])
        return make_record(config)

    def train(config: dict[str, Any]) -> TrialRecord:
        trained.append(config["width"])
        return make_record(config)

    other = threading.Thread(target=run_plan, args=(PLAN, train_slowly), kwargs={"study_name": "s", "storage": storage})
    other.start()
    assert begun.wait(60)
    n_looks = 0

    def carry_out() -> Trials:
        nonlocal n_looks
        n_looks += 1
        trials = run_plan(PLAN, train, study_name="s", storage=storage)
        if any("Waiting" in record.message for record in said.records):
            may_end.set()
        return trials

    trials = finish_together(carry_out, 3, first_word=0.3)
    other.join()
    assert trials.status.tolist() == [Status.COMPLETE] * 3
    assert sorted(trained) == [8, 16, 32]
    [word, *_] = [record for record in said.records if "Waiting" in record.message]
    assert (word.name, word.levelno) == ("optuna.playbook_plugins", logging.INFO)
    assert "Waiting for the trials [0] of the study 's'" in word.message
    assert "redo_lost" in word.message
    assert n_looks > 1


WORKER = textwrap.dedent(
    """
    import sys, warnings
    import optuna
    from playbook_plugins.analysis import Curve, TrialRecord
    from playbook_plugins.optuna import learning_rate_sweep, recovery

    url, machine, log, dies_at = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    # Only the heartbeat tells that a process of another machine is gone.
    recovery._machine = lambda: machine
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    storage = optuna.storages.RDBStorage(
        url, engine_kwargs={"connect_args": {"timeout": 60}}, heartbeat_interval=1, grace_period=3
    )
    n_begun = 0

    def train(config):
        global n_begun
        n_begun += 1
        if n_begun == dies_at:
            print("in training", flush=True)
            sys.stdin.readline()
        with open(log, "a") as file:
            file.write(f"{config['learning_rate']:.3g}\\n")
        loss = abs(config["learning_rate"] - 0.01)
        curve = Curve.from_columns([0, 10], [1.0 + loss, loss])
        return TrialRecord(direction="minimize", curve=curve, max_steps=10)

    result = learning_rate_sweep(train, {}, low=1e-4, high=1.0, n_trials=5, study_name="s", storage=storage)
    print(result.recommendation["learning_rate"])
    """
)


@pytest.mark.slow
def test_a_procedure_goes_on_when_another_machine_dies_in_the_last_run_of_a_stage(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def start(machine: str, dies_at: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WORKER, f"sqlite:///{tmp_path}/study.db", machine, str(log), str(dies_at)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    # The fifth and last of the sweep; the other worker finds nothing left to begin.
    first = start("one", 5)
    assert first.stdout is not None
    assert first.stdout.readline() == "in training\n"
    second = start("another", -1)
    with pytest.raises(subprocess.TimeoutExpired):
        second.communicate(timeout=6)
    first.kill()
    first.communicate()
    output, _ = second.communicate(timeout=120)
    assert second.returncode == 0
    assert float(output) == pytest.approx(0.01)
    # Five rates, then 2 and 5 times the best one (10 times it has been tried); each once, the killed one's too.
    assert sorted(map(float, log.read_text().split())) == pytest.approx([1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 1.0])
