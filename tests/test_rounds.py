from __future__ import annotations

import json
import re
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from playbook_plugins.analysis import Curve, InfeasibleError, Role, Status, TrialRecord, Trials
from playbook_plugins.optuna import Baseline, Round, optimizer_space, trials_from_study

RATE = FloatDistribution(1e-4, 1e-1, log=True)
# Rounds here are small, to be quick; `test_too_few_trials_are_warned_of` hears the warning.
pytestmark = pytest.mark.filterwarnings("ignore:`n_trials` is")


def make_round(**changes: Any) -> Round:
    arguments: dict[str, Any] = {
        "goal": "Does adam or nesterov reach the lower error?",
        "scientific": {"optimizer": ["adam", "nesterov"]},
        "nuisance": {"dropout": FloatDistribution(0, 0.5), "depth": IntDistribution(1, 4)},
        "fixed": {"batch_size": 64},
        "conditional": {
            "optimizer": {"adam": optimizer_space("adam", 12), "nesterov": optimizer_space("nesterov", 12)}
        },
        "n_trials": 24,
    }
    return Round(**arguments | changes)


def train(config: dict[str, Any], trial: optuna.Trial) -> TrialRecord:
    curve = Curve.from_columns([0, 10], [1.0, config["dropout"] + config["learning_rate"]])
    return TrialRecord(direction="minimize", curve=curve, max_steps=10)


def test_the_configuration_is_whole_and_plain() -> None:
    design = make_round()
    study = design.create_study()
    configs = {}
    for _ in range(2):
        trial = study.ask()
        config = design.suggest(trial)
        configs[config["optimizer"]] = config
        assert {"optimizer", "dropout", "depth"} < set(trial.params)
        assert f"{config['optimizer']}.learning_rate" in trial.params
    assert set(configs["adam"]) == {"optimizer", "dropout", "depth", "learning_rate", "one_minus_beta1", "batch_size"}
    assert set(configs["nesterov"]) == {
        "optimizer",
        "dropout",
        "depth",
        "learning_rate",
        "one_minus_momentum",
        "batch_size",
    }
    # Both values face the same point of what they share, and the same place of their own ranges.
    assert configs["adam"]["dropout"] == configs["nesterov"]["dropout"]


def test_a_frozen_trial_gives_its_configuration_again() -> None:
    design = make_round()
    study = design.create_study()
    design.optimize(study, train)
    config = design.suggest(study.best_trial)
    assert config["learning_rate"] == study.best_trial.params[f"{config['optimizer']}.learning_rate"]
    assert design.suggest(FixedTrial(study.best_trial.params)) == config


@pytest.mark.parametrize("n_trials", [1, 7, 24])
def test_optimize_runs_the_rounds_trials_once_and_evenly(n_trials: int) -> None:
    design = make_round(n_trials=n_trials)
    study = design.create_study()
    for _ in range(2):
        design.optimize(study, train)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * n_trials
    counts = [sum(trial.params["optimizer"] == value for trial in study.trials) for value in ("adam", "nesterov")]
    assert abs(counts[0] - counts[1]) <= 1


def test_a_longer_round_goes_on_with_the_same_sequence() -> None:
    storage = optuna.storages.InMemoryStorage()
    short = make_round(n_trials=6)
    short.optimize(short.create_study(study_name="s", storage=storage), train)
    long = make_round(n_trials=10, goal="The same question, asked longer.")
    study = long.create_study(study_name="s", storage=storage, load_if_exists=True)
    long.optimize(study, train)
    whole = make_round(n_trials=10)
    reference = whole.create_study(study_name="s")
    whole.optimize(reference, train)
    assert [trial.params for trial in study.trials] == [trial.params for trial in reference.trials]
    assert Round.from_study(study).goal == "The same question, asked longer."


def test_the_seed_changes_the_points() -> None:
    params = []
    for seed in (None, 0, 1, 1):
        design = make_round(seed=seed)
        study = design.create_study(study_name="s")
        design.optimize(study, train)
        params.append([trial.params for trial in study.trials])
    assert params[0] != params[1] != params[2]
    assert params[2] == params[3]


def test_a_round_is_rebuilt_from_its_study() -> None:
    storage = optuna.storages.InMemoryStorage()
    design = make_round(
        seed=3,
        chance_level=0.9,
        nuisance={"dropout": FloatDistribution(0, 0.5), "kind": CategoricalDistribution([1, "a"])},
    )
    design.create_study(study_name="s", storage=storage)
    study = Round.load_study(study_name="s", storage=storage)
    rebuilt = Round.from_study(study)
    assert rebuilt.to_json() == design.to_json()
    assert rebuilt.suggest(study.ask()) == design.suggest(design.create_study(study_name="s").ask())
    json.loads(design.to_json(), parse_constant=pytest.fail)


