"""What is proposed for the next round, in words? Each change with what it rests on.

Playbook: "Exploration vs exploitation". The proposal comes from `playbook_plugins.optuna.next_round`, which this folder
does not import: any object of its shape will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from playbook_plugins.analysis import Finding, Verdict
from playbook_plugins.report.phrases import config_text, count_text, number_text, percent, split_subject
from playbook_plugins.report.wording import word


class ProposedChange(Protocol):
    """One proposed change, as `playbook_plugins.optuna.Change`."""

    @property
    def move(self) -> str:
        """What is done: "widen", "keep", "narrow", "fix", "stabilize", "more trials" or "mend"."""

    @property
    def subject(self) -> str:
        """Of what: "learning_rate, upper", "dropout", "n_trials" or "study"."""

    @property
    def before(self) -> Any:
        """The bound, range or number of trials so far."""

    @property
    def after(self) -> Any:
        """The proposed one."""

    @property
    def finding(self) -> Finding:
        """What the change rests on."""


class ProposedRound(Protocol):
    """A proposal for the next round, as `playbook_plugins.optuna.NextRound`."""

    @property
    def changes(self) -> Sequence[ProposedChange]:
        """What changes, and why."""

    @property
    def n_more(self) -> int:
        """The trials to run."""

    @property
    def chance_of_improvement(self) -> float:
        """The chance that the best of them beats the best so far, in [0, 1)."""


def describe_proposal(proposal: ProposedRound) -> dict[str, Any]:
    """Return what the page shows of a proposal.

    Parameters
    ----------
    proposal
        From `playbook_plugins.optuna.next_round`.

    Returns
    -------
    dict
        ``changes``, a list of ``{"what": ..., "why": ...}``, and ``trials``, a sentence; plain text throughout.
    """
    changes = [{"what": _what(change), "why": _why(change)} for change in proposal.changes]
    if not proposal.n_more:
        trials = "No more trials are proposed."
        if not changes:
            trials = (
                "Nothing is to change: the search space holds, and the Bayesian phase can follow "
                "(create_exploitation_study)."
            )
        return {"changes": changes, "trials": trials}
    return {
        "changes": changes,
        "trials": (
            f"Run {count_text(proposal.n_more, 'trial')}: were they drawn like those so far, the best of them would "
            f"beat the best so far with the chance {percent(proposal.chance_of_improvement)}; a better search space "
            "has a better chance."
        ),
    }


def _why(change: ProposedChange) -> str:
    words = word(change.finding)
    match str(change.move):
        case "more trials":
            if change.finding.verdict is Verdict.TOO_LITTLE_DATA:
                return "At a bound of the search space there are too few trials to say whether it is wide enough."
            return f"The search space becomes {number_text(change.finding.numbers.get('growth'))} times as large."
        case "keep":
            return f"{words.headline}. The bound stays: values end there, or the hyperparameter is scientific."
        case _:
            return f"{words.headline}. {words.sentence}".rstrip()


def _what(change: ProposedChange) -> str:
    name, side = split_subject(change.subject)
    bound = f"the {side} bound of {name}" if side else name
    before, after = _text(change.before), _text(change.after)
    match str(change.move):
        case "widen":
            return f"Move {bound} out, from {before} to {after}."
        case "narrow":
            return f"Move {bound} in, from {before} to {after}."
        case "keep":
            return f"Keep {bound} at {before}."
        case "fix":
            return f"Fix {name} at {after}."
        case "stabilize":
            return f"Keep {bound} at {before}; try learning rate warmup and gradient clipping."
        case "more trials":
            return f"Run {after} trials instead of {before}."
        case "mend":
            return "Mend the training code first: no trial is feasible."
        case _:
            return f"{change.move}: {change.subject}, from {before} to {after}."


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " to ".join(_text(part) for part in value)
    return "none" if value is None else config_text(value)
