"""The main job, end to end: real data, the real Trainer, a real study on disk, killed and started again."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from browser_pages import open_page, start_browser
from optuna.trial import TrialState

from playbook_plugins.analysis import Status, Trials, review
from playbook_plugins.charts.palette import INFEASIBLE, MARKS
from playbook_plugins.optuna import trials_from_study
from playbook_plugins.optuna.indices import sequence_indices
from playbook_plugins.optuna.trials import RECORD_KEY

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.py"


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(QUICKSTART), *arguments],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def load(folder: Path, name: str = "digits-seed-0") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/runs/quickstart.db")


@pytest.mark.parametrize("n_kills", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_completes_the_study(tmp_path: Path, n_kills: int) -> None:
    n_trials = 6
    chance = random.Random(n_kills)
    finished: dict[int, str] = {}
    for _ in range(n_kills):
        run = start(tmp_path, "--trials", str(n_trials))
        # Importing takes some seconds and a trial about one: kills fall before, in and between trials.
        time.sleep(chance.uniform(3, 11))
        run.kill()
        run.communicate()
        if (tmp_path / "runs/quickstart.db").exists():
            try:
                study = load(tmp_path)
            except KeyError:
                continue
            finished |= {
                one.number: one.user_attrs[RECORD_KEY] for one in study.trials if one.state is TrialState.COMPLETE
            }
    run = start(tmp_path, "--trials", str(n_trials))
    output, _ = run.communicate(timeout=240)
    assert run.returncode == 0, output
    study = load(tmp_path)
    indices = sequence_indices(study.trials)
    done = {one.number: one for one in study.trials if one.state is TrialState.COMPLETE}
    assert sorted(indices[number] for number in done) == list(range(n_trials))
    assert Counter(one.state for one in study.trials).keys() <= {TrialState.COMPLETE, TrialState.FAIL}
    # What had finished before a kill is what stands there now, to the last number.
    assert all(done[number].user_attrs[RECORD_KEY] == record for number, record in finished.items())
    assert str(tmp_path / "runs/quickstart.html") in output
    assert (tmp_path / "runs/quickstart.html").stat().st_size > 100_000


@pytest.mark.slow
def test_the_whole_round_covers_both_optimizers_and_some_trials_diverge(tmp_path: Path) -> None:
    run = start(tmp_path)
    output, _ = run.communicate(timeout=280)
    assert run.returncode == 0, output
    study = load(tmp_path)
    trials = trials_from_study(study)
    assert len(trials) == 48
    assert Counter(trials.values["optimizer"]) == {"adam": 24, "nesterov": 24}
    diverged = [
        reason for reason, status in zip(trials.reason, trials.status, strict=True) if status is Status.INFEASIBLE
    ]
    assert len(diverged) >= 2
    assert all("step" in reason for reason in diverged)
    for row in trials.ranking():
        curve = trials.curves[row]
        assert curve is not None
        assert curve.step[[0, 1, -1]].tolist() == [0, 20, 315]
        assert trials.max_steps[row] == 315
        assert trials.objective[row] == curve.validation.min()
        assert trials.objective[row] == curve.validation[curve.step == trials.best_step[row]][0]
        # The network learns: guessing one of ten digits is wrong nine times in ten.
        assert trials.objective[row] < 0.85
        [kept] = json.loads(study.trials[trials.number[row]].user_attrs[RECORD_KEY])["checkpoints"]
        assert (tmp_path / kept).exists()

    assert_shown(tmp_path / "runs/quickstart.html", trials)


def assert_shown(path: Path, trials: Trials) -> None:
    """Check that the page shows, with the network off, the findings and the charts that the round calls for."""
    red = MARKS[INFEASIBLE][0]
    for browser in start_browser():
        page, complaints = open_page(browser, path)
        assert complaints == []
        assert review(trials)[0].section in page.inner_text("body")
        shown = [
            (
                figure.query_selector("h3").inner_text(),
                len(figure.query_selector_all(f".mark-symbol path[fill='{red}']")),
            )
            for figure in page.query_selector_all("figure:has(svg)")
        ]
        searched = [parameter.name for parameter in trials.parameters]
        # Where the infeasible trials gather is shown if one hyperparameter explains them.
        assert [title for title, _ in shown if not title.startswith("Infeasible trials: ")] == [
            *searched,
            "Tuning curve",
            *("The best 3 trials", "All trials", "Best steps", "Gradient norm of the best trial"),
            "optimizer",
            "Interactions of hyperparameters",
        ]
        assert {"The next round", "The studies"} <= {one.inner_text() for one in page.query_selector_all("h2")}
        star = page.locator("#study-0-chart-0 .mark-symbol path[fill='#16946a']").last
        star.hover()
        page.locator("#tip").wait_for(state="visible")
        assert "optimizer" in page.locator("#tip").inner_text()
        star.click()
        best = int(trials.number[trials.ranking()[0]])
        assert page.evaluate(f"window.playbookViews.every(({{ view }}) => view.signal('picked') === {best})")
        assert f"Trial {best}" in page.locator("#trial").inner_text()
        for options in ({"color_scheme": "dark"}, {"viewport": {"width": 400, "height": 800}}):
            other, others = open_page(browser, path, **options)
            assert others == []
            assert other.evaluate("document.documentElement.scrollWidth") <= other.viewport_size["width"]
            assert (other.locator(".plot text[fill='#e9ecf1']").count() > 0) is ("color_scheme" in options)
        crosses = dict(shown[: len(searched)])
        assert crosses == {name: int((trials.is_infeasible & trials.has(name)).sum()) for name in searched}


@pytest.mark.slow
def test_another_seed_is_another_study_with_another_result(tmp_path: Path) -> None:
    for seed in ("0", "1"):
        run = start(tmp_path, "--trials", "2", "--seed", seed)
        output, _ = run.communicate(timeout=120)
        assert run.returncode == 0, output
    first, second = (trials_from_study(load(tmp_path, f"digits-seed-{seed}")) for seed in (0, 1))
    assert first.objective.tolist() != second.objective.tolist()
    assert first.config(0) != second.config(0)


@pytest.mark.slow
def test_wandb_gets_every_trial_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run = start(tmp_path, "--trials", "2", "--wandb")
    output, _ = run.communicate(timeout=200)
    assert run.returncode == 0, output
    runs = [folder for folder in (tmp_path / "runs/wandb").iterdir() if folder.name.startswith("offline-run-")]
    assert len(runs) == 2
    for folder in runs:
        [file] = folder.glob("*.wandb")
        content = file.read_bytes()
        assert b"playbook_objective" in content
        assert b"playbook_status" in content
        assert b"val_error" in content
