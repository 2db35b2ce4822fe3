"""One worker process of a large search, and what starts many of them: shared by tests/test_scale.py and its benchmark.

``python tests/scale_worker.py draw URL STUDY N SAMPLER`` runs N instant trials of a study when told to go, and prints
the seconds that they took. ``python tests/scale_worker.py round URL STUDY DIE_AT MACHINE`` carries out the round kept
in a study; it kills itself between ask and tell of its DIE_AT-th trial, counted from 0, or never, at -1. With a MACHINE
it signs as if it ran there, with Optuna's heartbeat; "" is this one, without.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler
from optuna.storages import RDBStorage

from playbook_plugins.analysis import Curve, TrialRecord
from playbook_plugins.optuna import HaltonSampler, Round, recovery

SPACE: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(1e-4, 1.0, log=True),
    "momentum": FloatDistribution(0.5, 0.99),
    "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
    "dropout": FloatDistribution(0.0, 0.5),
}
SAMPLERS: dict[str, Callable[[], BaseSampler]] = {
    "HaltonSampler": lambda: HaltonSampler(seed=3, search_space=SPACE),
    # One seed for all workers would draw the same points in each.
    "RandomSampler": RandomSampler,
    "QMCSampler": lambda: QMCSampler(qmc_type="halton", scramble=True, seed=3, warn_independent_sampling=False),
}


def objective(trial: optuna.Trial) -> float:
    """Return at once, from four hyperparameters."""
    rate = trial.suggest_float("learning_rate", 1e-4, 1.0, log=True)
    momentum = trial.suggest_float("momentum", 0.5, 0.99)
    decay = trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True)
    return rate + momentum + decay + trial.suggest_float("dropout", 0.0, 0.5)


def sequential_points(n_trials: int) -> list[dict[str, Any]]:
    """Return the points that one worker alone draws."""
    alone = optuna.create_study(sampler=SAMPLERS["HaltonSampler"]())
    alone.optimize(objective, n_trials=n_trials)
    return [trial.params for trial in alone.trials]


def make_round(n_trials: int) -> Round:
    """Return the round of the workers of kind "round", whose points are those of `sequential_points`."""
    return Round("Does it scale?", scientific={}, nuisance=SPACE, n_trials=n_trials, seed=3)


def start_worker(*arguments: str | int) -> subprocess.Popen[str]:
    """Start a worker process with the arguments of this file."""
    command = [sys.executable, str(Path(__file__)), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def draw_together(url: str, study: str, sampler: str, *, n_workers: int, n_trials: int) -> float:
    """Let workers begin at one moment and run ``n_trials`` in all; return the seconds of the slowest."""
    workers = [start_worker("draw", url, study, n_trials // n_workers, sampler) for _ in range(n_workers)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    outputs = []
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        output, errors = worker.communicate()
        assert worker.returncode == 0, errors
        outputs.append(float(output))
    return max(outputs)


@contextmanager
def open_storage(url: str, **options: Any) -> Iterator[RDBStorage]:
    """Open a database, and close its connections in the end, of which psycopg warns otherwise."""
    storage = RDBStorage(url, **options)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def main() -> None:
    """Run the worker that the command line asks for."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kind, url, name = sys.argv[1:4]
    if kind == "draw":
        with open_storage(url) as storage:
            _draw(storage, name, int(sys.argv[4]), SAMPLERS[sys.argv[5]]())
        return
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    machine = sys.argv[5]
    with open_storage(url, **(_heartbeat() if machine else {})) as storage:
        _carry_out(storage, name, int(sys.argv[4]), machine)


def _heartbeat() -> dict[str, Any]:
    """Return Optuna's options that find a dead worker on another machine."""
    return {"heartbeat_interval": 1, "grace_period": 4}


def _draw(storage: RDBStorage, name: str, n_trials: int, sampler: BaseSampler) -> None:
    study = optuna.load_study(study_name=name, storage=storage, sampler=sampler)
    # QMCSampler infers its space from a first trial, which Optuna reads here.
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    begun = time.perf_counter()
    study.optimize(objective, n_trials=n_trials)
    sys.stdout.write(f"{time.perf_counter() - begun}\n")


def _carry_out(storage: RDBStorage, name: str, die_at: int, machine: str) -> None:
    if machine:
        recovery._machine = lambda: machine
    study = Round.load_study(study_name=name, storage=storage)
    n_begun = 0

    def train(config: dict[str, Any], _: optuna.Trial) -> TrialRecord:
        nonlocal n_begun
        n_begun += 1
        if n_begun > die_at >= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        curve = Curve.from_columns([0, 1], [1.0, config["learning_rate"]])
        return TrialRecord(direction="minimize", curve=curve, max_steps=1)

    Round.from_study(study).optimize(study, train)


if __name__ == "__main__":
    main()
