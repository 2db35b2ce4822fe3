from __future__ import annotations

import collections
import concurrent.futures
import copy
import itertools
import json
import math
import pickle
import re
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import HyperbandPruner
from optuna.samplers import BaseSampler, PartialFixedSampler, QMCSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)
from optuna.trial import Trial, TrialState
from scipy.stats import qmc
from search_toys import BRANCHES, UNIT

from playbook_plugins.optuna.halton import HaltonSequence
from playbook_plugins.optuna.indices import FAR_INDEX
from playbook_plugins.optuna.sampler import HaltonSampler


def refused(message: str) -> Any:
    """Expect a ValueError with exactly this message."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


class TestConformance(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    """Optuna's own tests for samplers."""

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: HaltonSampler(seed=0)


class TestConformanceDeclared(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    """The same with names declared and one of them scientific elsewhere."""

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: HaltonSampler(seed=0, search_space={"x": UNIT, "y": UNIT})


def two(trial: Trial) -> float:
    return trial.suggest_float("x", 0, 1) + trial.suggest_float("y", 0, 1)


def branched(trial: Trial) -> float:
    trial.suggest_float("decay", 0, 1)
    optimizer = trial.suggest_categorical("optimizer", ["adam", "nesterov"])
    trial.suggest_float(f"{optimizer}.rate", 0, 1)
    if optimizer == "adam":
        trial.suggest_float("adam.beta1", 0, 1)
    return trial.suggest_float("dropout", 0, 1)


def points(seed: int, count: int, n_dimensions: int) -> list[list[float]]:
    found: list[list[float]] = HaltonSequence(seed).points(range(count), range(n_dimensions)).tolist()
    return found


def params(study: optuna.Study, *names: str) -> list[list[Any]]:
    return [[trial.params[name] for name in names] for trial in study.trials]


# The sequence


def test_every_trial_takes_its_point_the_first_one_too() -> None:
    study = optuna.create_study(sampler=HaltonSampler(seed=4, search_space={"x": UNIT, "y": UNIT}))
    study.optimize(two, n_trials=20)
    assert params(study, "x", "y") == points(4, 20, 2)


def test_undeclared_names_take_dimensions_in_the_order_of_first_suggestion() -> None:
    study = optuna.create_study(sampler=HaltonSampler(seed=4))
    study.optimize(two, n_trials=20)
    assert params(study, "x", "y") == points(4, 20, 2)
    assert study.user_attrs["playbook:dimension:x"] == 0
    assert study.user_attrs["playbook:dimension:y"] == 1


def test_declared_order_counts_not_the_order_of_suggestion() -> None:
    study = optuna.create_study(sampler=HaltonSampler(seed=4, search_space={"y": UNIT, "x": UNIT}))
    study.optimize(two, n_trials=20)
    assert params(study, "y", "x") == points(4, 20, 2)


def test_undeclared_names_follow_the_declared_ones() -> None:
    study = optuna.create_study(sampler=HaltonSampler(seed=4, search_space={"y": UNIT}))
    study.optimize(two, n_trials=5)
    assert params(study, "y", "x") == points(4, 5, 2)


def test_branches_share_dimensions_and_the_parent_has_one() -> None:
    study = optuna.create_study(sampler=HaltonSampler(seed=4, search_space=BRANCHES))
    study.optimize(branched, n_trials=40)
    seen = set()
    for trial, (decay, optimizer, rate, beta1, dropout) in zip(study.trials, points(4, 40, 5), strict=True):
        chosen = ["adam", "nesterov"][int(2 * optimizer)]
        expected = {"decay": decay, "optimizer": chosen, f"{chosen}.rate": rate, "dropout": dropout}
        if chosen == "adam":
            expected["adam.beta1"] = beta1
        assert trial.params == expected
        seen.add(chosen)
    assert seen == {"adam", "nesterov"}


def test_seeds_change_the_points() -> None:
    draws = []
    for seed in (0, 1):
        study = optuna.create_study(sampler=HaltonSampler(seed=seed))
        study.optimize(two, n_trials=5)
        draws.append(params(study, "x"))
    assert all(one != other for one, other in zip(*draws, strict=True))


def test_without_a_seed_the_name_of_the_study_decides() -> None:
    drawn = {}
    for name, sampler in itertools.product(("one", "two"), (HaltonSampler(), HaltonSampler())):
        study = optuna.create_study(study_name=name, sampler=sampler)
        study.optimize(two, n_trials=3)
        drawn.setdefault(name, []).append(params(study, "x", "y"))
    assert drawn["one"][0] == drawn["one"][1]
    assert drawn["two"][0] == drawn["two"][1]
    assert drawn["one"][0] != drawn["two"][0]


def test_reseeding_leaves_the_sequence_alone() -> None:
    sampler = HaltonSampler(seed=4)
    study = optuna.create_study(sampler=sampler)
    for _ in range(6):
        sampler.reseed_rng()
        study.optimize(two, n_trials=1)
    assert params(study, "x", "y") == points(4, 6, 2)


def test_threads_draw_the_sequence() -> None:
    study = optuna.create_study(sampler=HaltonSampler(seed=4))
    study.optimize(two, n_trials=60, n_jobs=4)
    assert params(study, "x", "y") == points(4, 60, 2)


def test_threads_that_ask_at_the_same_moment_draw_the_sequence() -> None:
    study = optuna.create_study(sampler=HaltonSampler(seed=4, search_space=BRANCHES))
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        for _ in range(20):
            trial = study.ask()
            study.tell(trial, branched(trial))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for job in [pool.submit(work) for _ in range(4)]:
            job.result()
    assert params(study, "decay", "dropout") == [[row[0], row[4]] for row in points(4, 80, 5)]


def test_ask_and_tell_draws_the_sequence_in_any_order() -> None:
    study = optuna.create_study(sampler=HaltonSampler(seed=4))
    asked = [study.ask({"x": UNIT, "y": UNIT}) for _ in range(5)]
    for trial in reversed(asked):
        study.tell(trial, 0.0)
    late = [study.ask() for _ in range(3)]
    for trial in reversed(late):
        two(trial)
    assert params(study, "x", "y") == points(4, 8, 2)


def test_a_pickled_sampler_goes_on_with_the_sequence() -> None:
    sampler = HaltonSampler(seed=4)
    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial({"x": 0.5})
    study.optimize(two, n_trials=6)
    for clone in (pickle.loads(pickle.dumps(sampler)), copy.deepcopy(sampler)):
        study.sampler = clone
        study.optimize(two, n_trials=5)
    assert params(study, "x", "y")[1:] == points(4, 15, 2)


def test_a_sampler_may_serve_several_studies_at_once() -> None:
    sampler = HaltonSampler(seed=4)
    storage = optuna.storages.InMemoryStorage()
    studies = [optuna.create_study(sampler=sampler, storage=storage) for _ in range(2)]
    studies.append(optuna.create_study(sampler=sampler))
    studies[1].enqueue_trial({"x": 0.25})
    for _ in range(8):
        for study in studies:
            study.optimize(two, n_trials=1)
    assert params(studies[0], "x", "y") == params(studies[2], "x", "y") == points(4, 8, 2)
    assert params(studies[1], "x", "y")[1:] == points(4, 7, 2)


def test_a_new_study_in_the_place_of_a_deleted_one_begins_anew() -> None:
    storage = optuna.storages.get_storage("sqlite://")
    sampler = HaltonSampler(seed=4)
    for enqueued in (3, 0):
        study = optuna.create_study(study_name="same", sampler=sampler, storage=storage)
        for _ in range(enqueued):
            study.enqueue_trial({"x": 0.5})
        study.optimize(two, n_trials=8)
        assert params(study, "x", "y")[enqueued:] == points(4, 8 - enqueued, 2)
        optuna.delete_study(study_name="same", storage=storage)


def test_under_a_partial_fixed_sampler_the_free_names_draw_the_sequence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = PartialFixedSampler({"x": 0.5}, HaltonSampler(seed=4))
    study = optuna.create_study(sampler=sampler)
    study.optimize(two, n_trials=6)
    # A fixed name keeps its place in the order, so that freeing it later changes nothing for the others.
    assert params(study, "y") == [[row[1]] for row in points(4, 6, 2)]
    study.sampler = HaltonSampler(seed=4)
    study.optimize(two, n_trials=6)
    assert params(study, "x", "y")[6:] == points(4, 12, 2)[6:]


def test_hyperbands_filtered_study_draws_the_sequence() -> None:
    def objective(trial: Trial) -> float:
        value = two(trial)
        for step in range(9):
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study = optuna.create_study(sampler=HaltonSampler(seed=4), pruner=HyperbandPruner(max_resource=9))
    study.enqueue_trial({"x": 0.5})
    study.optimize(objective, n_trials=31)
    assert params(study, "x", "y")[1:] == points(4, 30, 2)


def test_multi_objective_studies_draw_the_sequence() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=HaltonSampler(seed=4))
    study.optimize(lambda trial: (two(trial), 1.0), n_trials=6)
    assert params(study, "x", "y") == points(4, 6, 2)


