"""How is the proposal for the next round printed? Each change with its reason, then what it costs and may bring."""

from __future__ import annotations

import json
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json

from playbook_plugins.analysis import Trials, Verdict
from playbook_plugins.cli.errors import CommandError
from playbook_plugins.cli.printing import print_lines, print_table
from playbook_plugins.cli.reviewing import finding_data
from playbook_plugins.optuna import Change, Move, NextRound, Round, next_round
from playbook_plugins.optuna.trials import EXPLOITATION_KEY, ROUND_KEY
from playbook_plugins.report import word
from playbook_plugins.report.phrases import count_text, number_text, percent

_WORDS = {
    Move.WIDEN: "widen",
    Move.KEEP: "keep",
    Move.NARROW: "narrow",
    Move.FIX: "fix",
    Move.STABILIZE: "stabilize training at",
    Move.MORE_TRIALS: "run more trials",
    Move.MEND: "mend the training code",
}


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
    if not proposal.changes:
        print_lines(
            [
                f"{name}: nothing to change. The search space holds, and the Bayesian phase can follow "
                "(create_exploitation_study)."
            ]
        )
        return
    rows = [(_change_text(change), _reason(change)) for change in proposal.changes]
    print_table(f"{name}: the next round", {"change": 2, "why": 3}, rows)
    if proposal.n_more:
        print_lines(
            [
                f"{count_text(proposal.n_more, 'trial')} to run. Were they drawn like those so far, the best of them "
                f"would beat the best so far with a chance of {percent(proposal.chance_of_improvement)}; a better "
                "search space has a better chance."
            ]
        )


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


def _change_text(change: Change) -> str:
    if change.move is Move.MEND:
        return _WORDS[change.move]
    what = _WORDS[change.move] if change.move is Move.MORE_TRIALS else f"{_WORDS[change.move]} {change.subject}"
    if change.before is None:
        return what
    before, after = _value_text(change.before), _value_text(change.after)
    return f"{what}\n{before}" if before == after else f"{what}\n{before} → {after}"


def _reason(change: Change) -> str:
    numbers, words = change.finding.numbers, word(change.finding)
    if change.move is Move.MORE_TRIALS:
        if change.finding.verdict is Verdict.TOO_LITTLE_DATA:
            return "At a bound of the search space there are too few trials to say whether it is wide enough."
        return f"The search space becomes {number_text(numbers.get('growth'))} times as large."
    reason = f"{words.headline}. {words.sentence}"
    if change.move is Move.KEEP:
        return f"{reason} The bound stays: values end there, or the hyperparameter is scientific."
    if change.move in (Move.STABILIZE, Move.MEND):
        return f"{reason} {words.action}"
    return reason


def _value_text(value: Any) -> str:
    if isinstance(value, BaseDistribution):
        low, high = getattr(value, "low", None), getattr(value, "high", None)
        return f"{number_text(low)} to {number_text(high)}" if low is not None else str(value)
    return number_text(value) if isinstance(value, int | float | str) else str(value)


def _value_data(value: Any) -> Any:
    return json.loads(distribution_to_json(value)) if isinstance(value, BaseDistribution) else value
