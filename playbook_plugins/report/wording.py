"""What does a finding mean in plain words, and what is to be done about it?

Playbook: "Extracting insight from experimental results". Checks compute numbers and verdicts; the words are here. A
check that is not known here gets a generic sentence with all its numbers. "No evidence" is never worded as "fine".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from playbook_plugins.analysis import Finding, Verdict
from playbook_plugins.report.checklist_flags import CHECKLIST_FLAGS
from playbook_plugins.report.checklist_flags import QUESTIONS as CHECKLIST_QUESTIONS
from playbook_plugins.report.flags import FLAGS, crowding, infeasible_share
from playbook_plugins.report.phrases import Words, has, listed, number_text, percent, split_subject, where_asked
from playbook_plugins.report.run_flags import QUESTIONS as RUN_QUESTIONS
from playbook_plugins.report.run_flags import RUN_FLAGS, too_little

PLAYBOOK = "https://github.com/google-research/tuning_playbook"


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
    "best step": "best steps that gather early or late in training",
    "isolation": "a difference between the values of {} at their best",
    **RUN_QUESTIONS,
    **CHECKLIST_QUESTIONS,
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
        words = FLAGS.get(finding.check)
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
    elif finding.check == "isolation" and has(numbers, "winner", "best", "runner_up", "runner_up_best"):
        sentence = (
            f"{number_text(numbers['winner'])} reaches {number_text(numbers['best'])}, "
            f"{number_text(numbers['runner_up'])} {number_text(numbers['runner_up_best'])}."
        )
    elif finding.check == "best step" and has(numbers, "share_early", "share_late"):
        sentence = (
            f"Of the better half, {percent(numbers['share_early'])} reach their best step in the first 10% of "
            f"training and {percent(numbers['share_late'])} in the last 25%."
        )
        if numbers.get("learning_rate_decays"):
            sentence += " Under a decaying learning rate late best steps say little: judge the length by a longer run."
    elif (finding.check in RUN_FLAGS | CHECKLIST_FLAGS or finding.check not in FLAGS) and numbers:
        sentence = f"{listed(numbers)}."
    return f"No evidence of {_question(finding)}", sentence, ""


def _too_little(finding: Finding) -> Words:
    numbers = listed(finding.numbers)
    what = too_little(finding) if finding.check in RUN_FLAGS else "Too few trials"
    return f"{what} to look for {_question(finding)}", f"{numbers}." if numbers else "", ""


def _generic_flag(finding: Finding) -> Words:
    subject = "" if finding.subject in ("", "study") else f" of {finding.subject}"
    sentence = f"{listed(finding.numbers)}." if finding.numbers else "The check raised a flag."
    return f"The check “{finding.check}”{subject} raised a flag", sentence, "Read what the playbook says about it."


def _question(finding: Finding) -> str:
    name, side = split_subject(finding.subject)
    subject = (f"{name} ({side})" if side else name) + where_asked(finding.numbers)
    if finding.check in _QUESTIONS:
        return _QUESTIONS[finding.check].replace("{}", subject)
    return f"“{finding.check}”" + ("" if subject in ("", "study") else f" of {subject}")