def test_a_widened_range_is_covered() -> None:
    sampler = HaltonSampler(seed=4, search_space={"x": UNIT})
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=8)
    study.optimize(lambda trial: trial.suggest_float("x", -4, 4), n_trials=8)
    expected = [row[0] for row in points(4, 16, 1)]
    found = [trial.params["x"] for trial in study.trials]
    assert found == pytest.approx([*expected[:8], *(8 * unit - 4 for unit in expected[8:])])


# Foreign trials


def test_enqueued_trials_take_no_point() -> None:
    study = optuna.create_study(sampler=HaltonSampler(seed=4))
    study.enqueue_trial({"x": 0.25, "y": 0.5})
    study.optimize(two, n_trials=4)
    study.enqueue_trial({"x": 0.5})
    study.optimize(two, n_trials=4)
    found = params(study, "x", "y")
    far = HaltonSequence(4).points([FAR_INDEX + 4], [1])[0, 0]
    assert found[0] == [0.25, 0.5]
    assert found[4] == [0.5, far]
    assert found[1:4] + found[5:] == points(4, 6, 2)


def test_the_far_part_does_not_repeat_the_near_one() -> None:
    near = HaltonSequence(4).points(range(1000), range(4))
    far = HaltonSequence(4).points(range(FAR_INDEX, FAR_INDEX + 50), range(4))
    # In no dimension: a round number would end in zeros in some base, and so repeat that coordinate of a near point.
    assert np.abs(near[:, np.newaxis] - far).min() > 1e-9


