"""Does the chart of learning rate sweeps show lr*, what diverged and where training is unstable?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from drawn_charts import draw, points

from playbook_plugins.analysis import Curve, Parameter, Role, Status, Trials, check_trial_stability
from playbook_plugins.charts.learning_rate_sweep import learning_rate_sweep_chart
from playbook_plugins.charts.palette import BLUE, GREEN, ORANGE, PURPLE, RED

RATE = Parameter(name="learning_rate", kind="float", low=1e-4, high=1.0, log=True)


def table(objective: Any, rates: Any = None, *, parameters: Any = (RATE,), more: Any = None, **columns: Any) -> Trials:
    rates = np.geomspace(1e-4, 1.0, len(objective)) if rates is None else rates
    values = {"learning_rate": rates} | (more or {})
    return Trials.from_columns("a sweep", list(parameters), values, objective, **columns)


def sweep(limit: float = 0.03, best: float = -2.0, seed: int = 0) -> Trials:
    """Return a sweep whose runs spike near a limit and diverge beyond it."""
    rng = np.random.default_rng(seed)
    rates, steps = np.geomspace(1e-4, 1.0, 17), np.arange(0, 3001, 25)
    objective, curves = np.full(17, np.nan), []
    for row, rate in enumerate(rates):
        level = 1.2 + 0.25 * (np.log10(rate) - best) ** 2
        loss = level + (4 - level) * np.exp(-steps / 300) + 0.02 * rng.standard_normal(len(steps))
        if rate > limit:
            loss[40:] = np.nan
        elif rate > limit / 2.5:
            loss[30:60] += 3 * np.exp(-np.arange(30) / 8)
        if rate <= limit:
            objective[row] = loss.min()
        curves.append(Curve.from_columns(steps, loss, np.where(steps > 0, loss - 0.05, np.nan)))
    return table(objective, rates, curves=curves, objective_name="training loss")


def many(n: int = 10_000) -> Trials:
    rng = np.random.default_rng(0)
    other = Parameter(name="x", kind="float", low=0.0, high=1.0)
    return table(
        np.where(rng.random(n) < 0.1, np.nan, rng.random(n)),
        10 ** (-4 * rng.random(n)),
        parameters=(RATE, other),
        more={"x": rng.random(n)},
    )


SWEEPS: dict[str, Trials | Mapping[str, Trials]] = {
    "sweep": sweep(),
    "two sweeps": {"no warmup": sweep(), "warmup 1000": sweep(0.3, -1.3, 1)},
    "one in a mapping": {"no warmup": sweep()},
    "seven": {f"sweep {seed}": sweep(seed=seed) for seed in range(7)},
    "names cut alike": {"a" * 50 + "1": sweep(), "a" * 50 + "2": sweep()},
    "one trial": table([1.0], [0.1]),
    "no trial": table([], []),
    "all infeasible": {"one": table([np.nan] * 3), "two": table([np.nan] * 5)},
    "maximize": table([0.1, 0.5, 0.9, -np.inf, 1e-9], direction="maximize"),
    "constant": table([2.0] * 5),
    "repeated": table([2.0, 1.0, 3.0, 1.5], [0.01, 0.01, 0.1, 0.1]),
    "tiny and huge": table([5e-324, 1e-310, 1e308, 1e307]),
    "zero and no rate": table([1.0, 2.0, 3.0], [0.0, np.nan, 0.1]),
    "linear from zero": table(
        [1.0, 2.0], [0.1, 0.2], parameters=[Parameter(name="learning_rate", kind="float", low=0.0, high=1.0)]
    ),
    "every status": table(
        [0.2, np.nan, 0.4, np.nan, np.nan],
        status=[Status.COMPLETE, Status.INFEASIBLE, Status.PRUNED, Status.FAILED, Status.RUNNING],
    ),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_it_is_valid_and_every_judged_trial_has_its_mark(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    sweeps = SWEEPS[name]
    chart = learning_rate_sweep_chart(sweeps)
    svg = draw(chart, capfd)
    tables = list(sweeps.values()) if isinstance(sweeps, Mapping) else [sweeps]
    shown = sum(int((one.is_judged & (one.values["learning_rate"] > 0)).sum()) for one in tables)
    assert len(chart.spec["data"]["values"]) == shown
    assert len(re.findall('aria-roledescription="point"', svg)) == shown


def test_ten_thousand_trials_travel(capfd: pytest.CaptureFixture[str]) -> None:
    chart = learning_rate_sweep_chart(many())
    assert len(chart.spec["data"]["values"]) == 10_000
    # Another hyperparameter was searched as well: nothing joins the trials.
    assert not [layer for layer in chart.spec["layer"] if layer["mark"]["type"] == "line"]
    draw(chart, capfd)


def test_a_single_sweep_has_a_star_dots_and_crosses_above_them(capfd: pytest.CaptureFixture[str]) -> None:
    trials = sweep()
    svg = draw(learning_rate_sweep_chart(trials), capfd)
    [star] = points(svg, GREEN)
    dots, crosses = points(svg, BLUE), points(svg, RED)
    assert len(dots) == trials.is_feasible.sum() - 1
    assert len(crosses) == trials.is_infeasible.sum()
    assert star[1] > max(y for _, y in dots)
    assert max(y for _, y in crosses) < min(y for _, y in dots)
    # The axis is logarithmic: the rates stand at equal distances.
    places = sorted(x for x, _ in [star, *dots, *crosses])
    assert np.diff(places) == pytest.approx(np.diff(places)[0], abs=0.01)
    assert ">lr* = 0.01<" in svg


def test_maximizing_puts_the_best_above_and_the_crosses_below(capfd: pytest.CaptureFixture[str]) -> None:
    svg = draw(learning_rate_sweep_chart(table([0.1, 0.5, 0.9, np.nan, 0.2], direction="maximize")), capfd)
    [star], [cross] = points(svg, GREEN), points(svg, RED)
    dots = [y for _, y in points(svg, BLUE)]
    assert star[1] < min(dots) < max(dots) < cross[1]


def test_several_sweeps_differ_in_colour_and_shape(capfd: pytest.CaptureFixture[str]) -> None:
    chart = learning_rate_sweep_chart({"a": sweep(), "b": sweep(seed=1), "c": sweep(seed=2)})
    marks = next(layer for layer in chart.spec["layer"] if "shape" in layer["encoding"])["encoding"]
    assert (
        marks["color"]["scale"]["domain"] == marks["shape"]["scale"]["domain"] == ["a", "b", "c", "lr*", "infeasible"]
    )
    assert len(set(marks["color"]["scale"]["range"][:3])) == len(set(marks["shape"]["scale"]["range"])) - 2 == 3
    svg = draw(chart, capfd)
    for colour in (BLUE, ORANGE, PURPLE):
        assert len(points(svg, colour)) == 17
    crosses = {y for colour in (BLUE, ORANGE, PURPLE) for _, y in points(svg, colour) if y < 26}
    # Crosses at one rate do not hide each other.
    assert len(crosses) == 3


def test_the_rule_stands_where_the_analysis_says_that_training_is_unstable() -> None:
    trials = sweep()
    [limit] = [one for one in check_trial_stability(trials) if one.check == "learning rate limit"]
    at = float(limit.numbers["unstable_factor"] or 0) * 0.01
    chart = learning_rate_sweep_chart(trials)
    [rule] = [layer for layer in chart.spec["layer"] if layer["mark"]["type"] == "rule"]
    assert [row["x"] for row in rule["data"]["values"]] == [pytest.approx(at)]
    assert "From the dashed rule on training is unstable" in chart.help
    # Without curves nobody knows.
    bare = learning_rate_sweep_chart(table(trials.objective, trials.values["learning_rate"]))
    assert not [layer for layer in bare.spec["layer"] if layer["mark"]["type"] == "rule"]
    both = learning_rate_sweep_chart({"no warmup": trials, "warmup": sweep(1.1, -1.0)})
    [rule] = [layer for layer in both.spec["layer"] if layer["mark"]["type"] == "rule"]
    assert [row["sweep"] for row in rule["data"]["values"]] == ["no warmup"]


def test_the_line_joins_the_best_of_each_rate() -> None:
    chart = learning_rate_sweep_chart(SWEEPS["repeated"])
    [line] = [layer for layer in chart.spec["layer"] if layer["mark"]["type"] == "line"]
    assert [(row["x"], row["objective"]) for row in line["data"]["values"]] == [(0.01, 1.0), (0.1, 1.5)]


def test_trials_of_several_studies_are_not_picked_by_number() -> None:
    assert "trial" in learning_rate_sweep_chart(sweep()).spec["data"]["values"][0]
    assert "trial" not in learning_rate_sweep_chart({"a": sweep()}).spec["data"]["values"][0]


def test_the_words() -> None:
    chart = learning_rate_sweep_chart({"no warmup": table([3.0, 1.0, np.nan]), "warmup": table([2.5, 0.5, 0.75])})
    assert chart.alt == (
        "Learning rate sweep of objective against learning_rate. no warmup: 3 trials, 1 infeasible, the best at 0.01 "
        "reaches 1; warmup: 3 trials, 0 infeasible, the best at 0.01 reaches 0.5."
    )
    assert (
        chart.help
        == "Each mark is a trial; the star is the best rate, lr*, of its sweep, crosses are infeasible trials."
    )


def test_the_final_training_loss_is_another_objective(capfd: pytest.CaptureFixture[str]) -> None:
    chart = learning_rate_sweep_chart(sweep().with_objective("train", moment="final"))
    assert ">final train (lower is better)<" in draw(chart, capfd)


@pytest.mark.parametrize(
    ("sweeps", "message"),
    [
        (
            {},
            "`trials` has 0 sweeps: it must have 1 to 7, because more cannot be told apart. Pass fewer.",
        ),
        (
            {"a": table([1.0]), "b": table([1.0], direction="maximize")},
            "`trials` has sweeps of the objectives [('maximize', 'objective'), ('minimize', 'objective')]: one axis "
            "shows one objective. Pass sweeps of the same direction and objective, see Trials.with_objective.",
        ),
        (
            Trials.from_columns("a study", [Parameter(name="x", kind="float", low=0, high=1)], {"x": [0.5]}, [1.0]),
            "`learning_rate` is None: the study 'a study' has [] for a learning rate. Pass the name of one of ['x'].",
        ),
    ],
)
def test_what_cannot_be_drawn(sweeps: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        learning_rate_sweep_chart(sweeps)


def test_a_category_is_no_learning_rate() -> None:
    message = "`learning_rate` is 'x': it is no number. Pass the name of a number that the study searched."
    category = Parameter(name="x", kind="categorical", choices=("a", "b"), role=Role.SCIENTIFIC)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        learning_rate_sweep_chart(Trials.from_columns("s", [category], {"x": ["a"]}, [1.0]), learning_rate="x")


def legend_symbols(svg: str) -> list[str]:
    """Return the outlines of the legend's symbols, in its order."""
    return re.findall(r'role-legend-symbol.*?<path[^>]*\bd="([^"]+)"', svg, flags=re.DOTALL)


@pytest.mark.parametrize("n_feasible", [1, 2])
def test_the_legend_shows_each_mark_by_its_own_shape(n_feasible: int, capfd: pytest.CaptureFixture[str]) -> None:
    # Also where each sweep has nothing but its best trial and what diverged.
    objective = [*[2.0, 2.5][:n_feasible], np.nan]
    svg = draw(learning_rate_sweep_chart({"no warmup": table(objective), "warmup": table(objective)}), capfd)
    first, second, best, infeasible = legend_symbols(svg)
    assert len({first, second, best, infeasible}) == 4
    alone = draw(learning_rate_sweep_chart(table(objective)), capfd)
    assert len(set(legend_symbols(alone))) == len(legend_symbols(alone)) == n_feasible + 1
