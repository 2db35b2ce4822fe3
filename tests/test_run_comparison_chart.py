"""Does the chart of a few runs show each as it trained, those that broke too, under its own name?"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from drawn_charts import draw, points
from hypothesis import given, settings
from hypothesis import strategies as st

from playbook_plugins.analysis import Curve, Status, TrialRecord
from playbook_plugins.charts import run_comparison_chart
from playbook_plugins.charts.palette import BLUE, ORANGE, RED


def run(train: Any, validation: Any = None, *, step: Any = None, **record: Any) -> TrialRecord:
    train = np.asarray(train, dtype=float)
    step = 10 * np.arange(len(train)) if step is None else step
    curve = Curve.from_columns(step, train if validation is None else validation, train)
    return TrialRecord(**({"direction": "minimize", "curve": curve} | record))


GOOD = run([2.0, 1.0, 0.5, 0.25, 0.2])
BROKEN = run([2.0, 8.0, 300.0, np.nan, np.nan], status=Status.INFEASIBLE, reason="loss is NaN")
NOTHING = run([np.nan, np.nan], status=Status.INFEASIBLE, reason="loss is NaN")
ACCURACY = run([0.1, 0.5, 0.7], [0.1, 0.4, 0.6], direction="maximize")

PICTURES = {
    "one run": {"bare": GOOD},
    "one broke": {"with clipping": GOOD, "without": BROKEN},
    "one has nothing": {"with": GOOD, "without": NOTHING},
    "eight": {f"x {factor}": run([3.0, 2.0, 1.0 / factor]) for factor in range(1, 9)},
    "accuracies": {"a": ACCURACY, "b": run([0.1, 0.2], [0.1, 0.2], direction="maximize")},
    "constant": {"a": run([1.0, 1.0])},
    "zero": {"a": run([0.0, 0.0])},
    "one evaluation": {"a": run([1.0])},
    "negative": {"a": run([-1.0, -2.0]), "b": run([-1.0, 5.0])},
    "tiny and huge": {"a": run([1e-320, 1.0]), "b": run([1e308, 1e308, -1e308]), "c": run([1e308, 5e-324])},
    "long": {"a": run(np.geomspace(3, 0.1, 3000)), "b": run(np.geomspace(3, 0.01, 10))},
    "odd names": {"\n" * 3: GOOD, "<b>&": GOOD, "a" * 100 + "1": GOOD, "a" * 100 + "2": GOOD},
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("split", ["training", "validation"])
def test_it_is_valid_and_every_run_has_its_line(name: str, split: Any, capfd: pytest.CaptureFixture[str]) -> None:
    runs = PICTURES[name]
    chart = run_comparison_chart(runs, split=split)
    svg = draw(chart, capfd)
    n_lines = sum(np.isfinite(record.curve.train).any() for record in runs.values())
    assert len({row["run"] for row in chart.spec["data"]["values"]}) == n_lines
    assert len(re.findall('aria-roledescription="line mark"', svg)) == n_lines
    domain = chart.spec["layer"][0]["encoding"]["color"]["scale"]["domain"]
    assert len(set(domain)) == len(runs)


def test_hand_worked_points() -> None:
    chart = run_comparison_chart({"a": GOOD}, average=2)
    # The last point has one evaluation only.
    assert [(row["step"], row["value"]) for row in chart.spec["data"]["values"]] == [(10, 1.5), (30, 0.375), (40, 0.2)]
    assert chart.help == "Each line is a run, each point the mean of 2 evaluations."


def test_a_run_that_broke_ends_in_a_cross(capfd: pytest.CaptureFixture[str]) -> None:
    stopped = run([2.0, 1.0, np.nan], status=Status.INFEASIBLE, reason="loss is NaN")
    chart = run_comparison_chart({"with clipping": GOOD, "without": BROKEN, "at once": NOTHING, "stopped": stopped})
    svg = draw(chart, capfd)
    crosses = chart.spec["layer"][1]["data"]["values"]
    # Where the blow-up left the frame, where nothing ever was, and at the last value; 20 is ten times the start.
    assert crosses == [
        {"run": "without", "step": 20, "value": 20.0},
        {"run": "at once", "step": 0, "value": 20.0},
        {"run": "stopped", "step": 10, "value": 1.0},
    ]
    assert len(points(svg, RED)) == 3
    assert chart.help == (
        "Each line is a run, a cross marks where one broke, a line that leaves the frame is worse than the axis shows."
    )
    assert chart.alt == (
        "Training objective over training: with clipping ends at 0.2 (step 40); without ends at 300 (step 20), broken; "
        "at once has no finite value, broken; stopped ends at 1 (step 10), broken."
    )


def test_a_blow_up_that_comes_back_is_marked_at_its_end() -> None:
    back = run([2.0, 500.0, 3.0, 2.5], status=Status.INFEASIBLE, reason="early instability")
    chart = run_comparison_chart({"a": back, "b": GOOD})
    assert chart.spec["layer"][1]["data"]["values"] == [{"run": "a", "step": 30, "value": 2.5}]
    upwards = run([0.1, 0.9, -5.0], direction="maximize", status=Status.INFEASIBLE, reason="it fell")
    chart = run_comparison_chart({"a": upwards}, split="validation")
    # Three times as far below the start as the best lies above it.
    assert chart.spec["layer"][1]["data"]["values"] == [{"run": "a", "step": 20, "value": -2.3}]


def test_a_loss_that_ends_as_nan_has_broken_whatever_its_status(capfd: pytest.CaptureFixture[str]) -> None:
    for train, n_crosses in (([2.0, 1.0, np.nan], 1), ([2.0, np.nan, 1.0], 0), ([np.nan, 2.0, 1.0], 0)):
        svg = draw(run_comparison_chart({"a": run(train, [2.0, 1.0, 0.5])}), capfd)
        assert len(points(svg, RED)) == n_crosses


def test_the_axis_shows_ten_times_the_start_and_is_logarithmic_where_that_helps() -> None:
    def scale(*runs: TrialRecord, **options: Any) -> dict[str, Any]:
        chart = run_comparison_chart(dict(zip("abc", runs, strict=False)), **options)
        found: dict[str, Any] = chart.spec["layer"][0]["encoding"]["y"]["scale"]
        return found

    both = scale(GOOD, BROKEN)
    assert both["type"] == "log"
    low, high = both["domain"]
    assert low < 0.2
    assert 20 < high < 40
    linear = scale(run([2.0, 1.5, 1.0]), run([2.0, 2.5, 9.0]))
    assert linear["type"] == "linear"
    assert 5 < linear["domain"][1] < 5.3
    # Less is shown whole.
    assert 4.6 < scale(run([2.0, 1.5, 1.0]), run([2.0, 2.5, 4.6]))["domain"][1] < 5
    upwards = scale(ACCURACY, split="validation")
    assert upwards["type"] == "linear"
    assert upwards["domain"][0] < 0.1
    assert upwards["domain"][1] > 0.6


def test_better_is_up_or_down_as_the_objective_says() -> None:
    def title(record: TrialRecord, split: Any) -> str:
        text: str = run_comparison_chart({"a": record}, split=split).spec["layer"][0]["encoding"]["y"]["axis"]["title"]
        return text

    assert title(run([1.0], objective_name="val_loss"), "validation") == "val_loss (lower is better)"
    assert title(ACCURACY, "validation") == "objective (higher is better)"
    assert title(ACCURACY, "training") == "training objective (higher is better)"
    # The training loss beside an accuracy still gets better downwards.
    assert (
        title(run([2.0, 1.0], [0.1, 0.4], direction="maximize"), "training") == "training objective (lower is better)"
    )


@given(
    values=st.lists(st.floats(-1e299, 1e299) | st.just(np.nan), min_size=1, max_size=40),
    average=st.integers(1, 50),
)
@settings(max_examples=200)
def test_every_point_lies_between_the_values_that_it_stands_for(values: list[float], average: int) -> None:
    finite = [value for value in values if np.isfinite(value)]
    if not finite:
        return
    record = run(values, np.zeros(len(values)))
    chart = run_comparison_chart({"a": record}, average=average)
    rows = chart.spec["data"]["values"]
    assert len(rows) == -(-len(finite) // average)
    assert rows[-1]["step"] == 10 * max(np.flatnonzero(np.isfinite(values)))
    for row in rows:
        # Six digits are drawn.
        tolerance = 1e-5 * abs(row["value"]) + 1e-320
        assert min(finite) - tolerance <= row["value"] <= max(finite) + tolerance
    low, high = chart.spec["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert np.isfinite([low, high]).all()
    assert low < high


def test_colours_follow_the_order_of_the_runs(capfd: pytest.CaptureFixture[str]) -> None:
    svg = draw(run_comparison_chart({"first": GOOD, "second": run([2.0, 1.5])}, title="Warmup"), capfd)
    assert svg.index(f'stroke="{BLUE}"') < svg.index(f'stroke="{ORANGE}"')
    assert ">Warmup<" in svg


@pytest.mark.parametrize(
    ("runs", "options", "message"),
    [
        ({}, {}, "`runs` holds 0 runs: there must be 1 to 8, because more lines cannot be told apart. Pass those that "
         "are to be compared."),
        ({str(place): GOOD for place in range(9)}, {}, "`runs` holds 9 runs: there must be 1 to 8, because more lines "
         "cannot be told apart. Pass those that are to be compared."),
        ({"a": GOOD, "b": ACCURACY}, {}, "`runs` holds runs that are minimized and runs that are maximized: they "
         "share no axis. Pass records of one objective."),
        ({"a": NOTHING}, {}, "`runs` holds no finite training objective: there is no line to draw. Pass records of "
         "runs that were evaluated at least once, or the other `split`."),
        ({"a": GOOD}, {"split": "test"}, "`split` is 'test': it must be 'training' or 'validation'. Pass one of them."),
        ({"a": GOOD}, {"average": 0}, "`average` is 0: it must be 1 or more, the evaluations that become one point. "
         "Pass 1 for all."),
    ],
)  # fmt: skip
def test_messages(runs: dict[str, TrialRecord], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        run_comparison_chart(runs, **options)
