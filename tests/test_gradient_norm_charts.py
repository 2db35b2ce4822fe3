"""Do the charts of gradient norms show the outliers, the threshold and what was not finite, in valid Vega-Lite?"""

from __future__ import annotations

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
from test_gradient_norms import make_norms

from playbook_plugins.analysis import Curve, TrialRecord
from playbook_plugins.analysis.gradient_norms import GradientNorms, norm_histogram, norm_quantiles
from playbook_plugins.charts import Chart
from playbook_plugins.charts.gradient_norm_histogram import gradient_norm_histogram
from playbook_plugins.charts.gradient_norms import MAX_ROWS, gradient_norm_chart
from playbook_plugins.charts.palette import GREEN, ORANGE, RED

_SCHEMA = Path(altair.__file__).parent / "vegalite" / "v5" / "schema" / "vega-lite-schema.json"
_VALIDATOR = jsonschema.Draft7Validator(json.loads(_SCHEMA.read_text(encoding="utf-8")))


def long_run(n: int = 20_000) -> GradientNorms:
    rng = np.random.default_rng(0)
    norm = (0.4 + 3 * np.exp(-np.arange(n) / 4000)) * rng.lognormal(sigma=0.3, size=n)
    norm[rng.integers(n, size=100)] *= 20
    return make_norms(norm, np.full(n, np.percentile(norm, 90)), nonfinite=n + np.arange(3000))


def make_record(norms: Any, **columns: Any) -> TrialRecord:
    steps = np.arange(len(norms) + 1) * 100
    column = np.concatenate([[np.nan], norms])
    more = {name: np.concatenate([[np.nan], values]) for name, values in columns.items()}
    return TrialRecord(
        direction="minimize",
        curve=Curve.from_columns(steps, 1.0 + 0 * steps, gradient_norm=column, **more),
        gradient_norm_quantiles=norm_quantiles(norms),
        gradient_norm_histogram=norm_histogram(norms),
        clipped_share=0.1,
    )


def odd_runs() -> Iterator[tuple[str, GradientNorms | TrialRecord]]:
    yield "long", long_run()
    yield "one step", make_norms([2.0])
    yield "one zero", make_norms([0.0])
    yield "zeros and more", make_norms([0.0, 1.0, 100.0], [np.nan, 0.5, 0.5])
    yield "constant", make_norms([2.0] * 9, [1.0] * 9)
    yield "within rounding", make_norms([2.0, np.nextafter(2.0, 3.0)])
    yield "the ends of the floats", make_norms([5e-324, 1.0, 1e300])
    yield "tiny", make_norms([1e-40, 2e-38, 1e-35], nonfinite=[3])
    yield "record", make_record([3.0, 2.0, 1.0])
    yield "record with all columns", make_record([3.0, 2.0], gradient_norm_max=[9.0, 99.0], clip_threshold=[1.0, 2.5])


def render(chart: Chart, capfd: pytest.CaptureFixture[str]) -> str:
    """Return the chart as SVG, after Vega-Lite said nothing against it."""
    capfd.readouterr()
    svg: str = vl_convert.vegalite_to_svg(chart.spec, vl_version="5.21", show_warnings=True)
    said = capfd.readouterr()
    assert said.out + said.err == ""
    return svg


def points_of(svg: str, colour: str) -> int:
    return len(re.findall(rf'aria-roledescription="point"[^>]*fill="{colour}"', svg))


