"""How long does the page of a study take, and how large is it? Beside three of Optuna's plots of the same study.

Run it with ``python tests/benchmarks/bench_report.py``; it takes about two minutes on one core. Each of Optuna's
plots is written as one HTML file that carries its library, as the page does.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
from bench_review import study
from claims import claim
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, create_trial

from playbook_plugins.analysis import Trials
from playbook_plugins.report import write_report


def as_study(trials: Trials) -> optuna.Study:
    """Return the same trials in an Optuna study in memory, the feasible ones only."""
    space = {
        parameter.name: FloatDistribution(parameter.low, parameter.high, log=parameter.log)
        if parameter.is_numeric
        else CategoricalDistribution(parameter.choices)
        for parameter in trials.parameters
    }
    frozen: list[FrozenTrial] = [
        create_trial(params=trials.config(row), distributions=space, value=float(trials.objective[row]))
        for row in np.flatnonzero(trials.is_feasible)
    ]
    made = optuna.create_study()
    made.add_trials(frozen)
    return made


def timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    from optuna import visualization

    pages, plots = [], []
    with tempfile.TemporaryDirectory() as folder:
        for n_trials, has_curves in ((1_000, True), (10_000, True), (100_000, False)):
            trials = study(n_trials, has_curves=has_curves)
            path = Path(folder) / "page.html"
            seconds = timed(lambda trials=trials, path=path: write_report(trials, path))
            print(f"{n_trials:>7,} trials{' with curves' if has_curves else '':<12}", end="")
            print(f" page {seconds:6.1f} s {path.stat().st_size / 1e6:5.1f} MB", end="")
            pages.append(f"{seconds:.1f} s, {path.stat().st_size / 1e6:.1f} MB")
            if n_trials <= 10_000:
                peer = as_study(trials)
                total_seconds, total_size = 0.0, 0
                for name in ("slice", "optimization_history", "param_importances"):
                    plot = getattr(visualization, f"plot_{name}")
                    target = Path(folder) / f"{name}.html"
                    seconds = timed(lambda plot=plot, target=target, peer=peer: plot(peer).write_html(target))
                    print(f"   plot_{name} {seconds:6.1f} s {target.stat().st_size / 1e6:5.1f} MB", end="", flush=True)
                    total_seconds += seconds
                    total_size += target.stat().st_size
                plots.append(f"{total_seconds:.1f} s, {total_size / 1e6:.0f} MB")
            print()
    claim("page", "; ".join(pages), f"{'; '.join(plots)}, Optuna's slice, history and importance plots")


if __name__ == "__main__":
    main()
