"""Which findings and which proposal belong to which study? What the callers of the page and of W&B's report hand over.

Playbook: "Extracting insight from experimental results".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from playbook_plugins.analysis import Finding, Trials
from playbook_plugins.analysis.review import review
from playbook_plugins.report.proposal import ProposedRound


def findings_of(tables: Sequence[Trials], is_one: bool, findings: Any) -> list[list[Finding]]:
    """Return one list of findings a table; by default what a review finds."""
    if findings is None:
        return [review(table) for table in tables]
    lists = [findings] if is_one else list(findings)
    if len(lists) != len(tables) or not all(
        isinstance(found, Sequence) and all(isinstance(one, Finding) for one in found) for found in lists
    ):
        raise ValueError(
            f"`findings` does not fit the {len(tables)} tables of `trials`: it must be a list of findings for one "
            "table, and a list of such lists, one a table, for several. Leave it out to review the trials here."
        )
    return [list(found) for found in lists]


def refuse_more(findings: Any, next_round: Any) -> None:
    """Refuse findings or a proposal beside a procedure."""
    for name, value in (("findings", findings), ("next_round", next_round)):
        if value is not None:
            raise ValueError(
                f"`{name}` is given with the result of a procedure, which brings what there is to say. Leave it out, "
                "or pass the tables of result.trials."
            )


def proposals_of(tables: Sequence[Trials], is_one: bool, next_round: Any) -> list[ProposedRound | None]:
    """Return one proposal, or None, a table."""
    if next_round is None:
        return [None] * len(tables)
    proposals = list(next_round) if isinstance(next_round, Sequence) else [next_round]
    if is_one == isinstance(next_round, Sequence) or len(proposals) != len(tables):
        raise ValueError(
            f"`next_round` does not fit the {len(tables)} tables of `trials`: it must be one proposal for one table, "
            "and a list with one proposal or None a table for several. Leave it out to propose nothing."
        )
    return proposals