def test_what_is_wrong_with_a_point_makes_it_infeasible() -> None:
    errors = [
        InfeasibleError("diverged at step 3"),
        MemoryError("no room"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
    ]

    def failing(config: dict[str, Any], trial: optuna.Trial) -> TrialRecord:
        if trial.number < len(errors):
            raise errors[trial.number]
        return train(config, trial)

    for direction, worst in (("minimize", float("inf")), ("maximize", float("-inf"))):
        design = make_round(n_trials=len(errors))
        study = design.create_study(direction=direction)
        design.optimize(study, failing)
        assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * len(errors)
        assert [trial.value for trial in study.trials] == [worst] * len(errors)
        trials = trials_from_study(study)
        assert list(trials.status) == [Status.INFEASIBLE] * len(errors)
        assert trials.reason[0] == "diverged at step 3"
        assert trials.reason[2].startswith("out of memory: CUDA")


def test_an_infeasible_error_can_carry_the_record() -> None:
    def diverging(config: dict[str, Any], trial: optuna.Trial) -> TrialRecord:
        error = InfeasibleError("diverged")
        error.record = TrialRecord(
            direction="minimize",
            curve=Curve.from_columns([0, 5], [0.9, 0.5]),
            status=Status.INFEASIBLE,
            reason="diverged",
        )
        raise error

    design = make_round(n_trials=1)
    study = design.create_study()
    design.optimize(study, diverging)
    [curve] = trials_from_study(study).curves
    assert curve is not None
    assert curve.step.tolist() == [0, 5]


def test_other_exceptions_are_the_users_to_see_and_the_trial_is_done_again() -> None:
    broken = True

    def sometimes(config: dict[str, Any], trial: optuna.Trial) -> TrialRecord:
        if broken and trial.number == 2:
            raise RuntimeError("a bug of mine")
        return train(config, trial)

    design = make_round(n_trials=5)
    study = design.create_study()
    with pytest.raises(RuntimeError, match=r"^a bug of mine$"):
        design.optimize(study, sometimes)
    failed = study.trials[2].params
    assert trials_from_study(study).status.tolist().count(Status.FAILED) == 1
    broken = False
    design.optimize(study, sometimes)
    complete = [trial for trial in study.trials if trial.state is TrialState.COMPLETE]
    assert len(complete) == 5
    assert failed in [trial.params for trial in complete]
    assert list(trials_from_study(study).status) == [Status.COMPLETE] * 5


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_trial_is_done_again_by_the_same_process(interrupt: type[BaseException]) -> None:
    def interrupted(config: dict[str, Any], trial: optuna.Trial) -> TrialRecord:
        if trial.number == 2:
            raise interrupt
        return train(config, trial)

    design = make_round(n_trials=4)
    study = design.create_study()
    with pytest.raises(interrupt):
        design.optimize(study, interrupted)
    assert study.trials[2].state is TrialState.FAIL
    design.optimize(study, interrupted)
    assert list(trials_from_study(study).status) == [Status.COMPLETE] * 4


def test_a_trial_no_better_than_chance_is_infeasible() -> None:
    def chance(config: dict[str, Any], trial: optuna.Trial) -> TrialRecord:
        return TrialRecord(direction="minimize", curve=Curve.from_columns([0, 1], [0.95, 0.9]))

    design = make_round(n_trials=1, chance_level=0.9)
    study = design.create_study()
    design.optimize(study, chance)
    trials = trials_from_study(study)
    assert trials.status[0] is Status.INFEASIBLE
    assert trials.reason[0] == "no better than chance: 0.9 against 0.9"


def test_optimize_stops_where_the_users_callback_says_so() -> None:
    design = make_round(n_trials=10)
    study = design.create_study()

    def stop(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.number == 3:
            study.stop()

    design.optimize(study, train, callbacks=[stop])
    assert len(study.trials) == 4
    design.optimize(study, train, timeout=0)
    assert len(study.trials) == 4


def test_threads_share_a_round() -> None:
    design = make_round(n_trials=24)
    study = design.create_study()
    design.optimize(study, train, n_jobs=3)
    reference = design.create_study(study_name=study.study_name)
    design.optimize(reference, train)
    done = [trial for trial in study.trials if trial.state is TrialState.COMPLETE]
    assert len(done) == 24
    expected = sorted(map(str, (sorted(trial.params.items()) for trial in reference.trials)))
    assert sorted(map(str, (sorted(trial.params.items()) for trial in done))) == expected
    assert len(trials_from_study(study)) == 24


class CountingStorage(InMemoryStorage):
    """Counts how often all trials of a study are read, which over a network is paid for by each that now runs."""

    def __init__(self) -> None:
        super().__init__()
        self.n_reads = 0

    def get_all_trials(self, *arguments: Any, **named: Any) -> list[FrozenTrial]:
        self.n_reads += 1
        return super().get_all_trials(*arguments, **named)


def test_a_trial_of_a_round_reads_the_others_no_oftener_than_one_of_any_study() -> None:
    def n_reads(n_trials: int, design: Round | None = None) -> int:
        storage = CountingStorage()
        if design is None:
            study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler())
            study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=n_trials)
        else:
            study = design.create_study(storage=storage)
            design.optimize(study, train)
            assert len(study.trials) == n_trials
        return storage.n_reads

    plain = n_reads(48) - n_reads(24)
    assert n_reads(48, make_round(n_trials=48)) - n_reads(24, make_round()) == plain == 24


