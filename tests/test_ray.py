"""Does Ray Tune's own searcher take the sampler? With the real package, which the default install does not hold."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from search_toys import BRANCHES
from search_workers import branched, sequential_params

from playbook_plugins.optuna.sampler import HaltonSampler

pytestmark = [
    pytest.mark.slow,
    # What Ray says about itself and its own dependencies.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def define_space(trial: Any) -> None:
    # Ray takes the hyperparameters from the trial itself and wants nothing returned.
    branched(trial)


def make_searcher() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("ray", reason="ray is not installed: pip install 'ray[tune]'")
        pytest.importorskip("ray.tune", reason="Ray Tune is not installed: pip install 'ray[tune]'")
        from ray.tune.search.optuna import OptunaSearch
    return OptunaSearch(
        space=define_space, metric="loss", mode="min", sampler=HaltonSampler(seed=4, search_space=BRANCHES)
    )


def test_ray_tunes_searcher_draws_the_sequence_with_trials_that_overlap() -> None:
    searcher = make_searcher()
    configs = []
    for place in range(20):
        configs.append(searcher.suggest(str(place)))
        # Three trials run at once; one of them fails.
        if place >= 3:
            searcher.on_trial_complete(str(place - 3), {"loss": configs[-4]["dropout"]}, error=place == 10)
    assert configs == sequential_params(20)


def test_a_restored_searcher_goes_on_with_the_sequence(tmp_path: Path) -> None:
    searcher = make_searcher()
    for place in range(5):
        searcher.on_trial_complete(str(place), {"loss": searcher.suggest(str(place))["dropout"]})
    searcher.save(str(tmp_path / "searcher"))
    restored = make_searcher()
    restored.restore(str(tmp_path / "searcher"))
    assert [restored.suggest(str(place)) for place in range(5, 12)] == sequential_params(12)[5:]