@pytest.mark.parametrize("suggested", [0, 1, 2])
def test_a_retried_trial_takes_exactly_the_point_of_the_lost_one(suggested: int) -> None:
    retry = _retry_callback()
    study = optuna.create_study(sampler=HaltonSampler(seed=4))
    study.optimize(two, n_trials=3)
    lost = study.ask()
    for name in ("x", "y")[:suggested]:
        lost.suggest_float(name, 0, 1)
    study.optimize(two, n_trials=2)
    study.tell(lost, state=TrialState.FAIL)
    retry(study, study.trials[lost.number])
    study.optimize(two, n_trials=2)
    found = params(study, *("x", "y")[:suggested])
    assert found[lost.number] == found[6]
    complete = [[trial.params["x"], trial.params["y"]] for trial in study.trials if trial.state is TrialState.COMPLETE]
    assert sorted(complete) == sorted(points(4, 7, 2))
    assert [HaltonSampler(seed=4).index(study, trial) for trial in study.trials] == [0, 1, 2, 3, 4, 5, 3, 6]


def test_a_retried_enqueued_trial_draws_its_free_names_again_from_the_same_point() -> None:
    study = optuna.create_study(sampler=HaltonSampler(seed=4, search_space={"x": UNIT, "y": UNIT}))
    study.enqueue_trial({"x": 0.5})
    lost = study.ask({"x": UNIT})
    study.tell(lost, state=TrialState.FAIL)
    _retry_callback()(study, study.trials[0])
    study.optimize(two, n_trials=2)
    far = HaltonSequence(4).points([FAR_INDEX], [1])[0, 0]
    assert [trial.params for trial in study.trials[1:]] == [
        {"x": 0.5, "y": far},
        dict(zip(("x", "y"), points(4, 1, 2)[0], strict=True)),
    ]


def test_a_retried_trial_keeps_its_scientific_value() -> None:
    sampler = HaltonSampler(seed=4, scientific={"s": [1, 2, 3]})

    def objective(trial: Trial) -> float:
        return trial.suggest_float("x", 0, 1) + trial.suggest_categorical("s", [1, 2, 3])

    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=2)
    lost = study.ask()
    study.tell(lost, state=TrialState.FAIL)
    _retry_callback()(study, study.trials[2])
    study.optimize(objective, n_trials=1)
    assert sorted(trial.params["s"] for trial in study.trials if trial.params) == [1, 2, 3]


