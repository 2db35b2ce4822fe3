"""Does the report tell the next round, the storage's studies and how to run a trial again; the same as Markdown?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from example_trials import two_optimizers
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution

from playbook_plugins.analysis import Parameter, Trials, review
from playbook_plugins.optuna import Round, next_round, study_sheet, track, trials_from_study
from playbook_plugins.report import word, write_report
from playbook_plugins.report.markdown import escape

optuna.logging.set_verbosity(optuna.logging.WARNING)


def searched(tmp_path: Path, n_trials: int = 32) -> tuple[Round, optuna.Study, str]:
    """Return a round whose optimum lies beyond its upper bound, its study and the storage."""
    storage = f"sqlite:///{tmp_path}/study.db"
    design = Round(
        "Which rate?", scientific={}, nuisance={"rate": FloatDistribution(1e-4, 1e-1, log=True)}, n_trials=n_trials
    )
    study = design.create_study(study_name="rates", storage=storage)
    track(study, notes="A sweep", command=["python", "train.py", "--token", "verysecret"])
    study.optimize(lambda trial: (np.log10(design.suggest(trial)["rate"]) + 0.5) ** 2, n_trials=n_trials)
    return design, study, storage


def test_the_proposal_and_the_sheet_are_on_the_page(tmp_path: Path) -> None:
    design, study, storage = searched(tmp_path)
    trials = trials_from_study(study)
    proposal = next_round(design, trials)
    path = write_report(trials, tmp_path / "page.html", next_round=proposal, sheet=study_sheet(storage))
    page = path.read_text()
    assert "<h2>The next round</h2>" in page
    assert re.search(r"Move the upper bound of rate out, from 0\.1 to \d", page)
    assert f"Run {proposal.n_more} trials" in page
    assert "<h2>The studies</h2>" in page
    assert "A sweep" in page
    assert "verysecret" not in page
    assert page.index("The next round") < page.index("What limits these conclusions") < page.index("The studies</h2>")
    alone = write_report(trials, tmp_path / "alone.html").read_text()
    assert "<h2>The next round</h2>" not in alone
    assert "<h2>The studies</h2>" not in alone


def test_the_best_trial_can_be_run_again(tmp_path: Path) -> None:
    _, study, storage = searched(tmp_path, 12)
    trials = trials_from_study(study)
    markdown = write_report(trials, tmp_path / "r.html", sheet=study_sheet(storage)).read_text()
    [line] = re.findall(r"study\.enqueue_trial\((.*?)\)", markdown)[:1]
    config = eval(line.replace("&#39;", "'"))
    assert config == trials.config(int(trials.ranking()[0]))
    # The lines do what they say.
    study.enqueue_trial(config)
    study.optimize(lambda trial: trial.suggest_float("rate", 1e-4, 1e-1, log=True), n_trials=1)
    assert study.trials[-1].params == config
    assert "python train.py --token" in markdown


def test_every_move_has_its_words(tmp_path: Path) -> None:
    finding = review(two_optimizers())[0]
    moves = ["widen", "narrow", "keep", "fix", "stabilize", "more trials", "mend", "something new"]

    class Change:
        def __init__(self, move: str) -> None:
            self.move, self.subject, self.finding = move, "rate, upper", finding
            self.before, self.after = (1e-4, 0.1), 0.5

    class Proposal:
        changes = tuple(map(Change, moves))
        n_more, chance_of_improvement = 0, 0.0

    text = write_report(two_optimizers(), tmp_path / "page.md", next_round=Proposal(), format="markdown").read_text()
    for words in (
        "Move the upper bound of rate out, from 1e-4 to 0.1 to 0.5.",
        "Move the upper bound of rate in",
        "Keep the upper bound of rate at",
        "Fix rate at 0.5.",
        "try learning rate warmup and gradient clipping.",
        "Run 0.5 trials instead of",
        "Mend the training code first",
        "something new: rate, upper",
        "No more trials are proposed.",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"next_round": [None, None]},
            "`next_round` does not fit the 1 tables of `trials`: it must be one proposal for one table, and a list "
            "with one proposal or None a table for several. Leave it out to propose nothing.",
        ),
        (
            {"format": "pdf"},
            "`format` is 'pdf': it must be one of ['html', 'markdown']. Leave it out for a page.",
        ),
        (
            {"format": "markdown"},
            "`path` is 'page.html': Markdown is written as .md. Give the path that ending.",
        ),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        write_report(two_optimizers(), "page.html", **arguments)


def test_markdown_says_what_the_page_says(tmp_path: Path) -> None:
    trials = two_optimizers()
    again = two_optimizers(seed=1, name="again")
    text = write_report([trials, again], tmp_path / "r.md", format="markdown").read_text()
    assert text.startswith("# digits: adam or nesterov, again\n")
    assert "## again\n" in text
    for finding in review(trials):
        # A flag of a scientific value that repeats the study's is named below it.
        if finding.verdict == "flag" and "value" not in finding.numbers:
            assert escape(word(finding).headline) in text
    [header, rule, first] = text.split("### The best trials\n\n")[1].splitlines()[:3]
    assert header.count("|") == rule.count("|") == first.count("|")
    assert not list(tmp_path.glob("*.tmp"))


@given(st.text(max_size=200))
def test_markdown_shows_any_text_as_text(text: str) -> None:
    line = escape(text)
    assert "\n" not in line
    assert not re.search(r"(?<!\\)(\\\\)*[<>|`\[\]*_$&]", line)
    assert not re.match(r"([-+=#]|\d+[.)])(\s|$)", line)


def test_a_study_of_nasty_names_keeps_its_table(tmp_path: Path) -> None:
    name = "a|b\n# <script>alert(1)</script> `x`"
    trials = Trials.from_columns(
        name, [Parameter(name=name, kind="categorical", choices=(name, "c"))], {name: [name, "c"]}, [1.0, 2.0]
    )
    text = write_report(trials, tmp_path / "r.md", format="markdown").read_text()
    assert "<script" not in text.replace("\\<script", "")
    table = text.split("### The best trials\n\n")[1].split("\n\n")[0]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()} == {5}


def test_texts_of_the_sheet_and_of_a_run_come_out_as_text(tmp_path: Path) -> None:
    nasty = "</td><script>window.injected = 1</script>'\"\x00END\n"
    row = {
        "study": nasty,
        "config": nasty,
        "notes": nasty,
        "commit": nasty,
        "command": nasty,
        "n_trials": 1,
        "best": 0.5,
    }
    trials = two_optimizers(name=nasty)
    page = write_report(trials, tmp_path / "page.html", sheet=[row]).read_text()
    assert "<script>window" not in page
    assert page.count("&lt;script&gt;window.injected") >= 6
    # In Python's own quotes a name cannot end the lines that run a trial again.
    [lines] = re.findall(r"<pre tabindex=\"0\">(.*?)</pre>", page, flags=re.DOTALL)[:1]
    assert "study_name=" in lines
    assert lines.count("\nEND\n") == 1
