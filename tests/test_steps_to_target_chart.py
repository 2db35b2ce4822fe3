"""Does the chart of steps to target show the regimes, the critical batch size and what missed its goal?"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import test_critical_batch_size_data as real
from drawn_charts import draw, points

from playbook_plugins.analysis import Budget, CriticalBatchSize, FewestSteps, critical_batch_size
from playbook_plugins.charts.palette import BLUE, GREY, ORANGE, PURPLE, RED
from playbook_plugins.charts.steps_to_target import steps_to_target_chart


def fewest(steps: Any, last_step: Any = 10_000, smallest: int = 16, budget: Budget = Budget.STEP) -> FewestSteps:
    count = np.asarray(steps, dtype=float)
    n_sizes = len(count)
    return FewestSteps(
        batch_size=smallest * 2 ** np.arange(n_sizes),
        steps=count,
        last_step=np.broadcast_to(last_step, n_sizes).astype(np.int64),
        n_trials=np.full(n_sizes, 20),
        best_row=np.where(np.isfinite(count), np.arange(n_sizes), -1),
        budget=budget,
    )


def curve(n_sizes: int = 9, critical: float = 256.0, smallest: int = 16) -> Any:
    return 320 * (1 + critical / (smallest * 2.0 ** np.arange(n_sizes)))


STEPS: dict[str, FewestSteps | CriticalBatchSize] = {
    "curve": fewest(curve()),
    "smallest misses": fewest([np.inf, *curve()[1:]]),
    "all miss": fewest([np.inf] * 5),
    "all miss, never watched": fewest([np.inf] * 5, last_step=0),
    "one size": fewest([100.0]),
    "two sizes": fewest([100.0, 60.0]),
    "rises": fewest([100.0, 50.0, 200.0, 20.0]),
    "not reached": fewest(1e6 / 2.0 ** np.arange(6)),
    "not below": fewest(np.full(6, 100.0), budget=Budget.EPOCH),
    "tiny and huge": fewest([1e-3, 1e-4, 1e-5, 1e-6], budget=Budget.MIXED),
    "many": fewest(curve(40, 2.0**20, 1), smallest=1, budget=Budget.UNKNOWN),
    "critical batch size": critical_batch_size(16 * 2.0 ** np.arange(9), [np.inf, *curve()[1:]]),
    "fractions of a batch": critical_batch_size([0.5, 1.5, 4.5, 9.5], [60, 30, 25, 24]),
}


@pytest.mark.parametrize("name", STEPS)
def test_it_is_valid_and_every_size_has_its_mark_in_the_frame(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    steps = STEPS[name]
    chart = steps_to_target_chart(steps)
    svg = draw(chart, capfd)
    marks = [mark for colour in (BLUE, ORANGE, PURPLE, GREY, RED) for mark in points(svg, colour)]
    assert len(marks) == len(steps.batch_size)
    assert all(0 <= x <= 460 and 0 <= y <= 270 for x, y in marks)
    assert len(points(svg, RED)) == int(np.isinf(steps.steps).sum())


def test_the_regimes_are_those_of_the_analysis(capfd: pytest.CaptureFixture[str]) -> None:
    steps = fewest(curve(13, critical=1024.0))
    result = critical_batch_size(steps.batch_size, steps.steps)
    chart = steps_to_target_chart(steps)
    assert [row["mark"] for row in chart.spec["data"]["values"]] == [str(regime) for regime in result.regimes]
    svg = draw(chart, capfd)
    for regime in ("perfect scaling", "diminishing returns", "maximal data parallelism"):
        assert f">{regime}<" in svg


def layer_of(chart: Any, kind: str) -> dict[str, Any]:
    [layer] = [layer for layer in chart.spec["layer"] if layer["mark"]["type"] == kind]
    found: dict[str, Any] = layer
    return found


def lines(chart: Any) -> list[list[dict[str, float]]]:
    return [layer["data"]["values"] for layer in chart.spec["layer"] if layer["mark"]["type"] == "line"]


def test_the_dashed_line_halves_the_steps_and_the_curve_is_the_fit() -> None:
    chart = steps_to_target_chart(fewest(curve()))
    [ideal, fitted] = lines(chart)
    assert (ideal[0]["batch_size"], ideal[0]["at"]) == (16, pytest.approx(curve()[0]))
    assert ideal[1]["at"] * ideal[1]["batch_size"] == pytest.approx(ideal[0]["at"] * ideal[0]["batch_size"])
    for point in fitted:
        assert point["at"] == pytest.approx(320 * (1 + 256 / point["batch_size"]), rel=1e-3)


def test_the_band_is_the_interval_and_the_post_the_estimate(capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    steps = fewest(curve() * np.exp(0.05 * rng.standard_normal(9)))
    result = critical_batch_size(steps.batch_size, steps.steps)
    [row] = layer_of(steps_to_target_chart(steps), "rect")["data"]["values"]
    assert (row["low"], row["value"], row["high"]) == (result.low, result.value, result.high)
    # An interval that the axis cannot hold ends at its frame.
    wide = critical_batch_size(16 * 2.0 ** np.arange(4), [300, 200, 190, 150])
    assert wide.low is not None
    chart = steps_to_target_chart(wide)
    [row] = layer_of(chart, "rect")["data"]["values"]
    left, right = layer_of(chart, "rect")["encoding"]["x"]["scale"]["domain"]
    assert left <= row["low"] < row["high"] <= right
    draw(chart, capfd)


def test_a_size_that_missed_the_goal_points_up_from_its_last_step(capfd: pytest.CaptureFixture[str]) -> None:
    steps = fewest([np.inf, 5000.0, 2500.0, 2000.0, 1800.0], last_step=[8000, 9000, 9000, 9000, 9000])
    chart = steps_to_target_chart(steps)
    row = chart.spec["data"]["values"][0]
    assert (row["at"], row["steps"], row["words"]) == (8000, None, "more than 8,000")
    [(_, y)] = points(draw(chart, capfd), RED)
    assert y > 13
    # Where nobody knows how long it was watched, at the upper edge.
    result = critical_batch_size(steps.batch_size, steps.steps)
    [(_, y)] = points(draw(steps_to_target_chart(result), capfd), RED)
    assert y == 13


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rises", "a larger batch size took more steps"),
        ("two sizes", "too few batch sizes reached the goal"),
        ("not reached", "it would lie above every size that reached the goal"),
        ("not below", "it would lie below every size that reached the goal"),
    ],
)
def test_a_refusal_is_told_in_words(name: str, words: str) -> None:
    chart = steps_to_target_chart(STEPS[name])
    assert chart.spec["title"]["subtitle"] == f"No critical batch size: {words}; {STEPS[name].budget}"
    assert f"No critical batch size is given: {words}." in chart.help
    assert len(lines(chart)) == 1


def test_the_words() -> None:
    chart = steps_to_target_chart(fewest([np.inf, *curve()[1:]]))
    assert chart.spec["title"]["subtitle"] == "Critical batch size 256 (95% interval 256 to 256); step budget"
    assert chart.alt == (
        "Steps to target against the batch size. Critical batch size 256 (95% interval 256 to 256); step budget. Batch "
        "size and steps: 16: more than 10,000, 256: 640, 4,096: 340. Beyond batch size 2,048 a doubling "
        "saves less than a tenth of the steps. 1 of 9 sizes missed the goal."
    )
    assert chart.help.endswith("Arrows take more steps than were watched. A step budget favours large batches.")
    assert "An epoch budget favours small batches." in steps_to_target_chart(STEPS["not below"]).help


def test_without_a_size_there_is_nothing_to_show() -> None:
    message = (
        "`steps` is empty: there is no batch size to show. Train with a curve at each batch size, and pass what "
        "fewest_steps or critical_batch_size makes of them."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        steps_to_target_chart(fewest([]))


@real.pytestmark
def test_a_real_model(capfd: pytest.CaptureFixture[str]) -> None:
    chart = steps_to_target_chart(real.measured("85M"))
    assert str(chart.spec["title"]["subtitle"]).startswith("Critical batch size 2,191 (95% interval 1,912 to 2,519);")
    draw(chart, capfd)
    assert "above every size" in steps_to_target_chart(real.measured("85M", largest=1024)).alt
