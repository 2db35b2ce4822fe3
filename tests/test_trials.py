from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from playbook_plugins.analysis import Curve, Parameter, Role, Status, Trials
from playbook_plugins.analysis.points import point_codes

RATE = Parameter(name="rate", kind="float", low=1e-4, high=1.0, log=True)
WIDTH = Parameter(name="width", kind="int", low=1, high=9)
KIND = Parameter(name="kind", kind="categorical", choices=("a", True, 1, None), role=Role.SCIENTIFIC)


def make_trials(**columns: object) -> Trials:
    return Trials.from_columns(
        "study",
        [RATE, WIDTH, KIND],
        {"rate": [1e-4, 1e-2, 1.0, np.nan], "width": [1, 5, 9, 5], "kind": ["a", True, 1, None]},
        [0.3, 0.1, np.nan, 0.2],
        **columns,
    )


def test_to_unit_uses_the_search_scale() -> None:
    np.testing.assert_allclose(RATE.to_unit([1e-4, 1e-2, 1.0, np.nan]), [0.0, 0.5, 1.0, np.nan])
    np.testing.assert_allclose(WIDTH.to_unit([1, 5, 9]), [0.0, 0.5, 1.0])
    single = Parameter(name="one", kind="float", low=2.0, high=2.0)
    np.testing.assert_array_equal(single.to_unit([2.0, np.nan]), [0.5, np.nan])


def test_a_value_without_a_finite_place_has_none() -> None:
    np.testing.assert_array_equal(RATE.to_unit([0.0, -1.0, np.inf, -np.inf]), [np.nan] * 4)
    np.testing.assert_array_equal(WIDTH.to_unit([np.inf, -np.inf]), [np.nan] * 2)
    trials = Trials.from_columns("s", [RATE, WIDTH], {"rate": [0.0, 1e-2], "width": [5, np.inf]}, [1.0, 2.0])
    assert (trials.has(RATE.name).tolist(), trials.has(WIDTH.name).tolist()) == ([False, True], [True, False])
    # What the trial ran with is still told.
    assert trials.config(1) == {"rate": 1e-2, "width": np.inf}


def test_categories_are_told_apart_by_type() -> None:
    np.testing.assert_allclose(
        KIND.to_unit(["a", True, 1, None, "b", 1.0]), [1 / 8, 3 / 8, 5 / 8, 7 / 8, np.nan, np.nan]
    )


@given(st.floats(0, 1), st.floats(1e-8, 1e3), st.floats(1.001, 1e6), st.booleans())
def test_from_unit_is_the_inverse_of_to_unit(unit: float, low: float, ratio: float, log: bool) -> None:
    parameter = Parameter(name="x", kind="float", low=low, high=low * ratio, log=log)
    assert parameter.to_unit(parameter.from_unit(unit)) == pytest.approx(unit, abs=1e-6)


def test_infeasible_trials_carry_the_worst_objective() -> None:
    low, high = make_trials(), make_trials(direction="maximize")
    assert low.objective[2] == np.inf
    assert high.objective[2] == -np.inf
    assert low.cost[2] == high.cost[2] == np.inf
    assert low.ranking().tolist() == [1, 3, 0]
    assert high.ranking().tolist() == [0, 3, 1]


def test_statuses_say_what_counts() -> None:
    trials = make_trials(status=[Status.COMPLETE, Status.PRUNED, Status.INFEASIBLE, Status.FAILED])
    assert trials.is_feasible.tolist() == [True, False, False, False]
    assert trials.is_judged.tolist() == [True, False, True, False]


def test_config_leaves_out_what_a_trial_lacks() -> None:
    trials = make_trials()
    assert trials.config(0) == {"rate": 1e-4, "width": 1, "kind": "a"}
    assert trials.config(3) == {"width": 5, "kind": None}
    assert isinstance(trials.config(0)["width"], int)


def test_select_keeps_columns_together() -> None:
    part = make_trials().select([2, 0])
    assert part.number.tolist() == [2, 0]
    assert part.values["width"].tolist() == [9, 1]
    assert part.values["kind"].tolist() == [1, "a"]
    masked = make_trials().select(np.array([True, False, False, True]))
    assert masked.number.tolist() == [0, 3]


