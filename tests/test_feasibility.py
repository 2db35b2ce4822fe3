from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

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


@given(st.integers(0, 2**32 - 1), st.integers(2, 40))
def test_direction_order_and_scale_do_not_matter(seed: int, n_trials: int) -> None:
    generator = np.random.default_rng(seed)
    rate, kind = generator.random(n_trials), generator.choice(["a", "b", "c"], n_trials)
    outcome = np.where(rate + generator.normal(size=n_trials) > 0.5, np.nan, rate)
    order = generator.permutation(n_trials)

    def found(parameter: Parameter, places: np.ndarray, objective: np.ndarray, **more: object) -> dict[str, object]:
        columns = {"rate": places, "kind": kind if "number" not in more else kind[order]}
        [finding] = check_feasibility(Trials.from_columns("s", [parameter, KIND], columns, objective, **more))
        return dict(finding.numbers)

    expected = found(RATE, rate, outcome)
    assert found(RATE, rate, -outcome, direction="maximize") == expected
    assert found(RATE, rate[order], outcome[order], number=order) == expected
    # The same places in another range and on a logarithmic scale.
    log = Parameter(name="rate", kind="float", low=1e-4, high=1, log=True)
    assert found(log, 10 ** (4 * rate - 4), 1e6 * outcome) == expected
    # Turned round, the other side explains it.
    sides = {"upper": "lower", "lower": "upper"}
    turned = found(RATE, 1 - rate, outcome)
    assert turned["explained_by"] == expected["explained_by"]
    if expected["explained_by"] == "rate":
        assert turned["explained_side"] == sides[str(expected["explained_side"])]


def test_a_hand_worked_cause() -> None:
    # Six of six below the middle, none of six above: of the C(12, 6) = 924 splits one is so, and one the other way.
    rate = (np.arange(12) + 0.5) / 12
    [finding] = check_feasibility(Trials.from_columns("s", [RATE], {"rate": rate}, np.where(rate < 0.5, np.nan, 1.0)))
    assert (finding.numbers["explained_by"], finding.numbers["explained_side"]) == ("rate", "lower")
    # The lowest fifth of the range holds trials 0 and 1; of the other ten, four are infeasible.
    assert (finding.numbers["share_there"], finding.numbers["share_elsewhere"]) == (1.0, pytest.approx(0.4))
    # With three of each, 2 of C(6, 3) = 20 splits are so extreme, which is above 0.05.
    [finding] = check_feasibility(
        Trials.from_columns("s", [RATE], {"rate": rate[::2]}, np.where(rate[::2] < 0.5, np.nan, 1.0))
    )
    assert finding.numbers["explained_by"] is None


def test_conditional_hyperparameters_are_asked_of_their_branch() -> None:
    branch = Parameter(name="a.decay", kind="float", low=0, high=1, condition=("kind", "a"))
    kind = np.resize(["a", "b", "c"], 90)
    decay = np.where(kind == "a", np.linspace(0, 1, 90), np.nan)
    # Half of each branch is infeasible, of that of the others in no order.
    outcome = np.where(np.where(kind == "a", decay > 0.5, np.arange(90) % 4 < 2), np.nan, 1.0)
    [finding] = check_feasibility(Trials.from_columns("s", [KIND, branch], {"kind": kind, "a.decay": decay}, outcome))
    assert (finding.numbers["explained_by"], finding.numbers["explained_side"]) == ("a.decay", "upper")
    assert finding.numbers["share_there"] == 1


def chance_of_a_flag(n_trials: int, share: float) -> float:
    """Return the chance of a flag where a share of the space is infeasible: binomial, over all counts."""
    flagged = 0.0
    for n_infeasible in range(n_trials + 1):
        outcome = np.where(np.arange(n_trials) < n_infeasible, np.nan, 1.0)
        trials = Trials.from_columns("s", [], {}, outcome)
        if check_feasibility(trials)[0].verdict is Verdict.FLAG:
            flagged += float(binom.pmf(n_infeasible, n_trials, share))
    return flagged


def test_the_majority_flag_has_its_exact_rates() -> None:
    rates = {n_trials: chance_of_a_flag(n_trials, 0.5) for n_trials in range(1, 81)}
    assert [rates[n_trials] for n_trials in (1, 2, 3)] == [0, 0, 0]
    assert max(rates.values()) == rates[4] == pytest.approx(1 / 16)
    assert max(rate for n_trials, rate in rates.items() if n_trials > 4) <= 0.04
    assert check_feasibility(study(np.array([0.5]), np.array([1.0])))[0].error_rate == 1 / 16
    assert chance_of_a_flag(16, 0.75) == pytest.approx(0.63, abs=0.005)
    assert chance_of_a_flag(32, 0.75) == pytest.approx(0.85, abs=0.005)


def test_a_cause_is_rarely_seen_where_there_is_none() -> None:
    generator = np.random.default_rng(5)
    named = 0
    for _ in range(1_000):
        objective = np.where(generator.random(30) < 0.4, np.nan, 1.0)
        [finding] = check_feasibility(study(generator.random(30), objective))
        named += finding.numbers["explained_by"] is not None
    assert named / 1_000 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 1_000)


def several(generator: np.random.Generator, n_trials: int, n_numbers: int, n_kinds: int) -> dict[str, np.ndarray]:
    columns = {f"x{place}": generator.random(n_trials) for place in range(n_numbers)}
    return columns | {f"kind{place}": generator.choice(["a", "b", "c"], n_trials) for place in range(n_kinds)}


def cause(columns: dict[str, np.ndarray], is_infeasible: np.ndarray) -> tuple[object, object]:
    parameters = [
        Parameter(name=name, kind="float", low=0, high=1)
        if name.startswith("x")
        else Parameter(name=name, kind="categorical", choices=("a", "b", "c"))
        for name in columns
    ]
    trials = Trials.from_columns("s", parameters, columns, np.where(is_infeasible, np.nan, 1.0))
    numbers = check_feasibility(trials)[0].numbers
    return numbers["explained_by"], numbers.get("explained_side")


@pytest.mark.slow
@pytest.mark.parametrize("n_trials", [10, 30, 100])
@pytest.mark.parametrize(("n_numbers", "n_kinds"), [(1, 0), (8, 0), (0, 4), (3, 2)])
def test_a_cause_is_rarely_seen_in_any_space_where_there_is_none(n_trials: int, n_numbers: int, n_kinds: int) -> None:
    generator = np.random.default_rng(6)
    n_studies = 600
    for share in (0.1, 0.5, 0.8):
        named = 0
        for _ in range(n_studies):
            columns = several(generator, n_trials, n_numbers, n_kinds)
            named += cause(columns, generator.random(n_trials) < share)[0] is not None
        assert named / n_studies <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / n_studies), share


@pytest.mark.parametrize(("n_trials", "n_by_chance", "power"), [(16, 0.0, 0.97), (32, 0.3, 0.86)])
def test_a_threshold_is_found(n_trials: int, n_by_chance: float, power: float) -> None:
    generator = np.random.default_rng(7)
    n_studies, found = 400, 0
    for _ in range(n_studies):
        columns = several(generator, n_trials, 4, 0)
        by_chance = generator.random(n_trials) < n_by_chance
        is_infeasible = np.where(by_chance, generator.random(n_trials) < 0.5, columns["x0"] > 0.5)
        found += cause(columns, is_infeasible) == ("x0", "upper")
    assert found / n_studies == pytest.approx(power, abs=2 * np.sqrt(power * (1 - power) / n_studies) + 0.005)
