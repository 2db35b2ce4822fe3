"""Do the charts show every trial in its place, and are they Vega-Lite that any front end can draw?"""

from __future__ import annotations

import builtins
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import altair
import jsonschema
import numpy as np
import pytest
import vl_convert
from example_trials import two_optimizers
from hypothesis import given, settings
from hypothesis import strategies as st

from playbook_plugins.analysis import Curve, Parameter, Role, Status, Trials, isolate
from playbook_plugins.charts import Chart, axis_plot, isolation_plot, training_curves
from playbook_plugins.charts.palette import MARKS, TRIAL_COLOURS
from playbook_plugins.charts.scales import log_ticks, objective_scale
from playbook_plugins.charts.table import choice_labels, trial_rows
from playbook_plugins.charts.theme import config, label

_SCHEMA = Path(altair.__file__).parent / "vegalite" / "v5" / "schema" / "vega-lite-schema.json"
_VALIDATOR = jsonschema.Draft7Validator(json.loads(_SCHEMA.read_text(encoding="utf-8")))


def table(objective: Any, direction: Any = "minimize", **more: Any) -> Trials:
    unit = (np.arange(len(objective)) + 0.5) / len(objective)
    parameter = Parameter(name="learning_rate", kind="float", low=1e-4, high=1.0, log=True)
    return Trials.from_columns(
        "a study", [parameter], {"learning_rate": 10.0 ** (-4 * (1 - unit))}, objective, direction=direction, **more
    )


