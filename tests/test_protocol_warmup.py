"""Does warmup tuning find the shortest planted warmup that is long enough, at the largest rate that has one?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_training import PlantedRates, run_two_workers, survive_kills

from playbook_plugins.analysis import Curve, InfeasibleError, TrialRecord, Verdict
from playbook_plugins.optuna.protocols import ProtocolResult
from playbook_plugins.optuna.schedules import Schedule
from playbook_plugins.optuna.warmup_tuning import tune_warmup
from playbook_plugins.report import word


def tune(train: Any, config: dict[str, Any] | None = None, **arguments: Any) -> ProtocolResult:
    usual = {"unstable_base_learning_rate": 0.1, "max_train_steps": 5000, "study_name": "s"}
    return tune_warmup(train, config or {}, **{**usual, **arguments})


@settings(max_examples=20, deadline=None)
@given(
    needed=st.sampled_from([0.04, 0.4, 4.0, 40.0, 400.0]),
    blow_up=st.sampled_from(["diverges", "rises", "early"]),
    seed=st.integers(0, 100),
)
def test_it_recovers_the_planted_warmup(needed: float, blow_up: Any, seed: int) -> None:
    """A rate of ten times the unstable one needs ten times ``needed`` warmup steps, of a hundred times a hundred."""
    planted = PlantedRates(
        best_rate=1.0, unstable_rate=0.1, warmup_at_unstable=needed, blow_up=blow_up, seed=seed, noise=0.005
    )
    result = tune(planted)
    steps = [50, 500]
    shortest = [min((n for n in steps if n >= needed * factor), default=None) for factor in (10, 100)]
    assert [finding.numbers["shortest_stable"] for finding in result.findings[:2]] == shortest
    verdicts = [Verdict.FLAG if one is None else Verdict.NO_EVIDENCE for one in shortest]
    assert [finding.verdict for finding in result.findings[:2]] == verdicts
    found = [(rate, n_steps) for rate, n_steps in zip((1.0, 10.0), shortest, strict=True) if n_steps]
    if not found:
        assert result.recommendation == {}
        assert result.findings[2].verdict is Verdict.TOO_LITTLE_DATA
        return
    rate, n_steps = found[-1]
    expected = {"learning_rate": rate, "warmup_steps": n_steps, "max_train_steps": 5000 + n_steps}
    assert result.recommendation == expected
    length = result.findings[2]
    assert length.verdict is (Verdict.FLAG if n_steps == 500 else Verdict.NO_EVIDENCE)


def test_a_healthy_run_is_rarely_called_unstable() -> None:
    """Where the shortest warmup suffices, at most 2% of the 200 runs that decide may be called unstable."""
    missed = 0
    for seed in range(100):
        planted = PlantedRates(unstable_rate=0.1, warmup_at_unstable=0.1, seed=seed, noise=0.05)
        result = tune(planted)
        missed += sum(finding.numbers["shortest_stable"] != 50 for finding in result.findings[:2])
    assert missed <= 4


def test_the_runs_are_the_playbook_s() -> None:
    seen: list[dict[str, Any]] = []
    planted = PlantedRates()

    def train(config: dict[str, Any]) -> TrialRecord:
        seen.append(config)
        return planted(config)

    result = tune(train, {"width": 8}, max_train_steps=100_000, factors=(10,))
    lengths = [(config["warmup_steps"], config["max_train_steps"]) for config in seen]
    assert lengths == [(10, 110), (100, 300), (1000, 3000), (10_000, 30_000)]
    assert all(config["width"] == 8 and config["learning_rate"] == 1.0 for config in seen)
    assert [parameter.name for parameter in result.trials["warmup"].parameters] == ["learning_rate", "warmup_steps"]


def test_a_schedule_makes_such_runs() -> None:
    def train(config: dict[str, Any]) -> TrialRecord:
        schedule = Schedule(
            base_learning_rate=config["learning_rate"],
            max_train_steps=config["max_train_steps"],
            warmup_steps=config["warmup_steps"],
        )
        record = PlantedRates()(config)
        rates = schedule(record.curve.step)
        assert rates[0] == 0
        assert (rates[config["warmup_steps"] :] == config["learning_rate"]).all()
        return record

    assert tune(train, factors=(10,)).recommendation["warmup_steps"] == 50


def test_none_stable_tells_how_far_training_must_grow() -> None:
    result = tune(PlantedRates(unstable_rate=0.1, blow_up="diverges"))
    words = word(result.findings[0])
    assert words.headline == "No warmup that was tried makes training stable (learning_rate x 10)"
    assert words.sentence.startswith(
        "At a base rate of 1, none of 2 runs trained stably; with 500 warmup steps, the most that were tried: "
        "non-finite (step 750)."
    )
    assert words.action.endswith("Ten times as much warmup would need a training of 50,000 steps or more.")
    words = word(result.findings[2])
    assert words.headline == "No warmup was found stable, so that its length cannot be judged"


def test_a_long_warmup_tells_how_far_training_must_grow() -> None:
    result = tune(PlantedRates(unstable_rate=0.1, warmup_at_unstable=20))
    assert result.recommendation == {"learning_rate": 1.0, "warmup_steps": 500, "max_train_steps": 5500}
    words = word(result.findings[2])
    assert words.headline == "The warmup takes much of training"
    assert words.sentence == "500 steps are 10% of 5,000, more than 5%."
    assert words.action == (
        "Train for 5,500 steps, the warmup prepended, and for up to 10,000 if that does not reach as far."
    )


@pytest.mark.parametrize(("n_steps", "verdict"), [(250, Verdict.NO_EVIDENCE), (251, Verdict.FLAG)])
def test_more_than_a_twentieth_of_training_is_long(n_steps: int, verdict: Verdict) -> None:
    assert tune(PlantedRates(), factors=(10,), warmup_steps=(n_steps,)).findings[1].verdict is verdict


def test_a_longer_warmup_that_fails_speaks_against_a_shorter_one() -> None:
    planted = PlantedRates(unstable_rate=0.1)

    def train(config: dict[str, Any]) -> TrialRecord:
        return planted({**config, "learning_rate": 1.0 if config["warmup_steps"] == unstable else 0.01})

    arguments = {"factors": (10,), "warmup_steps": (5, 50, 500)}
    unstable = 500
    result = tune(train, **arguments)
    assert result.recommendation == {}
    assert (result.findings[0].verdict, result.findings[0].numbers["n_stable"]) == (Verdict.FLAG, 2)
    sentence = word(result.findings[0]).sentence
    assert sentence.startswith(
        "At a base rate of 1, 2 of 3 runs trained stably, but one with a longer warmup did not; "
    )
    unstable = 50
    assert tune(train, **arguments).recommendation["warmup_steps"] == 500


def test_runs_that_cannot_be_judged_are_not_called_stable() -> None:
    def train(config: dict[str, Any]) -> TrialRecord:
        if config["warmup_steps"] == 50:
            raise InfeasibleError("the quota is used up")
        return TrialRecord(direction="minimize", curve=Curve.from_columns([0, 9], [1, 1]), max_steps=9)

    result = tune(train, factors=(10,))
    assert result.recommendation == {}
    assert result.findings[0].verdict is Verdict.TOO_LITTLE_DATA
    assert result.findings[0].numbers["n_unknown"] == 2
    headline = "Whether warmup makes training stable cannot be said (learning_rate x 10)"
    assert word(result.findings[0]).headline == headline


CALL = """
from playbook_plugins.optuna.warmup_tuning import tune_warmup
planted = PlantedRates(unstable_rate=0.1, warmup_at_unstable=4.0)
result = tune_warmup(
    logged(planted), {}, unstable_base_learning_rate=0.1, max_train_steps=5000, warmup_steps=(5, 50, 500), **options
)
"""
EXPECTED = {"learning_rate": 10.0, "warmup_steps": 500, "max_train_steps": 5500}


@pytest.mark.slow
def test_it_survives_kills(tmp_path: Path) -> None:
    assert survive_kills(tmp_path, CALL, n_kills=3, seed=3) == EXPECTED


@pytest.mark.slow
def test_two_workers_share_it(tmp_path: Path) -> None:
    assert run_two_workers(tmp_path, CALL) == EXPECTED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"unstable_base_learning_rate": 0.0},
            "`unstable_base_learning_rate` is 0.0: a learning rate must be positive and finite. Pass the smallest rate "
            "at which training is unstable without warmup.",
        ),
        (
            {"factors": ()},
            "`factors` is (): at least one multiple of the unstable rate is needed, and all must be above 1 and "
            "ascend. Pass for instance (10, 100).",
        ),
        (
            {"max_share": 0.0},
            "`max_share` is 0.0: it must lie above 0 and be at most 1. The playbook advises 0.1.",
        ),
        (
            {"max_train_steps": 9},
            "`max_train_steps` is 9: 10% of it is less than 1 step: no warmup fits in. Pass the length of the training "
            "that the warmup is for.",
        ),
        (
            {"warmup_steps": []},
            "`warmup_steps` is []: at least one number of steps is needed, and all must be at least 1 and ascend. Pass "
            "a few orders of magnitude, or None for the default.",
        ),
        (
            {"warmup_steps": [10, 501]},
            "`warmup_steps` has 501, 10% of the 5000 steps of training: warmup may take at most 10%. Leave it out, "
            "train longer, or pass a larger max_share.",
        ),
        (
            {"least_post_warmup_steps": -1},
            "`least_post_warmup_steps` is -1: it must be at least 0. Pass 100.",
        ),
        (
            {"config": {"warmup_steps": 5}},
            "`config` has 'warmup_steps' = 5, which this procedure sets itself. Leave the entry out, or name the one "
            "to set by `warmup_steps_name`.",
        ),
    ],
)
def test_what_cannot_be_tuned_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        tune(PlantedRates(), **arguments)
