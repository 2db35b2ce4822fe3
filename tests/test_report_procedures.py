"""Does the page of a procedure begin with what it found and recommends, and show its runs side by side?"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser_pages import keep_screenshot, open_page, start_browser
from planted_training import PlantedBatches, PlantedFit, PlantedQuality, PlantedRates
from playwright.sync_api import Browser
from test_protocol_batch_sizes import compare
from test_protocol_clipping import tune as tune_clipping
from test_protocol_max_train_steps import pick
from test_protocol_rate_sweep import sweep
from test_protocol_retrain import BAD, GOOD
from test_protocol_second_round import first_round, lengthen
from test_protocol_start import planted_start
from test_protocol_warmup import tune as tune_warmup

from playbook_plugins.analysis import InfeasibleError, TrialRecord
from playbook_plugins.optuna import Baseline, ProtocolResult, check_start, retrain
from playbook_plugins.report import word, write_report
from playbook_plugins.report.procedure import draw_procedure

RATES = PlantedRates(best_rate=0.01, unstable_rate=0.04, blow_up="diverges")
KNOWN = Baseline(config=BAD, objectives=(0.4, 0.41, 0.42))
# The result of each procedure, and the titles of the charts that lay its runs side by side.
RESULTS: dict[str, tuple[Callable[[], ProtocolResult], list[str]]] = {
    "sweep": (lambda: sweep(RATES), ["Learning rate sweep"]),
    "warmup": (
        lambda: tune_warmup(PlantedRates(best_rate=1.0, unstable_rate=0.1, warmup_at_unstable=4.0)),
        ["Warmup sweep"],
    ),
    "clipping": (
        lambda: tune_clipping(PlantedRates(unstable_rate=0.5, stable_threshold=1e9)),
        ["Training objective"],
    ),
    "max_train_steps": (lambda: pick(PlantedFit()), ["Learning rate sweep"]),
    "start": (lambda: check_start(planted_start(0.5), {}, chance_level=0.9, study_name="s"), []),
    "retrain": (
        lambda: retrain(PlantedQuality(), GOOD, baseline=BAD, adds_complexity="none", study_name="r"),
        ["Retrains"],
    ),
    "retrain, baseline known": (
        lambda: retrain(PlantedQuality(), GOOD, baseline=KNOWN, adds_complexity="none", study_name="r"),
        ["Retrains"],
    ),
    "second round": (lambda: lengthen(first_round()), ["Learning rate sweep"]),
    "batch sizes": (lambda: compare(PlantedBatches()), ["Steps to target"]),
    "nothing trains": (lambda: sweep(PlantedRates(unstable_rate=1e-9, blow_up="diverges")), ["Learning rate sweep"]),
}


@pytest.fixture(scope="module")
def results() -> dict[str, ProtocolResult]:
    return {name: make() for name, (make, _) in RESULTS.items()}


@pytest.mark.parametrize("name", RESULTS)
def test_the_page_says_what_was_found_and_recommended_before_the_stages(
    name: str, results: dict[str, ProtocolResult], tmp_path: Path
) -> None:
    result = results[name]
    page = write_report(result, tmp_path / "report.html").read_text()
    visible = page[: page.index('<script type="application/json"')]
    whole, *stages = re.split(r'<article class="study" id="study-\d+"', visible)
    assert len(stages) == len(result.trials)
    flags = [word(finding) for finding in result.findings if finding.verdict == "flag"]
    assert whole.count('<p class="source">') == len({(words.headline, words.section) for words in flags})
    for key in result.recommendation:
        assert f"<dt>{key}</dt>" in whole
    assert ("give no reason for a recommendation" in whole) == (not result.recommendation)
    assert not any('class="findings"' in stage for stage in stages)
    assert whole.count('class="plot"') == len(RESULTS[name][1])
    for trials in result.trials.values():
        assert trials.name in visible

    text = write_report(result, tmp_path / "report.md", format="markdown").read_text()
    before, _, after = text.partition("### What it recommends")
    assert before.count("### Findings") == 1
    assert "### Findings" not in after
    assert text.count("### The best trials") == len(result.trials)


@pytest.mark.parametrize("name", RESULTS)
def test_its_runs_stand_side_by_side_in_the_chart_that_fits(name: str, results: dict[str, ProtocolResult]) -> None:
    assert [chart.title for chart in draw_procedure(results[name])] == RESULTS[name][1]


def test_a_stage_that_broke_before_its_first_evaluation_stands_with_the_others() -> None:
    def train(config: dict[str, Any]) -> TrialRecord:
        if config["learning_rate"] > 0.02:
            raise InfeasibleError("diverged at step 1")
        return replace(PlantedRates(best_rate=0.01)(config), objective_name="val_loss")

    result = sweep(train, high=0.02)
    # Such a stage does not even know the name of the objective.
    assert {trials.objective_name for trials in result.trials.values()} == {"val_loss", "objective"}
    [chart] = draw_procedure(result)
    assert len(chart.spec["data"]["values"]) == sum(map(len, result.trials.values()))


def broken(config: dict[str, Any]) -> TrialRecord:
    raise InfeasibleError("diverged at step 1")


ODD: dict[str, Callable[[], ProtocolResult]] = {
    "all retrains diverge": lambda: retrain(broken, GOOD, baseline=BAD, adds_complexity="none", study_name="r"),
    "no baseline": lambda: retrain(PlantedQuality(), GOOD, study_name="r"),
    "stable without clipping": lambda: tune_clipping(PlantedRates()),
    "clipping helps nothing": lambda: tune_clipping(PlantedRates(unstable_rate=0.5)),
    "all long runs diverge": lambda: lengthen(first_round(), broken),
    "the start diverges": lambda: check_start(broken, {}, chance_level=0.9, study_name="s"),
    "all warmups diverge": lambda: tune_warmup(broken),
    "no rate fits": lambda: pick(broken),
    "two stages": lambda: sweep(RATES, n_stages=2),
    "all batch sizes diverge": lambda: compare(broken),
    "the goal is missed": lambda: compare(PlantedBatches(), goal=-1e9),
}


@pytest.mark.parametrize("name", ODD)
def test_whatever_happened_there_is_a_page(name: str, tmp_path: Path) -> None:
    result = ODD[name]()
    page = write_report(result, tmp_path / "report.html").read_text()
    assert all(word(finding).headline in html.unescape(page) for finding in result.findings)
    assert "What it recommends" in write_report(result, tmp_path / "a.md", format="markdown").read_text()


def test_the_title_is_the_name_that_the_procedure_was_given(results: dict[str, ProtocolResult], tmp_path: Path) -> None:
    page = write_report(results["batch sizes"], tmp_path / "a.html").read_text()
    assert "<h1>b</h1>" in page
    assert "<h1>Sizes</h1>" in write_report(results["batch sizes"], tmp_path / "a.html", title="Sizes").read_text()


@pytest.mark.parametrize("argument", ["findings", "next_round"])
def test_findings_and_proposals_of_ones_own_are_refused(
    argument: str, results: dict[str, ProtocolResult], tmp_path: Path
) -> None:
    message = (
        f"`{argument}` is given with the result of a procedure, which brings what there is to say. Leave it out, or "
        "pass the tables of result.trials."
    )
    options: dict[str, Any] = {argument: []}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        write_report(results["sweep"], tmp_path / "report.html", **options)
    assert not (tmp_path / "report.html").exists()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from start_browser()


@pytest.mark.parametrize("name", ["sweep", "clipping", "retrain, baseline known", "batch sizes"])
def test_every_chart_is_drawn_and_nothing_is_complained_about(
    name: str, results: dict[str, ProtocolResult], browser: Browser, tmp_path: Path
) -> None:
    page, complaints = open_page(browser, write_report(results[name], tmp_path / "report.html"))
    n_plots = page.locator(".plot").count()
    assert n_plots > len(RESULTS[name][1])
    assert page.locator(".plot svg").count() == n_plots
    assert complaints == []
    # A trial of the first stage is shown wherever it stands.
    page.locator("button[data-trial]").first.click()
    assert page.locator("#trial").is_visible()
    assert complaints == []
    keep_screenshot(page, f"procedure-{name.replace(',', '').replace(' ', '-')}")
    page.context.close()
