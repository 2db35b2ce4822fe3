"""How does Ray Tune draw its configurations from the playbook's quasi-random sequence?

Ray Tune's own searcher for Optuna, `OptunaSearch`, takes a sampler: hand it `HaltonSampler`, and Ray schedules the
trials of the sequence (the playbook's "Why use quasi-random search instead of more sophisticated black box
optimization algorithms during the exploration phase of tuning?"). Here the searcher is asked and answered as Ray's
runner does it, with two trials that overlap, and its configurations are those that a plain Optuna study draws: who
schedules the trials changes nothing. In a real search, pass it to ``tune.Tuner(..., tune_config=tune.TuneConfig(
search_alg=searcher, num_samples=...))``, without metric and mode, which the searcher has already.
"""

from __future__ import annotations

import sys
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution

from playbook_plugins.optuna import HaltonSampler

SPACE = {
    "learning_rate": FloatDistribution(1e-4, 1.0, log=True),
    "one_minus_momentum": FloatDistribution(0.01, 1.0, log=True),
    "activation": CategoricalDistribution(["relu", "tanh"]),
}
N_TRIALS = 8


def define_space(trial: optuna.Trial) -> None:
    """Ask for every hyperparameter; Ray reads them off the trial and wants nothing returned."""
    trial.suggest_float("learning_rate", 1e-4, 1.0, log=True)
    trial.suggest_float("one_minus_momentum", 0.01, 1.0, log=True)
    trial.suggest_categorical("activation", ["relu", "tanh"])


def make_sampler() -> HaltonSampler:
    """Return the sampler; its seed is the draw of the sequence."""
    return HaltonSampler(seed=0, search_space=SPACE)


def draw_with_optuna() -> list[dict[str, Any]]:
    """Return the first configurations of a plain study."""
    study = optuna.create_study(sampler=make_sampler())
    return [study.ask(SPACE).params for _ in range(N_TRIALS)]


def main() -> None:
    """Draw from Ray Tune's searcher and from a plain study, and compare."""
    try:
        from ray.tune.search.optuna import OptunaSearch
    except ImportError:
        sys.exit("Ray Tune is not installed, and this example needs it. Run: pip install 'ray[tune]'")

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searcher = OptunaSearch(space=define_space, metric="loss", mode="min", sampler=make_sampler())
    configs: list[dict[str, Any]] = []
    for place in range(N_TRIALS):
        configs.append(searcher.suggest(str(place)))
        print(f"trial {place}: {configs[-1]}")
        if place:
            # The trial before ends while this one runs.
            searcher.on_trial_complete(str(place - 1), {"loss": configs[-2]["learning_rate"]})
    if configs != draw_with_optuna():
        sys.exit("Ray Tune and a plain study drew different configurations.")
    print("A plain study draws the same configurations.")


if __name__ == "__main__":
    main()
