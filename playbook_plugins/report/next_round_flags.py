"""What may be left out of the next round? The words for hyperparameters that hardly matter and ranges without use.

Playbook: "Identifying scientific, nuisance, and fixed hyperparameters", "Exploration vs exploitation". As in flags.py,
None stands for missing numbers.
"""

from __future__ import annotations

from collections.abc import Callable

from playbook_plugins.analysis import Finding
from playbook_plugins.report.phrases import Words, count_text, has, number_text, percent, split_subject, where_asked

# What is looked for; {} is what it was asked about.
NEXT_ROUND_QUESTIONS = {
    "sensitivity": "a hyperparameter that can be shown to matter little: {}",
    "good region": "an outer part of a range in which no good trial lies: {}",
}


def _sensitivity(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "n_points", "share", "noticeable"):
        return None
    where = where_asked(numbers)
    return (
        f"{finding.subject} hardly matters in this range",
        f"Over {count_text(numbers['n_points'], 'point')}{where} it explains {percent(numbers['share'])} of the "
        f"variance of the ranks, interactions included; that it explains {percent(numbers['noticeable'])} can be "
        "excluded.",
        f"Fix {finding.subject} in the next round, at the value of the best trial, and spend the trials on what "
        "matters. The conclusions then hold at that value.",
    )


def _good_region(finding: Finding) -> Words | None:
    numbers = finding.numbers
    name, side = split_subject(finding.subject)
    if side not in ("upper", "lower") or not has(numbers, "n_points", "k", "n_outer", "k_outer"):
        return None
    return (
        f"{name}: good trials stay away from the {side} bound",
        f"Of the best {number_text(numbers['k'])} of {count_text(numbers['n_points'], 'point')}, "
        f"{number_text(numbers['k_outer'])} lie in the outer third of the range on that side, which holds "
        f"{number_text(numbers['n_outer'])} points, and none in the outer quarter.",
        f"The outer quarter of the range of {name} may be cut off at its {side} end in the next round.",
    )


NEXT_ROUND_FLAGS: dict[str, Callable[[Finding], Words | None]] = {
    "sensitivity": _sensitivity,
    "good region": _good_region,
}
