"""Does the chart of warmup sweeps show no warmup apart, and each base learning rate by itself?"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from drawn_charts import draw, points

from playbook_plugins.analysis import Parameter, Role, Trials
from playbook_plugins.charts.palette import BLUE, GREEN, ORANGE, RED
from playbook_plugins.charts.warmup_sweep import warmup_sweep_chart

STEPS = Parameter(name="warmup_steps", kind="int", low=0, high=40_000)
RATE = Parameter(name="base_learning_rate", kind="float", low=0.01, high=0.3, log=True)
WARMUPS = np.array([0, 100, 300, 1000, 3000, 10_000, 40_000])


def table(steps: Any, objective: Any, rates: Any = None, others: Any = None, **columns: Any) -> Trials:
    parameters, values = [STEPS], {"warmup_steps": steps}
    if rates is not None:
        parameters, values = [*parameters, RATE], values | {"base_learning_rate": rates}
    if others is not None:
        parameters = [*parameters, Parameter(name="x", kind="float", low=0.0, high=1.0)]
        values = values | {"x": others}
    return Trials.from_columns("a sweep", parameters, values, objective, objective_name="loss", **columns)


def grid(n_rates: int = 2, **columns: Any) -> Trials:
    """Return a grid on which larger rates diverge without warmup."""
    rates = np.geomspace(0.01, 0.3, n_rates)
    steps, rate = np.repeat(WARMUPS, n_rates), np.tile(rates, len(WARMUPS))
    loss = 1 + (np.log10(rate) + 0.8) ** 2 + steps / 1e5
    return table(steps, np.where((steps < 100) & (rate > 0.05), np.nan, loss), rate, **columns)


def scattered(n: int = 60, direction: Any = "minimize") -> Trials:
    rng = np.random.default_rng(0)
    return table(
        np.round(10 ** (2 + 2 * rng.random(n))), rng.random(n), 0.01 * 30 ** rng.random(n), direction=direction
    )


STUDIES = {
    "grid": grid(),
    "seven rates": grid(7),
    "more rates than colours": grid(9),
    "scattered": scattered(),
    "maximize": scattered(direction="maximize"),
    "10,000 trials": scattered(10_000),
    "one rate": grid(1),
    "no rate": table(WARMUPS, np.arange(7.0)),
    "one trial": table([100], [1.0]),
    "only without warmup": table([0, 0], [1.0, 2.0]),
    "no trial": table([], []),
    "all infeasible": table(WARMUPS, np.full(7, np.nan)),
    "constant": table(WARMUPS, np.ones(7)),
    "tiny and huge": table(WARMUPS, [1e308, -1e308, 5e-324, 0.0, 1.0, 2.0, 3.0]),
    "a trial lacks it": table([0, np.nan, 100], [1.0, 2.0, 3.0]),
}


@pytest.mark.parametrize("name", STUDIES)
def test_it_is_valid_and_every_judged_trial_has_its_mark(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    trials = STUDIES[name]
    chart = warmup_sweep_chart(trials)
    svg = draw(chart, capfd)
    shown = trials.is_judged & trials.has("warmup_steps")
    assert sorted(row["trial"] for row in chart.spec["data"]["values"]) == trials.number[shown].tolist()
    assert len(re.findall('aria-roledescription="point"', svg)) == shown.sum()


def test_no_warmup_stands_at_the_left_of_a_break(capfd: pytest.CaptureFixture[str]) -> None:
    chart = warmup_sweep_chart(grid())
    svg = draw(chart, capfd)
    assert ">0<" in svg
    [rule] = [layer for layer in chart.spec["layer"] if layer["mark"]["type"] == "rule"]
    [edge] = [row["x"] for row in rule["data"]["values"]]
    rows = chart.spec["data"]["values"]
    assert {row["x_text"] for row in rows if row["x"] < edge} == {"0"}
    assert {row["x"] for row in rows if row["x"] > edge} == set(WARMUPS[1:].tolist())
    left, right = rule["encoding"]["x"]["scale"]["domain"]
    assert left < min(row["x"] for row in rows)
    assert right > 40_000
    # Without such trials there is neither break nor tick.
    without = warmup_sweep_chart(scattered())
    assert ">0<" not in draw(without, capfd)
    assert not [layer for layer in without.spec["layer"] if layer["mark"]["type"] == "rule"]


def test_each_base_learning_rate_has_a_colour_and_its_crosses(capfd: pytest.CaptureFixture[str]) -> None:
    svg = draw(warmup_sweep_chart(grid()), capfd)
    small, large = points(svg, BLUE), points(svg, ORANGE)
    assert len(small) == len(large) == 7
    # The larger rate diverges without warmup: one cross in the strip, at the left.
    assert [x == min(place for place, _ in large) for x, y in large if y < 26] == [True]
    assert not [y for _, y in small if y < 26]
    for words in ("base_learning_rate 0.01", "base_learning_rate 0.3", "best", "infeasible"):
        assert f">{words}<" in svg


def test_one_base_learning_rate_looks_like_any_study(capfd: pytest.CaptureFixture[str]) -> None:
    svg = draw(warmup_sweep_chart(table(WARMUPS, [np.nan, 3.0, 2.0, 1.0, 2.0, 3.0, 3.5])), capfd)
    assert (len(points(svg, RED)), len(points(svg, GREEN)), len(points(svg, BLUE))) == (1, 1, 5)


def test_many_base_learning_rates_are_taken_by_quarters_of_their_range() -> None:
    chart = warmup_sweep_chart(scattered())
    names = {row["sweep"] for row in chart.spec["data"]["values"]}
    assert names == {
        "base_learning_rate 0.01 to 0.023",
        "base_learning_rate 0.023 to 0.055",
        "base_learning_rate 0.055 to 0.13",
        "base_learning_rate 0.13 to 0.3",
    }


def has_line(trials: Trials) -> bool:
    return any(layer["mark"]["type"] == "line" for layer in warmup_sweep_chart(trials).spec["layer"])


def test_lines_join_a_grid_and_not_a_random_search() -> None:
    assert has_line(grid())
    assert has_line(table(WARMUPS, np.arange(7.0)))
    assert not has_line(scattered())
    rng = np.random.default_rng(0)
    assert not has_line(table(rng.integers(1, 1000, 40), rng.random(40), others=rng.random(40)))
    assert has_line(table(np.tile(WARMUPS, 4), rng.random(28), others=rng.random(28)))


def test_the_words() -> None:
    chart = warmup_sweep_chart(grid())
    assert chart.alt == (
        "Warmup sweep of loss against warmup_steps. base_learning_rate 0.01: 7 trials, 0 infeasible, the best with 0 "
        "reaches 2.44; base_learning_rate 0.3: 7 trials, 1 infeasible, the best with 100 reaches 1.078."
    )
    assert chart.help == (
        "Each mark is a trial, stars the best of each base_learning_rate, crosses infeasible ones. Take the fewest "
        "warmup steps with which training is stable at a rate that was unstable without."
    )


def test_warmup_steps_are_a_number() -> None:
    category = Parameter(name="warmup_steps", kind="categorical", choices=("a", "b"), role=Role.SCIENTIFIC)
    trials = Trials.from_columns("s", [category], {"warmup_steps": ["a"]}, [1.0])
    message = (
        "`warmup_steps` is 'warmup_steps': it is no number. Pass the name of the hyperparameter that holds the warmup "
        "steps."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        warmup_sweep_chart(trials)
