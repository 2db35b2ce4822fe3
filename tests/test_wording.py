"""Do findings read as plain sentences with their numbers, whatever numbers they have?"""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import pytest
from example_trials import two_optimizers
from hypothesis import given
from hypothesis import strategies as st

from playbook_plugins.analysis import Finding, Verdict
from playbook_plugins.analysis.review import review
from playbook_plugins.report import word
from playbook_plugins.report.phrases import number_text, percent
from playbook_plugins.report.protocol_flags import PROTOCOL_UNANSWERED
from playbook_plugins.report.unanswered import UNANSWERED
from playbook_plugins.report.wording import section_link

SECTION = "Identifying bad search space boundaries"


def flag(check: str, subject: str = "study", **numbers: Any) -> Finding:
    return Finding(check=check, subject=subject, verdict=Verdict.FLAG, numbers=numbers, section=SECTION)


def test_a_boundary_says_which_bound_to_move() -> None:
    numbers = {"n_points": 24, "best": 0.9, "bound": 1.0, "k": 5, "k_outer": 4, "p": 1e-3, "allowed_p": 0.02}
    words = word(flag("boundary", "adam.learning_rate, upper", **numbers))
    assert words.headline == "adam.learning_rate: the best trials crowd against the upper bound"
    assert words.sentence == (
        "The best trial has adam.learning_rate = 0.9; the bound is 1. 4 of the best 5 trials lie in the outer fifth of "
        "the range on that side."
    )
    assert words.action == (
        "Raise the upper bound of adam.learning_rate and search again: better values may lie outside."
    )
    assert words.section == SECTION
    assert words.link == "https://github.com/google-research/tuning_playbook#identifying-bad-search-space-boundaries"


def test_a_boundary_found_by_its_slope_says_so_and_of_which_trials() -> None:
    numbers = {
        "best": 2e-4,
        "bound": 1e-4,
        "k": 5,
        "k_outer": 1,
        "p": 0.5,
        "allowed_p": 0.02,
        "value": "optimizer=adam",
    }
    words = word(flag("boundary", "learning_rate, lower", **numbers))
    assert words.headline == "learning_rate (optimizer=adam): the objective still improves towards the lower bound"
    assert words.sentence.startswith("Among the trials with optimizer=adam, the best trial has learning_rate = 2e-4")
    assert words.action.startswith("Lower the lower bound of learning_rate")


def test_a_stability_edge_never_advises_a_wider_range() -> None:
    numbers = {"threshold": 0.31, "n_beyond": 9, "share_infeasible_beyond": 1.0, "share_infeasible_before": 0.02}
    words = word(flag("stability edge", "adam.learning_rate, upper", best=0.28, **numbers))
    assert words.headline == "adam.learning_rate: the best trial lies at the edge of stability"
    assert words.sentence == (
        "Above adam.learning_rate = 0.31, 100% of 9 trials are infeasible, and 2% before it. The best trial lies below "
        "that edge, at 0.28."
    )
    assert "Do not widen" in words.action
    assert "warmup" in words.action
    assert "clipping" in words.action


def test_feasibility_says_where_and_suspects_a_bug_when_nothing_trains() -> None:
    numbers = {"n_judged": 40, "n_infeasible": 30, "share": 0.75, "low": 0.6, "high": 0.86, "all_infeasible": 0}
    where = {"explained_by": "lr", "explained_side": "upper", "share_there": 1.0, "share_elsewhere": 0.3}
    words = word(flag("feasibility", **numbers, **where))
    assert words.headline == "Most trials are infeasible"
    assert words.sentence == (
        "30 of 40 trials are infeasible: 75% (95% interval 60% to 86%). They gather towards the upper end of lr: 100% "
        "there, 30% elsewhere."
    )
    category = word(flag("feasibility", **numbers, explained_by="optimizer", explained_side="sgd"))
    assert "They gather at optimizer = sgd." in category.sentence
    broken = word(flag("feasibility", **(numbers | {"n_infeasible": 40, "share": 1.0, "all_infeasible": 1})))
    assert broken.headline == "Every trial is infeasible"
    assert "bug" in broken.action


def test_best_steps_are_told_apart() -> None:
    early = word(flag("best step", n_better_half=10, share_early=0.9, share_late=0.0, learning_rate_decays=0))
    assert early.headline == "The best trials peak early in training"
    assert "90% of the better half of the feasible trials (10 trials)" in early.sentence
    late = word(flag("best step", n_better_half=10, share_early=0.0, share_late=0.9, learning_rate_decays=0))
    assert late.headline == "The best trials are still improving at the end of training"
    assert "Train for more steps" in late.action


