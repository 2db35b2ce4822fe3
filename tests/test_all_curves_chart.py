from __future__ import annotations

import re

import numpy as np
import pytest
from drawn_charts import draw, points
from example_trials import two_optimizers

from playbook_plugins.analysis import Curve, Parameter, Status, Trials
from playbook_plugins.charts import all_training_curves
from playbook_plugins.charts.palette import BEST, INFEASIBLE, RED
from playbook_plugins.charts.theme import HEIGHT
from playbook_plugins.report.interaction import page_spec


def table(n_trials: int, direction: str = "minimize", **more: object) -> Trials:
    steps = np.arange(100)
    sign = 1 if direction == "minimize" else -1
    ends = np.arange(1.0, n_trials + 1)
    return Trials.from_columns(
        "s",
        [Parameter(name="x", kind="float", low=0, high=1)],
        {"x": np.linspace(0, 1, n_trials)},
        sign * ends,
        direction=direction,
        curves=[Curve.from_columns(steps, sign * (end + np.exp(-steps / 20))) for end in ends],
        **more,
    )


STUDIES = {
    "two optimizers": two_optimizers(),
    "one trial": table(1),
    "maximize": table(5, "maximize"),
    "many": table(1_000),
    "all infeasible": table(4, status=[Status.INFEASIBLE] * 4),
    "pruned and running": table(3, status=[Status.PRUNED, Status.RUNNING, Status.COMPLETE]),
}


@pytest.mark.parametrize("name", STUDIES)
def test_it_is_valid_and_renders_without_a_warning(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    draw(all_training_curves(STUDIES[name]), capfd)


def test_the_best_three_are_in_front_and_broken_trials_end_in_a_cross(capfd: pytest.CaptureFixture[str]) -> None:
    trials = STUDIES["two optimizers"]
    chart = all_training_curves(trials)
    rows = chart.spec["data"]["values"]
    assert {row["trial"] for row in rows} == set(trials.number.tolist())
    best = {row["trial"] for row in rows if row["mark"] == BEST}
    assert best == set(trials.number[trials.ranking()[:3]].tolist())
    assert rows[-1]["mark"] == BEST
    [crosses] = [layer["data"]["values"] for layer in chart.spec["layer"] if "data" in layer]
    assert {row["trial"] for row in crosses} == set(trials.number[trials.is_infeasible].tolist())
    # Their last finite evaluation, at step 0.
    assert {(row["step"], row["value"], row["mark"]) for row in crosses} == {(0, 0.9, INFEASIBLE)}
    assert len(points(draw(chart, capfd), RED)) == int(trials.is_infeasible.sum())
    assert chart.help.endswith("before a trial broke.")
    assert chart.alt == "digits: adam or nesterov: 48 trials with a curve, 8 of them infeasible."


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_cross_of_a_trial_that_broke_beyond_the_frame_stands_at_its_edge(
    direction: str, capfd: pytest.CaptureFixture[str]
) -> None:
    sign = 1 if direction == "minimize" else -1
    ends = [1.0, 1.1, 1.2, 1.3, 1.15, 1e6, 0.5]
    trials = Trials.from_columns(
        "s",
        [],
        {},
        sign * np.array(ends),
        direction=direction,
        status=[Status.COMPLETE] * 4 + [Status.INFEASIBLE] * 3,
        curves=[Curve.from_columns([0, 10], [sign * 2.0, sign * end]) for end in ends],
    )
    chart = all_training_curves(trials)
    [crosses] = [layer["data"]["values"] for layer in chart.spec["layer"] if "data" in layer]
    # Its own value is what the tooltip tells.
    assert [sign * row["value"] for row in crosses] == [1.15, 1e6, 0.5]
    (_, inside), (_, worse), (_, better) = points(draw(chart, capfd), RED)
    top, bottom = (worse, better) if direction == "minimize" else (better, worse)
    assert 0 <= top < inside < bottom <= HEIGHT
    assert "; those at the edge lie beyond it." in chart.help
    within = all_training_curves(trials.select([0, 1, 2, 3, 4]))
    assert within.help.endswith("before a trial broke.")


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_where_few_trials_are_feasible_the_axis_shows_how_they_trained(
    direction: str, capfd: pytest.CaptureFixture[str]
) -> None:
    sign = 1 if direction == "minimize" else -1
    steps = np.arange(0, 101, 5)
    values = 2 + 2 * np.exp(-steps / 25)
    values[12] = 50.0
    trials = Trials.from_columns(
        "s", [], {}, [sign * values[-1]], direction=direction, curves=[Curve.from_columns(steps, sign * values)]
    )
    chart = all_training_curves(trials)
    low, high = sorted(sign * end for end in chart.spec["layer"][0]["encoding"]["y"]["scale"]["domain"])
    # From its value at a fifth of training to its last one; a later spike leaves the frame, as does the beginning.
    assert 1.8 < low < values[-1]
    assert values[4] < high < values[3]
    draw(chart, capfd)


def test_of_very_many_trials_the_best_and_a_selection_are_drawn() -> None:
    chart = all_training_curves(STUDIES["many"])
    rows = chart.spec["data"]["values"]
    drawn = {row["trial"] for row in rows}
    assert len(drawn) == 200
    assert set(range(60)) <= drawn
    assert max(drawn) == 999
    assert max(sum(row["trial"] == trial for row in rows) for trial in (0, 999)) == 40
    assert chart.alt == "s: 1,000 trials with a curve; 200 of them drawn."


def test_a_line_keeps_its_first_and_its_last_finite_evaluation() -> None:
    curve = Curve.from_columns([0, 5, 10, 15], [np.nan, 3.0, 2.0, np.inf])
    trials = Trials.from_columns("s", [], {}, [2.0], curves=[curve])
    assert [(row["step"], row["value"]) for row in all_training_curves(trials).spec["data"]["values"]] == [
        (5, 3.0),
        (10, 2.0),
    ]


def test_minimizing_and_maximizing_show_the_same_trials() -> None:
    low, high = (all_training_curves(table(6, way)).spec["data"]["values"] for way in ("minimize", "maximize"))
    assert [(row["trial"], row["mark"], row["value"]) for row in low] == [
        (row["trial"], row["mark"], -row["value"]) for row in high
    ]


def test_the_page_can_pick_a_line() -> None:
    spec = page_spec(all_training_curves(STUDIES["two optimizers"]).spec)
    assert sum("picked-line" in str(layer["mark"].get("style")) for layer in spec["layer"]) == 2


def test_a_study_without_curves_is_refused() -> None:
    message = (
        "`trials` of the study 's' has no curve with a finite validation objective: training curves need at least one. "
        "Record the evaluations of each trial, for instance with TrialRecorder."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        all_training_curves(Trials.from_columns("s", [], {}, [1.0]))
