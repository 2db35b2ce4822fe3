"""What does each check's flag mean, and what is to be done about it? Headline, sentence and action, check by check.

Playbook: "Extracting insight from experimental results". Each function returns None where the finding lacks the
numbers that its words need; `playbook_plugins.report.wording` then falls back on a generic sentence.
"""

from __future__ import annotations

from collections.abc import Callable

from playbook_plugins.analysis import Finding
from playbook_plugins.report.checklist_flags import CHECKLIST_FLAGS
from playbook_plugins.report.next_round_flags import NEXT_ROUND_FLAGS
from playbook_plugins.report.phrases import (
    Numbers,
    Words,
    among,
    as_float,
    capital,
    count_text,
    has,
    number_text,
    percent,
    split_subject,
    where_asked,
)
from playbook_plugins.report.run_flags import RUN_FLAGS


def infeasible_share(numbers: Numbers) -> str:
    """Return how many trials are infeasible, and where they gather."""
    sentence = (
        f"{number_text(numbers['n_infeasible'])} of {number_text(numbers['n_judged'])} trials are infeasible: "
        f"{percent(numbers['share'])}"
    )
    if has(numbers, "low", "high"):
        sentence += f" (95% interval {percent(numbers['low'])} to {percent(numbers['high'])})"
    name, side = numbers.get("explained_by"), numbers.get("explained_side")
    if name is not None and side is not None:
        where = f"towards the {side} end of {name}" if side in ("upper", "lower") else f"at {name} = {side}"
        sentence += f". They gather {where}"
        if has(numbers, "share_there", "share_elsewhere"):
            sentence += f": {percent(numbers['share_there'])} there, {percent(numbers['share_elsewhere'])} elsewhere"
    if numbers.get("n_failed"):
        sentence += f". {count_text(numbers['n_failed'], 'more trial')} failed without a known cause"
    return f"{sentence}."


def crowding(name: str, numbers: Numbers) -> str:
    """Return where the best trials lie, seen from a bound."""
    best, bound = number_text(numbers["best"]), number_text(numbers["bound"])
    sentence = capital(f"{among(numbers)}the best trial has {name} = {best}; the bound is {bound}.")
    if has(numbers, "k", "k_outer"):
        sentence += (
            f" {number_text(numbers['k_outer'])} of the best {number_text(numbers['k'])} trials lie in the outer fifth "
            "of the range on that side."
        )
    return sentence


def _feasibility(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "n_judged", "n_infeasible", "share"):
        return None
    n_trials = number_text(numbers["n_judged"])
    if numbers.get("all_infeasible"):
        return (
            "Every trial is infeasible",
            f"All {n_trials} trials diverged or broke another constraint.",
            "Suspect a bug before the search space: train one configuration that is known to work, with a small "
            "learning rate, and look at its first steps.",
        )
    sentence = infeasible_share(numbers)
    action = "Look at the reasons below, and at the axis plots for where the crosses gather; sample there no more."
    name, side = numbers.get("explained_by"), numbers.get("explained_side")
    if name is not None:
        action = (
            f"Train more stably there (warmup, gradient clipping), or cut off the {side} end of {name} next time."
            if side in ("upper", "lower")
            else f"Find out why {name} = {side} fails, or leave it out of the next round."
        )
    return "Most trials are infeasible", sentence, action


def _stability_edge(finding: Finding) -> Words | None:
    numbers = finding.numbers
    name, side = split_subject(finding.subject)
    if side not in ("upper", "lower") or not has(numbers, "threshold"):
        return None
    relation, beside = ("above", "below") if side == "upper" else ("below", "above")
    threshold = number_text(numbers["threshold"])
    sentence = capital(f"{among(numbers)}{relation} {name} = {threshold}")
    if has(numbers, "share_infeasible_beyond"):
        share = percent(numbers["share_infeasible_beyond"])
        count = f" of {count_text(numbers['n_beyond'], 'trial')}" if has(numbers, "n_beyond") else " of the trials"
        sentence += f", {share}{count} are infeasible"
        if has(numbers, "share_infeasible_before"):
            sentence += f", and {percent(numbers['share_infeasible_before'])} before it"
    else:
        sentence += ", trials are infeasible"
    if has(numbers, "best"):
        sentence += f". The best trial lies {beside} that edge, at {number_text(numbers['best'])}"
    return (
        f"{name}{where_asked(numbers)}: the best trial lies at the edge of stability",
        f"{sentence}.",
        "Do not widen the range there. Training is limited by instability: try learning rate warmup or gradient "
        "clipping, and then tune again.",
    )


