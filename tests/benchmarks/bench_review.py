"""How long does a review take? Of 1,000 trials with curves, and of 100,000 without, check by check.

Run it with ``python tests/benchmarks/bench_review.py``; it takes about half a minute on one core.
"""

from __future__ import annotations

import cProfile
import pstats
import time

import numpy as np
from claims import claim

from playbook_plugins.analysis import Curve, Parameter, Role, Trials, review

N_PARAMETERS = 8
N_EVALUATIONS = 200


def study(n_trials: int, *, has_curves: bool) -> Trials:
    """Return two optimizers on random points, a tenth of them infeasible, best in the middle of every range."""
    generator = np.random.default_rng(0)
    numbers = [
        Parameter(name=f"x{place}", kind="float", low=1e-4, high=1.0, log=True) for place in range(1, N_PARAMETERS)
    ]
    unit = generator.random((n_trials, len(numbers)))
    cost = ((unit - 0.5) ** 2).sum(axis=1) + 0.05 * generator.standard_normal(n_trials)
    cost[generator.random(n_trials) < 0.1] = np.nan
    step = np.arange(N_EVALUATIONS) * 10
    fall = np.exp(-step / 300)
    noise = 0.01 * generator.standard_normal((n_trials if has_curves else 1, N_EVALUATIONS))
    curves = [Curve.from_columns(step, end + fall + row, end + fall) for end, row in zip(cost, noise, strict=False)]
    return Trials.from_columns(
        "benchmark",
        [Parameter(name="optimizer", kind="categorical", choices=("adam", "sgd"), role=Role.SCIENTIFIC), *numbers],
        {"optimizer": np.resize(["adam", "sgd"], n_trials)}
        | {number.name: 10 ** (4 * unit[:, place] - 4) for place, number in enumerate(numbers)},
        cost,
        curves=curves if has_curves else None,
        best_step=np.full(n_trials, 1500),
        max_steps=np.full(n_trials, 1990),
    )


def main() -> None:
    best = []
    for n_trials, has_curves in ((1_000, True), (100_000, False)):
        what = f"{n_trials:,} trials, {N_PARAMETERS} hyperparameters, " + (
            f"curves of {N_EVALUATIONS} evaluations" if has_curves else "no curves"
        )
        seconds = []
        for _ in range(3):
            # A new table: nothing is remembered from the review before.
            trials = study(n_trials, has_curves=has_curves)
            begun = time.perf_counter()
            findings = review(trials, retrain_sd=0.01)
            seconds.append(time.perf_counter() - begun)
        best.append(f"{min(seconds):.1f} s")
        print(f"{what}: {min(seconds):.2f} s ({len(findings)} findings)")
        profile = cProfile.Profile()
        trials = study(n_trials, has_curves=has_curves)
        profile.runcall(review, trials, retrain_sd=0.01)
        times = {
            name: cumulative
            for (_, _, name), (_, _, _, cumulative, _) in pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
            if name.startswith("check_")
        }
        for name, cumulative in sorted(times.items(), key=lambda item: -item[1]):
            print(f"    {name:<28} {cumulative:6.3f} s, profiled")
    claim("review", "; ".join(best))


if __name__ == "__main__":
    main()
