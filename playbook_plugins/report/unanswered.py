"""Why has a question no answer, where it is not for want of trials? In words, as in flags.py."""

from __future__ import annotations

from collections.abc import Callable

from playbook_plugins.analysis import Finding
from playbook_plugins.report.phrases import Words, as_float, has, number_text, where_asked


def _budget_unknown(finding: Finding) -> Words | None:
    """Return why nothing can be said of the budget, where it is not the number of points."""
    numbers = finding.numbers
    # Without a trend, NaN is not below any bound.
    if as_float(numbers.get("trend_p")) <= as_float(numbers.get("allowed_trend_p")):
        return (
            f"Whether points are missing cannot be said of an adaptive search{where_asked(numbers)}",
            "Later trials are better than earlier ones: the search looked at results, or the training code changed on "
            "the way.",
            "",
        )
    if numbers.get("retrain_sd") is not None or not has(numbers, "gain", "n_points"):
        return None
    return (
        f"Whether points are missing cannot be said without retrains{where_asked(numbers)}",
        f"The last doubling of the points (to {number_text(numbers['n_points'])}) gained "
        f"{number_text(numbers['gain'])} on average; by how much retraining alone varies the objective has not been "
        "measured. Retrain one configuration with several seeds.",
        "",
    )


def _not_retrained(finding: Finding) -> Words | None:
    if finding.numbers.get("n_retrained") != 0 or finding.numbers.get("search_winner") is None:
        return None
    return (
        "The winner has not been retrained",
        f"Trial {number_text(finding.numbers['search_winner'])} may have been lucky: retrain it, and the best of each "
        f"other value of {finding.subject}, with several seeds before adopting it.",
        "",
    )


UNANSWERED: dict[str, Callable[[Finding], Words | None]] = {
    "budget": _budget_unknown,
    "adoption": _not_retrained,
}