def odd_studies() -> Iterator[tuple[str, Trials]]:
    yield "two optimizers", two_optimizers()
    yield "one trial", table([0.3])
    yield "one infeasible trial", table([math.inf])
    yield "constant objective", table([0.3] * 12)
    yield "nothing but zeros", table([0.0] * 5)
    yield "maximize, negative", table([-3.0, -2.0, -500.0, -math.inf, -1.0], "maximize")
    yield "the ends of the floats", table([1e308, -1e308, 5e-324, 0.0, 1.0])
    yield "tiny and huge", table([5e-324, 1e-310, 1e308, 1e307])
    yield "every status", every_status()
    yield (
        "no search at all",
        Trials.from_columns("point", [Parameter(name="x", kind="float", low=2, high=2)], {"x": [2.0, 2.0]}, [1.0, 2.0]),
    )
    yield (
        "integers on a grid",
        Trials.from_columns(
            "grid",
            [Parameter(name="n_layers", kind="int", low=1, high=9, step=2, role=Role.SCIENTIFIC)],
            {"n_layers": [1, 3, 5, 7, 9, 9]},
            [3.0, 2.0, 1.0, 2.0, math.inf, 4.0],
        ),
    )
    yield (
        "choices that print alike",
        Trials.from_columns(
            "alike",
            [Parameter(name="x", kind="categorical", choices=(1, True, "1", 1.0, None), role=Role.SCIENTIFIC)],
            {"x": [1, True, "1", 1.0, None, 1]},
            [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        ),
    )


def every_status(direction: Any = "minimize") -> Trials:
    statuses = [Status.COMPLETE, Status.INFEASIBLE, Status.PRUNED, Status.PRUNED, Status.FAILED, Status.RUNNING]
    return table(
        [0.2, math.nan, 0.4, math.nan, math.nan, math.nan],
        direction,
        status=statuses,
        reason=["", "diverged", "median pruner", "", "killed", ""],
    )


def all_charts(trials: Trials) -> Iterator[Chart]:
    for parameter in trials.parameters:
        yield axis_plot(trials, parameter.name)
        yield isolation_plot(trials, parameter.name)
    if any(curve is not None for curve in trials.curves):
        yield training_curves(trials)


def render(chart: Chart, capfd: pytest.CaptureFixture[str]) -> str:
    """Return the chart as SVG, after Vega-Lite said nothing against it."""
    capfd.readouterr()
    svg: str = vl_convert.vegalite_to_svg(chart.spec, vl_version="5.21", show_warnings=True)
    said = capfd.readouterr()
    assert said.out + said.err == ""
    return svg


def marks_of(svg: str, colour: str) -> int:
    # Marks of trials carry a description, symbols of the legend none.
    return len(re.findall(rf'aria-roledescription="point"[^>]*fill="{colour}"', svg))


@pytest.mark.parametrize(("name", "trials"), list(odd_studies()), ids=[name for name, _ in odd_studies()])
def test_every_chart_is_valid_vega_lite_that_renders_without_a_warning(
    name: str, trials: Trials, capfd: pytest.CaptureFixture[str]
) -> None:
    for chart in all_charts(trials):
        # Strict JSON: neither NaN nor infinities.
        json.dumps(chart.spec, allow_nan=False)
        assert [error.message for error in _VALIDATOR.iter_errors(chart.spec)] == [], name
        assert "layer" in chart.spec
        assert not {"hconcat", "vconcat", "concat", "facet", "repeat", "params"} & chart.spec.keys()
        assert "<svg" in render(chart, capfd)
        assert chart.title
        assert chart.help.endswith(".")
        assert chart.alt.endswith(".")


def test_each_status_has_its_own_mark_and_running_trials_have_none(capfd: pytest.CaptureFixture[str]) -> None:
    trials = every_status()
    chart = axis_plot(trials, "learning_rate")
    kinds = {row["trial"]: row["kind"] for row in chart.spec["data"]["values"]}
    assert kinds == {0: "best 3", 1: "infeasible", 2: "pruned", 3: "pruned", 4: "failed"}
    svg = render(chart, capfd)
    for kind, n_marks in {"best 3": 1, "infeasible": 1}.items():
        assert marks_of(svg, MARKS[kind][0]) == n_marks, kind
    # Pruned ones with a value stand at it; those without, and the failed one, stand in the strip.
    assert marks_of(svg, MARKS["pruned"][0]) == 3
    assert ">infeasible, pruned, failed<" in svg


@pytest.mark.parametrize(("direction", "worst"), [("minimize", "top"), ("maximize", "bottom")])
def test_infeasible_trials_lie_beyond_every_feasible_one(
    direction: Any, worst: str, capfd: pytest.CaptureFixture[str]
) -> None:
    objective = np.array([0.5, math.nan, 0.7, 0.2, math.nan])
    svg = render(axis_plot(table(objective, direction), "learning_rate"), capfd)
    heights = {
        kind: [
            float(y) for y in re.findall(rf'transform="translate\([\d.]+,([\d.]+)\)"[^>]*fill="{MARKS[kind][0]}"', svg)
        ]
        for kind in ("best 3", "infeasible")
    }
    infeasible, feasible = ([y for y in heights[kind]] for kind in ("infeasible", "best 3"))
    # The legend's symbols are placed by groups of their own, at their origin.
    infeasible, feasible = [y for y in infeasible if y > 8.5], [y for y in feasible if y > 8.5]
    assert len(infeasible) >= 2
    assert len(feasible) >= 3
    if worst == "top":
        assert max(infeasible) < min(feasible)
    else:
        assert min(infeasible) > max(feasible)


def test_rows_carry_the_whole_trial_and_the_best_comes_last() -> None:
    trials = two_optimizers()
    rows = trial_rows(trials)
    assert len(rows) == 48
    best = trials.ranking()[0]
    assert rows[-1]["trial"] == trials.number[best]
    assert rows[-1]["objective"] == trials.objective[best]
    assert rows[-1]["rank"] == 1
    for row in rows:
        config_of = trials.config(row["trial"])
        for place, parameter in enumerate(trials.parameters):
            assert row[f"p{place}"] == config_of.get(parameter.name)
        assert (row["objective"] is None) == (row["status"] == "infeasible")
        assert (row["reason"] != "") == (row["status"] == "infeasible")


def test_three_stars_and_every_other_feasible_trial_a_dot() -> None:
    rows = trial_rows(two_optimizers())
    kinds = [row["kind"] for row in rows]
    n_feasible = int(two_optimizers().is_feasible.sum())
    assert kinds.count("best 3") == 3
    assert kinds.count("feasible") == n_feasible - 3
    assert kinds.count("infeasible") == 48 - n_feasible


def test_axes_are_logarithmic_where_the_search_is_and_hold_the_bounds() -> None:
    trials = two_optimizers()
    for parameter in trials.parameters[1:]:
        layers = axis_plot(trials, parameter.name).spec["layer"]
        bounds = layers[0]
        assert [row["at"] for row in bounds["data"]["values"]] == [parameter.low, parameter.high]
        scale = bounds["encoding"]["x"]["scale"]
        assert scale["type"] == "log"
        low, high = scale["domain"]
        assert low < parameter.low
        assert high > parameter.high
    linear = Parameter(name="x", kind="float", low=0.0, high=1.0)
    trials = Trials.from_columns("linear", [linear], {"x": [0.1, 0.9]}, [1.0, 2.0])
    assert axis_plot(trials, "x").spec["layer"][0]["encoding"]["x"]["scale"]["type"] == "linear"


def test_a_trial_outside_the_bounds_widens_the_axis() -> None:
    linear = Parameter(name="x", kind="float", low=0.0, high=1.0)
    trials = Trials.from_columns("enqueued", [linear], {"x": [0.5, 3.0]}, [1.0, 2.0])
    assert axis_plot(trials, "x").spec["layer"][0]["encoding"]["x"]["scale"]["domain"][1] > 3.0


def test_the_tooltip_names_the_trial_its_outcome_and_its_whole_configuration() -> None:
    chart = axis_plot(two_optimizers(), "adam.learning_rate")
    titles = [entry["title"] for entry in chart.spec["layer"][-1]["encoding"]["tooltip"]]
    # A trial with adam's learning rate has none of nesterov's hyperparameters.
    assert titles == [
        "trial",
        "validation error",
        "status",
        "reason",
        "optimizer",
        "adam.learning_rate",
        "adam.one_minus_beta1",
    ]


def test_the_objective_axis_is_linear_and_cut_by_hand_worked_quartiles() -> None:
    # best 1, third quartile 2: the limit is 1 + 2 * (2 - 1) = 3, and 100 stands beyond.
    scale = objective_scale(table([1.0, 1.5, 2.0, 1.25, 1.75, 2.0, 1.0, 2.0, 100.0]))
    assert not scale.log
    assert scale.limit == pytest.approx(3.0)
    assert scale.n_beyond == 1
    assert scale.low == pytest.approx(0.9)
    assert scale.high == pytest.approx(3.1)


def test_the_objective_axis_keeps_a_small_excess() -> None:
    scale = objective_scale(table([1.0, 1.5, 2.0, 1.25, 1.75, 2.0, 1.0, 2.0, 3.4]))
    assert scale.limit == pytest.approx(3.4)
    assert scale.n_beyond == 0


def test_the_objective_axis_is_logarithmic_over_a_factor_of_10_when_minimized() -> None:
    objective = [0.001, 0.01, 0.1, 0.1, 0.1]
    assert objective_scale(table(objective)).log
    assert not objective_scale(table(objective, "maximize")).log
    assert not objective_scale(table([-1.0, *objective])).log
    assert not objective_scale(table([0.011, 0.02, 0.1, 0.1, 0.1])).log


def test_maximizing_mirrors_minimizing() -> None:
    objective = np.array([1.0, 1.5, 2.0, 1.25, 1.75, 2.0, 1.0, 2.0, 100.0, math.nan])
    down, up = objective_scale(table(objective)), objective_scale(table(-objective, "maximize"))
    assert (up.low, up.high, up.limit, up.n_beyond) == (-down.high, -down.low, -down.limit, down.n_beyond)


def test_a_trial_far_worse_stands_at_the_edge_as_a_triangle(capfd: pytest.CaptureFixture[str]) -> None:
    chart = axis_plot(table([1.0, 1.5, 2.0, 1.25, 1.75, 2.0, 1.0, 2.0, 100.0]), "learning_rate")
    assert "triangle" in chart.help
    assert "1 feasible trials are worse" in chart.alt
    svg = render(chart, capfd)
    assert ">beyond the axis<" in svg
    # At the upper edge of the plot, which has no strip: no trial is infeasible.
    assert re.search(r'aria-label="[^"]*objective: 100[^"]*"[^>]*transform="translate\([\d.]+,0\)"', svg)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1e-4, 1.0, [1e-4, 1e-3, 1e-2, 0.1, 1.0]),
        (0.02, 0.9, [0.03, 0.1, 0.3]),
        (2.0, 30.0, [2.0, 5.0, 10.0, 20.0]),
        (0.11, 0.115, [0.11, 0.112, 0.114]),
    ],
)
def test_log_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert log_ticks(low, high) == pytest.approx(ticks)