def _retry_callback() -> Callable[[optuna.Study, optuna.trial.FrozenTrial], None]:
    with warnings.catch_warnings():
        # Experimental throughout, and under its old name in optuna 4.8.
        warnings.simplefilter("ignore")
        name = "RetryHeartbeatStaleTrialCallback"
        found = getattr(optuna.storages, name, None) or optuna.storages.RetryFailedTrialCallback
        callback: Callable[[optuna.Study, optuna.trial.FrozenTrial], None] = found()
        return callback


def test_index_tells_the_index_without_a_write() -> None:
    sampler = HaltonSampler(seed=4)
    study = optuna.create_study()
    study.enqueue_trial({"x": 0.5})
    asked = [study.ask() for _ in range(3)]
    assert [sampler.index(study, trial) for trial in asked] == [None, 0, 1]
    assert [sampler.index(study, trial) for trial in study.trials] == [None, 0, 1]
    assert study.user_attrs == {}


# Scientific hyperparameters


def scientific_study(n_trials: int, *, nuisance_first: bool = False, seed: int = 4, **more: Any) -> optuna.Study:
    sampler = HaltonSampler(seed=seed, scientific={"s": list("abc"), "width": [16, 32]}, **more)

    def objective(trial: Trial) -> float:
        if nuisance_first:
            trial.suggest_float("x", 0, 1)
        trial.suggest_categorical("s", list("abcd"))
        trial.suggest_int("width", 16, 64, step=16)
        return two(trial)

    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=n_trials)
    return study


def test_scientific_combinations_are_even_at_any_count() -> None:
    study = scientific_study(40)
    counts: collections.Counter[tuple[str, int]] = collections.Counter()
    for trial in study.trials:
        counts[trial.params["s"], trial.params["width"]] += 1
        seen = [counts[combination] for combination in itertools.product("abc", (16, 32))]
        assert max(seen) - min(seen) <= 1
    assert sum(counts.values()) == 40


@pytest.mark.parametrize("nuisance_first", [False, True])
def test_every_combination_faces_the_same_points(nuisance_first: bool) -> None:
    study = scientific_study(24, nuisance_first=nuisance_first)
    faced: dict[tuple[Any, ...], list[list[float]]] = {}
    for trial in study.trials:
        faced.setdefault((trial.params["s"], trial.params["width"]), []).append([trial.params["x"], trial.params["y"]])
    assert len(faced) == 6
    assert all(found == points(4, 4, 2) for found in faced.values())


def test_the_order_within_a_block_is_drawn_by_the_seed() -> None:
    orders = {tuple(tuple(row) for row in params(scientific_study(12, seed=seed), "s", "width")) for seed in range(5)}
    assert len(orders) == 5
    blocks = params(scientific_study(60), "s", "width")
    assert len({tuple(map(tuple, blocks[start : start + 6])) for start in range(0, 60, 6)}) > 5


def test_branches_of_a_scientific_parent_face_the_same_coordinates() -> None:
    sampler = HaltonSampler(seed=4, search_space=BRANCHES, scientific={"optimizer": ["adam", "nesterov"]})
    study = optuna.create_study(sampler=sampler)
    study.optimize(branched, n_trials=20)
    for block, (decay, rate, beta1, dropout) in enumerate(points(4, 10, 4)):
        pair = study.trials[2 * block : 2 * block + 2]
        found = {trial.params["optimizer"]: trial.params for trial in pair}
        assert found["adam"] == {
            "optimizer": "adam",
            "decay": decay,
            "adam.rate": rate,
            "adam.beta1": beta1,
            "dropout": dropout,
        }
        assert found["nesterov"] == {"optimizer": "nesterov", "decay": decay, "nesterov.rate": rate, "dropout": dropout}


def test_a_nuisance_covers_better_within_each_scientific_value_than_under_optunas_sampler() -> None:
    def worst(sampler: BaseSampler) -> float:
        study = optuna.create_study(sampler=sampler)
        study.optimize(
            lambda trial: (trial.suggest_categorical("s", list("abcde")), trial.suggest_float("x", 0, 1))[1],
            n_trials=30,
        )
        columns = [[[trial.params["x"]] for trial in study.trials if trial.params["s"] == value] for value in "abcde"]
        return max(math.sqrt(qmc.discrepancy(column, method="CD")) for column in columns if column)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = [worst(HaltonSampler(seed=seed, scientific={"s": list("abcde")})) for seed in range(20)]
        theirs = [worst(QMCSampler(scramble=True, seed=seed)) for seed in range(20)]
    assert np.mean(ours) <= 0.6 * np.mean(theirs)


