"""Does the heat map of interactions show every pair once, with the flags of the check?"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from drawn_charts import draw
from example_trials import two_optimizers
from real_studies import convnext, needs_convnext

from playbook_plugins.analysis import Parameter, Role, Trials, Verdict, check_interactions, interactions
from playbook_plugins.charts.interactions import interaction_chart


def valley(n: int = 64, d: int = 3, *, turn: float = 1.0, seed: int = 0, **more: Any) -> Trials:
    """Return a study with one valley, of which the first two numbers interact."""
    unit = np.random.default_rng(seed).random((n, d))
    cost = np.sum((unit - 0.5) ** 2, axis=1) + 2 * turn * (unit[:, 0] - 0.5) * (unit[:, 1] - 0.5)
    parameters = [Parameter(name=f"x{place}", kind="float", low=0, high=1) for place in range(d)]
    return Trials.from_columns("valley", parameters, {f"x{k}": unit[:, k] for k in range(d)}, cost, **more)


def with_category(n: int = 64) -> Trials:
    rng = np.random.default_rng(1)
    rate, category = rng.random(n), np.array(["adam", "nesterov"] * (n // 2))
    cost = (rate - np.where(category == "adam", 0.2, 0.8)) ** 2
    return Trials.from_columns(
        "category",
        [
            Parameter(name="optimizer", kind="categorical", choices=("adam", "nesterov"), role=Role.SCIENTIFIC),
            Parameter(name="rate", kind="float", low=0, high=1),
        ],
        {"optimizer": category, "rate": rate},
        cost,
    )


STUDIES = {
    "valley": valley(),
    "too few trials": valley(6),
    "one trial": valley(1),
    "no trial": valley(0),
    "all infeasible": Trials.from_columns(
        "none", valley(20).parameters, valley(20).values, np.full(20, np.nan), direction="maximize"
    ),
    "constant": Trials.from_columns("flat", valley().parameters, valley().values, np.ones(64)),
    "category": with_category(),
    "branches": two_optimizers(120),
    "many": valley(200, 24),
}


@pytest.mark.parametrize("name", STUDIES)
def test_it_is_valid_and_shows_every_pair_once(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    result = interactions(STUDIES[name])
    chart = interaction_chart(result)
    draw(chart, capfd)
    pairs = [{row["first"], row["second"]} for row in chart.spec["data"]["values"]]
    n_names = len(result.names)
    assert len(pairs) == len({frozenset(pair) for pair in pairs}) == n_names * (n_names - 1) // 2


@pytest.mark.parametrize("name", ["valley", "category", "branches", "many", "constant"])
def test_the_outlined_pairs_are_those_that_the_check_flags(name: str) -> None:
    flagged = {
        frozenset(finding.subject.split(", "))
        for finding in check_interactions(STUDIES[name])
        if finding.verdict is Verdict.FLAG
    }
    rows = interaction_chart(STUDIES[name]).spec["data"]["values"]
    assert {frozenset((row["first"], row["second"])) for row in rows if row["verdict"] == "interact"} == flagged
    assert bool(flagged) == (name in ("valley", "category", "many"))


def test_rows_carry_the_numbers_of_the_analysis_and_the_flagged_pair_its_text(
    capfd: pytest.CaptureFixture[str],
) -> None:
    result = interactions(valley())
    chart = interaction_chart(valley())
    row = next(row for row in chart.spec["data"]["values"] if (row["first"], row["second"]) == ("x0", "x1"))
    assert (row["strength"], row["p"], row["share"], row["n_points"]) == (
        result.strength[0, 1],
        result.p[0, 1],
        result.share[0, 1],
        64,
    )
    # High values of one are better with low ones of the other.
    assert row["strength"] < 0
    svg = draw(chart, capfd)
    assert re.findall(r">(−0\.\d\d)<", svg) == [f"−{-row['strength']:.2f}"]
    titles = [entry["title"] for entry in chart.spec["layer"][1]["encoding"]["tooltip"]]
    assert {"p", "share of the variance", "points"} < set(titles)


def test_the_colours_are_symmetric_about_no_interaction() -> None:
    for name in ("valley", "constant", "branches"):
        layer = interaction_chart(STUDIES[name]).spec["layer"][1]
        low, middle, high = layer["encoding"]["color"]["scale"]["domain"]
        assert (low, middle) == (-high, 0)
        assert high >= 0.5


def test_a_category_interacts_without_a_sign() -> None:
    [row] = interaction_chart(with_category()).spec["data"]["values"]
    assert row["strength"] > 0
    assert row["verdict"] == "interact"


def test_pairs_without_a_number_carry_a_mark(capfd: pytest.CaptureFixture[str]) -> None:
    chart = interaction_chart(two_optimizers(120))
    kinds = [row["verdict"] for row in chart.spec["data"]["values"]]
    assert kinds.count("not asked") == 8
    assert draw(chart, capfd).count(">–<") == 8
    assert chart.alt.endswith("8 not asked.")
    assert "– marks pairs that are no question" in chart.help
    few = interaction_chart(valley(6))
    assert {row["sign"] for row in few.spec["data"]["values"]} == {"?"}
    assert few.spec["title"]["subtitle"] == "No pair has enough trials to judge"
    assert "? marks pairs with too few trials" in few.help


def test_the_words() -> None:
    chart = interaction_chart(with_category())
    [row] = chart.spec["data"]["values"]
    assert chart.spec["title"]["subtitle"] == "1 of 1 pair judged must be tuned together"
    assert chart.alt == (
        "Heat map of the interactions of 1 pair of hyperparameters. 1 of 1 pair judged must be tuned together: "
        f"optimizer and rate: partial correlation {row['strength']:+.2f}, {row['share']:.1%} of the variance."
    )


def test_names_that_are_cut_alike_stay_apart() -> None:
    names = ["a" * 40 + "1", "a" * 40 + "2"]
    study = valley(64, 2)
    parameters = [Parameter(name=name, kind="float", low=0, high=1) for name in names]
    values = dict(zip(names, study.values.values(), strict=True))
    long = Trials.from_columns("long", parameters, values, study.objective)
    [row] = interaction_chart(long).spec["data"]["values"]
    assert row["first"] != row["second"]


def test_a_single_hyperparameter_has_no_pair() -> None:
    message = (
        "`trials` compares the hyperparameters ['x0']: an interaction needs two that vary. Search over another number, "
        "or make a categorical hyperparameter scientific."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        interaction_chart(one_number())


def one_number() -> Trials:
    return Trials.from_columns("one", [Parameter(name="x0", kind="float", low=0, high=1)], {"x0": [0.5]}, [1.0])


@needs_convnext
def test_of_a_real_study_the_learning_rate_and_the_weight_decay_interact(capfd: pytest.CaptureFixture[str]) -> None:
    chart = interaction_chart(convnext())
    assert chart.spec["title"]["subtitle"] == "2 of 15 pairs judged must be tuned together"
    assert "lr and weight_decay: partial correlation -0.56" in chart.alt
    draw(chart, capfd)