def test_the_isolation_plot_shows_what_the_analysis_found() -> None:
    trials = two_optimizers().select(np.arange(48) % 8 != 0)
    isolation = isolate(trials, "optimizer")
    chart = isolation_plot(trials, "optimizer")
    groups = next(
        layer["data"]["values"]
        for layer in chart.spec["layer"]
        if "best" in layer.get("data", {"values": [{}]})["values"][0]
    )
    assert [group["group"] for group in groups] == ["adam", "nesterov"]
    for row, group in zip(groups, isolation.groups, strict=True):
        assert row["best"] == group.best
        assert row["fair"] == group.median_best
        assert (row["n_trials"], row["n_infeasible"]) == (group.n_trials, group.n_infeasible)
        assert row["trial"] == trials.number[group.best_row]
        assert f"{group.n_trials} trials, {group.n_infeasible} infeasible" in chart.alt
    assert f"median best of {isolation.equal_count}" in json.dumps(chart.spec)
    assert f"bars compare fairly, at the estimated median of the best of {isolation.equal_count} trials" in chart.help


def test_the_isolation_plot_needs_no_bar_where_the_counts_are_equal() -> None:
    chart = isolation_plot(two_optimizers(), "optimizer")
    drawn = [layer["encoding"].get("y", {}).get("field") for layer in chart.spec["layer"]]
    assert "best" in drawn
    assert "fair" not in drawn
    assert "compare fairly" in chart.help