def test_a_winner_is_to_be_retrained() -> None:
    numbers = {"winner": "adam", "best": 0.02, "runner_up": "nesterov", "runner_up_best": 0.03, "lead": 6, "p": 0.02}
    words = word(flag("isolation", "optimizer", **numbers))
    assert words.headline == "optimizer: adam leads"
    assert words.sentence == (
        "At its best, optimizer = adam reaches 0.02; nesterov reaches 0.03. The best 6 trials all belong to adam; were "
        "the values equally good, a lead this long would have the chance 0.02."
    )
    assert "retrain" in words.action


def test_a_winner_at_shared_points_is_told_by_its_points() -> None:
    numbers = {"winner": "a, c", "best": 0.02, "runner_up": "b, c", "runner_up_best": 0.03, "p": 0.002}
    words = word(flag("isolation", "optimizer, activation", **numbers, n_points=12, n_wins=11, n_pruned=3))
    assert words.headline == "optimizer, activation: (a, c) leads"
    assert words.sentence == (
        "At its best, (optimizer, activation) = (a, c) reaches 0.02; (b, c) reaches 0.03. Of the best 12 points that "
        "it shares with other values, it is the best at 11; were the values equally good, so many would have the "
        "chance 0.002. 3 pruned trials are left out, which is unfair to values that learn slowly."
    )


def test_a_winning_range_is_told_by_its_ends() -> None:
    numbers = {
        "winner_low": 0.01,
        "winner_high": 0.1,
        "best": 0.02,
        "runner_up_low": 0.001,
        "runner_up_high": 0.01,
        "runner_up_best": 0.03,
        "n_pruned": 0,
    }
    words = word(flag("isolation", "lr", **numbers, lead=6, p=0.02, p_winner=None, allowed_p=0.05))
    assert words.headline == "lr: 0.01 to 0.1 leads"
    assert words.sentence == (
        "At its best, lr = 0.01 to 0.1 reaches 0.02; 0.001 to 0.01 reaches 0.03. The best 6 trials all belong to 0.01 "
        "to 0.1; were the values equally good, a lead this long would have the chance 0.02."
    )
    silent = word(Finding(check="isolation", subject="lr", verdict=Verdict.NO_EVIDENCE, numbers=numbers))
    assert silent.headline == "No evidence of a difference between the values of lr at their best"
    assert silent.sentence == "0.01 to 0.1 reaches 0.02, 0.001 to 0.01 0.03."


def test_a_narrow_winner_is_told_as_one() -> None:
    numbers = {"winner": "adam", "best": 0.02, "runner_up": "nesterov", "runner_up_best": 0.03, "lead": 6, "p": 0.02}
    words = word(flag("isolation", "optimizer", **numbers, p_winner=0.2, allowed_p=0.05, n_pruned=1))
    assert words.headline == "optimizer: the values differ, adam leads narrowly"
    assert words.sentence.endswith(
        "1 pruned trial is left out, which is unfair to values that learn slowly. Over one other value alone, such a "
        "lead would have a chance of up to 0.2."
    )
    assert words.action == (
        "Drop the values that are far behind, and compare the close ones with more trials. Before adopting adam, "
        "retrain its best configuration with several seeds: a search's winner is lucky."
    )
    # With a clear lead it is the plain winner.
    clear = word(flag("isolation", "optimizer", **numbers, p_winner=0.03, allowed_p=0.05))
    assert clear.headline == "optimizer: adam leads"


def test_the_known_error_rate_is_told_with_a_flag() -> None:
    finding = Finding(check="new", subject="study", verdict=Verdict.FLAG, numbers={"ratio": 2.0}, error_rate=0.09)
    assert word(finding).sentence == "Ratio = 2. (False flags: at most 9% of studies.)"


def test_an_unknown_check_gets_a_sentence_with_all_its_numbers() -> None:
    words = word(flag("step noise", "learning_rate", noise_sd=0.0123456, n_trials=12))
    assert words.headline == "The check “step noise” of learning_rate raised a flag"
    assert words.sentence == "Noise sd = 0.01235, number of trials = 12."
    assert words.action
    silent = Finding(check="step noise", subject="study", verdict=Verdict.NO_EVIDENCE, numbers={"noise_sd": 0.5})
    assert word(silent).headline == "No evidence of “step noise”"
    assert word(silent).sentence == "Noise sd = 0.5."


