"""Are two tables of a study the same, to the last bit?"""

from __future__ import annotations

from typing import Any

import numpy as np

from playbook_plugins.analysis import Curve, Trials

_PLAIN = ("name", "direction", "objective_name", "reason", "goal", "caveats")
_COLUMNS = ("objective", "number", "best_step", "max_steps")


def assert_equal_tables(left: Trials, right: Trials) -> None:
    """Compare every field: types and bits count, but NaN equals NaN, -0.0 equals 0.0, and metrics have no order."""
    for field in _PLAIN:
        assert getattr(left, field) == getattr(right, field), field
    assert list(left.status) == list(right.status)
    for field in _COLUMNS:
        assert_equal_arrays(getattr(left, field), getattr(right, field), field)
    # By their text, in which True is not 1, 1 is not 1.0, and NaN is NaN.
    assert list(map(repr, left.parameters)) == list(map(repr, right.parameters))
    assert {name: repr(value) for name, value in left.fixed.items()} == {
        name: repr(value) for name, value in right.fixed.items()
    }
    assert set(left.values) == set(right.values)
    for name in left.values:
        assert_equal_arrays(left.values[name], right.values[name], name)
    assert len(left.curves) == len(right.curves)
    for number, one, other in zip(left.number, left.curves, right.curves, strict=True):
        assert_equal_curves(one, other, f"trial {number}")


def assert_equal_curves(left: Curve | None, right: Curve | None, where: str = "") -> None:
    assert (left is None) == (right is None), where
    if left is None or right is None:
        return
    assert_equal_arrays(left.step, right.step, f"{where}: step")
    one, other = left.columns(), right.columns()
    assert set(one) == set(other), where
    for name in one:
        assert_equal_arrays(one[name], other[name], f"{where}: {name}")


def assert_equal_arrays(left: Any, right: Any, where: str) -> None:
    assert left.dtype == right.dtype, where
    assert left.shape == right.shape, where
    if left.dtype == object:
        assert list(map(repr, left)) == list(map(repr, right)), where
    else:
        # One NaN may have other bits than another; and the client's side process writes -0.0 as -0, an integer.
        plain = [np.where(np.isnan(one), np.nan, one + 0.0) if one.dtype.kind == "f" else one for one in (left, right)]
        assert plain[0].tobytes() == plain[1].tobytes(), where
