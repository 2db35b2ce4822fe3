"""What does a search ask of its PostgreSQL server? Trials a second by 16 workers, and what one trial costs the server.

Run it with ``python tests/benchmarks/bench_scale.py``; it takes about five minutes on two cores (``--short``: one). It
needs Debian's package ``postgresql``. The bytes are those that pass between one worker and the server, counted by a
relay between the two; what N workers ask for follows from the length of their trials.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import statistics
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import optuna
from claims import claim
from optuna.trial import TrialState
from sqlalchemy import event

# The helpers of the tests.
sys.path.append(str(Path(__file__).parents[1]))

from postgres import PostgresServer, find_binaries, run_postgres
from scale_worker import SAMPLERS, SPACE, draw_together, make_round, objective, open_storage

from playbook_plugins.analysis import Curve, TrialRecord
from playbook_plugins.optuna import Round
from playbook_plugins.optuna.recovery import WORKER_KEY

N_WORKERS = 16
N_MEASURED = 20


class Relay:
    """Passes bytes between clients on a port of its own and a server, and counts them."""

    def __init__(self, port: int) -> None:
        self.server_port = port
        self.n_bytes = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self.listener.accept()
            server = socket.create_connection(("127.0.0.1", self.server_port))
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.n_bytes += len(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    is_short = "--short" in sys.argv
    binaries = find_binaries()
    if binaries is None:
        raise SystemExit("This benchmark needs a PostgreSQL server: install Debian's package postgresql.")
    with run_postgres(binaries) as server:
        print_costs(server, (0, 100) if is_short else (0, 100, 1000))
        print_speed(server, 160 if is_short else 2000)


def print_speed(server: PostgresServer, n_trials: int) -> None:
    print(f"\n{n_trials} instant trials of 4 hyperparameters by {N_WORKERS} worker processes, PostgreSQL")
    rates, points = {}, {}
    for name in SAMPLERS:
        url = server.create_database()
        with open_storage(url) as storage:
            study = optuna.create_study(study_name="scale", storage=storage)
            seconds = draw_together(url, "scale", name, n_workers=N_WORKERS, n_trials=n_trials)
            points[name] = len({tuple(trial.params.values()) for trial in study.get_trials(deepcopy=False)})
        rates[name] = n_trials / seconds
        print(f"  {name:<16} {rates[name]:7.1f} trials a second, {points[name]} different points")
    claim("speed", *beside({name: f"{rate:.0f}" for name, rate in rates.items()}))
    if n_trials == 2000:
        claim("duplicates", *beside({name: f"{n_points:,}" for name, n_points in points.items()}))


def print_costs(server: PostgresServer, n_running: tuple[int, ...]) -> None:
    print(f"One trial of 4 hyperparameters on PostgreSQL, from ask to tell, once warm: median of {N_MEASURED}")
    print("  'others' are trials that other workers run at the same time; 'Round' is Round.optimize, which also signs")
    print("  each trial, keeps its record and looks for lost ones")
    costs: dict[tuple[str, int], tuple[float, float]] = {}
    for name in (*SAMPLERS, "Round"):
        for n_others in n_running:
            costs[name, n_others] = queries, n_bytes = cost(server, name, n_others)
            print(f"  {name:<16} {n_others:>5} others: {queries:5.0f} queries, {n_bytes / 1000:9.1f} kB")
    words = {
        name: f"{costs[name, 0][0]:.0f} queries, " + ", ".join(kilobytes(costs[name, n][1]) for n in n_running)
        for name in (*SAMPLERS, "Round")
    }
    claim("trial", *beside(words))
    print("\nWhat 10,000 workers ask of the server in a second, by the length of a trial (queries alone)")
    for minutes in (1, 10, 60):
        rates = [f"{name} {1e4 / (60 * minutes) * costs[name, 0][0]:,.0f}" for name in (*SAMPLERS, "Round")]
        print(f"  {minutes:>3} min: " + ", ".join(rates))
    if len(n_running) > 1:
        few, many = n_running[-2:]
        words = {}
        print("\nA worker's share for each other running trial, and so what it reads in one trial among 10,000 (MB)")
        for name in (*SAMPLERS, "Round"):
            slope = (costs[name, many][1] - costs[name, few][1]) / (many - few)
            print(f"  {name:<16} {slope:8.0f} bytes, {slope * 1e4 / 1e6:8.1f} MB")
            words[name] = f"{1e4 / 600 * costs[name, 0][0]:,.0f} queries a second, {slope * 1e4 / 1e6:.0f} MB a trial"
        claim("cluster", *beside(words))


def beside(words: dict[str, str]) -> tuple[str, str]:
    """Return what stands in the two columns of a row: ours, and the other samplers' with their names."""
    ours = [words.pop("HaltonSampler")]
    if "Round" in words:
        ours.append(f"in a Round {words.pop('Round')}")
    return "; ".join(ours), "; ".join(f"{text}, {name}" for name, text in words.items())


def kilobytes(n_bytes: float) -> str:
    return f"{n_bytes / 1000:.0f} kB"


def cost(server: PostgresServer, name: str, n_others: int) -> tuple[float, float]:
    """Return the queries and the bytes of one trial, while others run."""
    url = server.create_database()
    relay = Relay(server.port)
    with open_storage(url) as elsewhere, open_storage(url.replace(f":{server.port}/", f":{relay.port}/")) as storage:
        design = make_round(10_000)
        if name == "Round":
            design.create_study(study_name="scale", storage=elsewhere)
        else:
            optuna.create_study(study_name="scale", storage=elsewhere)
        other = optuna.load_study(study_name="scale", storage=elsewhere)
        point = {name: 0.01 if name == "weight_decay" else 0.5 for name in SPACE}
        for number in range(n_others):
            signature = {WORKER_KEY: {"trial": number, "machine": "another", "process": [number, 0]}}
            other.add_trial(
                optuna.create_trial(state=TrialState.RUNNING, params=point, distributions=SPACE, user_attrs=signature)
            )
        n_queries = 0
        marks: list[tuple[int, int]] = []

        def count(*_: Any) -> None:
            nonlocal n_queries
            n_queries += 1

        def mark(study: optuna.Study, _: optuna.trial.FrozenTrial) -> None:
            marks.append((n_queries, relay.n_bytes))
            if len(marks) > N_MEASURED + 5:
                study.stop()

        event.listen(storage.engine, "before_cursor_execute", count)
        if name == "Round":
            study = Round.load_study(study_name="scale", storage=storage)
            Round.from_study(study).optimize(study, train, callbacks=[mark])
        else:
            study = optuna.load_study(study_name="scale", storage=storage, sampler=SAMPLERS[name]())
            study.optimize(objective, callbacks=[mark])
    costs = [(after[0] - before[0], after[1] - before[1]) for before, after in itertools.pairwise(marks)][5:]
    return statistics.median(queries for queries, _ in costs), statistics.median(size for _, size in costs)


def train(config: dict[str, Any], _: optuna.Trial) -> TrialRecord:
    """Return at once, with a curve of two evaluations."""
    curve = Curve.from_columns([0, 1], [1.0, config["learning_rate"]])
    return TrialRecord(direction="minimize", curve=curve, max_steps=1)


if __name__ == "__main__":
    main()
