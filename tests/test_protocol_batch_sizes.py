"""Is the planted critical batch size found, each size at its own learning rate, and the fastest one recommended?"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from planted_training import PlantedBatches, run_two_workers, survive_kills

from playbook_plugins.analysis import Curve, Finding, InfeasibleError, Status, TrialRecord, Verdict
from playbook_plugins.optuna.batch_size_comparison import BatchSizeComparison, by_steps, compare_batch_sizes
from playbook_plugins.report import word

SIZES = [64, 128, 256, 512, 1024]
RATES = {"learning_rate": FloatDistribution(0.02, 2.0, log=True)}


def compare(train: Any, **changes: Any) -> BatchSizeComparison:
    options: dict[str, Any] = {
        "batch_sizes": SIZES,
        "nuisance": RATES,
        "goal": 0.1,
        "n_trials": 12,
        "sampler_seed": 0,
        "study_name": "b",
        **changes,
    }
    return compare_batch_sizes(train, options.pop("config", {}), **options)


def found(result: BatchSizeComparison, check: str, subject: str = "batch_size") -> Finding:
    [finding] = [one for one in result.findings if (one.check, one.subject) == (check, subject)]
    return finding


@settings(deadline=None, max_examples=8)
@given(critical_size=st.floats(150, 600), seed=st.integers(0, 100))
def test_the_planted_critical_batch_size_is_found(critical_size: float, seed: int) -> None:
    train = PlantedBatches(critical_size=critical_size)
    result = compare(train, sampler_seed=seed)
    # At its best of 12 rates each size is within a few percent of its own optimum.
    for size, steps in zip(SIZES, result.steps.steps, strict=True):
        at_best = train.steps_to_goal(size, 0.1 * math.sqrt(size / 64))
        assert at_best * 0.99 < steps < 1.25 * at_best
    if result.scaling.value is not None:
        assert result.scaling.low <= critical_size <= result.scaling.high


def test_every_size_faces_the_same_points() -> None:
    trials = compare(PlantedBatches()).trials["search"]
    by_size = {
        size: sorted(trials.values["learning_rate"][trials.values["batch_size"] == size].tolist()) for size in SIZES
    }
    assert len(by_size[64]) == 12
    assert all(rates == by_size[64] for rates in by_size.values())


def test_without_throughput_the_largest_size_that_saves_steps_is_recommended() -> None:
    result = compare(PlantedBatches(critical_size=60.0))
    assert result.recommendation["batch_size"] == result.scaling.largest_useful
    assert result.recommendation["batch_size"] < 1024
    numbers = found(result, "batch size").numbers
    assert (numbers["by"], numbers["n_reached"], numbers["n_trials"]) == ("steps", 5, 12)
    assert np.isnan(result.seconds).all()


def test_with_throughput_the_size_with_the_fewest_seconds_is_recommended() -> None:
    # Saturated from 256 on: larger batches take longer steps, and save too few of them.
    train = PlantedBatches(critical_size=200.0, peak_throughput=1e4, saturation=30.0)
    result = compare(train)
    seconds = {
        size: steps * size / train.throughput(size) for size, steps in zip(SIZES, result.steps.steps, strict=True)
    }
    assert result.seconds.tolist() == pytest.approx(list(seconds.values()))
    assert result.recommendation["batch_size"] == min(seconds, key=lambda size: seconds[size])
    numbers = found(result, "batch size").numbers
    assert numbers["by"] == "seconds"
    assert numbers["seconds"] < numbers["runner_up_seconds"]
    fast = compare(replace(train, saturation=1e6))
    assert fast.recommendation["batch_size"] == 1024


def test_the_recommendation_has_the_nuisances_of_its_fastest_trial() -> None:
    result = compare(PlantedBatches())
    row = int(result.steps.best_row[SIZES.index(result.recommendation["batch_size"])])
    assert result.recommendation == result.trials["search"].config(row)


def test_a_size_whose_best_rate_lies_at_a_bound_is_told() -> None:
    narrow = {"learning_rate": FloatDistribution(0.005, 0.1, log=True)}
    result = compare(PlantedBatches(), nuisance=narrow, n_trials=32, batch_sizes=[64, 4096])
    flags = [
        one.numbers.get("value")
        for one in result.findings
        if (one.check, one.subject, one.verdict) == ("boundary", "learning_rate, upper", Verdict.FLAG)
    ]
    # The best rate of 64 is the bound, that of 4096 is 0.8.
    assert "batch_size=4096" in flags
    inside = compare(PlantedBatches(), n_trials=32, batch_sizes=[64, 4096])
    assert not [one for one in inside.findings if one.check == "boundary" and one.verdict is Verdict.FLAG]


def test_larger_sizes_that_are_tuned_badly_get_no_recommendation() -> None:
    def worse(config: Mapping[str, Any]) -> TrialRecord:
        slow = 4.0 if config["batch_size"] == 1024 else 1.0
        return PlantedBatches(least_steps=500 * slow)(config)

    result = compare(worse)
    assert found(result, "steps to target").verdict is Verdict.FLAG
    assert found(result, "batch size").verdict is Verdict.TOO_LITTLE_DATA
    assert result.recommendation == {}


def test_a_goal_out_of_reach_is_a_finding() -> None:
    result = compare(PlantedBatches(), goal=-1e9)
    finding = found(result, "batch size")
    assert finding.verdict is Verdict.TOO_LITTLE_DATA
    assert finding.numbers["n_reached"] == 0
    assert result.recommendation == {}


def test_sizes_that_do_not_fit_into_memory_are_left_out() -> None:
    def small_device(config: Mapping[str, Any]) -> TrialRecord:
        if config["batch_size"] > 256:
            raise InfeasibleError("out of memory")
        return PlantedBatches()(config)

    result = compare(small_device)
    assert result.steps.batch_size.tolist() == [64, 128, 256]
    assert result.recommendation["batch_size"] == 256


def test_steps_rank_before_misses_and_misses_by_objective() -> None:
    def half(config: Mapping[str, Any]) -> TrialRecord:
        record = PlantedBatches(n_steps=2000)(config)
        if config["learning_rate"] > 1:
            raise InfeasibleError("diverged")
        return record

    trials = compare(half).trials["search"]
    judged = by_steps(trials, 0.1)
    assert judged.direction == "minimize"
    is_reached = judged.objective <= 2000
    missed = np.flatnonzero(~is_reached & (trials.status == Status.COMPLETE))
    assert len(missed) > 0
    assert len(missed) < len(trials)
    order = missed[np.argsort(judged.objective[missed])]
    assert np.all(np.diff(trials.objective[order]) >= 0)
    assert np.isinf(judged.objective[trials.is_infeasible]).all()
    turned = by_steps(
        replace(
            trials,
            direction="maximize",
            objective=-trials.objective,
            curves=tuple(
                None if curve is None else Curve.from_columns(curve.step, -curve.validation) for curve in trials.curves
            ),
        ),
        -0.1,
    )
    assert turned.objective.tolist() == judged.objective.tolist()


CALL = (
    "from playbook_plugins.optuna.batch_size_comparison import compare_batch_sizes\n"
    "from optuna.distributions import FloatDistribution\n"
    "import warnings\n"
    "warnings.simplefilter('ignore')\n"
    "result = compare_batch_sizes(logged(PlantedBatches()), {}, batch_sizes=[64, 128, 256], goal=0.1, n_trials=3, "
    "sampler_seed=0, nuisance={'learning_rate': FloatDistribution(0.02, 2.0, log=True)}, **options)"
)


def recommended() -> dict[str, Any]:
    """Return what one worker that nobody kills recommends."""
    return dict(compare(PlantedBatches(), batch_sizes=[64, 128, 256], n_trials=3).recommendation)


@pytest.mark.slow
def test_killed_at_random_moments_it_repeats_no_finished_run(tmp_path: Path) -> None:
    assert survive_kills(tmp_path, CALL, n_kills=3, seed=6) == recommended()


@pytest.mark.slow
def test_two_workers_share_the_runs_and_agree(tmp_path: Path) -> None:
    assert run_two_workers(tmp_path, CALL) == recommended()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"batch_sizes": [64]},
            "`batch_sizes` is [64]: at least two different, positive whole numbers of examples per step are compared. "
            "Pass for instance [64, 128, 256, 512].",
        ),
        (
            {"batch_sizes": [64, 64, 128]},
            "`batch_sizes` is [64, 64, 128]: at least two different, positive whole numbers of examples per step are "
            "compared. Pass for instance [64, 128, 256, 512].",
        ),
        (
            {"nuisance": {}},
            "`nuisance` is {}: most hyperparameters have to be tuned again for each batch size, or the comparison is "
            "one of luck. Pass at least the learning rate with its distribution.",
        ),
        (
            {"nuisance": {"batch_size": FloatDistribution(1, 2)}},
            "`nuisance` has 'batch_size', which is compared: it cannot be optimized over as well. Leave it out.",
        ),
        (
            {"config": {"learning_rate": 0.1, "batch_size": 64}},
            "`config` has ['batch_size', 'learning_rate'], which the comparison varies: their values would be "
            "overwritten. Leave them out of `config`, or out of the search.",
        ),
        (
            {"goal": math.nan},
            "`goal` is nan: a goal must be finite. Pass the value of the objective that is to be beaten.",
        ),
        ({"n_trials": 0}, "`n_trials` is 0: each batch size needs at least 1 trial. Pass a positive number."),
    ],
)
def test_impossible_input_is_refused_before_anything_is_trained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        compare(lambda _: pytest.fail("trained"), **options)


def test_a_goal_that_needs_no_training_is_refused() -> None:
    message = (
        "`goal` is 2.0: the first evaluation, before any step, is better already. Choose a goal that takes training to "
        "beat."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        compare(PlantedBatches(), goal=2.0)


TUNED_AGAIN = (
    "from now on. Another batch_size would mean tuning most other hyperparameters again, the learning rate first."
)


def test_the_fastest_size_reads_as_sentences() -> None:
    result = compare(PlantedBatches(critical_size=200.0, peak_throughput=1e4, saturation=30.0))
    finding = found(result, "batch size")
    words = word(finding)
    size = f"{result.recommendation['batch_size']:,}"
    assert words.headline == f"Training is fastest with batch_size = {size}"
    assert re.fullmatch(
        rf"With batch_size = {size} training beats the goal of 0\.1 after [\d,]+ steps, in [\d.,]+ seconds; with "
        r"[\d,]+, the next fastest, in [\d.,]+ seconds\. Each size is judged by the fastest of its 12 trials\.",
        words.sentence,
    )
    assert words.action == f"Keep batch_size = {size} {TUNED_AGAIN}"
    # Never the words for steps where seconds were compared.
    numbers = {name: value for name, value in finding.numbers.items() if "seconds" not in name}
    less = word(replace(finding, numbers=numbers))
    assert less.headline == words.headline
    assert re.fullmatch(r"With batch_size = \S+ training beats the goal of 0\.1 after [\d,]+ steps\. .*", less.sentence)


@pytest.mark.parametrize(
    ("critical_size", "headline", "end"),
    [
        (60.0, "batch_size: batches larger than {} save hardly any training steps", "with 1,024, the largest"),
        (
            600.0,
            "batch_size: up to {}, the largest that reached the goal, larger batches save steps",
            "with 64, the smallest",
        ),
    ],
)
def test_a_size_chosen_by_steps_reads_as_sentences(critical_size: float, headline: str, end: str) -> None:
    result = compare(PlantedBatches(critical_size=critical_size))
    words = word(found(result, "batch size"))
    size = f"{result.recommendation['batch_size']:,}"
    assert words.headline == headline.format(size)
    assert re.fullmatch(
        rf"With batch_size = {size} training beats the goal of 0\.1 after [\d,]+ steps; {end} that reached it, after "
        r"[\d,]+\. Each size is judged by the fastest of its 12 trials\.",
        words.sentence,
    )
    assert words.action == (
        "Measure the examples per second too: where a larger batch makes steps slower, a smaller one may need less "
        f"time. Then keep one batch_size {TUNED_AGAIN}"
    )


def test_sizes_that_miss_the_goal_or_are_tuned_badly_read_as_sentences() -> None:
    missed = word(found(compare(PlantedBatches(), goal=-1e9), "batch size"))
    assert missed.headline == "No batch size is recommended: fewer than two reached the goal"
    assert missed.sentence == (
        "0 of 5 batch sizes reached the goal of -1e9, so that there is nothing to compare. Train for more steps, or "
        "choose a goal that is easier to reach."
    )

    def worse(config: Mapping[str, Any]) -> TrialRecord:
        return PlantedBatches(least_steps=2000 if config["batch_size"] == 1024 else 500)(config)

    unequal = word(found(compare(worse), "batch size"))
    assert unequal.headline == "No batch size is recommended: a larger one did worse than a smaller one"
    assert unequal.sentence == (
        "5 of 5 batch sizes reached the goal of 0.1, but a larger batch took clearly more steps to it than a smaller "
        "one, or missed it. Tuned equally well, a larger batch never needs more steps. So the sizes cannot be compared "
        "yet: give each more trials, or its other hyperparameters wider ranges."
    )