@pytest.mark.parametrize(
    ("values", "suggest"),
    [
        ([True, False], lambda trial: trial.suggest_categorical("s", [False, True])),
        ([1, 4], lambda trial: trial.suggest_int("s", 1, 4, log=True)),
        ([0.0, 0.3], lambda trial: trial.suggest_float("s", 0.0, 0.3, step=0.1)),
        ([None, "a"], lambda trial: trial.suggest_categorical("s", ["a", None])),
    ],
)
def test_scientific_values_come_in_their_own_type(values: list[Any], suggest: Callable[[Trial], Any]) -> None:
    study = optuna.create_study(sampler=HaltonSampler(seed=4, scientific={"s": values}))
    study.optimize(lambda trial: 0.0 if suggest(trial) in values else 1.0, n_trials=4)
    found = [trial.params["s"] for trial in study.trials]
    assert collections.Counter(map(repr, found)) == {repr(value): 2 for value in values}


@pytest.mark.parametrize(
    ("distribution", "missing"),
    [
        (CategoricalDistribution(("adam", "sgd")), "['nesterov']"),
        (CategoricalDistribution((True, 2)), "['adam', 'nesterov']"),
        (FloatDistribution(0, 1), "['adam', 'nesterov']"),
    ],
)
def test_a_suggestion_that_lacks_a_scientific_value_is_refused(distribution: BaseDistribution, missing: str) -> None:
    study = optuna.create_study(sampler=HaltonSampler(scientific={"s": ["adam", "nesterov"]}))
    with refused(
        f"`scientific` gives 's' the values ['adam', 'nesterov'], but the objective suggests it from {distribution!r}, "
        f"which lacks {missing}: every scientific value must be one of the values suggested. Suggest it with "
        "trial.suggest_categorical('s', ['adam', 'nesterov'])."
    ):
        study.ask({"s": distribution})


@pytest.mark.parametrize(
    ("values", "distribution"),
    [
        ([0.0, 0.5], FloatDistribution(0, 1)),
        ([0.0, 0.25], FloatDistribution(0, 1, step=0.1)),
        ([1, 4], IntDistribution(1, 5, step=2)),
        ([1, 6], IntDistribution(1, 5)),
        ([1.5], IntDistribution(1, 5)),
        ([1], CategoricalDistribution((True, 2))),
    ],
)
def test_numbers_that_a_suggestion_does_not_contain_are_refused(
    values: list[Any], distribution: BaseDistribution
) -> None:
    study = optuna.create_study(sampler=HaltonSampler(scientific={"s": values}))
    with pytest.raises(ValueError, match="every scientific value must be one of the values suggested"):
        study.ask({"s": distribution})


def test_a_scientific_name_that_is_never_suggested_is_told() -> None:
    study = optuna.create_study(sampler=HaltonSampler(scientific={"optimiser": ["adam", "sgd"]}))
    message = (
        "`scientific` names ['optimiser'], but trial 0 suggested none of them: its nuisance hyperparameters repeat "
        "the point of other trials. Suggest them in the objective, or leave them out of `scientific`."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        study.optimize(two, n_trials=1)


# The settings


def test_the_settings_are_kept_with_the_study_and_written_once() -> None:
    study = optuna.create_study(sampler=HaltonSampler(seed=4, search_space=BRANCHES, scientific={"s": [1, 2]}))

    def objective(trial: Trial) -> float:
        trial.suggest_categorical("s", [1, 2])
        return branched(trial)

    study.optimize(objective, n_trials=3)
    assert study.user_attrs == {
        "playbook:sampler": {
            "algorithm": "greedy scrambled Halton",
            "version": 1,
            "seed": 4,
            "dimensions": {
                "decay": 0,
                "optimizer": 1,
                "adam.rate": 2,
                "adam.beta1": 3,
                "nesterov.rate": 2,
                "dropout": 4,
            },
            "scientific": [["s", [1, 2]]],
        }
    }
    json.dumps(study.user_attrs)


def test_the_same_settings_continue_a_study() -> None:
    storage = optuna.storages.InMemoryStorage()
    for _ in range(3):
        sampler = HaltonSampler(seed=4, search_space={"x": UNIT, "y": UNIT})
        study = optuna.create_study(study_name="s", storage=storage, sampler=sampler, load_if_exists=True)
        study.optimize(two, n_trials=5)
    assert params(study, "x", "y") == points(4, 15, 2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"seed": 5},
            "`seed` of HaltonSampler gives the seed 5, but the study 'mine' was begun with 4: all trials of a study "
            "come from one sequence. Pass the `seed` that it was begun with, or begin a new study.",
        ),
        (
            {"search_space": {"y": UNIT, "x": UNIT}},
            "`search_space` of HaltonSampler gives the dimensions {'y': 0, 'x': 1}, but the study 'mine' was begun "
            "with {'x': 0, 'y': 1}: all trials of a study come from one sequence. Pass the `search_space` that it was "
            "begun with, or begin a new study.",
        ),
        (
            {"scientific": {"s": [True, 2]}},
            "`scientific` of HaltonSampler gives the scientific [['s', [True, 2]]], but the study 'mine' was begun "
            "with [['s', [1, 2]]]: all trials of a study come from one sequence. Pass the `scientific` that it was "
            "begun with, or begin a new study.",
        ),
    ],
)
def test_other_settings_do_not_continue_a_study(changed: Mapping[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"seed": 4, "search_space": {"x": UNIT, "y": UNIT}, "scientific": {"s": [1, 2]}}
    study = optuna.create_study(study_name="mine", sampler=HaltonSampler(**settings))
    study.ask()
    study.sampler = HaltonSampler(**(settings | changed))
    with refused(message):
        study.ask()
    # Nobody will run the trial that was refused, and it does not stay RUNNING.
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING, TrialState.FAIL]
    with refused(message):
        study.sampler.check(study)
    assert len(study.trials) == 2


