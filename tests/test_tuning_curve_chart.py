"""Does the tuning curve show the numbers of the analysis, also where infeasible trials leave none?"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

import numpy as np
import pytest
from drawn_charts import draw, points
from example_trials import two_optimizers
from real_studies import convnext, needs_convnext

from playbook_plugins.analysis import Parameter, Status, Trials
from playbook_plugins.analysis import tuning_curve as estimate_tuning_curve
from playbook_plugins.charts.chart import Chart
from playbook_plugins.charts.palette import BLUE, GREEN, RED
from playbook_plugins.charts.tuning_curve import tuning_curve
from playbook_plugins.report.interaction import page_spec


def table(objective: Any, direction: Any = "minimize", **more: Any) -> Trials:
    unit = (np.arange(len(objective)) + 0.5) / max(1, len(objective))
    parameter = Parameter(name="x", kind="float", low=0.0, high=1.0)
    return Trials.from_columns("a study", [parameter], {"x": unit}, objective, direction=direction, **more)


STUDIES = {
    "two optimizers": two_optimizers(),
    "no trial": table([]),
    "one trial": table([0.3]),
    "two trials": table([0.3, 0.4]),
    "three trials": table([0.3, 0.5, 0.4]),
    "one infeasible trial": table([math.nan]),
    "all infeasible": table([math.nan] * 12),
    "one of twelve feasible": table([math.nan] * 11 + [0.5]),
    "constant": table([0.3] * 12),
    "zeros": table([0.0] * 12),
    "maximize, negative": table(-np.geomspace(1, 1000, 40), "maximize"),
    "the ends of the floats": table([1e308, -1e308, 5e-324, 0.0, 1.0, 2.0, 3.0, 4.0]),
    "tiny and huge": table([5e-324, 1e-310, 1e308, 1e307]),
    "running and failed": table([math.nan, math.nan, 0.2], status=[Status.RUNNING, Status.FAILED, Status.COMPLETE]),
    "ten thousand trials": table(np.random.default_rng(0).lognormal(size=10_000)),
}


def boxes(chart: Chart) -> list[dict[str, Any]]:
    found = [layer["data"]["values"] for layer in chart.spec["layer"] if layer["mark"]["type"] == "bar"]
    return found[0] if found else []


def y_domain(chart: Chart) -> list[float]:
    domain: list[float] = chart.spec["layer"][-1]["encoding"]["y"]["scale"]["domain"]
    return domain


@pytest.mark.parametrize("name", STUDIES)
def test_it_is_valid_vega_lite_that_renders_without_a_warning(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    chart = tuning_curve(STUDIES[name])
    json.dumps(chart.spec, allow_nan=False)
    assert not {"hconcat", "vconcat", "concat", "facet", "repeat", "params"} & chart.spec.keys()
    svg = draw(chart, capfd)
    # Nothing is drawn at a place that is no number.
    assert not re.search(r'(?:translate\([^)]*|\bd="[^"]*)(?:NaN|Infinity|null)', svg)
    for x, y in points(svg, GREEN) + points(svg, RED):
        assert 0 <= x <= 460
        assert 0 <= y <= 270
    assert chart.title == "Tuning curve"
    assert chart.help.endswith(".")
    assert chart.alt.endswith(".")


def test_the_curve_and_the_boxes_are_those_of_the_analysis() -> None:
    trials = two_optimizers()
    curve = estimate_tuning_curve(trials)
    chart = tuning_curve(trials)
    rows = chart.spec["data"]["values"]
    for key, column in (("m", curve.m), ("median", curve.median), ("better", curve.better_quartile)):
        assert [row[key] for row in rows] == column.tolist()
    # The worse quartile of a single trial of these is infeasible or not: what is no number travels as null.
    assert [row["worse"] for row in rows] == [value if math.isfinite(value) else None for value in curve.worse_quartile]
    assert [row["m"] for row in boxes(chart)] == [1, 2, 4, 8]
    for row, box in zip(boxes(chart), curve.boxes, strict=True):
        shown = [row[key] for key in ("better_end", "better", "median", "worse", "worse_end")]
        expected = [box.better_end, box.better_quartile, box.median, box.worse_quartile, box.worse_end]
        assert shown == [value if math.isfinite(value) else None for value in expected]


def test_a_hand_worked_curve() -> None:
    # One trial of 3: the quantiles of Hyndman and Fan's eighth type, at ranks 10/3 * share + 1/3.
    rows = tuning_curve(table([3.0, 1.0, 2.0])).spec["data"]["values"]
    assert [row["m"] for row in rows] == [1, 2, 3]
    assert [rows[0][key] for key in ("better", "median", "worse")] == pytest.approx([1 + 1 / 6, 2.0, 2 + 5 / 6])


def test_the_star_stands_at_the_best_of_all_trials(capfd: pytest.CaptureFixture[str]) -> None:
    trials = two_optimizers()
    chart = tuning_curve(trials)
    best = trials.ranking()[0]
    [star] = chart.spec["layer"][-1]["data"]["values"]
    assert star["m"] == 48
    assert star["best"] == trials.objective[best]
    assert star["trial"] == trials.number[best]
    assert len(points(draw(chart, capfd), GREEN)) == 1


def test_the_axis_of_m_is_logarithmic_to_the_base_two_where_there_is_a_range() -> None:
    x = tuning_curve(STUDIES["two optimizers"]).spec["layer"][-1]["encoding"]["x"]
    assert (x["scale"]["type"], x["scale"]["base"]) == ("log", 2)
    assert x["axis"]["values"] == [1, 2, 4, 8, 16, 32, 48]
    x = tuning_curve(STUDIES["ten thousand trials"]).spec["layer"][-1]["encoding"]["x"]
    # 8192 and 10,000 would stand on each other.
    assert x["axis"]["values"][-1] == 8192
    x = tuning_curve(STUDIES["three trials"]).spec["layer"][-1]["encoding"]["x"]
    assert x["scale"]["type"] == "linear"
    assert x["axis"]["values"] == [1, 2, 3]


def test_maximizing_mirrors_minimizing(capfd: pytest.CaptureFixture[str]) -> None:
    objective = np.append(np.linspace(-3, 1, 30), [math.nan] * 4)
    down, up = tuning_curve(table(objective)), tuning_curve(table(-objective, "maximize"))
    assert [row["median"] for row in up.spec["data"]["values"]] == [
        value if (value := row["median"]) is None else -value for row in down.spec["data"]["values"]
    ]
    low, high = y_domain(down)
    assert y_domain(up) == [-high, -low]
    [(x, y)] = points(draw(down, capfd), GREEN)
    assert points(draw(up, capfd), GREEN) == [(x, pytest.approx(270 - y, abs=0.01))]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_curve_alone_knows_its_direction(direction: Any) -> None:
    curve = estimate_tuning_curve(table(np.arange(16.0), direction))
    better = "lower" if direction == "minimize" else "higher"
    chart = tuning_curve(curve)
    assert chart.spec["layer"][-1]["encoding"]["y"]["axis"]["title"] == f"best objective ({better} is better)"
    assert "trial" not in chart.spec["layer"][-1]["data"]["values"][0]
    assert y_domain(chart) == y_domain(tuning_curve(table(np.arange(16.0), direction)))
    assert chart.spec["title"]["subtitle"] == "16 trials, 0 infeasible"


def test_a_curve_alone_knows_its_direction_by_its_boxes_where_all_quartiles_are_alike() -> None:
    curve = estimate_tuning_curve(table([5.0] * 9 + [4.0], "maximize"))
    flat = dataclasses.replace(curve, worse_quartile=curve.better_quartile)
    assert any(box.better_end > box.worse_end for box in flat.boxes)
    chart = tuning_curve(flat)
    assert chart.spec["layer"][-1]["encoding"]["y"]["axis"]["title"] == "best objective (higher is better)"


def test_whiskers_of_searches_that_may_find_nothing_end_at_crosses(capfd: pytest.CaptureFixture[str]) -> None:
    trials = table(np.append(np.linspace(1, 2, 16), [math.nan] * 16))
    infeasible = [box.m for box in estimate_tuning_curve(trials).boxes if math.isnan(box.worse_end)]
    assert infeasible == [1, 2, 4]
    chart = tuning_curve(trials)
    svg = draw(chart, capfd)
    crosses = points(svg, RED)
    assert len(crosses) == 3
    # The strip is at the top, beyond the worst edge.
    assert all(y < 30 for _, y in crosses)
    assert ">infeasible<" in svg
    assert "a whisker at a cross" in chart.help
    # Their boxes reach to the edge of the axis, no further.
    drawn = {row["m"]: row for row in boxes(chart)}
    assert drawn[1]["worse"] is None
    assert drawn[1]["worse_drawn"] == drawn[1]["worse_end_drawn"] == y_domain(chart)[1]
    assert drawn[8]["worse_end_drawn"] == drawn[8]["worse_end"]


def test_a_study_of_infeasible_trials_is_crosses_only(capfd: pytest.CaptureFixture[str]) -> None:
    chart = tuning_curve(STUDIES["all infeasible"])
    svg = draw(chart, capfd)
    # At m = 1, 2 the boxes, at m = 4, 8 the medians that there are not.
    assert len(points(svg, RED)) == 4
    assert points(svg, GREEN) == []
    assert 'aria-roledescription="line mark"' not in svg
    assert chart.help == "Every trial is infeasible: there is no best of them."


def test_the_axis_ends_at_the_median_of_two_trials_and_cuts_what_is_worse() -> None:
    # Three quarters of the trials are far worse than the others: the median of one trial is not shown.
    trials = table(np.concatenate([np.linspace(1.0, 1.1, 16), np.linspace(50, 100, 8), np.full(16, 1e4)]))
    curve = estimate_tuning_curve(trials)
    low, high = y_domain(tuning_curve(trials))
    assert curve.median[1] < high < curve.median[0]
    assert low < 1.0
    assert "what is worse than the axis shows is cut" in tuning_curve(trials).help
    # A study of few trials shows all.
    assert y_domain(tuning_curve(table([1.0, 1.1, 100.0])))[1] > 90
    assert "is cut" not in tuning_curve(table([1.0, 1.1, 100.0])).help


def test_the_objective_axis_is_logarithmic_over_a_factor_of_ten_when_minimized() -> None:
    wide = np.geomspace(1e-4, 1, 64)
    scales = [
        tuning_curve(trials).spec["layer"][-1]["encoding"]["y"]["scale"]["type"]
        for trials in (table(wide), table(wide, "maximize"), table(wide - 0.5), table(1 + wide))
    ]
    assert scales == ["log", "linear", "linear", "linear"]


def test_the_line_is_dashed_beyond_half_of_the_trials(capfd: pytest.CaptureFixture[str]) -> None:
    chart = tuning_curve(two_optimizers())
    lines = [layer for layer in chart.spec["layer"] if layer["mark"]["type"] == "line"]
    assert [layer["mark"]["strokeDash"] for layer in lines] == [[1, 0], [4, 3]]
    assert "datum.m <= 24" in lines[0]["transform"][0]["filter"]
    assert "datum.m >= 24" in lines[1]["transform"][0]["filter"]
    svg = draw(chart, capfd)
    assert len(re.findall(rf'stroke="{BLUE}" stroke-width="2" stroke-dasharray="4,3"', svg)) == 1


def test_a_page_can_pick_the_best_trial() -> None:
    chart = tuning_curve(two_optimizers())
    spec = page_spec(chart.spec)
    [added] = spec["layer"][: len(spec["layer"]) - len(chart.spec["layer"])]
    assert added["transform"] == [{"filter": "datum.trial === picked"}]
    # A page takes rows with this key for those of the trials.
    assert "kind" not in chart.spec["data"]["values"][0]


def test_the_words() -> None:
    chart = tuning_curve(table([1.0, 2.0, 3.0, 4.0, math.nan, math.nan, math.nan, math.nan]))
    assert chart.spec["title"]["subtitle"] == "a study: 8 trials, 4 infeasible"
    assert chart.alt == (
        "Tuning curve: best objective (lower is better), against the number of trials m; from 8 trials, 4 infeasible. "
        "Median of the best of m: 1: infeasible, 2: 2.774. The best of all reaches 1 (trial 0)."
    )
    assert chart.help == (
        "What the best of m trials of such a random search is likely to reach: where the line is steep at its right, "
        "more trials are likely to help. It is dashed where it rests on a few best trials; a whisker at a cross says "
        "that at least 1 in 20 searches of m trials finds infeasible ones only; what is worse than the axis shows is "
        "cut."
    )
    one = tuning_curve(STUDIES["one trial"])
    assert one.spec["title"]["subtitle"] == "a study: 1 trial, 0 infeasible"
    assert one.help == "One trial alone does not say what more of them would reach."
    none = tuning_curve(STUDIES["no trial"])
    assert none.help == "No trial has ended feasible or infeasible yet, so there is no best of them."
    assert none.alt == "Tuning curve without a point: no trial has ended feasible or infeasible."


def test_ten_thousand_trials_make_few_rows() -> None:
    chart = tuning_curve(STUDIES["ten thousand trials"])
    assert len(chart.spec["data"]["values"]) <= 200
    assert len(json.dumps(chart.spec)) < 100_000


@needs_convnext
def test_a_real_study_of_512_trials_levels_off(capfd: pytest.CaptureFixture[str]) -> None:
    chart = tuning_curve(convnext())
    assert chart.alt == (
        "Tuning curve: best top_1 (higher is better), against the number of trials m; from 512 trials, 224 infeasible. "
        "Median of the best of m: 1: 0.05259, 4: 0.6411, 16: 0.7129, 64: 0.735, 128: 0.7429. The best of all reaches "
        "0.7489 (trial 374)."
    )
    svg = draw(chart, capfd)
    assert len(points(svg, RED)) == 2
    # Maximized: the strip is at the bottom.
    assert all(y > 240 for _, y in points(svg, RED))
