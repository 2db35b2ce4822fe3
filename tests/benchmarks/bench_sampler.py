"""How fast does the sampler ask, and how evenly do its points cover? Printed beside Optuna's own samplers.

Run it with ``python tests/benchmarks/bench_sampler.py``; it takes about two minutes on one core.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import optuna
from claims import claim, span
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler
from scipy.stats import qmc
from sqlalchemy import event

from playbook_plugins.optuna.halton import HaltonSequence
from playbook_plugins.optuna.sampler import HaltonSampler

N_SEEDS = 20
SAMPLERS: dict[str, Callable[[], BaseSampler]] = {
    "HaltonSampler": lambda: HaltonSampler(seed=0),
    "RandomSampler": lambda: RandomSampler(seed=0),
    "QMCSampler(halton, scramble=True)": lambda: QMCSampler(qmc_type="halton", scramble=True, seed=0),
}


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    print_discrepancies()
    print_scientific()
    print_build_times()
    print_ask_times()
    print_queries()


def print_discrepancies() -> None:
    print("Worst 2-D centred discrepancy over pairs, mean of 20 seeds; random: the value, others: over random's")
    sequences: dict[str, Callable[[int, int, int], NDArray[np.float64]]] = {
        "random": lambda n, d, seed: np.random.default_rng(seed).random((n, d)),
        "ours": lambda n, d, seed: HaltonSequence(seed).points(range(n), range(d)),
        "scipy Halton": lambda n, d, seed: qmc.Halton(d, rng=seed).random(n),
        "scipy Sobol": lambda n, d, seed: qmc.Sobol(d, rng=seed).random(n),
    }
    print(f"{'d':>3} {'n':>4} " + " ".join(f"{name:>13}" for name in sequences))
    ratios: dict[str, list[float]] = {name: [] for name in sequences}
    for d in (4, 8, 16, 32):
        for n in (16, 32, 64, 128):
            means = [
                statistics.mean(worst_pair(draw(n, d, seed)) for seed in range(N_SEEDS)) for draw in sequences.values()
            ]
            row = [means[0], *(mean / means[0] for mean in means[1:])]
            for name, ratio in zip(sequences, row, strict=True):
                ratios[name].append(ratio)
            print(f"{d:>3} {n:>4} " + " ".join(f"{value:>13.3f}" for value in row))
    spans = {name: span(values, ".2f") for name, values in ratios.items()}
    peers = f"SciPy's scrambled Halton {spans['scipy Halton']}, scrambled Sobol {spans['scipy Sobol']}"
    claim("evenness", spans["ours"], peers)


def worst_pair(points: NDArray[np.float64]) -> float:
    """Return the largest square root of scipy's centred discrepancy over the pairs of columns."""
    pairs = itertools.combinations(range(points.shape[1]), 2)
    return math.sqrt(max(qmc.discrepancy(points[:, pair], method="CD") for pair in pairs))


def print_scientific() -> None:
    print("\n1-D centred discrepancy of a nuisance within a scientific value, worst of 5 values, 30 trials, 20 seeds")
    values = list("abcde")
    means = []
    for name, make in {
        "HaltonSampler": lambda seed: HaltonSampler(seed=seed, scientific={"s": values}),
        "QMCSampler(sobol, scramble=True)": lambda seed: QMCSampler(scramble=True, seed=seed),
    }.items():
        worst = []
        for seed in range(N_SEEDS):
            study = optuna.create_study(sampler=make(seed))
            study.optimize(lambda t: (t.suggest_categorical("s", values), t.suggest_float("x", 0, 1))[1], n_trials=30)
            columns = [[[t.params["x"]] for t in study.trials if t.params["s"] == value] for value in values]
            worst.append(max(math.sqrt(qmc.discrepancy(column, method="CD")) for column in columns if column))
        means.append(f"{statistics.mean(worst):.3f}")
        print(f"  {name:<36} {means[-1]}")
    claim("scientific", means[0], f"{means[1]}, Optuna's QMCSampler (Sobol, scrambled)")


def print_build_times() -> None:
    print("\nBuilding the sequence, fastest of 3")
    for d in (8, 32, 200):
        times = []
        for seed in range(3):
            start = time.perf_counter()
            HaltonSequence(seed).points([0], range(d))
            times.append(time.perf_counter() - start)
        print(f"  {d:>3} dimensions: {min(times):.3f} s")


def print_ask_times(n_trials: int = 10_000) -> None:
    print(f"\nMedian ask (with all suggestions) in memory after {n_trials} trials")
    for d in (4, 20, 50):
        space = {f"x{k}": FloatDistribution(0, 1) for k in range(d)}
        medians = {}
        for name, make in SAMPLERS.items():
            study = optuna.create_study(sampler=make())
            point = {key: 0.5 for key in space}
            trial = optuna.create_trial(params=point, distributions=space, value=0.0)
            for _ in range(n_trials):
                study._storage.create_new_trial(study._study_id, template_trial=trial)
            study.tell(study.ask(space), 0.0)
            # QMCSampler counts its points here; in a study that it has sampled itself the count is that of the trials.
            for key in study._storage.get_study_system_attrs(study._study_id):
                study._storage.set_study_system_attr(study._study_id, key, n_trials)
            times = []
            for _ in range(40):
                start = time.perf_counter()
                asked = study.ask(space)
                times.append(time.perf_counter() - start)
                study.tell(asked, 0.0)
            medians[name] = statistics.median(times[5:])
        ours = medians["HaltonSampler"]
        for name, median in medians.items():
            print(f"  d = {d:>2} {name:<36} {1e3 * median:8.3f} ms   ours / this: {ours / median:.3f}")
        if d == 20:
            words = [f"{1e3 * median:.2g} ms" for median in medians.values()]
            claim("ask", words[0], f"{words[1]}, RandomSampler; {words[2]}, QMCSampler (Halton, scrambled)")


def print_queries() -> None:
    print("\nSQL statements for one ask of 4 hyperparameters, tenth trial, SQLite")
    space = {f"x{k}": FloatDistribution(0, 1) for k in range(4)}
    for name, make in SAMPLERS.items():
        storage = optuna.storages.RDBStorage("sqlite://")
        study = optuna.create_study(sampler=make(), storage=storage)
        for _ in range(9):
            study.tell(study.ask(space), 0.0)
        statements: list[str] = []
        event.listen(storage.engine, "before_cursor_execute", lambda *args, to=statements: to.append(args[2]))
        study.ask(space)
        print(f"  {name:<36} {len(statements)}")


if __name__ == "__main__":
    main()
