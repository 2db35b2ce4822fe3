"""Does the page work where it is read: in a real browser, with the network off?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser_pages import keep_screenshot, open_page, start_browser
from example_trials import two_optimizers
from playwright.sync_api import Browser, Page

from playbook_plugins.analysis import Parameter, Trials
from playbook_plugins.report import write_report

pytestmark = pytest.mark.browser
# Five axis plots, infeasible shares, tuning curve, curves of the best and of all, best steps, isolation, interactions.
N_CHARTS = 12


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    yield from start_browser()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(two_optimizers(), tmp_path_factory.mktemp("report") / "page.html")


def picked(page: Page) -> list[Any]:
    signals: list[Any] = page.evaluate("window.playbookViews.map(({ view }) => view.signal('picked'))")
    return signals


def n_rings(page: Page) -> int:
    """Return how many charts show something more than without a picked trial."""
    return int(page.locator(".plot path[stroke='#1f2430']").count())


def test_every_chart_is_drawn_and_nothing_is_complained_about(browser: Browser, report: Path) -> None:
    page, complaints = open_page(browser, report)
    plots = page.locator(".plot")
    assert plots.count() == N_CHARTS
    for plot in plots.all():
        assert plot.locator("svg path").count() > 20
        box = plot.locator("svg").bounding_box()
        assert box is not None
        assert box["width"] > 300
        assert box["height"] > 200
    keep_screenshot(page, "light")
    assert complaints == []


def test_a_click_on_a_trial_highlights_it_everywhere_and_shows_its_configuration(
    browser: Browser, report: Path
) -> None:
    trials = two_optimizers()
    page, complaints = open_page(browser, report)
    assert n_rings(page) == 0
    star = page.locator("#study-0-chart-0 .mark-symbol path[fill='#16946a']").last
    star.click()
    best = int(trials.number[trials.ranking()[0]])
    assert picked(page) == [best] * N_CHARTS
    # The optimizer, its two hyperparameters, the star of the tuning curve, the curves (star and two lines, and one
    # among all), the best steps and the isolation plot; the other branch's hyperparameters it does not have, and the
    # infeasible shares and the interactions are no trial's.
    for chart, n_marks in {0: 1, 1: 1, 2: 1, 3: 0, 4: 0, 5: 0, 6: 1, 7: 3, 8: 1, 9: 1, 10: 1, 11: 0}.items():
        assert page.locator(f"#study-0-chart-{chart} path[stroke='#1f2430']").count() == n_marks, chart
    panel = page.locator("#trial")
    assert panel.is_visible()
    text = panel.inner_text()
    assert f"Trial {best}" in text
    for name, value in trials.config(best).items():
        assert name in text
        assert (value if isinstance(value, str) else f"{value:.5g}") in text
    # Its curve: validation and training.
    assert panel.locator("svg path").count() == 2
    keep_screenshot(page, "picked")
    page.keyboard.press("Escape")
    assert not panel.is_visible()
    assert picked(page) == [None] * N_CHARTS
    assert n_rings(page) == 0
    assert complaints == []


def test_an_infeasible_trial_shows_its_reason(browser: Browser, report: Path) -> None:
    page, complaints = open_page(browser, report)
    page.locator("#study-0-chart-0 .mark-symbol path[fill='#d8433b']").first.click()
    text = page.locator("#trial").inner_text()
    assert "infeasible" in text
    assert "diverged at step 60" in text
    assert complaints == []


def test_hovering_shows_a_tooltip_with_the_trial(browser: Browser, report: Path) -> None:
    page, complaints = open_page(browser, report)
    page.locator("#study-0-chart-1 .mark-symbol path[fill='#16946a']").last.hover()
    tip = page.locator("#tip")
    tip.wait_for(state="visible")
    text = tip.inner_text()
    assert "adam.learning_rate" in text
    assert "validation error" in text
    assert "status" in text
    assert complaints == []


def test_the_keyboard_reaches_every_trial(browser: Browser, report: Path) -> None:
    page, complaints = open_page(browser, report)
    focused = []
    for _ in range(20):
        page.keyboard.press("Tab")
        focused.append(page.evaluate("document.activeElement.tagName"))
    assert {"A", "SUMMARY", "SELECT", "BUTTON"} <= set(focused)
    page.locator("select").focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_function("window.playbookViews.every(({ view }) => view.signal('picked') !== null)")
    best = int(two_optimizers().number[two_optimizers().ranking()[0]])
    assert picked(page) == [best] * N_CHARTS
    button = page.locator("button[data-trial]").nth(1)
    button.focus()
    page.keyboard.press("Enter")
    assert picked(page) == [int(button.inner_text())] * N_CHARTS
    assert button.get_attribute("aria-pressed") == "true"
    assert complaints == []


def test_a_dark_page_is_dark_and_follows_the_system(browser: Browser, report: Path) -> None:
    page, complaints = open_page(browser, report, color_scheme="dark")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(part) for part in re.findall(r"\d+", background)) < 40
    assert page.locator(".plot text[fill='#e9ecf1']").count() > 0
    keep_screenshot(page, "dark")
    page.emulate_media(color_scheme="light")
    page.wait_for_function("document.querySelectorAll(\".plot text[fill='#1f2430']\").length > 6")
    assert page.locator(".plot text[fill='#e9ecf1']").count() == 0
    assert complaints == []


def test_a_phone_needs_no_horizontal_scroll_bar(browser: Browser, report: Path) -> None:
    page, complaints = open_page(browser, report, viewport={"width": 400, "height": 800}, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    for plot in page.locator(".plot").all():
        svg = plot.locator("svg").bounding_box()
        box = plot.bounding_box()
        assert svg is not None
        assert box is not None
        assert svg["width"] <= box["width"] + 1
    page.locator("button[data-trial]").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    keep_screenshot(page, "phone")
    assert complaints == []


def test_a_printed_page_is_light_and_opens_what_is_folded(browser: Browser, report: Path) -> None:
    page, complaints = open_page(browser, report, color_scheme="dark")
    page.evaluate("window.playbookViews = null; dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("window.playbookViews")
    assert page.locator(".plot text[fill='#e9ecf1']").count() == 0
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("window.playbookViews = null; dispatchEvent(new Event('afterprint'))")
    page.wait_for_function("window.playbookViews")
    assert page.locator(".plot text[fill='#e9ecf1']").count() > 0
    assert page.locator("details[open]").count() == 0
    assert complaints == []


def test_many_trials_are_drawn_on_canvas(browser: Browser, tmp_path: Path) -> None:
    path = write_report(two_optimizers(1000, n_evaluations=100), tmp_path / "page.html")
    page, complaints = open_page(browser, path)
    assert page.locator(".plot canvas").count() == N_CHARTS
    assert complaints == []


@pytest.mark.slow
def test_a_hundred_thousand_trials_open_and_say_what_is_left_out(browser: Browser, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rate = 10 ** generator.uniform(-4, 0, 100_000)
    trials = Trials.from_columns(
        "many",
        [Parameter(name="rate", kind="float", low=1e-4, high=1.0, log=True)],
        {"rate": rate},
        np.where(rate > 0.5, np.nan, (np.log10(rate) + 2) ** 2 + 0.1 * generator.standard_normal(100_000)),
    )
    page, complaints = open_page(browser, write_report(trials, tmp_path / "page.html"))
    assert "Single marks stand for 10,000 of 100,000 trials" in page.inner_text("body")
    assert page.locator(".plot canvas").count() == page.locator(".plot").count() >= 3
    page.locator("button[data-trial]").first.click()
    assert page.locator("#trial").is_visible()
    assert complaints == []


def test_names_stay_text_in_the_browser(browser: Browser, tmp_path: Path) -> None:
    nasty = "</script><script>window.injected = 1</script><img src=x onerror='window.injected = 1'>"
    trials = two_optimizers(name=nasty, objective_name=nasty, goal=nasty, caveats=(nasty,), fixed={nasty: nasty})
    page, complaints = open_page(browser, write_report(trials, tmp_path / "page.html"))
    page.locator("#study-0-chart-1 .mark-symbol path[fill='#16946a']").last.hover()
    page.locator("#tip").wait_for(state="visible")
    page.locator("button[data-trial]").first.click()
    assert page.locator("#trial").is_visible()
    assert page.evaluate("window.injected") is None
    assert page.locator("img").count() == 0
    assert page.title() == nasty
    assert complaints == []


def test_two_studies_are_picked_apart(browser: Browser, tmp_path: Path) -> None:
    studies = [two_optimizers(16), two_optimizers(16, seed=1, name="another")]
    page, complaints = open_page(browser, write_report(studies, tmp_path / "page.html"))
    button = page.locator("button[data-study='study-1']").first
    trial = int(button.inner_text())
    button.click()
    owners = page.evaluate("window.playbookViews.map(({ study }) => study)")
    assert set(owners) == {"study-0", "study-1"}
    assert picked(page) == [trial if owner == "study-1" else None for owner in owners]
    assert complaints == []
