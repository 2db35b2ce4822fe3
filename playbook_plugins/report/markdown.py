"""The report as Markdown, for pull requests and notebooks: findings first, then the best trials and what limits them.

Playbook: "Extracting insight from experimental results". The plots stay with the page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

# Whatever comes from a study is text, also where Markdown or HTML would read it as markup.
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&$])")
# At the beginning of a line these make a heading, a list or a quotation.
_LEADING = re.compile(r"^(\d*)([.)]|[-+=#]+)(?=\s|$)")
_MAX_TEXT = 500


def render_markdown(
    title: str, studies: Sequence[Mapping[str, Any]], version: str, procedure: Mapping[str, Any] | None = None
) -> str:
    """Return the report as GitHub-flavoured Markdown.

    Parameters
    ----------
    title
        Of the report.
    studies
        The contexts of `describe_study`, one a study.
    version
        Of this package.
    procedure
        The context of `describe_procedure`, where the studies are its stages.
    """
    lines = [f"# {escape(title)}", ""]
    if procedure is not None:
        lines += _findings(procedure["findings"])
        lines += ["### What it recommends", ""]
        lines += [f"- {escape(name)} = {escape(value)}" for name, value in procedure["recommendation"].items()]
        if not procedure["recommendation"]:
            lines.append("Nothing: these runs give no reason for a recommendation.")
        lines.append("")
    for study in studies:
        if len(studies) > 1:
            lines += [f"## {escape(study['name'])}", ""]
        lines += _study(study)
    lines.append(f"Written by playbook-plugins {version} after the Deep Learning Tuning Playbook.")
    return "\n".join(lines) + "\n"


def escape(value: Any) -> str:
    """Return text that Markdown shows as it is, on one line."""
    text = re.sub(r"\s+", " ", str(value)).strip()
    text = "".join(char for char in text if char.isprintable())
    text = _SPECIAL.sub(r"\\\1", text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…")
    return _LEADING.sub(r"\1\\\2", text)


def _study(study: Mapping[str, Any]) -> list[str]:
    lines = [f"{escape(study['goal'])}", ""] if study["goal"] else []
    lines += [f"- {escape(entry['term'])}: {escape(entry['text'])}" for entry in study["overview"]]
    lines.append("")
    if study["findings"] is not None:
        lines += _findings(study["findings"])
    lines += _best(study)
    if study["proposal"]:
        lines += ["### The next round", ""]
        lines += [f"- {escape(change['what'])} {escape(change['why'])}" for change in study["proposal"]["changes"]]
        lines += ["", escape(study["proposal"]["trials"]), ""]
    return lines + _limits(study)


def _findings(findings: Mapping[str, Any]) -> list[str]:
    lines = ["### Findings", ""]
    for place, flag in enumerate(findings["flags"], start=1):
        words = flag["words"]
        lines.append(f"{place}. **{escape(words.headline)}.** {escape(words.sentence)}")
        if words.action:
            lines.append(f"   What to do: {escape(words.action)} ([playbook]({words.link}))")
        if flag["also"]:
            lines.append(f"   Also with {escape(flag['also'])}.")
    if not findings["flags"]:
        lines.append("No check raised a flag. At this number of trials that does not prove that nothing is wrong.")
    lines.append("")
    if findings["advice"]:
        lines += ["For the next round:", ""]
        lines += [f"- **{escape(words.headline)}.** {escape(words.action)}" for words in findings["advice"]]
        lines.append("")
    for group in findings["quiet"]:
        lines += [f"<details><summary>{escape(group['title'])}</summary>", ""]
        lines += [f"- {escape(quiet.headline)}. {escape(quiet.sentence)}".rstrip() for quiet in group["words"]]
        lines += ["", "</details>", ""]
    return lines


def _best(study: Mapping[str, Any]) -> list[str]:
    best = study["best"]
    if not best["rows"]:
        return ["### The best trials", "", "No trial is feasible.", ""]
    names = ["rank", "trial", study["objective"], *(["best step"] if best["has_steps"] else []), *best["names"]]
    lines = ["### The best trials", "", _row(names), _row(["---"] * len(names), is_rule=True)]
    for row in best["rows"]:
        step = [row["step"]] if best["has_steps"] else []
        lines.append(_row([row["rank"], row["trial"], row["objective"], *step, *row["values"]]))
    return [*lines, ""]


def _limits(study: Mapping[str, Any]) -> list[str]:
    lines = ["### What limits these conclusions", ""]
    lines += [f"- {escape(caveat)}" for caveat in study["caveats"]]
    lines += [f"- Fixed: {escape(name)} = {escape(value)}" for name, value in study["fixed"].items()]
    lines += [f"- {entry['n_trials']} {entry['status']}: {escape(entry['reason'])}" for entry in study["reasons"]]
    if len(lines) == 2:
        lines.append("The study names no fixed hyperparameters, so what they limit is not known here.")
    return [*lines, ""]


def _row(cells: Sequence[Any], *, is_rule: bool = False) -> str:
    return "| " + " | ".join(str(cell) if is_rule else escape(cell) for cell in cells) + " |"
