"""Does the sweep find the planted best learning rate, and the planted rate from which training is unstable?"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_training import PlantedRates, run_two_workers, survive_kills

from playbook_plugins.analysis import Curve, InfeasibleError, Status, TrialRecord, Verdict
from playbook_plugins.optuna.protocols import ProtocolResult
from playbook_plugins.optuna.rate_sweep import learning_rate_sweep
from playbook_plugins.optuna.stages import judge_stability
from playbook_plugins.report import word


def sweep(train: Any, **arguments: Any) -> ProtocolResult:
    return learning_rate_sweep(train, {}, **{"low": 1e-4, "high": 10.0, "n_trials": 11, "study_name": "s", **arguments})


@settings(max_examples=15, deadline=None)
@given(
    place=st.integers(2, 7),
    off=st.floats(-0.15, 0.15),
    # How far the planted rates lie from the ones that are tried, so that rounding decides nothing.
    factor=st.sampled_from([1.4, 3.0, 7.0, 30.0]),
    blow_up=st.sampled_from(["diverges", "rises", "early"]),
)
def test_it_recovers_the_best_and_the_unstable_rate(place: int, off: float, factor: float, blow_up: Any) -> None:
    best = 10.0 ** (-4 + 0.5 * place)
    planted = PlantedRates(best_rate=best * 10**off, unstable_rate=best * factor, blow_up=blow_up)
    result = sweep(planted)
    assert result.recommendation["learning_rate"] == pytest.approx(best, rel=1e-3)
    tried = [best * multiple for multiple in (2, 5, 10)]
    if blow_up == "diverges":
        tried += [10.0 ** (-4 + 0.5 * rate) for rate in range(11)]
    expected = min((rate for rate in tried if rate >= planted.unstable_rate), default=None)
    found = result.recommendation.get("unstable_base_learning_rate")
    assert found == (expected if expected is None else pytest.approx(expected, rel=1e-3))
    rates, limit = result.findings
    assert rates.verdict is Verdict.NO_EVIDENCE
    assert limit.verdict is (Verdict.NO_EVIDENCE if factor == 30 else Verdict.FLAG)
    if factor < 30:
        assert limit.numbers["unstable_factor"] == min(multiple for multiple in (2, 5, 10) if multiple >= factor)


@settings(max_examples=10, deadline=None)
@given(exponent=st.floats(-3.0, 0.0))
def test_a_second_stage_looks_closer(exponent: float) -> None:
    planted = PlantedRates(best_rate=10**exponent, noise=0.0)
    result = sweep(planted, n_stages=2, n_trials=9)
    assert list(result.trials) == ["rates 1", "rates 2", "limit"]
    # Nine rates over five decades, then nine more between the neighbors of the best.
    off = abs(math.log10(result.recommendation["learning_rate"]) - exponent)
    assert off <= 0.5 * 2 * (5 / 8) / 10 + 1e-3
    tried = [rate for name in ("rates 1", "rates 2") for rate in result.trials[name].values["learning_rate"]]
    # The rate in the middle of the neighbors is the best one itself.
    assert len(set(tried)) == len(tried) == 17


@pytest.mark.parametrize(("best", "side"), [(1e-6, "lower"), (1e3, "upper")])
def test_a_best_rate_at_an_end_is_told(best: float, side: str) -> None:
    result = sweep(PlantedRates(best_rate=best))
    assert result.findings[0].verdict is Verdict.FLAG
    assert result.findings[0].numbers["at_boundary"] == side
    words = word(result.findings[0])
    assert words.headline == f"learning_rate: the best rate is at the {side} end of the sweep"
    assert words.action.startswith(f"Sweep {'smaller' if side == 'lower' else 'larger'} rates")


def test_no_feasible_rate_recommends_nothing() -> None:
    def train(config: dict[str, Any]) -> TrialRecord:
        raise InfeasibleError("diverged at step 1")

    result = sweep(train)
    assert result.recommendation == {}
    assert list(result.trials) == ["rates 1"]
    assert [finding.verdict for finding in result.findings] == [Verdict.FLAG, Verdict.TOO_LITTLE_DATA]
    assert word(result.findings[0]).headline == "learning_rate: no rate of the sweep trains"


def test_the_runs_above_may_be_shorter_and_are_then_all_trained_so() -> None:
    seen: list[tuple[float, int]] = []
    planted = PlantedRates(best_rate=0.01, unstable_rate=0.015, blow_up="early")

    def train(config: dict[str, Any]) -> TrialRecord:
        seen.append((config["learning_rate"], config["max_train_steps"]))
        return planted(config)

    result = learning_rate_sweep(
        train,
        {"max_train_steps": 1000},
        low=1e-3,
        high=0.1,
        n_trials=3,
        factors=(2,),
        limit_config={"max_train_steps": 100},
        study_name="s",
    )
    assert seen == [(1e-3, 1000), (1e-2, 1000), (0.1, 1000), (1e-2, 100), (2e-2, 100)]
    assert result.recommendation == {"learning_rate": 0.01, "unstable_base_learning_rate": 0.02}
    assert result.findings[1].numbers["kind"] == "early instability"


def test_maximizing_and_another_name() -> None:
    def train(config: dict[str, Any]) -> TrialRecord:
        accuracy = [0.1] * 60 + [0.9 - abs(math.log10(config["lr"]) + 2)]
        return TrialRecord(direction="maximize", curve=Curve.from_columns(range(61), accuracy), max_steps=60)

    result = sweep(train, learning_rate="lr", direction="maximize", factors=())
    assert result.recommendation == {"lr": 0.01}
    assert result.findings[1].verdict is Verdict.TOO_LITTLE_DATA


def test_what_is_infeasible_for_another_reason_is_not_unstable() -> None:
    planted = PlantedRates(best_rate=0.01)

    def train(config: dict[str, Any]) -> TrialRecord:
        if config["learning_rate"] > 0.03:
            raise MemoryError
        return planted(config)

    result = sweep(train)
    assert result.recommendation == {"learning_rate": 0.01}


def test_a_multiple_that_the_sweep_has_is_not_trained_again() -> None:
    seen: list[float] = []
    planted = PlantedRates(best_rate=0.01, unstable_rate=0.08)

    def train(config: dict[str, Any]) -> TrialRecord:
        seen.append(config["learning_rate"])
        return planted(config)

    result = sweep(train, low=1e-3, high=1.0, n_trials=4)
    assert seen == [0.001, 0.01, 0.1, 1.0, 0.02, 0.05]
    assert result.recommendation == {"learning_rate": 0.01, "unstable_base_learning_rate": 0.1}
    assert result.findings[1].numbers["unstable_factor"] == 10


def test_a_smaller_rate_that_diverged_by_bad_luck_is_not_the_unstable_one() -> None:
    planted = PlantedRates(best_rate=0.01, unstable_rate=0.08, blow_up="diverges")

    def train(config: dict[str, Any]) -> TrialRecord:
        rate = config["learning_rate"]
        return planted({"learning_rate": 1.0 if rate == 1e-4 else rate})

    assert sweep(train).recommendation == {"learning_rate": 0.01, "unstable_base_learning_rate": 0.1}


def test_the_verdict_on_one_run() -> None:
    record = PlantedRates(unstable_rate=1.0, blow_up="diverges")({"learning_rate": 2.0})
    assert judge_stability(record).is_stable is False
    assert (judge_stability(record).kind, judge_stability(record).step) == ("non-finite", 100)
    assert judge_stability(PlantedRates()({"learning_rate": 2.0})).is_stable is True
    short = TrialRecord(direction="minimize", curve=Curve.from_columns(range(20), [1.0] * 20), max_steps=20)
    assert judge_stability(short).is_stable is None
    broken = TrialRecord(
        direction="minimize", curve=Curve.from_columns([], []), status=Status.INFEASIBLE, reason="out of memory"
    )
    assert judge_stability(broken).is_stable is None


def test_jobs_at_once_change_nothing() -> None:
    planted = PlantedRates(best_rate=0.01, unstable_rate=0.035)
    alone, together = sweep(planted, n_stages=2), sweep(planted, n_stages=2, n_jobs=3)
    assert alone.recommendation == together.recommendation
    assert alone.findings == together.findings


def test_a_study_that_was_begun_with_other_arguments_is_refused() -> None:
    storage = optuna.storages.InMemoryStorage()
    sweep(PlantedRates(), storage=storage)
    message = (
        "`study_name` is 's/rates 1': this study was begun with other runs, so that it cannot go on with these. Call "
        "the procedure with the arguments it was begun with, or choose another name."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        sweep(PlantedRates(), storage=storage, n_trials=5)


CALL = """
from playbook_plugins.optuna.rate_sweep import learning_rate_sweep
planted = PlantedRates(best_rate=0.01, unstable_rate=0.035)
result = learning_rate_sweep(logged(planted), {}, low=1e-4, high=1.0, n_trials=5, **options)
"""


@pytest.mark.slow
def test_it_survives_kills(tmp_path: Path) -> None:
    expected = {"learning_rate": 0.01, "unstable_base_learning_rate": 0.05}
    assert survive_kills(tmp_path, CALL, n_kills=3, seed=1) == expected


@pytest.mark.slow
def test_two_workers_share_it(tmp_path: Path) -> None:
    assert run_two_workers(tmp_path, CALL) == {"learning_rate": 0.01, "unstable_base_learning_rate": 0.05}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"low": 0.0},
            "`low` and `high` are 0.0 and 10.0: the ends of a sweep must be positive and finite, and low the smaller "
            "one. Pass for instance low=1e-4, high=1.0.",
        ),
        (
            {"n_trials": 2},
            "`n_trials` is 2: it must be at least 3, because with fewer rates the best one is always at an end of the "
            "sweep. Pass 3 or more.",
        ),
        (
            {"n_stages": 0},
            "`n_stages` is 0: it must be at least 1, because the first stage is the sweep itself. Pass 1 or more.",
        ),
        (
            {"factors": (5, 2)},
            "`factors` is (5, 2): the multiples of the best rate must be above 1 and ascend. Pass for instance "
            "(2, 5, 10).",
        ),
    ],
)
def test_what_makes_no_sweep_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        sweep(PlantedRates(), **arguments)


def test_a_configuration_that_contradicts_is_refused() -> None:
    message = (
        "`config` has 'learning_rate' = 0.1, which this procedure sets itself. Leave the entry out, or name the one to "
        "set by `learning_rate`."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        learning_rate_sweep(PlantedRates(), {"learning_rate": 0.1}, low=0.1, high=1.0, study_name="s")
