"""Does the chart of retrains show every retrain, the means of the analysis, and the search's own trial apart?"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import test_adoption_nanogpt as nanogpt
from drawn_charts import draw, points
from scipy import stats
from test_adoption_nanogpt import retrains as retrains

from playbook_plugins.analysis import Parameter, Role, Trials, check_adoption, compare_retrains
from playbook_plugins.charts.palette import BLUE, ORANGE, PURPLE, RED
from playbook_plugins.charts.retrains import retrain_chart

BASELINE, CANDIDATE = [0.10, 0.11, 0.12], [0.07, 0.08, 0.09, 0.08]


def study(n_retrains: int = 6, n_points: int = 20, *, is_first_alone: bool = False) -> Trials:
    """Return a search whose best point of either optimizer was trained again."""
    rng = np.random.default_rng(1)
    rates, names = list(10 ** (-4 * rng.random(n_points))), ["adam", "nesterov"] * (n_points // 2)
    level = [0.1 + 0.03 * (np.log10(rate) + 2) ** 2 for rate in rates]
    objective = [one + 0.01 * rng.standard_normal() for one in level]
    for name in ("adam", "nesterov"):
        best = min((row for row in range(n_points) if names[row] == name), key=objective.__getitem__)
        for _ in range(n_retrains):
            rates.append(rates[best])
            names.append(name)
            objective.append(level[best] + 0.01 * rng.standard_normal())
    return Trials.from_columns(
        "retrained",
        [
            Parameter(name="optimizer", kind="categorical", choices=("adam", "nesterov"), role=Role.SCIENTIFIC),
            Parameter(name="learning_rate", kind="float", low=1e-4, high=1.0, log=True),
        ],
        {"optimizer": names, "learning_rate": rates},
        objective,
        objective_name="error rate",
    )


def alone() -> Trials:
    return Trials.from_columns(
        "one point", [Parameter(name="x", kind="float", low=0, high=1)], {"x": [0.5] * 5}, range(5)
    )


RETRAINS: dict[str, Any] = {
    "two": {"baseline": BASELINE, "candidate": CANDIDATE},
    "diverged": {"baseline": BASELINE, "candidate": [0.08, np.nan, np.inf, 0.09]},
    "all diverged": {"baseline": [np.nan] * 3, "candidate": [np.inf] * 2},
    "one each": {"baseline": [1.0], "candidate": [2.0]},
    "one configuration": {"baseline": BASELINE},
    "one is empty": {"baseline": BASELINE, "candidate": []},
    "twelve": {f"configuration {k}": [float(k), k + 0.5] for k in range(12)},
    "constant": {"baseline": [1.0] * 3, "candidate": [1.0] * 3},
    "far off": {"baseline": [1.0, 1.1, 1.2, 1.1], "candidate": [1.0, 1.1, 1000.0]},
    "the ends of the floats": {"baseline": [1e308, -1e308, 5e-324], "candidate": [1.0, 2.0]},
    "names cut alike": {"a" * 50 + "1": BASELINE, "a" * 50 + "2": CANDIDATE},
    "many": {"baseline": np.random.default_rng(0).random(5000), "candidate": np.random.default_rng(1).random(5000)},
    "study": study(),
    "study of one point": alone(),
}


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("name", RETRAINS)
def test_it_is_valid_and_every_retrain_has_its_mark(
    name: str, direction: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    chart = retrain_chart(RETRAINS[name], direction=direction)
    svg = draw(chart, capfd)
    bars = len(points(svg, ORANGE))
    n_marks = len(re.findall('aria-roledescription="point"', svg)) - bars
    if isinstance(RETRAINS[name], dict):
        assert n_marks == sum(len(group) for group in RETRAINS[name].values())
    for x, y in points(svg, BLUE) + points(svg, ORANGE) + points(svg, RED) + points(svg, PURPLE):
        assert 0 <= x <= 460
        assert 0 <= y <= 270


def bars_of(chart: Any) -> list[dict[str, Any]]:
    return [
        row for layer in chart.spec["layer"] for row in layer.get("data", {"values": []})["values"] if "mean" in row
    ]


def test_the_bar_is_the_mean_and_its_students_interval() -> None:
    [first, second] = bars_of(retrain_chart({"baseline": BASELINE, "candidate": CANDIDATE}))[:2]
    for row, values in ((first, BASELINE), (second, CANDIDATE)):
        low, high = stats.t.interval(0.9, len(values) - 1, np.mean(values), stats.sem(values))
        assert (row["mean"], row["low"], row["high"]) == pytest.approx((np.mean(values), low, high))
    # By hand: the spread of 0.10, 0.11, 0.12 is 0.01, the quantile of 2 degrees of freedom 2.92.
    assert first["high"] - first["mean"] == pytest.approx(2.92 * 0.01 / np.sqrt(3), rel=1e-3)


def test_beside_a_diverged_retrain_there_is_no_mean(capfd: pytest.CaptureFixture[str]) -> None:
    chart = retrain_chart(RETRAINS["diverged"])
    assert {row["configuration"] for row in bars_of(chart)} == {"baseline"}
    svg = draw(chart, capfd)
    assert len(points(svg, RED)) == 2
    assert max(y for _, y in points(svg, RED)) < min(y for _, y in points(svg, BLUE))
    assert "candidate: 4 retrains, 2 diverged" in chart.alt
    assert chart.help.endswith("Crosses diverged; beside them no mean exists.")


def test_the_search_s_own_trial_is_a_ring_that_does_not_count(capfd: pytest.CaptureFixture[str]) -> None:
    trials = study()
    chart = retrain_chart(trials)
    rows = chart.spec["data"]["values"]
    rings = [row for row in rows if row["mark"] == "the search's own trial"]
    assert len(rings) == 2
    assert all(row["trial"] < 20 for row in rings)
    assert len(points(draw(chart, capfd), PURPLE)) == 2
    for bar in bars_of(chart):
        values = [row["objective"] for row in rows if row["configuration"] == bar["configuration"] and row not in rings]
        assert len(values) == 6
        assert bar["mean"] == pytest.approx(np.mean(values))
    # Where nothing was chosen, no trial is a lucky one.
    assert {row["mark"] for row in retrain_chart(alone()).spec["data"]["values"]} == {"retrain"}


def test_the_subtitle_tells_effect_and_probability() -> None:
    result = compare_retrains(CANDIDATE, BASELINE, "minimize")
    chart = retrain_chart({"baseline": BASELINE, "candidate": CANDIDATE})
    assert chart.spec["title"]["subtitle"] == [
        f"candidate is 0.03 better than baseline (90% interval +{result.low:.3g} to +{result.high:.3g})",
        f"better with probability {result.probability:.1%}",
    ]
    turned = retrain_chart({"baseline": BASELINE, "candidate": CANDIDATE}, direction="maximize")
    assert turned.spec["title"]["subtitle"][0].startswith("candidate is 0.03 worse than baseline (90% interval -")
    [finding] = check_adoption(study())
    words = retrain_chart(study()).spec["title"]["subtitle"][0]
    assert words.startswith(f"{finding.numbers['winner']} is ")
    assert f"than {finding.numbers['runner_up']} (90% interval " in words


def test_the_subtitle_without_a_comparison() -> None:
    assert retrain_chart({"baseline": BASELINE}).spec["title"]["subtitle"] == [
        "Retrains differ by a standard deviation of 0.01"
    ]
    assert retrain_chart(RETRAINS["one each"]).spec["title"]["subtitle"] == ["Too few retrains for a spread"]
    assert retrain_chart(RETRAINS["constant"]).spec["title"]["subtitle"] == [
        "candidate is as good as baseline in the median",
        "better with probability 50.0%",
    ]


def test_the_axis_holds_the_intervals_and_all_names() -> None:
    chart = retrain_chart(RETRAINS["twelve"])
    encoding = chart.spec["layer"][-1]["encoding"]
    low, high = encoding["y"]["scale"]["domain"]
    assert all(low < row["low"] < row["high"] < high for row in bars_of(chart))
    # Twelve long names stand aslant; two short ones do not.
    assert encoding["x"]["axis"]["labelAngle"] == -30
    assert retrain_chart(RETRAINS["two"]).spec["layer"][-1]["encoding"]["x"]["axis"]["labelAngle"] == 0


def test_a_retrain_far_off_stands_at_the_edge_as_a_triangle(capfd: pytest.CaptureFixture[str]) -> None:
    chart = retrain_chart({"baseline": [1.0, 1.1, 1.2, 1.1] * 5, "candidate": [1.0, 1.1, 1000.0, np.nan]})
    assert [row["objective"] for row in chart.spec["data"]["values"] if row["mark"] == "beyond the axis"] == [1000.0]
    assert "Triangles are worse than the axis shows" in chart.help
    assert ">beyond the axis<" in draw(chart, capfd)


def test_the_jitter_is_the_same_each_time() -> None:
    first, second = (retrain_chart(RETRAINS["two"]).spec["data"]["values"] for _ in range(2))
    assert first == second
    assert len({row["jitter"] for row in first}) == 4


def test_the_words() -> None:
    chart = retrain_chart({"baseline": [1.0, 2.0, 3.0], "candidate": [0.5]})
    assert chart.alt == (
        "Retrains. Retrains differ by a standard deviation of 1. baseline: 3 retrains, mean 2 (90% interval 0.31415 to "
        "3.6859); candidate: 1 retrain, mean 0.5."
    )
    assert chart.help == (
        "Each dot is a retrain of the same configuration, with another seed; the bar is their mean, the line its 90% "
        "interval."
    )


@pytest.mark.parametrize(
    ("retrained", "message"),
    [
        (
            {"baseline": []},
            "`retrains` has no retrain: there is nothing to show. Train a configuration again with other seeds, and "
            "pass the objectives by configuration, or the study.",
        ),
        (
            {str(place): [1.0] for place in range(13)},
            "`retrains` has 13 configurations: at most 12 have room side by side. Pass fewer.",
        ),
    ],
)
def test_what_cannot_be_drawn(retrained: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        retrain_chart(retrained)


@nanogpt.pytestmark
def test_real_retrains(retrains: dict[tuple[str, int], np.ndarray], capfd: pytest.CaptureFixture[str]) -> None:
    folder = "track_1_short/2026-04-29_XSAGatedLayers"
    groups = {
        "baseline": retrains[f"{folder}/baseline-s1410", 1450],
        "gated layers": retrains[f"{folder}/this_pr_v1-s1410", 1450],
    }
    chart = retrain_chart(groups, objective_name="validation loss")
    assert chart.spec["title"]["subtitle"] == [
        "gated layers is 0.00451 better than baseline (90% interval +0.00374 to +0.00528)",
        "better with probability above 99.9%",
    ]
    draw(chart, capfd)
