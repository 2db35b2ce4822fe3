"""How are findings printed? Flags with what to do first, then one line a question that raised none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from playbook_plugins.analysis import Finding, Verdict
from playbook_plugins.cli.printing import print_lines, print_table
from playbook_plugins.report import VERDICTS, word, word_quiet


def print_findings(name: str, findings: Sequence[Finding]) -> None:
    """Print the findings of a study, what to do first at the top."""
    flags = [finding for finding in findings if finding.verdict is Verdict.FLAG]
    if flags:
        rows = _rows(flags)
        print_table(f"{name}: what the playbook's checklist says", {"finding": 3, "what to do": 2}, rows)
    else:
        print_lines([f"{name}: no check of the playbook's checklist raised a flag."])
    for verdict in (Verdict.TOO_LITTLE_DATA, Verdict.NO_EVIDENCE):
        quiet = word_quiet([finding for finding in findings if finding.verdict is verdict])
        if quiet:
            print_lines(["", f"{VERDICTS[verdict]}:", *(f"- {question.headline}" for question in quiet)])


def _rows(flags: Sequence[Finding]) -> list[tuple[str, str]]:
    """Return a row a question: that of the whole study, with the scientific values for which the answer is the same."""
    asked: dict[tuple[str, str], list[Finding]] = {}
    for finding in flags:
        asked.setdefault((finding.check, finding.subject), []).append(finding)
    rows = []
    for same in asked.values():
        first, *others = sorted(same, key=lambda finding: finding.numbers.get("value") is not None)
        words = word(first)
        values = ", ".join(str(finding.numbers["value"]) for finding in others if finding.numbers.get("value"))
        also = f" Also raised within {values}." if values else ""
        rows.append((f"{words.headline}\n{words.sentence}{also}", words.action))
    return rows


def finding_data(finding: Finding) -> dict[str, Any]:
    """Return a finding and its words, for JSON."""
    words = word(finding)
    return {
        "check": finding.check,
        "subject": finding.subject,
        "verdict": str(finding.verdict),
        "numbers": finding.numbers,
        "section": finding.section,
        "error_rate": finding.error_rate,
        "headline": words.headline,
        "sentence": words.sentence,
        "action": words.action,
    }
