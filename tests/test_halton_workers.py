from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from search_toys import UNIT
from search_workers import count_queries, run_workers, sequential_params, statements, two

from playbook_plugins.optuna.halton import HaltonSequence
from playbook_plugins.optuna.sampler import HaltonSampler


def points(seed: int, count: int, n_dimensions: int) -> list[list[float]]:
    found: list[list[float]] = HaltonSequence(seed).points(range(count), range(n_dimensions)).tolist()
    return found


def params(study: optuna.Study, *names: str) -> list[list[Any]]:
    return [[trial.params[name] for name in names] for trial in study.trials]


def work_in_parallel(
    tmp_path: Path, kind: str, space: str, *, n_trials: int = 50, seconds: float = 0.0
) -> optuna.Study:
    storage: BaseStorage
    if kind == "sqlite":
        place = f"sqlite:///{tmp_path / 'study.db'}"
        storage = RDBStorage(place)
    else:
        place = str(tmp_path / "study.log")
        storage = JournalStorage(JournalFileBackend(place))
    study = optuna.create_study(study_name="shared", storage=storage)
    run_workers(kind, place, space, n_trials=n_trials, seconds=seconds)
    return study


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.05])
@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_four_processes_draw_exactly_the_sequential_points(tmp_path: Path, kind: str, seconds: float) -> None:
    together = work_in_parallel(tmp_path, kind, "declared", seconds=seconds)
    assert [trial.params for trial in together.trials] == sequential_params(200)
    assert len({json.dumps(trial.params) for trial in together.trials}) == 200


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_four_processes_agree_on_undeclared_names_without_branches(tmp_path: Path, kind: str) -> None:
    study = work_in_parallel(tmp_path, kind, "plain", n_trials=50)
    assert params(study, "decay", "adam.rate", "adam.beta1", "dropout") == points(4, 200, 4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_undeclared_names_with_branches_never_share_a_dimension_within_a_trial(tmp_path: Path, kind: str) -> None:
    study = work_in_parallel(tmp_path, kind, "branched", n_trials=25)
    assert len(study.trials) == 100
    table = points(4, 100, 12)
    for trial, row in zip(study.trials, table, strict=True):
        units = [trial.params[name] for name in trial.params if name != "optimizer"]
        dimensions = [row.index(unit) for unit in units]
        # The parent's own dimension is known by its value only: some dimension left over must give it.
        parent = {k for k in range(12) if ["adam", "nesterov"][int(2 * row[k])] == trial.params["optimizer"]}
        assert len(set(dimensions)) == len(dimensions)
        assert parent - set(dimensions)


def test_claims_that_workers_make_at_the_same_moment_never_share_a_dimension_within_a_trial() -> None:
    # Two workers, each with its own sampler, meet in every order of their suggestions.
    objectives = (("opt", "a1", "a2", "z"), ("opt", "b1", "z"))
    turns = sorted(set(itertools.permutations([0] * 4 + [1] * 3)))
    table = points(4, 4, 12)
    for order in turns:
        storage = optuna.storages.InMemoryStorage()
        optuna.create_study(study_name="s", storage=storage)
        studies = [optuna.load_study(study_name="s", storage=storage, sampler=HaltonSampler(seed=4)) for _ in range(2)]
        for _ in range(2):
            trials = [study.ask() for study in studies]
            left = [list(objective) for objective in objectives]
            for worker in order:
                trials[worker].suggest_float(left[worker].pop(0), 0, 1)
        for trial, row in zip(studies[0].trials, table, strict=True):
            dimensions = [row.index(value) for value in trial.params.values()]
            assert len(set(dimensions)) == len(dimensions)


def test_a_claim_made_at_the_same_moment_is_heeded_from_the_next_trial_on() -> None:
    study = optuna.create_study(sampler=HaltonSampler(seed=4))
    study.optimize(two, n_trials=1)
    # As another worker does that claimed the first place while this one claimed it for x.
    study.set_user_attr("playbook:dimension:a", 0)
    study.optimize(two, n_trials=3)
    table = points(4, 4, 3)
    assert params(study, "x", "y") == [table[0][:2], *(row[1:] for row in table[1:])]


def test_a_claim_that_comes_to_light_within_a_trial_never_makes_two_names_share_a_dimension() -> None:
    study = optuna.create_study(sampler=HaltonSampler(seed=4))
    study.set_user_attr("playbook:dimension:p", 0)
    study.set_user_attr("playbook:dimension:q", 1)
    trial = study.ask()
    trial.suggest_float("q", 0, 1)
    # Now a comes before p and q, so that p moves to the dimension which q has drawn from.
    study.set_user_attr("playbook:dimension:a", 0)
    trial.suggest_float("new", 0, 1)
    trial.suggest_float("p", 0, 1)
    row = points(4, 1, 8)[0]
    assert [row.index(value) for value in trial.params.values()] == [1, 3, 4]


def test_declared_names_write_the_settings_and_nothing_else(tmp_path: Path) -> None:
    storage = RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    study = optuna.create_study(storage=storage, sampler=HaltonSampler(seed=4, search_space={"x": UNIT, "y": UNIT}))
    study.optimize(two, n_trials=3)
    texts = statements(storage, lambda: study.optimize(two, n_trials=3))
    assert not [text for text in texts if "study_user_attributes" in text or "study_system_attributes" in text]


def test_an_ask_takes_no_more_queries_than_a_random_samplers(tmp_path: Path) -> None:
    counts = count_queries(f"sqlite:///{tmp_path / 'study.db'}")
    assert counts["ours"][3:] == counts["random"][3:]
