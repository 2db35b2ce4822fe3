"""Worker processes that search one study together, and what one worker alone would have drawn: shared by tests."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import Trial
from search_toys import BRANCHES
from sqlalchemy import event

from playbook_plugins.optuna.sampler import HaltonSampler

_WORKER = textwrap.dedent(
    """
    import sys
    import time
    import optuna
    from optuna.distributions import FloatDistribution
    from playbook_plugins.optuna.sampler import HaltonSampler

    kind, place, space, n_trials, seconds = sys.argv[1:]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if kind == "sqlite":
        storage = optuna.storages.RDBStorage(place, engine_kwargs={"connect_args": {"timeout": 60}})
    elif kind == "journal":
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(place))
    elif kind == "grpc":
        host, port = place.split(":")
        storage = optuna.storages.GrpcStorageProxy(host=host, port=int(port))
    else:
        storage = optuna.storages.RDBStorage(place)
    unit = FloatDistribution(0, 1)
    branches = {
        "decay": unit,
        "optimizer": {"adam": {"adam.rate": unit, "adam.beta1": unit}, "nesterov": {"nesterov.rate": unit}},
        "dropout": unit,
    }
    sampler = HaltonSampler(seed=4, search_space=branches if space == "declared" else None)
    study = optuna.load_study(study_name="shared", storage=storage, sampler=sampler)

    def objective(trial):
        trial.suggest_float("decay", 0, 1)
        if space == "plain":
            trial.suggest_float("adam.rate", 0, 1)
            trial.suggest_float("adam.beta1", 0, 1)
        else:
            optimizer = trial.suggest_categorical("optimizer", ["adam", "nesterov"])
            trial.suggest_float(f"{optimizer}.rate", 0, 1)
            if optimizer == "adam":
                trial.suggest_float("adam.beta1", 0, 1)
        time.sleep(float(seconds))
        return trial.suggest_float("dropout", 0, 1)

    print("ready", flush=True)
    sys.stdin.readline()
    study.optimize(objective, n_trials=int(n_trials))
    """
)


def run_workers(
    kind: str, place: str, space: str, *, n_workers: int = 4, n_trials: int = 50, seconds: float = 0.0
) -> None:
    """Let worker processes run ``n_trials`` trials each of the study "shared", which exists already.

    ``kind`` is "sqlite", "database" (``place`` is a URL), "journal" (a path) or "grpc" (host:port); ``space`` is
    "declared", "branched" (not declared) or "plain" (neither declared nor branched).
    """
    command = [sys.executable, "-c", _WORKER, kind, place, space, str(n_trials), str(seconds)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(n_workers)
    ]
    # All have loaded the study before any begins, so that they meet.
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        worker.communicate()
        assert worker.returncode == 0


def branched(trial: Trial) -> float:
    """Suggest what the workers suggest in the spaces "declared" and "branched"."""
    trial.suggest_float("decay", 0, 1)
    optimizer = trial.suggest_categorical("optimizer", ["adam", "nesterov"])
    trial.suggest_float(f"{optimizer}.rate", 0, 1)
    if optimizer == "adam":
        trial.suggest_float("adam.beta1", 0, 1)
    return trial.suggest_float("dropout", 0, 1)


def sequential_params(n_trials: int) -> list[dict[str, Any]]:
    """Return the hyperparameters that one worker alone draws in the space "declared"."""
    alone = optuna.create_study(sampler=HaltonSampler(seed=4, search_space=BRANCHES))
    alone.optimize(branched, n_trials=n_trials)
    return [trial.params for trial in alone.trials]


def two(trial: Trial) -> float:
    """Suggest two plain hyperparameters."""
    return trial.suggest_float("x", 0, 1) + trial.suggest_float("y", 0, 1)


def count_queries(url: str, *, n_asks: int = 8) -> dict[str, list[int]]:
    """Return the SQL statements of each ask with its suggestions, ours beside a random sampler's, on a database."""
    counts: dict[str, list[int]] = {}
    for name, sampler in {"ours": HaltonSampler(seed=4), "random": RandomSampler(seed=4)}.items():
        with open_database(url) as storage, open_database(url) as elsewhere:
            study = optuna.create_study(study_name=name, storage=storage, sampler=sampler)
            other = optuna.load_study(study_name=name, storage=elsewhere, sampler=RandomSampler())
            counts[name] = []
            for turn in range(n_asks):
                if turn >= n_asks // 2:
                    # Other workers' trials, running and finished, come between.
                    other.ask()
                    other.optimize(two, n_trials=1)
                counts[name].append(len(statements(storage, lambda study=study: two(study.ask()))))
    return counts


@contextlib.contextmanager
def open_database(url: str) -> Iterator[RDBStorage]:
    """Open a database, and close its connections in the end, of which psycopg warns otherwise."""
    storage = RDBStorage(url)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def statements(storage: RDBStorage, action: Callable[[], Any]) -> list[str]:
    """Return the SQL statements that an action sends through a storage."""
    found: list[str] = []

    def note(*arguments: Any) -> None:
        found.append(arguments[2])

    event.listen(storage.engine, "before_cursor_execute", note)
    action()
    event.remove(storage.engine, "before_cursor_execute", note)
    return found
