"""Do charts and pages of very many trials stay small, honest about what they leave out, and right about the rest?"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from playbook_plugins.analysis import Curve, Parameter, Role, Status, Trials
from playbook_plugins.charts import axis_plot
from playbook_plugins.charts.table import MAX_ROWS, describe_drawn, drawn_rows, trial_rows
from playbook_plugins.report import write_report


def many(n_trials: int, *, has_curves: bool = False) -> Trials:
    generator = np.random.default_rng(0)
    rate = 10 ** generator.uniform(-4, 0, n_trials)
    objective = np.log10(rate) ** 2 + generator.standard_normal(n_trials)
    objective[::7] = np.nan
    status = [Status.INFEASIBLE if np.isnan(value) else Status.COMPLETE for value in objective]
    status[1] = Status.RUNNING
    steps = np.arange(60)
    curves = [
        Curve.from_columns(steps, value + np.exp(-steps / 9)) if np.isfinite(value) else None for value in objective
    ]
    return Trials.from_columns(
        "many",
        [
            Parameter(name="method", kind="categorical", choices=("a", "b"), role=Role.SCIENTIFIC),
            Parameter(name="rate", kind="float", low=1e-4, high=1.0, log=True),
        ],
        {"method": np.resize(["a", "b"], n_trials), "rate": rate},
        np.where(np.isfinite(objective), objective, 0.0),
        status=status,
        curves=curves if has_curves else None,
    )


@pytest.fixture(scope="module")
def trials() -> Trials:
    return many(25_000)


def test_small_studies_are_drawn_whole() -> None:
    small = many(1_000)
    assert len(trial_rows(small)) == 999
    assert describe_drawn(small) == ""


def test_of_many_trials_the_best_and_an_even_selection_are_drawn(trials: Trials) -> None:
    rows = drawn_rows(trials)
    assert len(rows) == len(set(rows.tolist())) == MAX_ROWS
    assert 1 not in rows
    assert set(trials.ranking()[:1_000].tolist()) <= set(rows.tolist())
    # The others keep their share of infeasible trials and their spread over the study.
    others = np.setdiff1d(rows, trials.ranking()[:1_000])
    assert trials.is_infeasible[others].mean() == pytest.approx(trials.is_infeasible.mean(), abs=0.02)
    assert np.abs(np.sort(others) / 25_000 - np.linspace(0, 1, len(others))).max() < 0.02
    assert describe_drawn(trials) == (
        "Single marks stand for 10,000 of 24,999 trials: the best 1,000 and an even selection of the others. Findings, "
        "tables and counts are of all."
    )


def test_ranks_and_counts_are_those_of_the_whole_study(trials: Trials) -> None:
    rows = trial_rows(trials)
    best = rows[-1]
    assert (best["rank"], best["trial"]) == (1, trials.number[trials.ranking()[0]])
    assert max(row["rank"] or 0 for row in rows) > 20_000
    ranks = {row["trial"]: row["rank"] for row in rows}
    for place in (0, 10, 999):
        assert ranks[int(trials.number[trials.ranking()[place]])] == place + 1
    assert len(axis_plot(trials, "rate").spec["data"]["values"]) == MAX_ROWS


def test_a_page_of_many_trials_says_what_it_leaves_out(trials: Trials, tmp_path: Path) -> None:
    path = write_report(trials, tmp_path / "page.html")
    page = path.read_text()
    assert describe_drawn(trials) in page
    assert "<dd>25,000</dd>" in page
    assert path.stat().st_size < 8e6


def test_curves_of_the_best_and_of_a_selection_travel(tmp_path: Path) -> None:
    page = write_report(many(6_000, has_curves=True), tmp_path / "page.html").read_text()
    [data] = re.findall(r'<script type="application/json" id="report-data">(.*?)</script>', page, flags=re.DOTALL)
    [study] = json.loads(data)["studies"]
    curves = study["curves"]["trials"]
    # Infeasible trials have none.
    assert 1_500 < len(curves) <= 2_000
    best = [row["trial"] for row in study["rows"] if row["rank"] and row["rank"] <= 1_000]
    assert {str(number) for number in best} <= curves.keys()