@pytest.mark.parametrize("check", ["feasibility", "stability edge", "boundary", "best step", "isolation", "unheard of"])
@pytest.mark.parametrize("verdict", list(Verdict))
def test_no_verdict_is_worded_as_fine(check: str, verdict: Verdict) -> None:
    words = word(Finding(check=check, subject="learning_rate, upper", verdict=verdict))
    assert not re.search(r"\b(fine|good|ok|okay|large enough|no problem)\b", f"{words.headline} {words.sentence}", re.I)
    if verdict is Verdict.NO_EVIDENCE:
        assert words.headline.startswith("No evidence of ")
    if verdict is Verdict.TOO_LITTLE_DATA:
        assert words.headline.startswith("Too few trials to look for ")
    if verdict is not Verdict.FLAG:
        assert words.action == ""


def test_a_review_reads_as_sentences() -> None:
    for finding in review(two_optimizers()):
        words = word(finding)
        assert words.headline
        assert not words.sentence or words.sentence.endswith((".", ".)"))
        assert "None" not in words.sentence
        assert "unknown" not in words.sentence


_NUMBER = st.one_of(st.none(), st.floats(), st.integers(), st.text(max_size=10))
_NAMES = [
    *("n_judged", "n_infeasible", "share", "low", "high", "all_infeasible", "explained_by", "explained_side"),
    *("share_there", "share_elsewhere", "threshold", "n_beyond", "share_infeasible_beyond", "best", "bound", "k"),
    *("k_outer", "p", "allowed_p", "share_early", "share_late", "learning_rate_decays", "winner", "runner_up", "lead"),
    *("winner_low", "winner_high", "runner_up_low", "runner_up_high", "n_points", "n_wins", "p_winner", "n_pruned"),
    *("runner_up_best", "value", "n_failed", "n_better_half", "share_infeasible_before", "something new"),
]


@given(
    check=st.sampled_from(["feasibility", "stability edge", "boundary", "best step", "isolation", "new"]),
    subject=st.one_of(st.just("a, b, upper"), st.just("study"), st.text(max_size=12)),
    verdict=st.sampled_from(Verdict),
    numbers=st.dictionaries(st.sampled_from(_NAMES), _NUMBER),
)
def test_any_subset_of_numbers_makes_a_sentence(
    check: str, subject: str, verdict: Verdict, numbers: dict[str, Any]
) -> None:
    words = word(Finding(check=check, subject=subject, verdict=verdict, numbers=numbers))
    assert words.headline
    assert words.link.startswith("https://")


@pytest.mark.parametrize("check", sorted({**UNANSWERED, **PROTOCOL_UNANSWERED}))
@pytest.mark.parametrize("subject", ["learning_rate", "learning rate", "time", "study"])
def test_a_question_without_an_answer_has_its_advice_in_the_sentence(check: str, subject: str) -> None:
    # The reports show headline and sentence of such questions, and no action.
    names = re.findall(r"[\"'](\w+)[\"']", inspect.getsource({**UNANSWERED, **PROTOCOL_UNANSWERED}[check]))
    for numbers in ({}, dict.fromkeys(names, 2), dict.fromkeys(names, 0)):
        words = word(Finding(check=check, subject=subject, verdict=Verdict.TOO_LITTLE_DATA, numbers=numbers))
        assert words.headline
        assert words.action == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0207904, "0.02079"),
        (24, "24"),
        (1000.0, "1,000"),
        (1e-4, "1e-4"),
        (0.00012345, "1.234e-4"),
        (3.2e7, "3.2e7"),
        (-0.5, "-0.5"),
        (math.inf, "not finite"),
        (None, "unknown"),
        ("adam", "adam"),
    ],
)
def test_numbers_are_written_as_people_do(value: Any, text: str) -> None:
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0%"), (0.053, "5.3%"), (0.44, "44%"), (0.999, "99.9%"), (1.0, "100%")]
)
def test_shares_are_percentages_and_only_all_is_100(share: float, text: str) -> None:
    assert percent(share) == text


def test_sections_link_to_the_playbook() -> None:
    assert section_link("What is the best learning rate decay schedule family?").endswith(
        "#what-is-the-best-learning-rate-decay-schedule-family"
    )
    assert section_link("") == "https://github.com/google-research/tuning_playbook"
