"""What does a notebook show of a study? Its counts and its best trials, as HTML without styles or scripts."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import numpy as np

from playbook_plugins.analysis.records import Status

if TYPE_CHECKING:
    from playbook_plugins.analysis.trials import Trials

_N_BEST = 5
_MAX_TEXT = 60


def trials_html(trials: Trials) -> str:
    """Return the study's name, how many trials ended how, and the configurations of the best five.

    Parameters
    ----------
    trials
        The study; its texts are escaped.
    """
    counts = [(status, int(np.sum(trials.status == status))) for status in Status]
    told = ", ".join(f"{count:,} {status}" for status, count in counts if count) or "none"
    parts = [f"<p><b>{_text(trials.name)}</b>: {len(trials):,} trials ({told})"]
    if trials.goal:
        parts.append(f"<br>{_text(trials.goal, 300)}")
    parts.append("</p>")
    chosen = trials.ranking()[:_N_BEST].tolist()
    if chosen:
        configs = [trials.config(row) for row in chosen]
        names = [parameter.name for parameter in trials.parameters if any(parameter.name in one for one in configs)]
        head = "".join(f"<th>{_text(name)}</th>" for name in ("trial", trials.objective_name, *names))
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>")
        for row, config in zip(chosen, configs, strict=True):
            cells = [trials.number[row], f"{trials.objective[row]:.5g}", *(_value(config, name) for name in names)]
            parts.append("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in cells) + "</tr>")
        parts.append("</tbody></table>")
    return "".join(parts)


def _value(config: dict[str, object], name: str) -> str:
    value = config.get(name, "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(value: object, length: int = _MAX_TEXT) -> str:
    text = "".join(char if char.isprintable() else " " for char in str(value))
    return html.escape(text if len(text) <= length else text[: length - 1] + "…")
