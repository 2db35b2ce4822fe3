"""Does the chart of infeasible shares count every judged trial once, where it lies, with its uncertainty?"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import altair
import jsonschema
import numpy as np
import pytest
import vl_convert
from example_trials import two_optimizers
from real_studies import convnext, needs_convnext

from playbook_plugins.analysis import Parameter, Role, Status, Trials, check_feasibility, isolate
from playbook_plugins.charts.chart import Chart
from playbook_plugins.charts.feasibility import infeasible_share_chart
from playbook_plugins.charts.palette import RED
from playbook_plugins.report.interaction import page_spec

_SCHEMA = Path(altair.__file__).parent / "vegalite" / "v5" / "schema" / "vega-lite-schema.json"
_VALIDATOR = jsonschema.Draft7Validator(json.loads(_SCHEMA.read_text(encoding="utf-8")))

RATE = Parameter(name="x", kind="float", low=1e-4, high=1.0, log=True)
UNIT = Parameter(name="x", kind="float", low=0.0, high=1.0)
LAYERS = Parameter(name="x", kind="int", low=1, high=9, step=2)
WIDTHS = Parameter(name="x", kind="int", low=1, high=8, log=True)
MANY = Parameter(name="x", kind="int", low=1, high=100)
FIXED = Parameter(name="x", kind="float", low=2.0, high=2.0)
KIND = Parameter(name="x", kind="categorical", choices=(1, True, "1", None), role=Role.SCIENTIFIC)


def table(parameter: Parameter, values: Any, objective: Any, **more: Any) -> Trials:
    return Trials.from_columns("a study", [parameter], {"x": values}, objective, **more)


def diverging(parameter: Parameter, n_trials: int, beyond: float = 0.75) -> Trials:
    unit = (np.arange(n_trials) + 0.5) / n_trials
    values = [parameter.from_unit(place) for place in unit]
    if parameter.kind == "int":
        step = parameter.step or 1
        values = [parameter.low + step * round((value - parameter.low) / step) for value in values]
    return table(parameter, values, np.where(unit > beyond, np.nan, 1))


STUDIES = {
    "two optimizers": (two_optimizers(), "optimizer"),
    "a branch": (two_optimizers(), "nesterov.learning_rate"),
    "logarithmic": (diverging(RATE, 40), "x"),
    "linear": (diverging(UNIT, 40), "x"),
    "a grid of integers": (diverging(LAYERS, 40), "x"),
    "few integers, logarithmic": (diverging(WIDTHS, 40), "x"),
    "many integers": (diverging(MANY, 40), "x"),
    "a single value": (table(FIXED, [2.0, 2.0], [1.0, math.nan]), "x"),
    "categories that print alike": (table(KIND, [1, True, "1", None, 1], [1.0, math.nan, 1.0, 2.0, math.nan]), "x"),
    "no trial": (table(RATE, [], []), "x"),
    "one trial": (table(RATE, [0.1], [1.0]), "x"),
    "one infeasible trial": (table(RATE, [0.1], [math.nan]), "x"),
    "all infeasible": (diverging(RATE, 12, beyond=-1), "x"),
    "none infeasible": (diverging(RATE, 12, beyond=2), "x"),
    "a few of many": (diverging(RATE, 5000, beyond=0.999), "x"),
    "beyond the bounds": (table(UNIT, [-3.0, 0.5, 7.0], [math.nan, 1.0, math.nan]), "x"),
    "none with a value": (table(RATE, [math.nan, math.nan], [1.0, math.nan]), "x"),
    "running and failed": (
        table(RATE, [0.1, 0.2, 0.3], [math.nan] * 3, status=[Status.RUNNING, Status.FAILED, Status.PRUNED]),
        "x",
    ),
}


def render(chart: Chart, capfd: pytest.CaptureFixture[str]) -> str:
    """Return the chart as SVG, after Vega-Lite said nothing against it."""
    capfd.readouterr()
    svg: str = vl_convert.vegalite_to_svg(chart.spec, vl_version="5.21", show_warnings=True)
    said = capfd.readouterr()
    assert said.out + said.err == ""
    return svg


def rows_of(trials: Trials, parameter: str = "x") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = infeasible_share_chart(trials, parameter).spec["data"]["values"]
    return rows


@pytest.mark.parametrize("name", STUDIES)
def test_it_is_valid_vega_lite_that_renders_without_a_warning(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    chart = infeasible_share_chart(*STUDIES[name])
    json.dumps(chart.spec, allow_nan=False)
    assert [error.message for error in _VALIDATOR.iter_errors(chart.spec)] == []
    assert not {"hconcat", "vconcat", "concat", "facet", "repeat", "params"} & chart.spec.keys()
    svg = render(chart, capfd)
    assert not re.search(r'(?:translate\([^)]*|\bd="[^"]*)(?:NaN|Infinity|null)', svg)
    n_points = len(re.findall(rf'aria-roledescription="point"[^>]*fill="{RED}"', svg))
    assert n_points == sum(row["n_trials"] > 0 for row in chart.spec["data"]["values"])
    assert chart.help.endswith(".")
    assert chart.alt.endswith(".")
    vl_convert.vegalite_to_vega(page_spec(chart.spec) | {"data": chart.spec["data"]}, vl_version="5.21")


@pytest.mark.parametrize("name", STUDIES)
def test_every_judged_trial_with_the_hyperparameter_is_counted_once(name: str) -> None:
    trials, parameter = STUDIES[name]
    rows = rows_of(trials, parameter)
    has = trials.has(parameter)
    assert sum(row["n_trials"] for row in rows) == int(np.sum(trials.is_judged & has))
    assert sum(row["n_infeasible"] for row in rows) == int(np.sum(trials.is_infeasible & has))


def test_hand_worked_buckets() -> None:
    # 16 trials make 2 buckets; of the upper 8 one is feasible.
    values = 10.0 ** np.linspace(-3.9, -0.1, 16)
    trials = table(RATE, values, [1.0] * 9 + [math.nan] * 7)
    low, high = rows_of(trials)
    assert (low["n_trials"], low["n_infeasible"], low["share"]) == (8, 0, 0.0)
    assert (high["n_trials"], high["n_infeasible"], high["share"]) == (8, 7, 0.875)
    assert [low["low"], low["high"], high["high"]] == pytest.approx([1e-4, 1e-2, 1.0])
    # In the middle of the search scale.
    assert low["x"] == pytest.approx(1e-3)
    # Wilson's interval of 7 of 8, worked by hand: (7 + z²/2) / (8 + z²) ± z / (8 + z²) * sqrt(7 / 8 + z² / 4).
    z = 1.959963984540054
    middle, half = (7 + z**2 / 2) / (8 + z**2), z / (8 + z**2) * math.sqrt(7 / 8 + z**2 / 4)
    assert [high["lower"], high["upper"]] == pytest.approx([middle - half, middle + half])
    assert low["lower"] == 0.0


@pytest.mark.parametrize("name", ["logarithmic", "linear", "a grid of integers", "many integers", "two optimizers"])
def test_the_groups_are_those_of_the_isolation_plot_where_no_point_is_repeated(name: str) -> None:
    trials, parameter = STUDIES[name]
    if trials.parameter(parameter).kind == "int":
        # Repeated integers are one point to the isolation, which asks for the best of each.
        trials = table(
            trials.parameters[0], np.unique(trials.values["x"]), np.arange(len(np.unique(trials.values["x"])))
        )
    rows, groups = rows_of(trials, parameter), isolate(trials, parameter).groups
    assert [row["n_trials"] for row in rows] == [group.n_trials for group in groups]
    assert [row["n_infeasible"] for row in rows] == [group.n_infeasible for group in groups]
    if "low" in rows[0]:
        assert [(row["low"], row["high"]) for row in rows] == [(group.low, group.high) for group in groups]
    else:
        assert len(rows) == len(groups)


def test_retrained_configurations_count_each() -> None:
    trials = table(UNIT, [0.1] * 5 + [0.9], [1.0, math.nan, math.nan, math.nan, 1.0, math.nan])
    assert [(row["n_trials"], row["n_infeasible"]) for row in rows_of(trials)] == [(5, 3), (1, 1)]


def test_the_overall_share_is_that_of_the_check() -> None:
    trials = two_optimizers()
    chart = infeasible_share_chart(trials, "optimizer")
    [rule] = [layer for layer in chart.spec["layer"] if layer["mark"].get("strokeDash") == [6, 4]]
    [overall] = rule["data"]["values"]
    numbers = check_feasibility(trials)[0].numbers
    assert overall == {"share": numbers["share"], "n_trials": 48, "n_infeasible": numbers["n_infeasible"]}
    # Of a branch it is the share among its own trials.
    branch = infeasible_share_chart(trials, "nesterov.learning_rate")
    [rule] = [layer for layer in branch.spec["layer"] if layer["mark"].get("strokeDash") == [6, 4]]
    assert rule["data"]["values"][0]["n_trials"] == 24


def test_the_axis_is_that_of_the_search_with_its_bounds() -> None:
    for name, kind in (("logarithmic", "log"), ("linear", "linear"), ("few integers, logarithmic", "log")):
        trials, parameter = STUDIES[name]
        bounds = infeasible_share_chart(trials, parameter).spec["layer"][0]
        assert [row["at"] for row in bounds["data"]["values"]] == [trials.parameters[0].low, trials.parameters[0].high]
        assert bounds["encoding"]["x"]["scale"]["type"] == kind
    marks = [layer["mark"]["type"] for layer in infeasible_share_chart(*STUDIES["two optimizers"]).spec["layer"]]
    assert marks[0] == "bar"


def test_categories_have_a_bar_each_in_the_order_of_the_choices() -> None:
    trials, parameter = STUDIES["categories that print alike"]
    rows = rows_of(trials, parameter)
    assert [(row["group"], row["n_trials"], row["n_infeasible"]) for row in rows] == [
        ("1", 2, 1),
        ("True", 1, 1),
        ("'1'", 1, 0),
        ("None", 1, 0),
    ]


def test_integers_off_the_grid_count_with_the_nearest_value() -> None:
    trials = table(LAYERS, [1, 4.4, 11], [1.0, math.nan, 1.0])
    assert [(row["x"], row["n_trials"], row["n_infeasible"]) for row in rows_of(trials)] == [
        (1, 1, 0),
        (3, 0, 0),
        (5, 1, 1),
        (7, 0, 0),
        (9, 1, 0),
    ]


def test_the_axis_of_shares_starts_at_zero_and_holds_every_interval() -> None:
    for name in ("logarithmic", "none infeasible", "a few of many", "all infeasible"):
        chart = infeasible_share_chart(*STUDIES[name])
        [rule] = [layer for layer in chart.spec["layer"] if layer["mark"].get("strokeDash") == [6, 4]]
        low, high = rule["encoding"]["y"]["scale"]["domain"]
        assert low == 0
        assert high >= max(row["upper"] for row in chart.spec["data"]["values"] if row["n_trials"])
        assert high >= 0.1
        ticks = rule["encoding"]["y"]["axis"]["values"]
        assert sum(tick <= high for tick in ticks) >= 4
        # No tick beyond all of them.
        assert max(ticks) <= 1


def test_the_counts_stand_below_the_axis(capfd: pytest.CaptureFixture[str]) -> None:
    svg = render(infeasible_share_chart(*STUDIES["two optimizers"]), capfd)
    for text in ("trials", "infeasible", "24", "3", "5", "infeasible share", "95% interval", "all trials"):
        assert f">{text}<" in svg, text


def test_the_words() -> None:
    chart = infeasible_share_chart(two_optimizers(), "optimizer")
    assert chart.title == "Infeasible trials: optimizer"
    assert chart.spec["title"] == {
        "text": "Infeasible trials: optimizer",
        "subtitle": "digits: adam or nesterov: 8 of 48 trials infeasible (17%)",
    }
    assert chart.alt == (
        "Infeasible trials by optimizer: 8 of 48 trials infeasible (17%). adam: 3 of 24 (12%); nesterov: 5 of 24 (21%)."
    )
    assert chart.help == (
        "The share of infeasible trials, with its 95% interval, and dashed that of all trials. A value whose whole "
        "interval lies above it is infeasible more often than the others."
    )
    chart = infeasible_share_chart(*STUDIES["a branch"])
    assert chart.alt == (
        "Infeasible trials by nesterov.learning_rate: 5 of 24 trials infeasible (21%). 0.001 to 0.0215: 0 of 8 (0%); "
        "0.0215 to 0.464: 0 of 9 (0%); 0.464 to 10: 5 of 7 (71%). The search space goes from 0.001 to 10, "
        "logarithmically."
    )
    assert chart.help == (
        "The share of infeasible trials, with its 95% interval, and dashed that of all trials. Where intervals at one "
        "end lie above it, move that bound, or make training more stable there."
    )
    chart = infeasible_share_chart(*STUDIES["running and failed"])
    assert chart.help == "No trial with this hyperparameter has ended feasible or infeasible yet."
    assert chart.alt == "Infeasible trials by x: 0 of 0 trials infeasible."


def test_an_unknown_hyperparameter_is_refused() -> None:
    message = "`parameter` is 'y': the study 'a study' has no such hyperparameter. Pass one of ['x']."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        infeasible_share_chart(STUDIES["linear"][0], "y")


@needs_convnext
def test_a_real_study_diverges_at_high_learning_rates() -> None:
    rows = rows_of(convnext(), "lr")
    assert [row["n_infeasible"] for row in rows] == [1, 1, 3, 4, 11, 25, 31, 50, 48, 50]
    assert sum(row["n_trials"] for row in rows) == 512
    assert rows[-1]["lower"] > 0.9
    assert rows[0]["upper"] < 0.12
