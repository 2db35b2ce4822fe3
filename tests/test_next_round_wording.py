"""Do findings for the next round, and questions without an answer, read as plain sentences?"""

from __future__ import annotations

import numpy as np

from playbook_plugins.analysis import (
    Finding,
    Parameter,
    Role,
    Trials,
    Verdict,
    check_adoption,
    check_boundaries,
    check_budget,
    check_good_region,
    check_sensitivity,
)
from playbook_plugins.report import word
from playbook_plugins.report.next_round_flags import NEXT_ROUND_FLAGS, NEXT_ROUND_QUESTIONS
from playbook_plugins.report.wording import word_quiet

METHOD = Parameter(name="method", kind="categorical", choices=("a", "b"), role=Role.SCIENTIFIC)


def study(n_trials: int = 128) -> Trials:
    """Return a study in which x0 matters, its upper part is bad, and x1 changes nothing."""
    unit = np.random.default_rng(0).random((n_trials, 2))
    return Trials.from_columns(
        "s",
        [METHOD, *(Parameter(name=f"x{place}", kind="float", low=0, high=1) for place in range(2))],
        {"method": np.resize(["a", "b"], n_trials), "x0": unit[:, 0], "x1": unit[:, 1]},
        (unit[:, 0] - 0.25) ** 2,
    )


def flagged(findings: list[Finding], subject: str) -> Finding:
    [finding] = [one for one in findings if one.subject == subject]
    assert finding.verdict is Verdict.FLAG
    return finding


def test_what_hardly_matters_may_be_fixed() -> None:
    words = word(flagged(check_sensitivity(study()), "x1"))
    assert words.headline == "x1 hardly matters in this range"
    assert "that it explains 10% can be excluded." in words.sentence
    assert words.action.startswith("Fix x1 in the next round, at the value of the best trial")


def test_where_no_good_trial_lies_may_be_cut_off() -> None:
    words = word(flagged(check_good_region(study()), "x0, upper"))
    assert words.headline == "x0: good trials stay away from the upper bound"
    assert words.sentence.startswith("Of the best 26 of 128 points, 0 lie in the outer third of the range on that side")
    assert words.action == "The outer quarter of the range of x0 may be cut off at its upper end in the next round."


def test_missing_numbers_are_worded_in_general() -> None:
    for check in NEXT_ROUND_FLAGS:
        words = word(Finding(check=check, subject="x", verdict=Verdict.FLAG))
        assert words.headline == f"The check “{check}” of x raised a flag"
    assert NEXT_ROUND_FLAGS.keys() == NEXT_ROUND_QUESTIONS.keys()


def test_a_budget_without_retrains_says_what_is_missing() -> None:
    findings = check_budget(study())
    assert len(findings) == 3
    [quiet] = word_quiet(findings)
    assert quiet.headline == "Whether points are missing cannot be said without retrains"
    assert [part.headline[len(quiet.headline) :] for part in quiet.parts] == ["", " (method=a)", " (method=b)"]
    assert quiet.parts[0].sentence.startswith("The last doubling of the points (to 128) gained ")


def test_an_adaptive_search_is_not_called_too_short() -> None:
    trials = study()
    adaptive = trials.select(np.argsort(-trials.cost))
    words = word(check_budget(adaptive, retrain_sd=1e-3)[0])
    assert words.headline == "Whether points are missing cannot be said of an adaptive search"


def test_a_winner_that_was_not_retrained() -> None:
    trials = study()
    words = word(check_adoption(trials)[0])
    assert words.headline == "The winner has not been retrained"
    assert words.sentence.startswith(f"Trial {trials.number[trials.ranking()[0]]} may have been lucky: retrain it")


def test_one_question_of_many_subjects_takes_one_line() -> None:
    findings = [one for one in check_boundaries(study()) if one.verdict is Verdict.NO_EVIDENCE]
    [quiet] = word_quiet(findings)
    assert quiet.headline.startswith("No evidence of best trials crowding against the bound of x0 (lower)")
    assert quiet.headline.endswith(f" and {len(findings) - 3} more")
    assert list(quiet.parts) == [word(finding) for finding in findings]
    [single] = word_quiet(findings[:1])
    assert (single.headline, single.sentence) == (word(findings[0]).headline, word(findings[0]).sentence)
    assert single.parts == ()
    assert word_quiet([]) == []


def test_questions_without_words_stay_apart_by_their_check() -> None:
    findings = [Finding(check=check, subject="x", verdict=Verdict.NO_EVIDENCE) for check in ("one", "one", "two")]
    assert [words.headline for words in word_quiet(findings)] == [
        "No evidence of “one” of x",
        "No evidence of “two” of x",
    ]
