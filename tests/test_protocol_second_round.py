"""Are the best short configurations trained for longer at their high rate, and what is said of the others?"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from planted_training import PlantedLength, run_two_workers, survive_kills

from playbook_plugins.analysis import Curve, Finding, InfeasibleError, Parameter, TrialRecord, Trials, Verdict
from playbook_plugins.optuna import Round, trials_from_study
from playbook_plugins.optuna.protocols import ProtocolResult
from playbook_plugins.optuna.schedule_extension import extend_schedule
from playbook_plugins.optuna.schedules import Schedule
from playbook_plugins.optuna.second_round import given_config, second_round
from playbook_plugins.optuna.transfer import TRANSFER, transfer_kind
from playbook_plugins.report import word

FIXED = {"max_train_steps": 1000, "decay_steps": 500, "schedule": "linear"}


def first_round(train: Any = None, n_trials: int = 16, fixed: dict[str, Any] | None = None) -> optuna.Study:
    design = Round(
        "Which learning rate?",
        scientific={},
        nuisance={"learning_rate": FloatDistribution(0.01, 1.0, log=True)},
        fixed=FIXED if fixed is None else fixed,
        n_trials=n_trials,
        seed=0,
    )
    study = design.create_study(study_name="first")
    train = PlantedLength() if train is None else train
    design.optimize(study, lambda config, _: train(config))
    return study


def lengthen(first: Any, train: Any = None, **options: Any) -> ProtocolResult:
    options = {"short_steps": 1000, "long_steps": 5000, "study_name": "s", **options}
    return second_round(PlantedLength() if train is None else train, first, **options)


def found(result: ProtocolResult, check: str, subject: str) -> Finding:
    [finding] = [one for one in result.findings if (one.check, one.subject) == (check, subject)]
    return finding


def test_the_best_configurations_are_trained_for_longer() -> None:
    first = first_round()
    trained: list[dict[str, Any]] = []
    result = lengthen(first, lambda config: trained.append(config) or PlantedLength()(config))
    trials = trials_from_study(first)
    best = trials.values["learning_rate"][trials.ranking()[:3]]
    assert [config["learning_rate"] for config in trained] == best.tolist()
    assert all(config["max_train_steps"] == 5000 and config["decay_steps"] == 500 for config in trained)
    assert result.recommendation == trained[0]
    [rate] = result.trials["long"].parameters
    assert (rate.name, rate.log) == ("learning_rate", True)
    longer = found(result, "longer training", "best")
    assert longer.verdict is Verdict.NO_EVIDENCE
    assert (longer.numbers["n_runs"], longer.numbers["n_better"], longer.numbers["winner_held"]) == (3, 3, 1)
    assert longer.numbers["gain"] == pytest.approx(trials.objective.min() - result.trials["long"].objective.min())
    extension = found(result, "schedule extension", "learning rate")
    assert extension.verdict is Verdict.NO_EVIDENCE
    assert extension.numbers["share_high"] == pytest.approx(1.0, abs=0.05)
    assert {one.check for one in result.findings} >= {"transfer", "still improving", "early saturation", "overfitting"}


@settings(deadline=None, max_examples=20)
@given(
    best_rate=st.floats(0.02, 0.5),
    decay=st.integers(1, 10).map(lambda tenths: 100 * tenths),
    factor=st.integers(2, 10),
    n_best=st.integers(1, 4),
)
def test_the_planted_best_rate_is_recommended(best_rate: float, decay: int, factor: int, n_best: int) -> None:
    train = PlantedLength(best_rate=best_rate)
    first = first_round(train, fixed={**FIXED, "decay_steps": decay})
    result = lengthen(first, train, long_steps=1000 * factor, n_best=n_best)
    trials = trials_from_study(first)
    rate = result.recommendation["learning_rate"]
    distance = np.abs(np.log(trials.values["learning_rate"] / best_rate))
    assert abs(np.log(rate / best_rate)) == pytest.approx(distance.min())
    assert len(result.trials["long"]) == n_best
    assert result.recommendation["decay_steps"] == decay
    assert found(result, "schedule extension", "learning rate").verdict is Verdict.NO_EVIDENCE


def test_extra_steps_at_too_small_a_rate_are_told() -> None:
    def sqrt_decay(config: dict[str, Any]) -> TrialRecord:
        step = np.arange(0, config["max_train_steps"] + 1, 20)
        rate = config["learning_rate"] / np.sqrt(1 + step / 50)
        return TrialRecord(
            direction="minimize",
            curve=Curve.from_columns(step, 1 / (1 + step / 1000), learning_rate=rate),
            max_steps=config["max_train_steps"],
        )

    fixed = {"max_train_steps": 1000}
    result = lengthen(first_round(sqrt_decay, fixed=fixed), sqrt_decay)
    finding = found(result, "schedule extension", "learning rate")
    assert finding.verdict is Verdict.FLAG
    assert finding.numbers["share_high"] < 0.25


def test_longer_runs_that_are_worse_are_told() -> None:
    result = lengthen(first_round(), PlantedLength(harm=1.0))
    finding = found(result, "longer training", "best")
    assert finding.verdict is Verdict.FLAG
    assert (finding.numbers["n_better"], finding.numbers["gain"] < 0) == (0, True)
    assert result.recommendation["max_train_steps"] == 5000


def test_long_runs_that_all_diverge_leave_no_recommendation() -> None:
    def diverge(_: dict[str, Any]) -> TrialRecord:
        raise InfeasibleError("diverged")

    result = lengthen(first_round(), diverge)
    finding = found(result, "longer training", "best")
    assert (finding.verdict, finding.numbers["n_infeasible"]) == (Verdict.FLAG, 3)
    assert result.recommendation == {}
    assert found(result, "schedule extension", "learning rate").verdict is Verdict.TOO_LITTLE_DATA


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("warmup_steps", "warmup"),
        ("init_scale", "initialization"),
        ("initializer", "initialization"),
        ("n_layers", "architecture"),
        ("width", "architecture"),
        ("hidden_units", "architecture"),
        ("activation", "architecture"),
        ("adam.learning_rate", "optimizer"),
        ("lr", "optimizer"),
        ("beta1", "optimizer"),
        ("optimizer", "optimizer"),
        ("mixup_alpha", "data augmentation"),
        ("augmentation", "data augmentation"),
        ("weight_decay", "regularization"),
        ("dropout", "regularization"),
        ("label_smoothing", "regularization"),
        ("decay_steps", "learning rate schedule"),
        ("learning_rate_decay", "learning rate schedule"),
        ("lr_schedule", "learning rate schedule"),
        ("ema_decay", None),
        ("x", None),
    ],
)
def test_names_tell_what_a_hyperparameter_is(name: str, kind: str | None) -> None:
    assert transfer_kind(name) == kind


def test_what_transfers_stands_in_the_order_of_the_playbook() -> None:
    names = ["decay_share", "odd", "dropout", "learning_rate", "width", "warmup_steps"]
    first = Trials.from_columns(
        "first",
        [Parameter(name=name, kind="float", low=0, high=1) for name in names],
        {name: [0.25, 0.5] for name in names},
        [1.0, 0.5],
    )
    result = lengthen(first, n_best=1, kinds={"odd": "initialization"}, extend=lambda config, *_: config)
    transfers = [one for one in result.findings if one.check == "transfer"]
    assert [one.subject for one in transfers] == ["warmup_steps", "odd", "width", "learning_rate", "dropout", names[0]]
    assert [one.numbers["likelihood"] for one in transfers] == [
        "very likely",
        "very likely",
        "likely",
        "might",
        "might",
        "unlikely",
    ]
    assert [one.verdict is Verdict.FLAG for one in transfers] == [False] * 5 + [True]
    assert transfers[0].numbers["best"] == 0.5
    unknown = lengthen(first, n_best=1, study_name="t", extend=lambda config, *_: config)
    assert found(unknown, "transfer", "odd").verdict is Verdict.TOO_LITTLE_DATA
    assert list(TRANSFER.values()) == sorted(
        TRANSFER.values(), key=["very likely", "likely", "might", "unlikely"].index
    )


@given(
    short_steps=st.integers(100, 1000),
    n_more=st.integers(1, 5000),
    warmup=st.integers(0, 20),
    decay=st.none() | st.integers(1, 80),
    family=st.sampled_from(["linear", "cosine", "constant"]),
)
def test_schedules_are_extended_as_their_own_class_does(
    short_steps: int, n_more: int, warmup: int, decay: int | None, family: Any
) -> None:
    config = {"schedule": family, "warmup_steps": warmup, "learning_rate": 0.1}
    if decay is not None and family != "constant":
        config["decay_steps"] = decay
    given_decay = config.get("decay_steps")
    before = Schedule(
        base_learning_rate=0.1,
        max_train_steps=short_steps,
        family=family,
        warmup_steps=warmup,
        decay_steps=given_decay,
    )
    for stretch in (False, family == "cosine"):
        longer = extend_schedule(config, short_steps, short_steps + n_more, stretch_cosine=stretch)
        after = Schedule(
            base_learning_rate=0.1,
            max_train_steps=short_steps + n_more,
            family=family,
            warmup_steps=longer["warmup_steps"],
            decay_steps=longer.get("decay_steps"),
        )
        assert after == before.extended(n_more, stretch=stretch)


def test_shares_of_training_keep_their_steps() -> None:
    config = {"schedule": "linear", "decay_share": 0.5, "warmup_fraction": 0.1, "learning_rate": 0.1}
    assert extend_schedule(config, 1000, 4000) == {
        "schedule": "linear",
        "decay_share": 0.125,
        "warmup_fraction": 0.025,
        "learning_rate": 0.1,
    }


def test_a_schedule_of_ones_own_is_extended_by_ones_own_function() -> None:
    def extend(config: Any, short_steps: int, long_steps: int) -> dict[str, Any]:
        return {**config, "milestones": [step + long_steps - short_steps for step in config["milestones"]]}

    fixed = {"max_train_steps": 1000, "milestones": [500, 900], "schedule": "steps"}
    result = lengthen(first_round(fixed=fixed), extend=extend)
    assert result.recommendation["milestones"] == [4500, 4900]


def test_branches_come_back_under_the_names_that_training_knows() -> None:
    design = Round(
        "Which optimizer?",
        scientific={"optimizer": ["adam", "sgd"]},
        nuisance={},
        conditional={
            "optimizer": {
                "adam": {"learning_rate": FloatDistribution(0.01, 1.0, log=True)},
                "sgd": {"learning_rate": FloatDistribution(0.01, 1.0, log=True)},
            }
        },
        n_trials=20,
        seed=0,
    )
    study = design.create_study(study_name="first")
    seen: list[dict[str, Any]] = []
    design.optimize(
        study, lambda config, _: seen.append(config) or PlantedLength()({**config, "max_train_steps": 1000})
    )
    trials = trials_from_study(study)
    assert [given_config(trials, row) for row in range(20)] == seen
    result = lengthen(study, config={"decay_steps": 200})
    assert {"optimizer", "learning_rate", "decay_steps", "max_train_steps"} == set(result.recommendation)


def test_retrains_of_one_configuration_take_one_place() -> None:
    first = Trials.from_columns(
        "first",
        [Parameter(name="learning_rate", kind="float", low=0.01, high=1, log=True)],
        {"learning_rate": [0.1, 0.1, 0.1, 0.5]},
        [0.1, 0.2, 0.3, 0.4],
    )
    result = lengthen(first, n_best=2)
    assert result.trials["long"].values["learning_rate"].tolist() == [0.1, 0.5]


CALL = """
from playbook_plugins.analysis import Parameter, Trials
from playbook_plugins.optuna.second_round import second_round
rate = Parameter(name="learning_rate", kind="float", low=0.01, high=1, log=True)
first = Trials.from_columns("first", [rate], {"learning_rate": [0.3, 0.1, 0.5, 0.2]}, [0.2, 0.1, 0.4, 0.3])
result = second_round(logged(PlantedLength()), first, short_steps=1000, long_steps=5000, n_best=4, **options)
"""


def test_killed_at_any_moment_it_repeats_no_finished_run(tmp_path: Path) -> None:
    assert survive_kills(tmp_path, CALL, n_kills=2, seed=0)["learning_rate"] == 0.1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_many_times_it_repeats_no_finished_run(tmp_path: Path, seed: int) -> None:
    assert survive_kills(tmp_path, CALL, n_kills=4, seed=seed)["learning_rate"] == 0.1


def test_two_workers_share_the_runs(tmp_path: Path) -> None:
    assert run_two_workers(tmp_path, CALL)["learning_rate"] == 0.1


def test_the_same_records_give_the_same_plan() -> None:
    first = first_round()
    storage = optuna.storages.InMemoryStorage()
    once = lengthen(first, storage=storage)
    again = lengthen(first, lambda _: pytest.fail("trained twice"), storage=storage)
    assert json.dumps(once.recommendation) == json.dumps(again.recommendation)
    assert once.findings == again.findings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"long_steps": 1000},
            "`long_steps` is 1000 and `short_steps` is 1000: a second round trains for longer than the first. Pass "
            "lengths of training in optimizer steps, the second the larger.",
        ),
        (
            {"n_best": 0},
            "`n_best` is 0: at least one configuration is trained for longer. Pass 1 to 3: long runs are few.",
        ),
        (
            {"config": {"decay_steps": 400}},
            "`config` has 'decay_steps' = 400, but the first round had 500: its conclusions are not about this value. "
            "Leave the entry out.",
        ),
        (
            {"config": {"learning_rate": 0.1}},
            "`config` has 'learning_rate' = 0.1, but the first round searched it: its conclusions are not about this "
            "value. Leave the entry out.",
        ),
        (
            {"short_steps": 900},
            "`short_steps` is 900, but the first round had 'max_train_steps' = 1000. Pass the length that it trained "
            "for.",
        ),
        (
            {"kinds": {"learning_rate": "speed"}},
            "`kinds` has {'learning_rate': 'speed'}: a hyperparameter is one of ['warmup', 'initialization', "
            "'architecture', 'optimizer', 'data augmentation', 'regularization', 'learning rate schedule']. Pass one "
            "of these.",
        ),
        (
            {"max_train_steps": "learning_rate"},
            "`first` searched 'learning_rate': the length of training is never tuned in a study. Fix it in the first "
            "round, or name the entry that holds it by `max_train_steps`.",
        ),
    ],
)
def test_impossible_input_is_refused_before_anything_is_trained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        lengthen(first_round(), lambda _: pytest.fail("trained"), **options)


def test_a_round_without_a_feasible_trial_is_refused() -> None:
    first = Trials.from_columns("first", [], {}, [np.inf, np.inf])
    message = (
        "`first` is the study 'first' with 2 trials, none of them feasible: there is no configuration to train for "
        "longer. Finish the first round, or change its search space."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        lengthen(first)


def test_an_unknown_schedule_is_refused() -> None:
    message = (
        "`config` has 'schedule' = 'sqrt': only ['constant', 'linear', 'cosine'] are known, and how to make it longer "
        "is not. Pass `extend`, a function that does."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        extend_schedule({"schedule": "sqrt"}, 100, 200)


def test_the_findings_read_as_sentences() -> None:
    first = Trials.from_columns(
        "first",
        [Parameter(name=name, kind="float", low=0, high=1) for name in ("learning_rate", "decay_share", "odd")],
        {"learning_rate": [0.1, 0.5], "decay_share": [0.1, 0.2], "odd": [0.0, 1.0]},
        [0.1, 0.2],
    )
    result = lengthen(first, PlantedLength(harm=1.0))
    words = {(one.check, one.subject): word(one) for one in result.findings}
    schedule = words["transfer", "decay_share"]
    assert schedule.headline == "What short runs say about decay_share is unlikely to hold for long ones"
    assert schedule.sentence.startswith("It belongs to the learning rate schedule")
    assert words["transfer", "learning_rate"].headline == (
        "No evidence of what speaks against keeping for long runs what short ones say about learning_rate"
    )
    assert words["transfer", "learning_rate"].sentence == "Kind = optimizer, likelihood = might, best = 0.1."
    assert words["transfer", "odd"].sentence == "Its name does not tell what it is."
    assert words["longer training", "best"].headline == "Training longer does not improve the best run"
    assert "the best short one had reached 0.1; 0 of 2 configurations" in words["longer training", "best"].sentence
