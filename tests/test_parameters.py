"""Does one range hold two, and does a hyperparameter survive JSON?"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from playbook_plugins.analysis import Parameter, Role

bounds = st.floats(1e-6, 1e6)
scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-3, 3) | st.text(max_size=3)


@st.composite
def parameters(draw: st.DrawFn) -> Parameter:
    role = draw(st.sampled_from(Role))
    condition = draw(st.none() | st.tuples(st.just("optimizer"), scalars))
    kind = draw(st.sampled_from(["float", "int", "categorical"]))
    if kind == "categorical":
        choices = draw(st.lists(scalars, min_size=1, max_size=5, unique_by=lambda choice: (type(choice), choice)))
        return Parameter(name="p", kind="categorical", choices=tuple(choices), role=role, condition=condition)
    if kind == "int":
        low, high = sorted(draw(st.tuples(st.integers(1, 99), st.integers(1, 99))))
        is_log = draw(st.booleans())
        step = 1 if is_log else draw(st.integers(1, 7))
        high = low + (high - low) // step * step
        return Parameter(
            name="p",
            kind="int",
            low=float(low),
            high=float(high),
            log=is_log,
            step=step,
            role=role,
            condition=condition,
        )
    low_float, high_float = sorted(draw(st.tuples(bounds, bounds)))
    return Parameter(
        name="p",
        kind="float",
        low=low_float,
        high=high_float,
        log=draw(st.booleans()),
        role=role,
        condition=condition,
    )


@given(parameters())
def test_a_hyperparameter_survives_json(parameter: Parameter) -> None:
    assert repr(Parameter.from_plain(json.loads(json.dumps(parameter.to_plain())))) == repr(parameter)


@given(parameters())
def test_widening_by_itself_changes_nothing(parameter: Parameter) -> None:
    assert repr(parameter.widen(parameter)) == repr(parameter)


@given(parameters(), parameters())
def test_the_wider_range_holds_the_values_of_both(first: Parameter, second: Parameter) -> None:
    wide = first.widen(second)
    assert (wide.role, wide.condition) == (first.role, first.condition)
    if first.kind != second.kind:
        assert wide.kind == second.kind
        return
    for one in (first, second):
        if one.is_numeric:
            assert wide.low <= one.low <= one.high <= wide.high
            if wide.kind == "int":
                values = np.arange(one.low, one.high + 1, one.step if not one.log else 1)
                assert np.all((values - wide.low) % (wide.step or 1) == 0)
        else:
            assert all(wide.rank(choice) is not None for choice in one.choices)


def test_hand_worked_grids() -> None:
    def grid(low: float, step: float) -> Parameter:
        return Parameter(name="p", kind="float", low=low, high=low + 4 * step, step=step)

    assert grid(0.0, 0.5).widen(grid(1.0, 0.5)).step == 0.5
    assert grid(0.0, 0.5).widen(grid(0.2, 0.5)).step is None
    assert grid(0.0, 0.5).widen(grid(0.0, 0.25)).step is None
    even = Parameter(name="p", kind="int", low=2, high=10, step=4)
    assert even.widen(Parameter(name="p", kind="int", low=4, high=10, step=6)).step == 2


def test_true_one_and_nan_stay_apart() -> None:
    first = Parameter(name="p", kind="categorical", choices=(1, math.nan))
    wide = first.widen(Parameter(name="p", kind="categorical", choices=(True, 1.0, "1", math.nan)))
    assert repr(wide.choices) == "(1, nan, True, 1.0, '1')"


@pytest.mark.parametrize("log", [(True, False), (False, True), (True, True)])
def test_a_scale_stays_logarithmic_where_both_are(log: tuple[bool, bool]) -> None:
    one, other = (Parameter(name="p", kind="float", low=1, high=2, log=is_log) for is_log in log)
    assert one.widen(other).log is all(log)