def test_the_isolation_plot_takes_a_continuous_hyperparameter_in_buckets() -> None:
    trials = two_optimizers(200)
    isolation = isolate(trials, "adam.learning_rate")
    chart = isolation_plot(trials, "adam.learning_rate")
    bars = next(layer for layer in chart.spec["layer"] if layer["mark"]["type"] == "rule" and "x2" in layer["encoding"])
    finite = [group for group in isolation.groups if math.isfinite(group.median_best)]
    assert [(row["low"], row["high"]) for row in bars["data"]["values"]] == [
        (group.low, group.high) for group in finite
    ]
    assert any(layer["mark"]["type"] == "line" for layer in chart.spec["layer"])


def test_categories_that_print_alike_stay_apart() -> None:
    parameter = Parameter(name="x", kind="categorical", choices=(1, True, "1", 1.0, None))
    labels = choice_labels(parameter)
    assert labels == ["1", "True", "'1'", "1.0", "None"]
    long = Parameter(name="x", kind="categorical", choices=("a" * 50 + "1", "a" * 50 + "2"))
    assert len(set(choice_labels(long))) == 2


def test_training_curves_show_the_best_trials_and_mark_their_best_steps(capfd: pytest.CaptureFixture[str]) -> None:
    trials = two_optimizers()
    chart = training_curves(trials)
    chosen = trials.ranking()[:3]
    stars = chart.spec["layer"][-1]["data"]["values"]
    assert [star["trial"] for star in stars] == [int(trials.number[row]) for row in chosen]
    assert [star["step"] for star in stars] == [int(trials.best_step[row]) for row in chosen]
    assert [star["value"] for star in stars] == pytest.approx([trials.objective[row] for row in chosen], rel=1e-5)
    colours = chart.spec["layer"][0]["encoding"]["color"]["scale"]["range"]
    assert colours == list(TRIAL_COLOURS[:3])
    points = chart.spec["data"]["values"]
    assert {point["split"] for point in points} == {"validation", "training"}
    svg = render(chart, capfd)
    # Two lines a trial, besides the legend's.
    for colour in colours:
        assert len(re.findall(rf'aria-roledescription="line mark"[^>]*stroke="{colour}"', svg)) == 2


def test_training_curves_without_training_loss_need_no_second_legend() -> None:
    curve = Curve.from_columns([0, 10, 20], [1.0, math.nan, 0.5])
    chart = training_curves(table([0.5], curves=[curve]), n_best=1)
    assert chart.spec["layer"][0]["encoding"]["strokeDash"]["legend"] is None
    assert len(chart.spec["data"]["values"]) == 2


def test_errors_tell_what_to_do() -> None:
    trials = two_optimizers()
    with pytest.raises(
        ValueError,
        match=re.escape(
            "`n_best` is 0: it must lie between 1 and 8, because more lines "
            "cannot be told apart. Pass a smaller number, or select other trials with trials.select(rows)."
        ),
    ):
        training_curves(trials, n_best=0)
    with pytest.raises(
        ValueError,
        match=re.escape(
            "`trials` of the study 'a study' has no feasible trial with a "
            "curve: training curves need at least one. Record the evaluations of each trial, for instance with "
            "TrialRecorder."
        ),
    ):
        training_curves(table([0.5]))
    for plot in (axis_plot, isolation_plot):
        with pytest.raises(ValueError, match=re.escape("`parameter` is 'learning_rate': the study")):
            plot(trials, "learning_rate")