def test_settings_that_another_worker_wrote_at_the_same_moment_are_noticed() -> None:
    study = optuna.create_study(study_name="mine", sampler=HaltonSampler(seed=4))
    study.ask()
    study.set_user_attr("playbook:sampler", study.user_attrs["playbook:sampler"] | {"seed": 9})
    with refused(
        "`seed` of HaltonSampler gives the seed 4, but the study 'mine' was begun with 9: all trials of a study come "
        "from one sequence. Pass the `seed` that it was begun with, or begin a new study."
    ):
        study.ask()


def test_another_version_of_the_sequence_does_not_continue_a_study() -> None:
    study = optuna.create_study(study_name="mine", sampler=HaltonSampler(seed=4))
    study.sampler.check(study)
    study.set_user_attr("playbook:sampler", study.user_attrs["playbook:sampler"] | {"version": 2})
    study.sampler = HaltonSampler(seed=4)
    with refused(
        "`study` 'mine' was begun with version 2 of HaltonSampler, and this one has 1: its further points would not "
        "belong to the same sequence. Continue it with the version of playbook-plugins that began it, or begin a new "
        "study."
    ):
        study.ask()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"seed": -1},
            "`seed` is -1: it must be a whole number, 0 or greater. Pass an int; another one gives another draw.",
        ),
        (
            {"search_space": {"x": (0, 1)}},
            "`search_space` has the entry 'x': (0, 1). An entry leads from a name to an Optuna distribution, or to the "
            "branches of that name as {value: {name: distribution}}. Pass for instance FloatDistribution(1e-5, 1e-1, "
            "log=True).",
        ),
        (
            {"search_space": {"x": {"a": UNIT}}},
            f"`search_space` has the branch 'x' = 'a': {UNIT!r}. A branch leads from names to distributions. Pass {{}} "
            "for a branch without hyperparameters of its own.",
        ),
        (
            {"search_space": {"x": UNIT, "p": {"a": {"x": UNIT}}}},
            "`search_space` names 'x' twice: a hyperparameter has one place in the order of importance, and exclusive "
            "branches may share a name only at the same place. Rename one of them.",
        ),
        (
            {"scientific": {"s": "adam"}},
            "`scientific` gives 's' the values 'adam': they must be a sequence of at least one finite number, string, "
            "boolean or None. Pass for instance ['adam', 'nesterov'].",
        ),
        (
            {"scientific": {"s": [1, 2, 1]}},
            "`scientific` gives 's' the values [1, 2, 1]: a value occurs twice, but every value gets an equal share of "
            "the trials. Name each once.",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with refused(message):
        HaltonSampler(**arguments)


@pytest.mark.parametrize("values", [[], [math.nan], [object()], UNIT, np.arange(3)])
def test_values_that_are_no_finite_list_are_refused(values: Any) -> None:
    with pytest.raises(ValueError, match="they must be a sequence of at least one finite number"):
        HaltonSampler(scientific={"s": values})
