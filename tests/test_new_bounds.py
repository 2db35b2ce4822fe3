from __future__ import annotations

from typing import Any

import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from playbook_plugins.optuna.new_bounds import narrow, widen


@pytest.mark.parametrize(
    ("name", "before", "side", "after"),
    [
        # A factor of 3 at least, a third of the decades where that is more.
        ("rate", FloatDistribution(0.01, 0.1, log=True), "upper", (0.01, 0.3)),
        ("rate", FloatDistribution(1e-5, 1e-1, log=True), "lower", (4.6e-7, 1e-1)),
        ("rate", FloatDistribution(1e-5, 1e-1, log=True), "upper", (1e-5, 2.2)),
        # Three times the width, but a range of no negative values stays one.
        ("weight", FloatDistribution(0, 10), "upper", (0, 30)),
        ("weight", FloatDistribution(0, 10), "lower", (0, 10)),
        ("weight", FloatDistribution(6, 10), "lower", (2, 10)),
        ("weight", FloatDistribution(-1, 1), "lower", (-5, 1)),
        ("weight", FloatDistribution(-10, -6), "upper", (-10, -2)),
        # Known domains.
        ("one_minus_beta1", FloatDistribution(1e-3, 0.5, log=True), "upper", (1e-3, 1.0)),
        ("adam.one_minus_beta1", FloatDistribution(1e-3, 1.0, log=True), "upper", (1e-3, 1.0)),
        ("momentum", FloatDistribution(0.5, 0.94), "upper", (0.5, 0.98)),
        ("dropout", FloatDistribution(0, 0.4), "upper", (0, 0.8)),
        ("drop_probability", FloatDistribution(0, 0.1), "upper", (0, 0.3)),
        # Whole numbers and grids.
        ("depth", IntDistribution(2, 5), "upper", (2, 11)),
        ("depth", IntDistribution(2, 5), "lower", (1, 5)),
        ("depth", IntDistribution(0, 5), "lower", (0, 5)),
        ("depth", IntDistribution(1, 4, log=True), "lower", (1, 4)),
        ("width", IntDistribution(32, 128, log=True), "upper", (32, 390)),
        ("width", IntDistribution(32, 128, step=32), "upper", (32, 320)),
        ("width", IntDistribution(64, 128, step=32), "lower", (32, 128)),
        ("weight", FloatDistribution(0.1, 0.5, step=0.1), "upper", (0.1, 1.3)),
        ("weight", FloatDistribution(0.5, 0.7, step=0.1), "lower", (0.1, 0.7)),
    ],
)
def test_how_far_a_bound_moves(name: str, before: Any, side: Any, after: tuple[float, float]) -> None:
    wider = widen(name, before, side)
    assert (wider.low, wider.high) == pytest.approx(after, rel=1e-12)
    assert (wider.log, wider.step, type(wider)) == (before.log, before.step, type(before))
    # Optuna adjusts a bound that is off the grid, with a warning that would fail this test.
    assert wider.low <= before.low
    assert wider.high >= before.high


@pytest.mark.parametrize(
    ("before", "side", "after"),
    [
        (FloatDistribution(0, 1), "lower", (0.25, 1)),
        (FloatDistribution(1e-4, 1, log=True), "upper", (1e-4, 0.1)),
        (IntDistribution(1, 11), "upper", (1, 9)),
        (IntDistribution(1, 3), "lower", (1, 3)),
        (IntDistribution(0, 100, step=10), "lower", (20, 100)),
        (FloatDistribution(0, 1, step=0.1), "upper", (0, 0.8)),
    ],
)
def test_how_much_a_range_narrows(before: Any, side: Any, after: tuple[float, float]) -> None:
    narrower = narrow(before, side, 0.25)
    assert (narrower.low, narrower.high) == pytest.approx(after, rel=1e-12)
    assert (narrower.log, narrower.step) == (before.log, before.step)