def test_roles_and_caveats_reach_the_table() -> None:
    design = make_round()
    study = design.create_study()
    design.optimize(study, train)
    trials = trials_from_study(study)
    assert trials.parameter("optimizer").role is Role.SCIENTIFIC
    assert trials.parameter("adam.learning_rate").condition == ("optimizer", "adam")
    assert trials.fixed == {"batch_size": 64}
    assert trials.goal == design.goal
    assert trials.caveats == design.caveats
    assert len(design.caveats) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"nuisance": {"optimizer": RATE, "depth": RATE}},
            "`scientific` and `nuisance` both name ['optimizer']: a hyperparameter has one role in a round. Remove it "
            "from one of them.",
        ),
        (
            {"fixed": {"depth": 3}},
            "`nuisance` and `fixed` both name ['depth']: a hyperparameter has one role in a round. Remove it from one "
            "of them.",
        ),
        (
            {"scientific": {}, "nuisance": {}, "conditional": None},
            "`scientific` and `nuisance` are {} and {}: the search space is empty. Give at least one hyperparameter a "
            "distribution.",
        ),
        (
            {"scientific": {"optimizer": []}},
            "`scientific` has 'optimizer' = []: a scientific hyperparameter needs at least one value to compare. Pass "
            "a list of values, or an Optuna distribution.",
        ),
        (
            {"goal": " "},
            "`goal` is ' ': a round needs a goal, because it decides which hyperparameters are scientific. Write the "
            "question that the round answers.",
        ),
        ({"n_trials": 0}, "`n_trials` is 0: a round needs at least 1 trial. Pass a positive number."),
        (
            {"nuisance": {"depth": 3}},
            "`nuisance` has 'depth' = 3: the range of a hyperparameter is an Optuna distribution. Use "
            "optuna.distributions.FloatDistribution, IntDistribution or CategoricalDistribution; constants belong into "
            "`fixed`.",
        ),
        (
            {"conditional": {"dropout": {0.1: {"x": RATE}}}},
            "`conditional` has the parent 'dropout': a parent must be a scientific or nuisance hyperparameter with "
            "finitely many values. Parents here can be ['optimizer', 'depth'].",
        ),
        (
            {"conditional": {"optimizer": {"sgd": {"x": RATE}}}},
            "`conditional` has a branch for optimizer = 'sgd': 'optimizer' has only the values ['adam', 'nesterov']. "
            "Use one of these.",
        ),
        (
            {"conditional": {"optimizer": {"adam": {"depth": RATE}}}},
            "`conditional` has 'depth' in the branch optimizer = 'adam', and the round has an unconditional "
            "hyperparameter of that name: the configuration could hold only one of them. Rename one.",
        ),
        (
            {
                "scientific": {"optimizer": ["adam", "nesterov"], "schedule": ["cosine"]},
                "conditional": {"optimizer": {"adam": {"rate": RATE}}, "schedule": {"cosine": {"rate": RATE}}},
            },
            "`conditional` has 'rate' in branches of 'optimizer' and of 'schedule', which can meet in one trial: the "
            "configuration could hold only one of them. Rename one.",
        ),
        (
            {"fixed": {"shape": {1, 2}}},
            "`fixed` is {'shape': {1, 2}}: its values are kept in the study as JSON, and Object of type set is not "
            "JSON serializable. Use numbers, text, booleans, None, lists and dicts.",
        ),
    ],
)
def test_a_bad_round_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_round(**changes)


