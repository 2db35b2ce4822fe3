"""How is the proposal for the next round printed? Each change with its reason, then what it costs and may bring."""

from __future__ import annotations

import json
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json

from playbook_plugins.analysis import Trials
from playbook_plugins.cli.errors import CommandError
from playbook_plugins.cli.printing import print_lines, print_table
from playbook_plugins.cli.reviewing import finding_data
from playbook_plugins.optuna import NextRound, Round, next_round
from playbook_plugins.optuna.trials import EXPLOITATION_KEY, ROUND_KEY
from playbook_plugins.report.proposal import describe_proposal


def read_round(study: optuna.Study) -> Round:
    """Return the round that is kept with a study; CommandError where there is none to follow."""
    if EXPLOITATION_KEY in study.user_attrs:
        raise CommandError(
            f"the study {study.study_name!r} is the Bayesian phase of a round, after which no next round is proposed. "
            "Name the round's own study."
        )
    if ROUND_KEY not in study.user_attrs:
        raise CommandError(
            f"the study {study.study_name!r} has no round kept with it, so that there is nothing to change: it was not "
            "made by Round.create_study. `playbook review` reads any study."
        )
    return Round.from_study(study)


def find_proposal(study: optuna.Study, trials: Trials) -> NextRound | None:
    """Return the proposal for the round after a study's, None where the study has none or too few trials for one."""
    try:
        return next_round(read_round(study), trials)
    except (CommandError, ValueError):
        return None


def print_proposal(name: str, proposal: NextRound) -> None:
    """Print the changes with their reasons."""
    told = describe_proposal(proposal)
    if told["changes"]:
        rows = [(change["what"], change["why"]) for change in told["changes"]]
        print_table(f"{name}: the next round", {"change": 2, "why": 3}, rows)
    print_lines([told["trials"] if told["changes"] else f"{name}: {told['trials']}"])


def proposal_data(name: str, proposal: NextRound) -> dict[str, Any]:
    """Return a proposal for JSON; its ``round`` is what `Round.from_json` reads."""
    return {
        "study": name,
        "n_more": proposal.n_more,
        "chance_of_improvement": proposal.chance_of_improvement,
        "changes": [
            {
                "move": str(change.move),
                "subject": change.subject,
                "before": _value_data(change.before),
                "after": _value_data(change.after),
                "finding": finding_data(change.finding),
            }
            for change in proposal.changes
        ],
        "round": json.loads(proposal.round.to_json()),
    }


def _value_data(value: Any) -> Any:
    return json.loads(distribution_to_json(value)) if isinstance(value, BaseDistribution) else value
