"""Do many workers on PostgreSQL draw each point once, when they are killed and when the server is?"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import psycopg
import pytest
from optuna.trial import TrialState
from postgres import (
    _SETTINGS,
    _START_SECONDS,
    _USER,
    PostgresServer,
    _as_server_user,
    _stop,
    find_binaries,
    free_port,
    start_server,
)
from scale_worker import draw_together, make_round, open_storage, sequential_points, start_worker

from playbook_plugins.optuna import trials_from_study
from playbook_plugins.optuna.attempts import NOT_NEEDED_KEY
from playbook_plugins.optuna.indices import sequence_indices

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

N_WORKERS = 16
EXAMPLE = Path(__file__).parents[1] / "examples" / "distributed.py"


class MortalServer:
    """A PostgreSQL server that can be killed and started again on its data."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.folder, self.binaries = folder, binaries
        self.access = PostgresServer(free_port(), "secret")
        (folder / "password").write_text(self.access.password)
        if os.geteuid() == 0:
            for path in (folder, folder / "password"):
                shutil.chown(path, _USER, _USER)
        make = [f"--pgdata={folder / 'data'}", f"--username={_USER}", "--auth=scram-sha-256", "--no-sync"]
        subprocess.run(
            [*_as_server_user(), str(binaries / "initdb"), *make, f"--pwfile={folder / 'password'}"],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=_START_SECONDS,
        )

    def start(self) -> None:
        """Start the server; it refuses for as long as processes of the one before live."""
        deadline = time.monotonic() + _START_SECONDS
        self.process = self._launch()
        while True:
            try:
                self.access.connect().close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.1)
            if self.process.poll() is not None:
                self.process = self._launch()

    def _launch(self) -> subprocess.Popen[bytes]:
        options = [f"-c{key}={value}" for key, value in _SETTINGS.items()]
        where = ["-D", str(self.folder / "data"), "-p", str(self.access.port)]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [*_as_server_user(), str(self.binaries / "postgres"), *where, *options],
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )

    def crash(self) -> None:
        """End the server without any goodbye."""
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    yield from start_server()


@pytest.fixture
def mortal() -> Iterator[MortalServer]:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server: install Debian's package `postgresql`")
    with tempfile.TemporaryDirectory(prefix="playbook-postgres-", ignore_cleanup_errors=True) as name:
        running = MortalServer(Path(name), binaries)
        running.start()
        try:
            yield running
        finally:
            _stop(running.process)


def test_sixteen_processes_draw_the_points_of_one(server: PostgresServer) -> None:
    n_trials = 2000
    url = server.create_database()
    with open_storage(url) as storage:
        study = optuna.create_study(study_name="scale", storage=storage)
        seconds = draw_together(url, "scale", "HaltonSampler", n_workers=N_WORKERS, n_trials=n_trials)
        points = [trial.params for trial in study.get_trials(deepcopy=False)]
    sys.stdout.write(f"{n_trials / seconds:.0f} trials a second by {N_WORKERS} workers\n")
    assert points == sequential_points(n_trials)


def assert_complete(url: str, n_trials: int) -> list[optuna.trial.FrozenTrial]:
    """Check that each index has one finished trial at its own point, and return all trials."""
    with open_storage(url) as storage:
        study = optuna.load_study(study_name="scale", storage=storage)
        trials = study.get_trials(deepcopy=False)
        assert len(trials_from_study(study)) == n_trials
    indices = sequence_indices(trials)
    done: dict[Any, dict[str, Any]] = {}
    for trial in trials:
        assert trial.state in (TrialState.COMPLETE, TrialState.FAIL)
        if trial.state is TrialState.COMPLETE:
            assert indices[trial.number] not in done
            done[indices[trial.number]] = trial.params
    assert [done[index] for index in range(n_trials)] == sequential_points(n_trials)
    return trials


