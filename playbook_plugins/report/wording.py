"""What does a finding mean in plain words, and what is to be done about it?

Playbook: "Extracting insight from experimental results". Checks compute numbers and verdicts; the words are here. A
check that is not known here gets a generic sentence with all its numbers. "No evidence" is never worded as "fine".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from playbook_plugins.analysis import Finding, Verdict
from playbook_plugins.report.checklist_flags import CHECKLIST_FLAGS, fitting_steps
from playbook_plugins.report.checklist_flags import QUESTIONS as CHECKLIST_QUESTIONS
from playbook_plugins.report.flags import FLAGS, crowding, infeasible_share, pruned_text, value_text
from playbook_plugins.report.next_round_flags import NEXT_ROUND_FLAGS, NEXT_ROUND_QUESTIONS
from playbook_plugins.report.phrases import (
    Numbers,
    Words,
    has,
    listed,
    number_text,
    percent,
    split_subject,
    where_asked,
)
from playbook_plugins.report.protocol_flags import PROTOCOL_FLAGS, PROTOCOL_QUESTIONS, PROTOCOL_UNANSWERED
from playbook_plugins.report.run_flags import QUESTIONS as RUN_QUESTIONS
from playbook_plugins.report.run_flags import RUN_FLAGS, too_little
from playbook_plugins.report.unanswered import UNANSWERED

PLAYBOOK = "https://github.com/google-research/tuning_playbook"

# How many subjects a headline names.
_MAX_NAMES = 3

# The verdicts in words, for headings.
VERDICTS = {
    Verdict.FLAG: "To act on",
    Verdict.TOO_LITTLE_DATA: "Too few trials to say",
    Verdict.NO_EVIDENCE: "No evidence at this number of trials, which does not prove that there is none",
}


# What each known check looks for; {} is what it was asked about.
_QUESTIONS = {
    "feasibility": "an infeasible majority of the trials",
    "stability edge": "an edge of stability at {}",
    "boundary": "best trials crowding against the bound of {}",
    "best step": "best steps that gather early or late in the training of the {}",
    "isolation": "a difference between the values of {} at their best",
    **RUN_QUESTIONS,
    **CHECKLIST_QUESTIONS,
    **NEXT_ROUND_QUESTIONS,
    **PROTOCOL_QUESTIONS,
}


@dataclass(frozen=True, kw_only=True)
class Wording:
    """A finding in words, plain text throughout.

    Attributes
    ----------
    headline
        What was found, in a few words.
    sentence
        The same with its numbers.
    action
        What to do; "" where there is nothing to do.
    section
        The section of the playbook that asks the question; "" where the finding names none.
    link
        Where that section is on the web.
    """

    headline: str
    sentence: str
    action: str
    section: str
    link: str


def word(finding: Finding) -> Wording:
    """Put a finding into words.

    Parameters
    ----------
    finding
        Of any check, known or not, with any subset of its numbers.

    Returns
    -------
    Wording
        Headline, sentence, action and the place in the playbook.
    """
    if finding.verdict is Verdict.TOO_LITTLE_DATA:
        headline, sentence, action = _too_little(finding)
    elif finding.verdict is Verdict.NO_EVIDENCE:
        headline, sentence, action = _no_evidence(finding)
    else:
        # A known check whose numbers are missing is worded like an unknown one.
        words = FLAGS.get(finding.check) or PROTOCOL_FLAGS.get(finding.check)
        headline, sentence, action = (words(finding) if words else None) or _generic_flag(finding)
    if finding.verdict is Verdict.FLAG and finding.error_rate is not None:
        kind = "runs" if finding.check in RUN_FLAGS else "studies"
        sentence += f" (False flags: at most {percent(finding.error_rate)} of {kind}.)"
    return Wording(
        headline=headline,
        sentence=sentence,
        action=action,
        section=finding.section,
        link=section_link(finding.section),
    )


@dataclass(frozen=True, kw_only=True)
class Quiet:
    """One question that raised no flag, with all the subjects of which it was asked.

    Attributes
    ----------
    headline
        The question and its answer, with the names of the first subjects.
    sentence
        Why it has no answer, or the numbers of a single subject; "" where each part has its own.
    parts
        The wording of each subject; empty where there is a single one.
    """

    headline: str
    sentence: str
    parts: tuple[Wording, ...]


def word_quiet(findings: Sequence[Finding]) -> list[Quiet]:
    """Put findings without a flag into words, those together that ask the same question with the same answer.

    Parameters
    ----------
    findings
        Of any checks, all with one verdict, NO_EVIDENCE or TOO_LITTLE_DATA.

    Returns
    -------
    list of Quiet
        In the order in which the questions come first.
    """
    asked: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        answer = word(finding).headline.replace(_question(finding), "").replace(where_asked(finding.numbers), "")
        asked.setdefault((finding.check, answer), []).append(finding)
    return [_together(check, answer, same) for (check, answer), same in asked.items()]


def _together(check: str, answer: str, same: Sequence[Finding]) -> Quiet:
    parts = tuple(map(word, same))
    first = parts[0]
    if len(same) == 1:
        return Quiet(headline=first.headline, sentence=first.sentence, parts=())
    subjects = list(dict.fromkeys(map(_subject, same)))
    names = ", ".join(subjects[:_MAX_NAMES])
    if len(subjects) > _MAX_NAMES:
        names += f" and {len(subjects) - _MAX_NAMES} more"
    question = _question(same[0])
    # Without the question in it, the headline is a reason, the same for all of them.
    headline = first.headline.replace(question, _ask(check, names)) if question in first.headline else answer
    return Quiet(headline=headline, sentence="", parts=parts)


def section_link(section: str) -> str:
    """Return the address of a section of the playbook, or of the playbook where there is no section."""
    # GitHub's rule: lower case, punctuation dropped, spaces become hyphens.
    anchor = re.sub(r"[^\w\- ]", "", section.lower()).strip().replace(" ", "-")
    return f"{PLAYBOOK}#{anchor}" if anchor else PLAYBOOK


def _no_evidence(finding: Finding) -> Words:
    numbers = finding.numbers
    sentence = ""
    if finding.check == "feasibility" and has(numbers, "n_judged", "n_infeasible", "share"):
        sentence = infeasible_share(numbers)
    elif finding.check == "boundary" and has(numbers, "best", "bound"):
        sentence = crowding(split_subject(finding.subject)[0], numbers)
    elif finding.check == "isolation" and has(numbers, "best", "runner_up_best"):
        winner, runner_up = value_text(numbers, "winner"), value_text(numbers, "runner_up")
        if winner is not None and runner_up is not None:
            sentence = (
                f"{winner} reaches {number_text(numbers['best'])}, "
                f"{runner_up} {number_text(numbers['runner_up_best'])}.{pruned_text(numbers)}"
            )
    elif finding.check == "best step" and has(numbers, "share_early", "share_late"):
        sentence = (
            f"Of the better half, {percent(numbers['share_early'])} reach their best step in the first 10% of "
            f"training and {percent(numbers['share_late'])} in the last 25%."
        )
        if numbers.get("learning_rate_decays"):
            sentence += " Under a decaying learning rate late best steps say little: judge the length by a longer run."
    elif finding.check == "max_train_steps":
        sentence = fitting_steps(finding)
    elif (finding.check in RUN_FLAGS | CHECKLIST_FLAGS | NEXT_ROUND_FLAGS or finding.check not in FLAGS) and numbers:
        sentence = _known(numbers)
    return f"No evidence of {_question(finding)}", sentence, ""


def _too_little(finding: Finding) -> Words:
    words = UNANSWERED.get(finding.check) or PROTOCOL_UNANSWERED.get(finding.check)
    known = words(finding) if words else None
    if known is not None:
        return known
    what = too_little(finding) if finding.check in RUN_FLAGS else "Too few trials"
    return f"{what} to look for {_question(finding)}", _known(finding.numbers), ""


def _known(numbers: Numbers) -> str:
    """Return a sentence with all numbers that are known."""
    text = listed({name: value for name, value in numbers.items() if value is not None})
    return f"{text}." if text else ""


def _generic_flag(finding: Finding) -> Words:
    subject = "" if finding.subject in ("", "study") else f" of {finding.subject}"
    sentence = f"{listed(finding.numbers)}." if finding.numbers else "The check raised a flag."
    return f"The check “{finding.check}”{subject} raised a flag", sentence, "Read what the playbook says about it."


def _question(finding: Finding) -> str:
    return _ask(finding.check, _subject(finding))


def _subject(finding: Finding) -> str:
    name, side = split_subject(finding.subject)
    return (f"{name} ({side})" if side else name) + where_asked(finding.numbers)


def _ask(check: str, subject: str) -> str:
    if check in _QUESTIONS:
        return _QUESTIONS[check].replace("{}", subject)
    return f"“{check}”" + ("" if subject in ("", "study") else f" of {subject}")
