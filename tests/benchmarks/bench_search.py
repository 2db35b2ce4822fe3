"""How good is the best of n trials, by sampler? On closed-form objectives, and on the nearest of 512 real trials.

Run it with ``python tests/benchmarks/bench_search.py``; it takes about three minutes on one core. The real trials are
read where they lie, see tests/real_studies.py; without them their rows are left out. Lower is better everywhere: the
mean over 30 seeds of the best objective of n trials, with a 95% interval, and the share of the seeds in which the first
n points of HaltonSampler do better than the peer's.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from claims import claim, span
from numpy.typing import NDArray
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler, TPESampler
from scipy.spatial import KDTree
from scipy.stats import t

from playbook_plugins.optuna import HaltonSampler

sys.path.insert(0, str(Path(__file__).parents[1]))
from real_studies import CONVNEXT, convnext

N_SEEDS = 30
BUDGETS = (16, 32, 64)
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "Halton": lambda seed: HaltonSampler(seed=seed),
    "Random": lambda seed: RandomSampler(seed=seed),
    "QMC": lambda seed: QMCSampler(qmc_type="sobol", scramble=True, seed=seed),
    "TPE": lambda seed: TPESampler(seed=seed),
}
# The peers that are also given twice the budget.
TWICE = ("Random", "QMC", "TPE")
CONVNEXT_NAME = "ConvNeXt, nearest trial"


@dataclass(frozen=True)
class Problem:
    """An objective on the unit cube, to minimize; infinite where a point is infeasible."""

    name: str
    n_dimensions: int
    objective: Callable[[NDArray[np.float64]], float]


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    problems = [
        Problem("two of six matter", 6, lambda x: float(np.sum((x[:2] - (0.37, 0.61)) ** 2) + 0.01 * np.sum(x[2:]))),
        Problem("valley of two", 4, lambda x: float((x[0] + x[1] - 0.9) ** 2 + 0.1 * (x[0] - 0.3) ** 2)),
        Problem("best beside the edge", 4, _edge),
        Problem("Hartmann, six dimensions", 6, _hartmann),
    ]
    if CONVNEXT.exists():
        problems.append(_nearest_real_trial())
    width = max(len(problem.name) for problem in problems)
    columns = (*SAMPLERS, *(f"{name}, 2n" for name in TWICE))
    print(f"{'problem':<{width}} {'n':>3} " + " ".join(f"{name:>17} " for name in columns))
    wins: dict[str, list[float]] = {name: [] for name in columns}
    means: dict[str, str] = {}
    for problem in problems:
        means = print_problem(problem, width, wins)
    spans = {name: span(values, ".0%") for name, values in wins.items()}
    claim(
        "best",
        "; ".join(spans[name] for name in ("Random", "QMC", "Random, 2n", "TPE")),
        "as many random points; as many Sobol points; twice as many random points; TPE, one trial after another",
    )
    if problems[-1].name == CONVNEXT_NAME:
        peers = (
            f"{means['Random']}, RandomSampler; {means['QMC']}, QMCSampler (Sobol); {means['TPE']}, TPESampler; "
            f"{means['Random, 2n']}, twice as many of RandomSampler"
        )
        claim("best, real", means["Halton"], peers)


def print_problem(problem: Problem, width: int, wins: dict[str, list[float]]) -> dict[str, str]:
    """Print one line a budget: the mean best of each sampler, and how often Halton's is the better one.

    Returns the means of the largest budget with their intervals; the shares of the seeds are added to ``wins``.
    """
    # The first n trials of a longer search are a search of n: no sampler here knows its budget.
    best = {
        name: np.array([_search(problem, make(seed)) for seed in range(N_SEEDS)]) for name, make in SAMPLERS.items()
    }
    means: dict[str, str] = {}
    for n_trials in BUDGETS:
        ours = best["Halton"][:, n_trials - 1]
        columns = {name: values[:, n_trials - 1] for name, values in best.items()}
        columns |= {f"{name}, 2n": best[name][:, 2 * n_trials - 1] for name in TWICE}
        cells = []
        for name, values in columns.items():
            half = float(t.ppf(0.975, N_SEEDS - 1)) * values.std(ddof=1) / math.sqrt(N_SEEDS)
            wins[name].append(float(np.mean(ours < values) + np.mean(ours == values) / 2))
            means[name] = f"{values.mean():.3f} ±{half:.3f}"
            share = "" if name == "Halton" else f"{wins[name][-1]:4.0%}"
            cells.append(f"{means[name]} {share:>4}")
        print(f"{problem.name:<{width}} {n_trials:>3} " + " ".join(f"{cell:>18}" for cell in cells))
    return means


def _search(problem: Problem, sampler: BaseSampler) -> NDArray[np.float64]:
    """Return the best objective after each trial, shape (2 max(BUDGETS),)."""
    study = optuna.create_study(sampler=sampler)
    n_trials = 2 * max(BUDGETS)
    names = [f"x{place}" for place in range(problem.n_dimensions)]
    study.optimize(
        lambda trial: problem.objective(np.array([trial.suggest_float(name, 0, 1) for name in names])), n_trials
    )
    return np.minimum.accumulate([trial.value for trial in study.trials])


def _edge(x: NDArray[np.float64]) -> float:
    """Return an objective that improves towards a threshold beyond which training diverges."""
    return math.inf if x[0] > 0.62 + 0.1 * (x[1] - 0.5) else float((0.6 - x[0]) ** 2 + 0.2 * (x[1] - 0.4) ** 2)


_A = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def _hartmann(x: NDArray[np.float64]) -> float:
    """Return the six-dimensional Hartmann function (minimum -3.322)."""
    return float(-np.array([1.0, 1.2, 3.0, 3.2]) @ np.exp(-np.sum(_A * (x - _P) ** 2, axis=1)))


def _nearest_real_trial() -> Problem:
    """Return the error of the real trial whose point is nearest; those that diverged count as an error of 1."""
    trials = convnext()
    points = np.column_stack([trials.unit(parameter.name) for parameter in trials.parameters])
    tree = KDTree(points)
    errors = np.where(trials.is_feasible, 1 - trials.objective, 1.0)
    return Problem(CONVNEXT_NAME, points.shape[1], lambda x: float(errors[tree.query(x)[1]]))


if __name__ == "__main__":
    main()