def test_distinct_counts_paired_branches_and_repeats_once() -> None:
    optimizer = Parameter(name="opt", kind="categorical", choices=("a", "b"), role=Role.SCIENTIFIC)
    decay = Parameter(name="decay", kind="float", low=0, high=1)
    rate_a = Parameter(name="a.rate", kind="float", low=1e-4, high=1e-2, log=True, condition=("opt", "a"))
    rate_b = Parameter(name="b.rate", kind="float", low=1.0, high=100.0, log=True, condition=("opt", "b"))
    nan = np.nan
    trials = Trials.from_columns(
        "paired",
        [optimizer, decay, rate_a, rate_b],
        {
            "opt": ["a", "b", "a", "b", "b"],
            "decay": [0.1, 0.1, 0.7, 0.7, 0.7],
            "a.rate": [1e-3, nan, 2e-4, nan, nan],
            "b.rate": [nan, 10.0, nan, 2.0, 50.0],
        },
        [0.5, 0.4, nan, 0.3, 0.2],
    )
    # Rows 0 and 1 stand at one point, and rows 2 and 3; row 4 has its own rate.
    assert trials.distinct(np.arange(5)).tolist() == [1, 3, 4]
    assert trials.distinct([0, 2]).tolist() == [0, 2]


def one_study(value: str, rate: list[float], low: float = 1e-4) -> Trials:
    return Trials.from_columns(
        value,
        [
            Parameter(name="rate", kind="float", low=low, high=1.0, log=True),
            WIDTH,
            Parameter(name="act", kind="categorical", choices=("a", "b")),
        ],
        {"rate": rate, "width": [1] * len(rate), "act": ["a"] * len(rate)},
        rate,
        fixed={"method": value, "steps": 10},
        goal="Which method?",
        caveats=("steps",),
    )


def test_branches_of_two_parents_are_dimensions_of_their_own() -> None:
    choice = {"kind": "categorical", "role": Role.SCIENTIFIC}
    parameters = [
        Parameter(name="optimizer", choices=("adam", "sgd"), **choice),
        Parameter(name="schedule", choices=("cosine", "constant"), **choice),
        Parameter(name="adam.rate", kind="float", low=0, high=1, condition=("optimizer", "adam")),
        Parameter(name="cosine.warmup", kind="float", low=0, high=1, condition=("schedule", "cosine")),
    ]
    rates = np.linspace(0, 1, 8)
    trials = Trials.from_columns(
        "s",
        parameters,
        {"optimizer": ["adam"] * 8, "schedule": ["cosine"] * 8, "adam.rate": rates, "cosine.warmup": [0.5] * 8},
        np.arange(8.0),
    )
    assert len(trials.distinct(np.arange(8))) == 8


def test_concat_makes_scientific_what_was_fixed_differently() -> None:
    table = Trials.concat([one_study("x", [0.1, 0.2]), one_study("y", [0.5], low=1e-2)])
    assert table.name == "x, y"
    assert [parameter.name for parameter in table.parameters] == ["method", "x.rate", "width", "act", "y.rate"]
    assert table.parameter("method").role is Role.SCIENTIFIC
    assert table.parameter("y.rate").condition == ("method", "y")
    assert table.values["method"].tolist() == ["x", "x", "y"]
    np.testing.assert_array_equal(table.values["x.rate"], [0.1, 0.2, np.nan])
    np.testing.assert_array_equal(table.values["y.rate"], [np.nan, np.nan, 0.5])
    assert table.values["width"].tolist() == [1, 1, 1]
    assert table.number.tolist() == [0, 1, 2]
    assert (table.fixed, table.goal, table.caveats) == ({"steps": 10}, "Which method?", ("steps",))


def test_concat_keeps_as_fixed_only_what_every_study_fixed() -> None:
    # The second study searched `steps`: 10 is not the value of its trials.
    searched = replace(one_study("y", [0.5]), fixed={"method": "y"})
    assert Trials.concat([one_study("x", [0.1]), searched]).fixed == {}