def _boundary(finding: Finding) -> Words | None:
    numbers = finding.numbers
    name, side = split_subject(finding.subject)
    if side not in ("upper", "lower"):
        return None
    if not has(numbers, "best", "bound"):
        return None
    sentence = crowding(name, numbers)
    crowds = not has(numbers, "p", "allowed_p") or as_float(numbers["p"]) <= as_float(numbers["allowed_p"])
    if has(numbers, "p_with_best", "allowed_p_with_best"):
        crowds = crowds and as_float(numbers["p_with_best"]) <= as_float(numbers["allowed_p_with_best"])
    finding_text = f"the best trials crowd against the {side} bound"
    if not crowds:
        finding_text = f"the objective still improves towards the {side} bound"
        sentence += " With the other hyperparameters allowed for, the objective still improves there."
    move = "Raise the upper" if side == "upper" else "Lower the lower"
    return (
        f"{name}{where_asked(numbers)}: {finding_text}",
        sentence,
        f"{move} bound of {name} and search again: better values may lie outside.",
    )


def _best_step(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "share_early", "share_late"):
        return None
    count = f" ({count_text(numbers['n_better_half'], 'trial')})" if has(numbers, "n_better_half") else ""
    early, late = percent(numbers["share_early"]), percent(numbers["share_late"])
    half = f"of the better half of the feasible trials{count}"
    if as_float(numbers["share_early"]) > as_float(numbers["share_late"]):
        return (
            f"The best trials peak early in training{where_asked(numbers)}",
            f"{early} {half} reach their best step in the first 10% of training.",
            "Train for fewer steps and spend the budget on more trials, or look for overfitting in the curves.",
        )
    if numbers.get("learning_rate_decays"):
        return (
            f"The best step is late, which says little under a decaying learning rate{where_asked(numbers)}",
            f"{late} {half} reach their best step in the last 25% of training, as a decaying learning rate makes them.",
            "Judge the length of training by trying a longer one.",
        )
    return (
        f"The best trials are still improving at the end of training{where_asked(numbers)}",
        f"{late} {half} reach their best step in the last 25% of training.",
        "Train for more steps: some configurations may need them to show what they can reach.",
    )


def value_text(numbers: Numbers, name: str) -> str | None:
    """Return the value that a finding calls winner or runner_up, or the ends of its bucket; None where it has none."""
    if has(numbers, name):
        text = number_text(numbers[name])
        # A combination of values reads as one.
        return f"({text})" if ", " in text and not text.startswith("(") else text
    if has(numbers, f"{name}_low", f"{name}_high"):
        return f"{number_text(numbers[f'{name}_low'])} to {number_text(numbers[f'{name}_high'])}"
    return None


def pruned_text(numbers: Numbers) -> str:
    """Return a sentence about the pruned trials that an isolation leaves out; "" where there are none."""
    if not numbers.get("n_pruned"):
        return ""
    verb = "is" if numbers["n_pruned"] == 1 else "are"
    count = count_text(numbers["n_pruned"], "pruned trial")
    return f" {count} {verb} left out, which is unfair to values that learn slowly."


def _isolation(finding: Finding) -> Words | None:
    numbers = finding.numbers
    winner, runner_up = value_text(numbers, "winner"), value_text(numbers, "runner_up")
    if winner is None or not has(numbers, "best"):
        return None
    subject = f"({finding.subject})" if ", " in finding.subject else finding.subject
    sentence = f"At its best, {subject} = {winner} reaches {number_text(numbers['best'])}"
    if runner_up is not None and has(numbers, "runner_up_best"):
        sentence += f"; {runner_up} reaches {number_text(numbers['runner_up_best'])}"
    sentence += "."
    if has(numbers, "lead", "p"):
        lead = number_text(numbers["lead"])
        first = "The best trial belongs" if lead == "1" else f"The best {lead} trials all belong"
        sentence += (
            f" {first} to {winner}; were the values equally good, a lead this long would have the chance "
            f"{number_text(numbers['p'])}."
        )
    elif has(numbers, "n_points", "n_wins", "p"):
        sentence += (
            f" Of the best {count_text(numbers['n_points'], 'point')} that it shares with other values, it is the best "
            f"at {number_text(numbers['n_wins'])}; were the values equally good, so many would have the chance "
            f"{number_text(numbers['p'])}."
        )
    sentence += pruned_text(numbers)
    retrain = "retrain its best configuration with several seeds: a search's winner is lucky."
    if has(numbers, "p_winner", "allowed_p") and as_float(numbers["p_winner"]) > as_float(numbers["allowed_p"]):
        return (
            f"{finding.subject}: the values differ, {winner} leads narrowly",
            f"{sentence} Over one other value alone, such a lead would have a chance of up to "
            f"{number_text(numbers['p_winner'])}.",
            f"Drop the values that are far behind, and compare the close ones with more trials. Before adopting "
            f"{winner}, {retrain}",
        )
    return f"{finding.subject}: {winner} leads", sentence, f"Before adopting {winner}, {retrain}"


FLAGS: dict[str, Callable[[Finding], Words | None]] = {
    "feasibility": _feasibility,
    "stability edge": _stability_edge,
    "boundary": _boundary,
    "best step": _best_step,
    "isolation": _isolation,
    **RUN_FLAGS,
    **CHECKLIST_FLAGS,
    **NEXT_ROUND_FLAGS,
}
