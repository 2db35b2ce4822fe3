"""Does the chart of best steps show each trial at its share of training, and say what the check says?"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

import numpy as np
import pytest
import vl_convert
from drawn_charts import draw, points
from example_trials import two_optimizers
from real_studies import convnext, needs_convnext

from playbook_plugins.analysis import Curve, Parameter, Status, Trials, check_best_steps
from playbook_plugins.charts.chart import Chart
from playbook_plugins.charts.palette import BLUE, GREEN, GREY, ORANGE, PURPLE
from playbook_plugins.charts.steps import best_step_chart
from playbook_plugins.charts.table import trial_rows
from playbook_plugins.report.interaction import page_spec


def table(
    objective: Any, best_step: Any = None, max_steps: Any = 1000, direction: Any = "minimize", **more: Any
) -> Trials:
    n_trials = len(objective)
    unit = (np.arange(n_trials) + 0.5) / max(1, n_trials)
    parameter = Parameter(name="x", kind="float", low=0.0, high=1.0)
    return Trials.from_columns(
        "a study",
        [parameter],
        {"x": unit},
        objective,
        direction=direction,
        best_step=None if best_step is None else np.broadcast_to(best_step, n_trials),
        max_steps=np.broadcast_to(max_steps, n_trials),
        **more,
    )


def without_steps(trials: Trials) -> Trials:
    return dataclasses.replace(trials, best_step=np.full(len(trials), -1))


STUDIES = {
    "two optimizers": two_optimizers(),
    "no trial": table([]),
    "one trial": table([0.3], 500),
    "one trial at its first evaluation": table([0.3], 0),
    "no steps": without_steps(two_optimizers()),
    "no length": table([0.3, 0.4], 500, -1),
    "all infeasible": table([math.nan] * 12, 500),
    "constant": table([0.3] * 12, 500),
    "zeros": table([0.0] * 12, 500),
    "maximize": table(np.append(np.linspace(0, 1, 30), -1000.0), np.arange(31) * 30, direction="maximize"),
    "far worse ones": table(np.append(np.linspace(1, 2, 30), 1e6), np.arange(31) * 30),
    "the ends of the floats": table([1e308, -1e308, 5e-324, 0.0], 500),
    "beyond the length": table([0.3, 0.4], [1500, 1000]),
    "every status": table(
        [0.3, math.nan, 0.4, math.nan, math.nan],
        500,
        status=[Status.COMPLETE, Status.INFEASIBLE, Status.PRUNED, Status.FAILED, Status.RUNNING],
    ),
}


def step_rows(chart: Chart) -> dict[int, dict[str, Any]]:
    rows = chart.spec["transform"][0]["from"]["data"]["values"]
    return {row["trial"]: row for row in rows}


@pytest.mark.parametrize("name", STUDIES)
def test_it_is_valid_vega_lite_that_renders_without_a_warning(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    trials = STUDIES[name]
    chart = best_step_chart(trials)
    json.dumps(chart.spec, allow_nan=False)
    assert not {"hconcat", "vconcat", "concat", "facet", "repeat", "params"} & chart.spec.keys()
    svg = draw(chart, capfd)
    assert not re.search(r'(?:translate\([^)]*|\bd="[^"]*)(?:NaN|Infinity|null)', svg)
    drawn = points(svg, GREEN, of="stroke") + points(svg, BLUE, of="stroke")
    assert len(drawn) == len(step_rows(chart))
    for x, y in drawn:
        assert 0 <= x <= 460
        assert 0 <= y <= 270
    assert ">first 10%<" in svg
    assert ">last 25%<" in svg
    assert chart.title == "Best steps"
    assert chart.help.endswith(".")
    assert chart.alt.endswith(".")


def test_each_feasible_trial_stands_at_its_share_of_training(capfd: pytest.CaptureFixture[str]) -> None:
    trials = table([0.1, 0.2, 0.3, 0.4, math.nan], [100, 250, 500, 750, 10], [1000, 1000, 2000, 1000, 1000])
    chart = best_step_chart(trials)
    assert {trial: row["progress"] for trial, row in step_rows(chart).items()} == {0: 0.1, 1: 0.25, 2: 0.25, 3: 0.75}
    x = {
        round(x, 1)
        for x, _ in points(draw(chart, capfd), BLUE, of="stroke") + points(draw(chart, capfd), GREEN, of="stroke")
    }
    # From -3% to 103% over 460 pixels.
    assert x == {round(460 * (share + 0.03) / 1.06, 1) for share in (0.1, 0.25, 0.75)}


def test_the_rows_are_those_of_every_chart_of_the_study() -> None:
    trials = two_optimizers()
    assert best_step_chart(trials).spec["data"]["values"] == trial_rows(trials)


def test_a_page_can_pick_each_trial() -> None:
    trials = two_optimizers()
    chart = best_step_chart(trials)
    spec = page_spec(chart.spec)
    [added] = spec["layer"][: len(spec["layer"]) - len(chart.spec["layer"])]
    assert added["transform"][-1] == {"filter": "datum.trial === picked"}
    assert added["encoding"]["x"] == chart.spec["layer"][-1]["encoding"]["x"]
    # With a trial picked, one ring more is drawn, where the trial is.
    best = int(trials.number[trials.ranking()[0]])
    spec |= {"data": chart.spec["data"], "width": 460, "autosize": "pad", "config": chart.spec["config"]}
    spec["params"] = [{"name": "picked", "value": best}]
    svg = vl_convert.vegalite_to_svg(spec, vl_version="5.21")
    [ring] = re.findall(r'<path transform="translate\(([-\d.]+,[-\d.]+)\)"[^>]*stroke-width="2" opacity="1"', svg)
    assert tuple(map(float, ring.split(","))) in points(svg, GREEN, of="stroke")


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_better_half_is_that_of_the_check(direction: Any) -> None:
    generator = np.random.default_rng(0)
    trials = table(generator.random(41), generator.integers(0, 1001, 41), direction=direction)
    numbers = check_best_steps(trials)[0].numbers
    better = [row for row in step_rows(best_step_chart(trials)).values() if row["half"] == "better half"]
    assert len(better) == numbers["n_better_half"] == 21
    assert np.mean([row["progress"] <= 0.10 for row in better]) == numbers["share_early"]
    assert np.mean([row["progress"] > 0.75 for row in better]) == numbers["share_late"]
    best = int(trials.ranking()[0])
    assert step_rows(best_step_chart(trials))[best]["half"] == "better half"


def test_ties_and_retrains_fall_into_the_half_of_the_check() -> None:
    # Five points, the best of them trained six times: the median point has 0.5, and every trial is compared with it.
    x = [0.1] * 6 + [0.3, 0.5, 0.7, 0.9]
    objective = [0.1, 0.7, 0.7, 0.7, 0.7, 0.7, 0.4, 0.5, 0.6, 0.8]
    parameter = Parameter(name="x", kind="float", low=0.0, high=1.0)
    trials = Trials.from_columns("a", [parameter], {"x": x}, objective, best_step=[5] * 10, max_steps=[10] * 10)
    better = [trial for trial, row in step_rows(best_step_chart(trials)).items() if row["half"] == "better half"]
    assert sorted(better) == [0, 6, 7]


def test_stars_are_the_best_three_and_rings_the_worse_half(capfd: pytest.CaptureFixture[str]) -> None:
    chart = best_step_chart(two_optimizers())
    svg = draw(chart, capfd)
    assert len(points(svg, GREEN, of="stroke")) == 3
    assert len(points(svg, BLUE, of="stroke")) == 37
    scale = chart.spec["layer"][-1]["encoding"]["fill"]["scale"]
    assert scale["domain"] == ["best 3", "better half", "worse half"]
    assert scale["range"] == [GREEN, BLUE, "rgba(61, 127, 196, 0.08)"]
    # Half of 40 trials, and of the better half the best three are stars.
    assert len(re.findall(rf'aria-roledescription="point"[^>]*fill="{BLUE}"', svg)) == 17
    assert len(re.findall(r'aria-roledescription="point"[^>]*fill="rgba\(61, 127, 196, 0.08\)"', svg)) == 20


@pytest.mark.parametrize(
    ("direction", "edge", "shape"), [("minimize", 30, "triangle-up"), ("maximize", 240, "triangle-down")]
)
def test_a_trial_far_worse_stands_at_the_edge(
    direction: Any, edge: float, shape: str, capfd: pytest.CaptureFixture[str]
) -> None:
    sign = 1 if direction == "minimize" else -1
    chart = best_step_chart(table(sign * np.append(np.linspace(1, 2, 30), 1e6), 500, direction=direction))
    scale = chart.spec["layer"][-1]["encoding"]["shape"]["scale"]
    assert dict(zip(scale["domain"], scale["range"], strict=True))["beyond the axis"] == shape
    assert any(y == pytest.approx(edge) for _, y in points(draw(chart, capfd), BLUE, of="stroke"))


def test_the_legend_names_only_what_is_drawn() -> None:
    # The only trial beyond the axis has no steps.
    steps = np.append(np.full(30, 500), -1)
    chart = best_step_chart(table(np.append(np.linspace(1, 2, 30), 1e6), steps))
    assert "beyond the axis" not in chart.spec["layer"][-1]["encoding"]["shape"]["scale"]["domain"]
    assert best_step_chart(STUDIES["no steps"]).spec["layer"][-1]["encoding"]["shape"]["legend"] is None


def test_marks_at_either_end_are_told_apart(capfd: pytest.CaptureFixture[str]) -> None:
    for step, share in ((0, 0.0), (1000, 1.0)):
        svg = draw(best_step_chart(table([0.5] * 20, step)), capfd)
        x = [x for x, _ in points(svg, BLUE, of="stroke") + points(svg, GREEN, of="stroke")]
        assert len(set(x)) == 20
        middle = 460 * (share + 0.03) / 1.06
        # By 2% of training at most.
        assert max(abs(place - middle) for place in x) <= 1.001 * 460 * 0.02 / 1.06


def test_trials_without_steps_are_left_out_and_counted() -> None:
    trials = two_optimizers()
    best_step = trials.best_step.copy()
    rows = trials.ranking()[:2]
    best_step[rows[0]] = -1
    chart = best_step_chart(dataclasses.replace(trials, best_step=best_step))
    assert len(step_rows(chart)) == 39
    words = "1 feasible trial has no known steps and is left out."
    assert chart.spec["title"]["subtitle"][-1] == words
    assert words in chart.help
    assert words in chart.alt
    # Then the best that is drawn is the second best.
    assert f"The best of them, trial {trials.number[rows[1]]}, reaches" in chart.alt
    best_step[rows[1]] = -1
    chart = best_step_chart(dataclasses.replace(trials, best_step=best_step))
    assert chart.alt.endswith("2 feasible trials have no known steps and are left out.")


def test_under_a_decaying_learning_rate_late_best_steps_say_little() -> None:
    curve = Curve.from_columns([0, 500, 1000], [1.0, 0.6, 0.5], learning_rate=[1.0, 0.5, 0.0])
    decaying = best_step_chart(table([0.5] * 10, 1000, curves=[curve] * 10))
    constant = best_step_chart(table([0.5] * 10, 1000))
    words = "The learning rate decays: late best steps say little."
    assert words in decaying.spec["title"]["subtitle"]
    assert words in decaying.help
    assert words in decaying.alt
    assert words not in json.dumps(constant.spec) + constant.help + constant.alt
    assert "in the last 25%: train longer" in constant.help
    assert "train longer" not in decaying.help
    for chart, late in ((decaying, GREY), (constant, PURPLE)):
        assert [layer["mark"]["color"] for layer in chart.spec["layer"] if layer["mark"]["type"] == "rect"] == [
            ORANGE,
            late,
        ]


def test_the_words() -> None:
    chart = best_step_chart(two_optimizers())
    verdict = "Of the better half, 0% are best in the first 10% of training and 90% in the last 25%."
    assert chart.spec["title"] == {"text": "Best steps", "subtitle": ["digits: adam or nesterov", verdict]}
    assert chart.help == (
        "Where in training each trial was at its best. Mostly in the first 10%: train shorter, or see whether the "
        f"trials overfit; mostly in the last 25%: train longer. {verdict}"
    )
    assert chart.alt == (
        f"Best steps of 40 feasible trials against validation error. {verdict} The best of them, trial 36, reaches "
        "0.02079 at step 275 of 600."
    )
    few = best_step_chart(table([0.3] * 7, 500))
    assert few.spec["title"]["subtitle"][1] == "7 points with known steps: too few to judge."
    assert "1 point with known steps: too few to judge." in best_step_chart(STUDIES["one trial"]).alt
    none = best_step_chart(STUDIES["no length"])
    assert none.help == ("No feasible trial has a known best step and length of training: record them with each trial.")
    assert none.alt == (
        "Best steps of 0 feasible trials against objective. No feasible trial has known steps. 2 feasible trials have "
        "no known steps and are left out."
    )


def test_nearly_all_is_not_worded_as_all() -> None:
    steps = np.full(1000, 900)
    steps[0] = 500
    chart = best_step_chart(table(np.linspace(1, 2, 1000), steps))
    assert "over 99% in the last 25%" in chart.alt


def test_the_tooltip_has_the_steps_and_the_configuration() -> None:
    titles = [entry["title"] for entry in best_step_chart(two_optimizers()).spec["layer"][-1]["encoding"]["tooltip"]]
    assert titles[:7] == ["trial", "validation error", "best step", "of", "share of training", "status", "reason"]
    assert titles[7:] == [parameter.name for parameter in two_optimizers().parameters]


def test_ten_thousand_trials_and_more_are_thinned_as_in_every_chart() -> None:
    trials = table(np.linspace(1, 2, 10_500), 500)
    chart = best_step_chart(trials)
    assert set(step_rows(chart)) == {row["trial"] for row in chart.spec["data"]["values"]}
    assert len(step_rows(chart)) == 10_000
    assert "10,000 of 10,500 trials" in chart.help


@needs_convnext
def test_a_real_study_with_decaying_rates_is_best_at_the_end() -> None:
    chart = best_step_chart(convnext())
    assert len(step_rows(chart)) == 288
    assert chart.spec["title"]["subtitle"][1:] == [
        "Of the better half, 0% are best in the first 10% of training and 99% in the last 25%.",
        "The learning rate decays: late best steps say little.",
    ]