@pytest.mark.parametrize(("name", "norms"), list(odd_runs()), ids=[name for name, _ in odd_runs()])
def test_both_charts_are_valid_vega_lite_that_renders_without_a_warning(
    name: str, norms: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    for chart in (gradient_norm_chart(norms), gradient_norm_histogram(norms)):
        json.dumps(chart.spec, allow_nan=False)
        assert [error.message for error in _VALIDATOR.iter_errors(chart.spec)] == [], name
        assert "layer" in chart.spec
        assert not {"hconcat", "vconcat", "concat", "facet", "repeat", "params"} & chart.spec.keys()
        assert "<svg" in render(chart, capfd)
        assert chart.title
        assert chart.help.endswith(".")
        assert chart.alt.endswith(".")


def test_a_run_of_nothing_but_nan_shows_its_crosses(capfd: pytest.CaptureFixture[str]) -> None:
    chart = gradient_norm_chart(make_norms([], nonfinite=[0, 1]))
    assert [error.message for error in _VALIDATOR.iter_errors(chart.spec)] == []
    assert points_of(render(chart, capfd), RED) == 2


def test_clipped_steps_and_those_not_finite_are_told_apart(capfd: pytest.CaptureFixture[str]) -> None:
    norms = make_norms([1.0, 2.0, 9.0, 3.0, 50.0], [np.nan, 2.5, 2.5, 2.5, 2.5], [2, 6], [0, 1, 3, 4, 5])
    chart = gradient_norm_chart(norms)
    rows = chart.spec["data"]["values"]
    # In the order of drawing: the clipped on top.
    assert [(row["step"], row["norm"], row["kind"]) for row in rows] == [
        (0, 1.0, "norm"),
        (1, 2.0, "norm"),
        (3, 9.0, "clipped"),
        (4, 3.0, "clipped"),
        (5, 50.0, "clipped"),
    ]
    assert [row["threshold"] for row in rows] == [None, 2.5, 2.5, 2.5, 2.5]
    svg = render(chart, capfd)
    assert points_of(svg, ORANGE) == 3
    assert points_of(svg, RED) == 2
    assert len(re.findall(rf'aria-roledescription="line mark"[^>]*stroke="{GREEN}"', svg)) == 1
    assert ">not finite<" in svg
    assert chart.spec["title"]["subtitle"] == "7 steps, 60.0% of the updates clipped, 2 not finite"


def test_the_axis_is_logarithmic_where_the_norms_span_a_factor_of_10() -> None:
    def kind(norm: Any, threshold: Any = None) -> str:
        layers = gradient_norm_chart(make_norms(norm, threshold)).spec["layer"]
        return str(layers[0]["encoding"]["y"]["scale"]["type"])

    assert kind([1.0, 11.0]) == "log"
    assert kind([1.0, 9.0]) == "linear"
    assert kind([0.0, 11.0]) == "linear"
    # The threshold is in the picture too.
    assert kind([1.0, 9.0], [0.5, 0.5]) == "log"


def test_few_rows_travel_and_the_outliers_are_among_them() -> None:
    norms = long_run()
    chart = gradient_norm_chart(norms)
    rows = chart.spec["data"]["values"]
    crosses = chart.spec["layer"][2]["data"]["values"]
    assert MAX_ROWS / 2 < len(rows) + len(crosses) <= MAX_ROWS
    assert len(crosses) > 100
    shown = {row["norm"] for row in rows}
    for outlier in np.sort(norms.norm)[-20:]:
        assert float(f"{outlier:.6g}") in shown
    assert f"Of 20,000 norms {len(rows):,} are drawn" in chart.help
    assert "are drawn" not in gradient_norm_chart(make_norms([1.0, 2.0])).help


def test_a_record_shows_medians_and_the_largest_norms() -> None:
    record = make_record([3.0, 2.0], gradient_norm_max=[9.0, 99.0], clip_threshold=[2.5, 2.5])
    rows = gradient_norm_chart(record).spec["data"]["values"]
    assert [(row["step"], row["norm"], row["kind"]) for row in rows] == [
        (100, 9.0, "largest norm"),
        (200, 99.0, "largest norm"),
        (200, 2.0, "median norm"),
        (100, 3.0, "median above the threshold"),
    ]
    # The share is that of all updates, which the medians alone do not tell.
    subtitle = gradient_norm_chart(record).spec["title"]["subtitle"]
    assert subtitle == "2 stretches between evaluations, 10.0% of the updates clipped"


@pytest.mark.parametrize("as_record", [False, True])
def test_the_histogram_counts_all_steps_and_rules_both_numbers(as_record: bool) -> None:
    values = np.random.default_rng(1).lognormal(size=700)
    threshold = np.full(700, 1.25)
    norms = make_record(values, clip_threshold=threshold) if as_record else make_norms(values, threshold)
    chart = gradient_norm_histogram(norms)
    rows = chart.spec["data"]["values"]
    assert sum(row["count"] for row in rows) == 700
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert (rows[0]["low"], rows[-1]["high"]) == (values.min(), values.max())
    assert chart.spec["layer"][0]["encoding"]["x"]["scale"]["type"] == "log"
    rules = {mark["words"]: mark["at"] for mark in chart.spec["layer"][1]["data"]["values"]}
    p90 = float(np.percentile(values, 90))
    assert rules == {f"90th percentile: {p90:.3g}": p90, "last threshold: 1.25": 1.25}


def test_the_histogram_holds_a_threshold_beyond_every_norm() -> None:
    chart = gradient_norm_histogram(make_norms([1.0, 2.0, 3.0], [40.0] * 3))
    low, high = chart.spec["layer"][0]["encoding"]["x"]["scale"]["domain"]
    assert low < 1 < 40 < high


@pytest.mark.parametrize(
    ("draw", "norms", "message"),
    [
        (
            gradient_norm_chart,
            make_norms([]),
            "`norms` is empty: there is no update to show. Train with PercentileGradientClipping and pass its "
            "history(), or the record of the trial.",
        ),
        (
            gradient_norm_histogram,
            make_norms([], nonfinite=[0]),
            "`norms` is empty: there is no norm to count. Train with PercentileGradientClipping and pass its "
            "history(), or the record of the trial.",
        ),
        (
            gradient_norm_histogram,
            TrialRecord(direction="minimize", curve=Curve.from_columns([0], [math.e])),
            "`record` keeps no histogram of gradient norms: there is nothing to count. Train with "
            "PercentileGradientClipping beside TrialRecorder, which records them.",
        ),
    ],
)
def test_nothing_to_show_is_refused(draw: Any, norms: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        draw(norms)
