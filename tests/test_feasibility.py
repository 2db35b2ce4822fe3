from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from playbook_plugins.analysis import Parameter, Status, Trials, Verdict, check_feasibility
from playbook_plugins.analysis.feasibility import wilson_interval

RATE = Parameter(name="rate", kind="float", low=0, high=1)
KIND = Parameter(name="kind", kind="categorical", choices=("a", "b", "c"))


@given(st.integers(1, 500), st.data())
def test_the_interval_is_wilsons(n_trials: int, data: st.DataObject) -> None:
    n_hits = data.draw(st.integers(0, n_trials))
    reference = binomtest(n_hits, n_trials).proportion_ci(method="wilson")
    assert wilson_interval(n_hits, n_trials) == pytest.approx((reference.low, reference.high))


def study(rate: np.ndarray, objective: np.ndarray, **columns: object) -> Trials:
    kind = np.resize(["a", "b", "c"], len(rate))
    return Trials.from_columns("s", [RATE, KIND], {"rate": rate, "kind": kind}, objective, **columns)


def test_a_clear_majority_is_flagged_and_explained() -> None:
    rate = np.linspace(0, 1, 40)
    [finding] = check_feasibility(study(rate, np.where(rate > 0.3, np.nan, 1.0)))
    assert finding.verdict is Verdict.FLAG
    assert finding.numbers["n_infeasible"] == 28
    assert finding.numbers["explained_by"] == "rate"
    assert finding.numbers["explained_side"] == "upper"
    assert finding.numbers["share_there"] == 1
    assert finding.numbers["share_elsewhere"] == pytest.approx(20 / 32)


def test_half_is_no_clear_majority() -> None:
    rate = np.linspace(0, 1, 40)
    [finding] = check_feasibility(study(rate, np.where(rate < 0.55, np.nan, 1.0)))
    assert finding.verdict is Verdict.NO_EVIDENCE
    assert finding.numbers["explained_side"] == "lower"


def test_a_category_can_explain_it() -> None:
    rate = np.random.default_rng(0).random(60)
    objective = np.where(np.resize(["a", "b", "c"], 60) == "b", np.nan, 1.0)
    [finding] = check_feasibility(study(rate, objective))
    assert finding.numbers["explained_by"] == "kind"
    assert finding.numbers["explained_side"] == "b"
    assert (finding.numbers["share_there"], finding.numbers["share_elsewhere"]) == (1, 0)


def test_all_infeasible_says_so() -> None:
    [finding] = check_feasibility(study(np.linspace(0, 1, 5), np.full(5, np.nan)))
    assert finding.verdict is Verdict.FLAG
    assert finding.numbers["all_infeasible"] == 1
    assert finding.numbers["explained_by"] is None


def test_pruned_and_failed_trials_are_not_judged() -> None:
    status = [Status.COMPLETE, Status.INFEASIBLE, Status.PRUNED, Status.FAILED, Status.RUNNING]
    [finding] = check_feasibility(study(np.linspace(0, 1, 5), np.ones(5), status=status))
    assert finding.verdict is Verdict.TOO_LITTLE_DATA
    assert finding.numbers["n_judged"] == 2
    assert finding.numbers["n_failed"] == 1


def test_no_trial_is_too_little_data() -> None:
    [finding] = check_feasibility(study(np.empty(0), np.empty(0)))
    assert finding.verdict is Verdict.TOO_LITTLE_DATA


def test_a_cause_is_rarely_seen_where_there_is_none() -> None:
    generator = np.random.default_rng(5)
    named = 0
    for _ in range(1_000):
        objective = np.where(generator.random(30) < 0.4, np.nan, 1.0)
        [finding] = check_feasibility(study(generator.random(30), objective))
        named += finding.numbers["explained_by"] is not None
    assert named / 1_000 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 1_000)
