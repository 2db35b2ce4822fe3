"""How do many workers search one study together? Processes here, or on any number of machines, on one storage.

    python examples/distributed.py                                        four workers, a journal file in runs/
    python examples/distributed.py --workers 16 --trials 200 --storage postgresql+psycopg://user:password@host/studies
    python examples/distributed.py --serve 13000 --storage postgresql+psycopg://...    Optuna's proxy before a database
    python examples/distributed.py --storage grpc://host:13000            through that proxy
    python examples/distributed.py --join                                 one worker, for SLURM, Kubernetes or a shell

The storage may also come from the environment variable PLAYBOOK_STORAGE, which keeps a password out of the list of
processes. Workers may be killed and started again at any moment, and so may this program: it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from playbook_plugins.analysis import Curve, InfeasibleError, TrialRecord
from playbook_plugins.optuna import Round, trials_from_study
from playbook_plugins.optuna.recovery import WORKER_KEY
from playbook_plugins.report import write_report

STUDY = "distributed"
N_STEPS = 300


def train(config: dict[str, Any], _: optuna.Trial) -> TrialRecord:
    """Train a linear classifier of 20 noisy inputs; replace it by your own training."""
    chance = np.random.default_rng(0)
    inputs = chance.normal(size=(2000, 20))
    targets = (inputs[:, :5].sum(axis=1) + chance.normal(size=2000) > 0).astype(float)
    weights = velocity = np.zeros(20)
    steps, errors = [], []
    for step in range(N_STEPS + 1):
        if step % 20 == 0:
            steps.append(step)
            errors.append(float(np.mean((inputs[1000:] @ weights > 0) != targets[1000:])))
        batch = chance.integers(1000, size=64)
        with np.errstate(over="ignore"):
            output = 1.0 / (1.0 + np.exp(-inputs[batch] @ weights))
        gradient = inputs[batch].T @ (output - targets[batch]) / 64 + config["weight_decay"] * weights
        velocity = config["momentum"] * velocity - config["learning_rate"] * gradient
        weights = weights + velocity
        if np.abs(weights).max() > 1e2:
            raise InfeasibleError(f"the weights grow beyond bounds at step {step}")
    return TrialRecord(
        direction="minimize",
        curve=Curve.from_columns(steps, errors),
        objective_name="validation error",
        max_steps=N_STEPS,
    )


def make_round(n_trials: int) -> Round:
    """Return the round that all workers carry out; replace it by your own."""
    return Round(
        "Does momentum help a linear classifier?",
        scientific={"momentum": [0.0, 0.9]},
        nuisance={"learning_rate": FloatDistribution(1e-3, 1e2, log=True)},
        fixed={"weight_decay": 1e-4},
        n_trials=n_trials,
        seed=0,
    )


def open_storage(place: str) -> BaseStorage:
    """Open a database (a URL), a proxy (grpc://host:port), or a journal file (a path)."""
    if place.startswith("grpc://"):
        host, _, port = place.removeprefix("grpc://").partition(":")
        proxy = optuna.storages.GrpcStorageProxy(host=host, port=int(port or 13000))
        proxy.wait_server_ready(timeout=60)
        return proxy
    if "://" in place:
        # Workers on SQLite wait for each other.
        waits = {"connect_args": {"timeout": 60}} if place.startswith("sqlite") else {}
        # A worker on another machine is known to be dead by its missing heartbeat only.
        return RDBStorage(place, engine_kwargs=waits, heartbeat_interval=60, grace_period=180)
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(place))


def serve(place: str, host: str, port: int) -> None:
    """Run Optuna's gRPC proxy before a storage until it is interrupted."""
    print(f"Serving the storage at grpc://{host}:{port} to whoever reaches it. Interrupt to end.", flush=True)
    optuna.storages.run_grpc_proxy_server(open_storage(place), host=host, port=port)


def join(place: str, older_than: datetime.timedelta | None) -> None:
    """Be one worker: run trials until the round has all of its own, those of workers that died included."""
    study = Round.load_study(study_name=STUDY, storage=open_storage(place))
    design = Round.from_study(study)
    design.optimize(study, train, older_than=older_than)


def start_workers(place: str, n_workers: int) -> int:
    """Start workers on this machine, wait for them, and return how many failed."""
    environment = {**os.environ, "PLAYBOOK_STORAGE": place, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--join"]
    workers = [subprocess.Popen(command, env=environment) for _ in range(n_workers)]
    return sum(worker.wait() != 0 for worker in workers)


def print_outcome(study: optuna.Study, n_trials: int, page: Path) -> None:
    """Print what all workers have done so far, and write the page."""
    trials = trials_from_study(study)
    shares = Counter(
        str(trial.user_attrs[WORKER_KEY]["process"])
        for trial in study.get_trials(deepcopy=False)
        if WORKER_KEY in trial.user_attrs
    )
    print(f"{int(trials.is_judged.sum())} of {n_trials} trials finished, {int(trials.is_infeasible.sum())} infeasible")
    print(f"by {len(shares)} processes: {', '.join(map(str, shares.values()))} trials each")
    ranking = trials.ranking()
    if len(ranking):
        best = int(ranking[0])
        print(f"best: trial {trials.number[best]}, {trials.config(best)}, {trials.objective[best]:.4g}")
        page.parent.mkdir(parents=True, exist_ok=True)
        print(f"report: {write_report(trials, page)}")


def main() -> None:
    """Start what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4, help="processes on this machine; 0 makes the study only")
    parser.add_argument("--trials", type=int, default=32, help="trials of the whole round")
    parser.add_argument("--storage", default=os.environ.get("PLAYBOOK_STORAGE", f"runs/{STUDY}.journal"))
    parser.add_argument("--report", type=Path, default=Path(f"runs/{STUDY}.html"))
    parser.add_argument("--join", action="store_true", help="be one worker of a study that was made before")
    parser.add_argument(
        "--older-than",
        type=float,
        metavar="MINUTES",
        help="with --join: do trials again that have run for longer (a journal and the proxy have no heartbeat)",
    )
    parser.add_argument("--serve", type=int, metavar="PORT", help="run Optuna's gRPC proxy before the storage")
    parser.add_argument("--host", default="127.0.0.1", help="where the proxy listens; 0.0.0.0 for other machines")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # The heartbeat and the proxy are experimental in Optuna.
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    if options.serve is not None:
        serve(options.storage, options.host, options.serve)
        return
    if options.join:
        limit = None if options.older_than is None else datetime.timedelta(minutes=options.older_than)
        join(options.storage, limit)
        return
    begun = time.perf_counter()
    study = make_round(options.trials).create_study(
        study_name=STUDY, storage=open_storage(options.storage), load_if_exists=True
    )
    n_failed = start_workers(options.storage, options.workers)
    print(f"{options.workers} workers ended after {time.perf_counter() - begun:.1f} s")
    print_outcome(study, options.trials, options.report)
    if n_failed:
        sys.exit(f"{n_failed} of {options.workers} workers failed: see above. Start this again to go on.")


if __name__ == "__main__":
    main()