def test_nothing_is_lost_when_server_and_workers_die(mortal: MortalServer) -> None:
    n_trials = 400
    chance = random.Random(0)
    url = mortal.access.create_database()
    with open_storage(url) as storage:
        make_round(n_trials).create_study(study_name="scale", storage=storage)

    def start(die_at: int = -1) -> subprocess.Popen[str]:
        return start_worker("round", url, "scale", die_at, "")

    def finished() -> set[int]:
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            rows = connection.execute("SELECT number FROM trials WHERE state = 'COMPLETE'").fetchall()
            return {int(number) for (number,) in rows}

    # Every fourth worker dies between ask and tell of one of its first trials.
    workers = [start(chance.randrange(5) if place % 4 == 0 else -1) for place in range(N_WORKERS)]
    before = finished()
    while len(before) < n_trials // 3:
        time.sleep(0.1)
        before = finished()
    mortal.crash()
    time.sleep(1.0)
    mortal.start()
    at_restart = finished()
    assert before <= at_restart
    assert len(at_restart) < n_trials
    n_restarted = 0
    deadline = time.monotonic() + 600
    while workers:
        assert time.monotonic() < deadline
        for worker in list(workers):
            if worker.poll() is None:
                continue
            _, errors = worker.communicate()
            workers.remove(worker)
            if worker.returncode == 0:
                continue
            # A worker that does not go on says why: it was killed, or it lost the server.
            assert worker.returncode == -signal.SIGKILL or "OperationalError" in errors or "StorageInternal" in errors
            n_restarted += 1
            workers.append(start())
        time.sleep(0.1)
    trials = assert_complete(url, n_trials)
    assert all(trials[number].state is TrialState.COMPLETE for number in at_restart)
    # Workers that begin at the same moment queue the same lost trial; all but one attempt are dropped untrained.
    failed = [trial for trial in trials if trial.state is TrialState.FAIL]
    n_dropped = sum(NOT_NEEDED_KEY in trial.user_attrs for trial in failed)
    sys.stdout.write(
        f"{len(at_restart)} finished at the restart, {n_restarted} workers started again, {len(failed) - n_dropped} "
        f"trials lost and done again, {n_dropped} superfluous attempts dropped\n"
    )


def test_a_trial_of_a_machine_that_is_gone_is_found_by_its_missing_heartbeat(server: PostgresServer) -> None:
    url = server.create_database()
    with open_storage(url) as storage:
        make_round(50).create_study(study_name="scale", storage=storage)
    lost = start_worker("round", url, "scale", 4, "a machine that is gone")
    lost.communicate()
    assert lost.returncode == -signal.SIGKILL
    time.sleep(5.0)
    other = start_worker("round", url, "scale", -1, "another machine")
    _, errors = other.communicate()
    assert other.returncode == 0, errors
    trials = assert_complete(url, 50)
    assert [trial.number for trial in trials if trial.state is TrialState.FAIL] == [4]
    assert trials[5].system_attrs["failed_trial"] == 4


def test_a_worker_killed_between_ask_and_tell_is_found_by_its_process(server: PostgresServer) -> None:
    url = server.create_database()
    with open_storage(url) as storage:
        make_round(50).create_study(study_name="scale", storage=storage)
    lost = [start_worker("round", url, "scale", 2, "") for _ in range(3)]
    for worker in lost:
        worker.communicate()
        assert worker.returncode == -signal.SIGKILL
    other = start_worker("round", url, "scale", -1, "")
    _, errors = other.communicate()
    assert other.returncode == 0, errors
    trials = assert_complete(url, 50)
    assert sum(trial.state is TrialState.FAIL for trial in trials) >= 3


def run_example(folder: Path, storage: str | None, *arguments: str) -> str:
    """Run examples/distributed.py in a folder to its end, and return what it printed."""
    environment = {**os.environ} if storage is None else {**os.environ, "PLAYBOOK_STORAGE": storage}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), *arguments],
        cwd=folder,
        env=environment,
        check=False,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_needs_nothing_but_a_folder(tmp_path: Path) -> None:
    output = run_example(tmp_path, None, "--workers", "2", "--trials", "8")
    assert "8 of 8 trials finished" in output
    assert "report: runs/distributed.html" in output
    assert (tmp_path / "runs/distributed.html").stat().st_size > 10_000
    again = run_example(tmp_path, None, "--workers", "1", "--trials", "8")
    assert again.splitlines()[1:] == output.splitlines()[1:]


def test_the_example_runs_on_a_database_and_through_its_proxy(server: PostgresServer, tmp_path: Path) -> None:
    url, port = server.create_database(), free_port()
    assert "4 of 4 trials finished" in run_example(tmp_path, url, "--workers", "2", "--trials", "4")
    proxy = subprocess.Popen(
        [sys.executable, str(EXAMPLE), "--serve", str(port)],
        env={**os.environ, "PLAYBOOK_STORAGE": url},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert proxy.stdout is not None
        assert proxy.stdout.readline().startswith(f"Serving the storage at grpc://127.0.0.1:{port}")
        through = run_example(tmp_path, f"grpc://127.0.0.1:{port}", "--workers", "2", "--trials", "10")
        assert "10 of 10 trials finished" in through
    finally:
        proxy.kill()
        proxy.communicate()


def test_a_worker_without_a_study_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--join"], cwd=tmp_path, text=True, capture_output=True, check=False
    )
    assert done.returncode != 0
    assert "KeyError" in done.stderr