@pytest.mark.parametrize(
    ("ending", "start"), [("json", b"{"), ("svg", b"<svg"), ("png", b"\x89PNG"), ("html", b"<!DOCTYPE html>")]
)
def test_charts_save_themselves(tmp_path: Path, ending: str, start: bytes) -> None:
    path = tmp_path / f"chart.{ending}"
    path.write_text("what was there before", encoding="utf-8")
    assert axis_plot(two_optimizers(), "optimizer").save(path) == path
    content = path.read_bytes().lstrip()
    assert content.startswith(start)
    # Self-contained: no script or style is fetched.
    assert b'src="http' not in content
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_saving_elsewhere_is_refused(tmp_path: Path) -> None:
    chart = axis_plot(two_optimizers(), "optimizer")
    path = tmp_path / "chart.gif"
    message = f"`path` is '{path}': a chart is saved as .html, .png, .svg or .json. Give the path one of these endings."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        chart.save(path)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "chart.json"
    folder.mkdir()
    with pytest.raises(IsADirectoryError):
        axis_plot(two_optimizers(), "optimizer").save(folder)
    assert [entry.name for entry in tmp_path.iterdir()] == ["chart.json"]


def test_a_notebook_gets_vega_lite_and_a_picture() -> None:
    chart = axis_plot(two_optimizers(), "optimizer")
    bundle = chart._repr_mimebundle_()
    assert bundle["application/vnd.vegalite.v5+json"] is chart.spec
    assert bundle["image/png"].startswith("iVBOR")


def test_without_vl_convert_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "vl_convert":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    chart = axis_plot(two_optimizers(), "optimizer")
    message = "vl-convert-python renders charts and is not installed. Run: pip install 'playbook-plugins[report]'"
    with pytest.raises(ImportError, match=f"^{re.escape(message)}$"):
        chart.save(tmp_path / "chart.svg")
    assert "application/vnd.vegalite.v5+json" in chart._repr_mimebundle_()
    assert chart.save(tmp_path / "chart.json").exists()


def test_colours_stand_out_on_white_and_on_the_dark_page() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    backgrounds = [config()["background"], config(dark=True)["background"]]
    for colour in {*TRIAL_COLOURS, *(mark[0] for mark in MARKS.values())}:
        for background in backgrounds:
            light, dark = sorted([luminance(colour), luminance(background)], reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 3.0, (colour, background)
    assert len({shape for _, shape, _ in MARKS.values()}) == len(MARKS)


@given(st.text(max_size=80))
def test_labels_hold_no_control_characters_and_have_a_length(text: str) -> None:
    shown = label(text)
    assert len(shown) <= 60
    shown.encode()
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", shown)


_NASTY = st.one_of(
    st.text(min_size=1, max_size=30),
    st.sampled_from(
        [
            "</script><script>alert(1)</script>",
            "a.b[0]\\'\"",
            "datum.x",
            "${x}",
            "😀",
            "\x00\x1b[31m",
            "__proto__",
            "a" * 10_000,
        ]
    ),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(_NASTY, min_size=4, max_size=4, unique=True))
def test_names_from_a_study_are_only_ever_text(names: list[str]) -> None:
    number = Parameter(name=names[0], kind="float", low=0.0, high=1.0)
    choice = Parameter(name=names[1], kind="categorical", choices=(names[2], names[3]), role=Role.SCIENTIFIC)
    trials = Trials.from_columns(
        names[2],
        [number, choice],
        {names[0]: [0.1, 0.5, 0.9], names[1]: [names[2], names[3], names[2]]},
        [1.0, 2.0, math.nan],
        objective_name=names[3],
        reason=["", "", names[0]],
    )
    for chart in all_charts(trials):
        json.dumps(chart.spec, allow_nan=False).encode()
        assert not list(_VALIDATOR.iter_errors(chart.spec))
        vl_convert.vegalite_to_vega(chart.spec, vl_version="5.21")


def test_a_training_loss_does_not_share_the_axis_of_an_accuracy() -> None:
    steps = np.arange(20)
    accuracy = 1 - np.exp(-steps / 5)
    rate = Parameter(name="rate", kind="float", low=0, high=1)
    for train, splits in ((1 + np.exp(-steps / 5), {"validation"}), (accuracy + 0.1, {"validation", "training"})):
        trials = Trials.from_columns(
            "s",
            [rate],
            {"rate": [0.5]},
            [accuracy.max()],
            direction="maximize",
            curves=[Curve.from_columns(steps, accuracy, train)],
        )
        chart = training_curves(trials)
        assert {point["split"] for point in chart.spec["data"]["values"]} == splits
        assert ("not drawn" in chart.help) is (splits == {"validation"})