def test_another_round_cannot_take_over_a_study() -> None:
    storage = optuna.storages.InMemoryStorage()
    make_round().create_study(study_name="s", storage=storage)
    message = (
        "`study_name` is 's': the round kept in this study differs from this one in ['fixed']. A study holds one "
        "round; only its goal and n_trials may change. Give the changed round a study of its own, or rebuild the kept "
        "one with Round.from_study."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_round(fixed={"batch_size": 32}).create_study(study_name="s", storage=storage, load_if_exists=True)


def test_a_study_that_has_points_of_its_own_is_refused() -> None:
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(study_name="s", storage=storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(ValueError, match=r"^`study_name` is 's': this study has trials, but no round is kept"):
        make_round().create_study(study_name="s", storage=storage, load_if_exists=True)
    with pytest.raises(ValueError, match=r"^`study` 's' has no round kept in it: it was not made by Round"):
        Round.load_study(study_name="s", storage=storage)


def test_another_sampler_is_refused() -> None:
    design = make_round()
    study = design.create_study(study_name="s")
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    message = (
        "`study` 's' runs under RandomSampler: the round's points come from its own HaltonSampler. Make the study with "
        "Round.create_study or Round.load_study, which set it."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        design.optimize(study, train)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        design.suggest(study.ask())


def test_train_must_return_a_record() -> None:
    design = make_round(n_trials=1)
    with pytest.raises(
        TypeError, match=r"^`train` returned 0\.5: it must return a TrialRecord\. Return the `\.record`"
    ):
        design.optimize(design.create_study(), lambda config, trial: 0.5)


@pytest.mark.parametrize("n_trials", [24, 7])
def test_one_study_a_scientific_value_faces_the_same_points(n_trials: int) -> None:
    design = make_round(n_trials=n_trials)
    joint = design.create_study(study_name="s")
    design.optimize(joint, train)
    studies = design.as_studies(study_name="s")
    assert list(studies) == ["optimizer=adam", "optimizer=nesterov"]
    for study in studies.values():
        Round.from_study(study).optimize(study, train)
    assert sum(len(study.trials) for study in studies.values()) == n_trials
    tables = [trials_from_study(study) for study in studies.values()]
    whole, table = trials_from_study(joint), Trials.concat(tables)
    assert {repr(parameter) for parameter in table.parameters} == {repr(parameter) for parameter in whole.parameters}
    assert table.fixed == whole.fixed
    assert len(table) == n_trials

    def configurations(trials: Trials, value: str) -> list[dict[str, Any]]:
        rows = [trials.config(row) for row in range(len(trials))]
        return [config for config in rows if config["optimizer"] == value]

    for value in ("adam", "nesterov"):
        alone, together = configurations(table, value), configurations(whole, value)
        n_both = min(len(alone), len(together))
        assert n_both >= n_trials // 2
        assert alone[:n_both] == together[:n_both]


def test_studies_of_a_round_go_on_where_they_stopped() -> None:
    storage = optuna.storages.InMemoryStorage()
    for _ in range(2):
        for study in make_round().as_studies(study_name="s", storage=storage, load_if_exists=True).values():
            Round.from_study(study).optimize(study, train)
            assert len(study.trials) == 12


@pytest.mark.filterwarnings("error")
def test_too_few_trials_are_warned_of() -> None:
    message = (
        "`n_trials` is 24, 12 for each combination of scientific values, and 4 nuisance hyperparameters are searched: "
        "the playbook's budgets ask for at least 50. Run more trials, or fix a nuisance hyperparameter."
    )
    storage = optuna.storages.InMemoryStorage()
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        make_round().create_study(study_name="s", storage=storage)
    # Said once, when the study is made.
    make_round().create_study(study_name="s", storage=storage, load_if_exists=True)
    make_round(n_trials=100).create_study()


def test_the_baseline_travels_with_the_round() -> None:
    first = Baseline(config={"optimizer": "adam", "learning_rate": 1e-3}, objectives=(0.21, 0.2))
    design = make_round(baseline=first)
    study = design.create_study()
    kept = Round.from_study(study).baseline
    assert kept == first
    second = kept.launch({"optimizer": "nesterov"}, [0.1, 0.11], evidence="five retrains each", complexity="none")
    assert (second.n_launches, second.objectives) == (1, (0.1, 0.11))
    again = make_round(baseline=second)
    assert Round.from_json(again.to_json()).baseline == second
    # Another baseline is no other round.
    storage = optuna.storages.InMemoryStorage()
    design.create_study(study_name="s", storage=storage)
    assert Round.from_study(again.create_study(study_name="s", storage=storage, load_if_exists=True)).baseline == second


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Baseline(config={}).launch({}, evidence=" ", complexity="none"),
            "`evidence` is ' ': a launch replaces the baseline on strong evidence and with its complexity written "
            "down. Say it in a sentence.",
        ),
        (
            lambda: Baseline(config={}, objectives=(0.1, float("nan"))),
            "`objectives` is (0.1, nan): the retrains of a baseline must have finite objectives. Leave out what did "
            "not finish, or keep the baseline before.",
        ),
        (
            lambda: Baseline(config={"shape": {1}}),
            "`config` is {'shape': {1}}: it is kept in the study as JSON, and Object of type set is not JSON "
            "serializable. Use numbers, text, booleans, None, lists and dicts.",
        ),
    ],
)
def test_a_bad_baseline_is_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build()