def test_ranks_and_units_are_columns_of_the_table() -> None:
    trials = make_trials()
    assert trials.ranks("kind").tolist() == KIND.ranks(trials.values["kind"]).tolist() == [0, 1, 2, 3]
    assert KIND.ranks(["a", 1.0, "b", 1]).tolist() == [0, -1, -1, 2]
    assert trials.select([3, 1]).ranks("kind").tolist() == [3, 1]
    np.testing.assert_allclose(trials.unit("rate"), [0, 0.5, 1, np.nan])
    with pytest.raises(ValueError, match="read-only"):
        trials.unit("rate")[0] = 1


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.5, 0.5 + 1e-12, 1.0, np.nan])] * 3), max_size=12))
def test_points_are_the_distinct_rows(rows: list[tuple[float, float, float]]) -> None:
    table = np.array(rows).reshape(-1, 3)
    codes = point_codes(list(table.T), len(table))
    texts = [str(np.round(row, 9)) for row in table]
    for one, code in zip(texts, codes, strict=True):
        assert [other == one for other in texts] == (codes == code).tolist()
    assert point_codes([], 3).tolist() == [0, 0, 0]


def test_concat_of_one_table_or_of_equal_rounds_adds_no_parameter() -> None:
    first = one_study("x", [0.1, 0.2])
    assert Trials.concat([first]).parameters == first.parameters
    assert len(Trials.concat([first, first], name="both")) == 4


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Parameter(name="x", kind="float", low=2, high=1),
            "`low` and `high` of the hyperparameter 'x' are 2 and 1: low must not exceed high, and neither may be NaN. "
            "Pass the bounds of the search space.",
        ),
        (
            lambda: Parameter(name="x", kind="float", low=0.0, high=1, log=True),
            "`low` of the hyperparameter 'x' is 0.0: a logarithmic scale needs a positive lower bound. Pass a positive "
            "bound, or log=False.",
        ),
        (
            lambda: Parameter(name="x", kind="categorical"),
            "`choices` of the categorical hyperparameter 'x' is empty: it must name at least one value. Pass the "
            "values that the study may take.",
        ),
        (
            lambda: make_trials(direction="down"),
            "`direction` is 'down': it must be 'minimize' or 'maximize'. Pass the direction in which the objective "
            "gets better.",
        ),
        (
            lambda: make_trials(reason=["", ""]),
            "`reason` has 2 entries, but there are 4 trials: every column has one entry a trial. Fill what is unknown "
            "with NaN, None, -1 or ''.",
        ),
        (
            lambda: Trials.from_columns("s", [RATE], {}, [1.0]),
            "`values` has no column for ['rate']: every hyperparameter in `parameters` needs one. Add a column, with "
            "NaN or None where a trial lacks the hyperparameter.",
        ),
        (
            lambda: make_trials().parameter("depth"),
            "`parameter` is 'depth': the study 'study' has no such hyperparameter. Pass one of ['rate', 'width', "
            "'kind'].",
        ),
        (
            lambda: Trials.concat([]),
            "`tables` is empty: there is nothing to join. Pass the tables of at least one study.",
        ),
        (
            lambda: Trials.concat([make_trials(), make_trials(direction="maximize")]),
            "`tables` have the directions ['maximize', 'minimize']: studies of one round measure one objective. Join "
            "only studies of one direction.",
        ),
        (
            lambda: Trials.concat([one_study("x", [0.1]), one_study("x", [0.1], low=1e-3)]),
            "`tables` give 'rate' different ranges: the studies of one scientific value share one search space. Join "
            "studies that differ in a fixed hyperparameter, or review them one by one.",
        ),
        (
            lambda: Curve.from_columns([0, 2, 2], [1, 1, 1]),
            "`step` is [0, 2, 2]: the steps of a curve must be non-negative and strictly increasing. Pass one entry an "
            "evaluation, in the order of training.",
        ),
        (
            lambda: Curve.from_columns([0, 2], [1]),
            "`validation` has 1 entries, but there are 2 evaluations: every column has one entry an evaluation. Fill "
            "what is unknown with NaN.",
        ),
    ],
)
def test_bad_input_is_refused(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build()
