"""How does a W&B report put what the page says into Markdown? Each part as lines.

Playbook: "Extracting insight from experimental results". The words are those of
`playbook_plugins.report.study.describe_study`; whatever comes from a study is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from playbook_plugins.report.markdown import escape
from playbook_plugins.report.phrases import config_text


def overview_lines(words: Mapping[str, Any], limits: Sequence[str]) -> list[str]:
    """Return the study in a line, below its goal, and what its plots leave out, as Markdown."""
    lines = [escape(words["goal"]), ""] if words["goal"] else []
    lines.append("; ".join(_entry(entry) for entry in words["overview"]) + ".")
    for limit in limits:
        lines += ["", escape(limit)]
    return lines


def _entry(entry: Mapping[str, str]) -> str:
    # "48 trials", but "best val_error, minimized: 0.02 (trial 7)".
    if entry["term"].startswith("best "):
        return f"**{escape(entry['term'])}: {escape(entry['text'])}**"
    return f"{escape(entry['text'])} {escape(entry['term'])}"


def flags_lines(findings: Mapping[str, Any]) -> list[str]:
    """Return what to do first, as Markdown."""
    lines: list[str] = []
    for place, flag in enumerate(findings["flags"], start=1):
        words = flag["words"]
        action = f"**What to do:** {escape(words.action)} " if words.action else ""
        also = f" Also with {escape(flag['also'] or 'others')}." if flag["others"] else ""
        lines += [
            f"{place}. **{escape(words.headline)}.** {escape(words.sentence)}{also}",
            "",
            f"   {action}[Playbook: {escape(words.section or 'the guide')}]({words.link})",
            "",
        ]
    return lines or [
        "No check raised a flag. At this number of trials that does not prove that nothing is wrong: look at the plots."
    ]


def advice_lines(findings: Mapping[str, Any]) -> list[str]:
    """Return what may be left out of the next round, as Markdown."""
    return [
        f"- **{escape(words.headline)}.** {escape(words.sentence)} {escape(words.action)} "
        f"[Playbook: {escape(words.section or 'the guide')}]({words.link})"
        for words in findings["advice"]
    ]


def quiet_lines(findings: Mapping[str, Any]) -> list[str]:
    """Return the questions that raised no flag, or have no answer, as Markdown."""
    lines: list[str] = []
    for group in findings["quiet"]:
        lines += [*([""] if lines else []), f"**{escape(group['title'])}**", ""]
        # The numbers of each subject of a question are more than is read here.
        lines += [f"- {escape(quiet.headline)}. {escape(quiet.sentence)}".rstrip() for quiet in group["words"]]
    return lines


def best_lines(words: Mapping[str, Any]) -> list[str]:
    """Return the table of the best trials, as Markdown."""
    best = words["best"]
    if not best["rows"]:
        return ["No trial is feasible."]
    steps = ["best step"] if best["has_steps"] else []
    names = ["rank", "trial", words["objective"], *steps, *best["names"]]
    rows = [
        [row["rank"], row["trial"], row["objective"], *([row["step"]] if steps else []), *row["values"]]
        for row in best["rows"]
    ]
    luck = "The best of many trials is partly luck: retrain the winner with several seeds before adopting it."
    return [*table_lines(names, rows), "", luck]


def proposal_lines(words: Mapping[str, Any]) -> list[str]:
    """Return what is proposed for the next round, as Markdown."""
    proposal = words["proposal"]
    lines = [f"- **{escape(change['what'])}** {escape(change['why'])}" for change in proposal["changes"]]
    return [*lines, *([""] if lines else []), escape(proposal["trials"])]


def limit_lines(caveats: Sequence[str], fixed: Mapping[str, Any]) -> list[str]:
    """Return what limits the conclusions, as Markdown."""
    lines = [f"- {escape(caveat)}" for caveat in caveats]
    if fixed:
        named = ", ".join(f"{escape(name)} = {escape(config_text(value))}" for name, value in fixed.items())
        lines.append(f"- Fixed: {named}.")
    return lines or ["No fixed hyperparameters are named, so what they limit is not known here."]


def limits_lines(words: Mapping[str, Any]) -> list[str]:
    """Return what limits the conclusions, and why trials were infeasible, as Markdown."""
    lines = limit_lines(words["caveats"], words["fixed"])
    if words["reasons"]:
        lines += ["", "Why trials were infeasible or failed:", ""]
    for entry in words["reasons"]:
        example = f"for instance trial {entry['trial']}" if entry["n_trials"] > 1 else f"trial {entry['trial']}"
        lines.append(f"- {entry['n_trials']:,} {escape(entry['status'])}: {escape(entry['reason'])} ({example})")
    return lines


def table_lines(names: Sequence[Any], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Return a table as Markdown, whose cells are texts."""
    cells = [[escape(cell) for cell in row] for row in [names, *rows]]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|" + " --- |" * len(names), *lines[1:]]
