"""Is a planted advantage adopted, noise not, and is the baseline that follows the right one?"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_training import PlantedQuality, run_two_workers, survive_kills

from playbook_plugins.analysis import Finding, TrialRecord, Trials, Verdict, compare_retrains
from playbook_plugins.optuna import Baseline
from playbook_plugins.optuna.retraining import Retraining, retrain
from playbook_plugins.report import word

GOOD, BAD = {"quality": 0.1}, {"quality": 0.2}


def found(result: Retraining, check: str, subject: str = "candidate") -> Finding:
    [finding] = [one for one in result.findings if (one.check, one.subject) == (check, subject)]
    return finding


def test_a_planted_advantage_is_adopted() -> None:
    result = retrain(PlantedQuality(), GOOD, baseline=BAD, adds_complexity="a second network", study_name="r")
    assert result.is_adopted
    assert result.recommendation == GOOD
    launch = found(result, "launch")
    assert (launch.verdict, launch.numbers["adds_complexity"]) == (Verdict.FLAG, "a second network")
    assert launch.numbers["improvement"] == pytest.approx(0.1, abs=0.02)
    assert launch.numbers["low"] < launch.numbers["improvement"] < launch.numbers["high"]
    after = result.next_baseline()
    assert (after.config, after.complexity, after.n_launches) == (GOOD, "a second network", 1)
    assert after.objectives == result.objectives
    assert after.evidence.startswith("5 retrains against 5 of the baseline: better by 0.")
    assert "(90% interval 0." in after.evidence
    assert "a second network" in result.trials["candidate"].goal


def test_no_advantage_is_not_adopted() -> None:
    result = retrain(PlantedQuality(), BAD, baseline=GOOD, adds_complexity="none", study_name="r")
    assert not result.is_adopted
    assert result.recommendation == GOOD
    assert found(result, "launch").verdict is Verdict.NO_EVIDENCE
    after = result.next_baseline()
    assert (after.config, after.n_launches, len(after.objectives)) == (GOOD, 0, 5)


def test_noise_alone_is_rarely_adopted() -> None:
    same = {"quality": 0.1, "other": 1}
    adopted = [
        retrain(
            PlantedQuality(noise_seed=seed), GOOD, baseline=same, adds_complexity="none", n_retrains=3, study_name="r"
        ).is_adopted
        for seed in range(50)
    ]
    # Up to 3 of 50 are expected; 10 or more have a chance below 0.002.
    assert sum(adopted) <= 9


@settings(deadline=None, max_examples=25)
@given(
    gain=st.floats(-0.2, 0.2),
    n_retrains=st.integers(2, 6),
    noise_seed=st.integers(0, 1000),
)
def test_it_says_what_the_comparison_of_the_same_runs_says(gain: float, n_retrains: int, noise_seed: int) -> None:
    train = PlantedQuality(noise_seed=noise_seed)
    candidate, baseline = {"quality": 0.5 - gain}, {"quality": 0.5, "plain": True}
    result = retrain(train, candidate, baseline=baseline, adds_complexity="none", n_retrains=n_retrains, study_name="r")
    runs = [[train({**one, "seed": seed}).objective for seed in range(n_retrains)] for one in (candidate, baseline)]
    expected = compare_retrains(*runs, "minimize")
    assert result.comparison == expected
    assert result.is_adopted == (expected.p <= 0.05)
    assert result.recommendation == (candidate if expected.p <= 0.05 else baseline)
    if gain > 0.15 and n_retrains > 2:
        assert result.is_adopted


def test_the_value_of_the_search_is_no_evidence() -> None:
    chance = np.random.default_rng(0)
    searched = Trials.from_columns("s", [], {}, 0.1 + 0.01 * chance.standard_normal(100))
    result = retrain(PlantedQuality(), GOOD, n_retrains=10, searched=searched, study_name="r")
    finding = found(result, "searched value")
    assert finding.verdict is Verdict.FLAG
    numbers = finding.numbers
    assert numbers["optimism"] == pytest.approx(numbers["mean"] - searched.objective.min())
    # The best of 100 normals is 2.5 standard deviations below the mean.
    assert numbers["optimism"] == pytest.approx(0.025, abs=0.012)
    assert numbers["expected_bias"] == pytest.approx(0.02, abs=0.012)
    assert result.recommendation == GOOD


def test_a_search_whose_value_a_retrain_reaches_raises_no_flag() -> None:
    flags = 0
    for seed in range(60):
        train = PlantedQuality(noise_seed=seed)
        alone = Trials.from_columns("s", [], {}, [train({**GOOD, "seed": 99}).objective])
        result = retrain(train, GOOD, n_retrains=4, searched=alone, study_name="r")
        flags += found(result, "searched value").verdict is Verdict.FLAG
    assert flags <= 9


def test_without_a_baseline_the_noise_is_measured() -> None:
    result = retrain(PlantedQuality(), GOOD, n_retrains=20, study_name="r")
    [noise] = result.findings
    assert (noise.check, noise.verdict) == ("retraining", Verdict.NO_EVIDENCE)
    assert noise.numbers["sd_low"] < 0.01 < noise.numbers["sd_high"]
    assert result.next_baseline() == Baseline(config=GOOD, objectives=result.objectives)
    assert not result.is_adopted
    assert result.recommendation == GOOD


def test_retrains_that_diverge_are_told_and_cost_the_launch() -> None:
    train = PlantedQuality(unstable_quality=0.1, diverging_seed=1)
    result = retrain(train, GOOD, baseline=BAD, adds_complexity="none", n_retrains=4, study_name="r")
    noise = found(result, "retraining")
    assert (noise.verdict, noise.numbers["n_diverged"]) == (Verdict.FLAG, 3)
    assert found(result, "retraining", "baseline").verdict is Verdict.NO_EVIDENCE
    assert result.comparison is not None
    assert result.comparison.method == "rank"
    assert not result.is_adopted


def test_one_retrain_is_enough_for_a_noise_known_before() -> None:
    result = retrain(
        PlantedQuality(), GOOD, baseline=BAD, adds_complexity="none", n_retrains=1, known_sd=0.01, study_name="r"
    )
    assert result.comparison is not None
    assert (result.comparison.method, result.is_adopted) == ("known sd", True)


def test_a_baseline_that_was_retrained_is_not_trained_again() -> None:
    before = Baseline(config=BAD, objectives=(0.2, 0.21, 0.19))
    trained: list[dict[str, Any]] = []
    result = retrain(
        lambda config: trained.append(config) or PlantedQuality()(config),
        GOOD,
        baseline=before,
        adds_complexity="none",
        n_retrains=3,
        study_name="r",
    )
    assert trained == [{**GOOD, "seed": seed} for seed in range(3)]
    assert result.next_baseline().n_launches == 1
    again = retrain(PlantedQuality(), GOOD, baseline=before, adds_complexity="none", n_retrains=4, study_name="r")
    assert len(again.trials["baseline"]) == 4


def test_a_maximized_objective_is_read_the_other_way() -> None:
    def accuracy(config: Mapping[str, Any]) -> TrialRecord:
        return replace(PlantedQuality()(config), direction="maximize")

    # The curve begins at 5, which would be the best accuracy.
    candidate, baseline = {"quality": 9.0}, {"quality": 8.0}
    result = retrain(
        accuracy, candidate, baseline=baseline, adds_complexity="none", study_name="r", direction="maximize"
    )
    assert result.is_adopted
    assert found(result, "launch").numbers["improvement"] == pytest.approx(1.0, abs=0.05)


CALL = (
    "from playbook_plugins.optuna.retraining import retrain\n"
    "result = retrain(logged(PlantedQuality()), {'quality': 0.1}, baseline={'quality': 0.2}, adds_complexity='none', "
    "n_retrains=3, **options)"
)


def test_killed_at_any_moment_it_repeats_no_finished_run(tmp_path: Path) -> None:
    assert survive_kills(tmp_path, CALL, n_kills=2, seed=0) == GOOD


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_killed_many_times_it_repeats_no_finished_run(tmp_path: Path, seed: int) -> None:
    assert survive_kills(tmp_path, CALL, n_kills=3, seed=seed) == GOOD


def test_two_workers_share_the_runs(tmp_path: Path) -> None:
    assert run_two_workers(tmp_path, CALL) == GOOD


def test_the_next_baseline_travels_as_json() -> None:
    result = retrain(PlantedQuality(), GOOD, baseline=BAD, adds_complexity="none", study_name="r")
    after = result.next_baseline()
    assert Baseline.from_plain(json.loads(json.dumps(after.to_plain()))) == after


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"n_retrains": 1},
            "`n_retrains` is 1: without `known_sd` at least 2 are needed for a spread, and with it at least 1. Pass 5, "
            "or more where an advantage below two standard deviations matters.",
        ),
        (
            {"config": {"quality": 0.1, "seed": 7}},
            "`config` has 'seed' = 7: the retrains set it to 0 to 4. Leave it out, or name the entry that takes the "
            "seed by `seed`.",
        ),
        (
            {"baseline": {"quality": 0.1, "seed": 7}, "adds_complexity": "none"},
            "`baseline` has 'seed' = 7: the retrains set it to 0 to 4. Leave it out, or name the entry that takes the "
            "seed by `seed`.",
        ),
        (
            {"baseline": BAD, "adds_complexity": " "},
            "`adds_complexity` is ' ': a change is adopted only if it outweighs the complexity that it adds. Say in a "
            "sentence what it adds to the baseline, or 'none'.",
        ),
        (
            {"baseline": GOOD, "adds_complexity": "none"},
            "`baseline` is {'quality': 0.1}, which is `config` itself: there is nothing to adopt. Pass the "
            "configuration that `config` is to replace, or leave it out to measure the noise.",
        ),
        (
            {"direction": "down"},
            "`direction` is 'down': it must be 'minimize' or 'maximize'. Pass the direction in which the objective "
            "gets better.",
        ),
        (
            {"known_sd": -1.0, "baseline": BAD, "adds_complexity": "none"},
            "`known_sd` is -1.0: the standard deviation over retrains must be positive and finite. Measure it with "
            "`estimate_trial_variance`, or leave it out.",
        ),
    ],
)
def test_impossible_input_is_refused_before_anything_is_trained(options: dict[str, Any], message: str) -> None:
    def never(_: dict[str, Any]) -> Any:
        pytest.fail("trained")

    arguments: dict[str, Any] = {"config": GOOD, "study_name": "r", **options}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        retrain(never, **arguments)


def test_a_search_of_another_direction_is_refused() -> None:
    message = (
        "`direction` is 'minimize', but the search 's' is to maximize its objective: the retrains measure the same "
        "objective. Pass the direction of the search."
    )
    searched = Trials.from_columns("s", [], {}, [0.1], direction="maximize")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        retrain(lambda _: pytest.fail("trained"), GOOD, searched=searched, study_name="r")


def test_another_complexity_is_another_question() -> None:
    storage = optuna.storages.InMemoryStorage()
    options: dict[str, Any] = {"baseline": BAD, "study_name": "r", "storage": storage}
    retrain(PlantedQuality(), GOOD, adds_complexity="none", **options)
    with pytest.raises(ValueError, match="was begun with other runs"):
        retrain(PlantedQuality(), GOOD, adds_complexity="a second network", **options)


def test_nothing_finite_leaves_no_numbers() -> None:
    train = PlantedQuality(unstable_quality=1.0)
    result = retrain(train, GOOD, n_retrains=2, searched=Trials.from_columns("s", [], {}, [0.1, 0.2]), study_name="r")
    assert found(result, "retraining").numbers["mean"] is None
    assert found(result, "searched value").verdict is Verdict.TOO_LITTLE_DATA
    assert all(not isinstance(v, float) or math.isfinite(v) for f in result.findings for v in f.numbers.values())
    assert result.next_baseline().objectives == ()


def test_the_findings_read_as_sentences() -> None:
    searched = Trials.from_columns("s", [], {}, [0.05, 0.1, 0.11])
    result = retrain(
        PlantedQuality(), GOOD, baseline=BAD, adds_complexity="a second network", searched=searched, study_name="r"
    )
    words = {one.check: word(one) for one in result.findings}
    assert words["launch"].headline == "The candidate is better than the baseline when retrained"
    assert words["launch"].sentence.startswith("Over 5 retrains against 5 it is better by 0.0")
    assert "(90% interval 0." in words["launch"].sentence
    assert " It adds: a second network." in words["launch"].sentence
    assert words["searched value"].headline == "The winner of the search was lucky"
    assert words["searched value"].sentence.startswith("The best of 3 trials reached 0.05; its retrains reach 0.")
    assert words["retraining"].headline == "No evidence of divergence in retrains of the baseline"
    worse = retrain(PlantedQuality(), BAD, baseline=GOOD, adds_complexity="none", study_name="r")
    assert word(found(worse, "launch")).headline == (
        "No evidence of an advantage of the candidate that holds when it is retrained"
    )
    broken = retrain(PlantedQuality(unstable_quality=1.0), GOOD, n_retrains=2, study_name="r")
    assert word(broken.findings[0]).sentence == "2 of 2 did, which differ in their seed only."
    unstable = PlantedQuality(unstable_quality=0.2, diverging_seed=0)
    ranked = retrain(
        lambda config: unstable(config) if config["quality"] == 0.2 else PlantedQuality()(config),
        GOOD,
        baseline=BAD,
        adds_complexity="none",
        n_retrains=6,
        study_name="r",
    )
    assert "it is better (0 of its retrains and 6 of the other's diverged; compared by rank)" in (
        word(found(ranked, "launch")).sentence
    )
    assert ranked.next_baseline().evidence.startswith(
        "6 retrains against 6 of the baseline, of which 0 and 6 diverged: the probability that it is better is "
    )
