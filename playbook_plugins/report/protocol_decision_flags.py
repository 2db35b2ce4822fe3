"""Is a configuration good enough to start tuning from, or to launch? The words for what its runs say.

Playbook: "Choosing the initial configuration", "Determining whether to adopt a training pipeline change or
hyperparameter configuration". As in flags.py, None stands for missing numbers.
"""

from __future__ import annotations

from collections.abc import Callable

from playbook_plugins.analysis import Finding
from playbook_plugins.report.phrases import Words, count_text, has, number_text, percent

# What is looked for; {} is what it was asked about.
DECISION_QUESTIONS = {
    "start": "something against tuning from the first configuration in its {}",
    "retraining": "divergence in retrains of the {}",
    "launch": "an advantage of the {} that holds when it is retrained",
    "searched value": "luck in what the search found of the {}",
}


def _start(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if finding.subject == "time" and has(numbers, "seconds", "max_seconds"):
        return (
            "The first configuration is slow",
            f"A run takes {number_text(numbers['seconds'])} seconds; {number_text(numbers['max_seconds'])} were "
            "allowed.",
            "Begin with a smaller model or fewer steps: fast runs make all tuning after them faster.",
        )
    if finding.subject == "simplicity" and "n_extras" in numbers:
        parts = [str(numbers["extras"])] if has(numbers, "extras") else []
        parts += ["a learning rate that decays"] if numbers.get("decays") else []
        if not parts:
            return None
        return (
            "The first configuration is not simple",
            f"It has: {', '.join(parts)}.",
            "Leave them out and add them later, one at a time, on evidence.",
        )
    return _start_result(finding) if finding.subject == "result" else None


def _start_result(finding: Finding) -> Words | None:
    numbers = finding.numbers
    action = "Find a configuration that learns first: a smaller learning rate, a smaller model, and a look for bugs."
    if has(numbers, "reason"):
        return "The first configuration does not train", f"The run is infeasible: {numbers['reason']}.", action
    if not has(numbers, "chance_level", "best", "late"):
        return None
    sentence = (
        f"Late in training the objective is {number_text(numbers['late'])} (at best {number_text(numbers['best'])}), "
        f"by guessing {number_text(numbers['chance_level'])}"
    )
    if has(numbers, "noise"):
        sentence += f"; its evaluations vary by {number_text(numbers['noise'])}"
    return "The first configuration is not clearly better than guessing", f"{sentence}.", action


def _start_unknown(finding: Finding) -> Words | None:
    if finding.subject == "time":
        return "How long the first configuration takes is not known", "", ""
    return (
        "Whether the first configuration is better than guessing cannot be said",
        f"There are {count_text(finding.numbers.get('n_evaluations', 0), 'evaluation')}: too few to know their noise. "
        "Evaluate at least 12 times during training.",
        "",
    )


def _retraining(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "n_retrains", "n_diverged"):
        return None
    return (
        f"Retrains of the {finding.subject} diverge",
        f"{number_text(numbers['n_diverged'])} of {number_text(numbers['n_retrains'])} did, which differ in their seed "
        "only.",
        "Make training stable (warmup, gradient clipping, a smaller learning rate) before anything is launched.",
    )


def _launch(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "n_candidate", "n_baseline", "probability"):
        return None
    by = ""
    if has(numbers, "improvement", "low", "high", "confidence"):
        by = (
            f" by {number_text(numbers['improvement'])} ({percent(numbers['confidence'])} interval "
            f"{number_text(numbers['low'])} to {number_text(numbers['high'])})"
        )
    elif has(numbers, "n_diverged_candidate", "n_diverged_baseline"):
        by = (
            f" ({number_text(numbers['n_diverged_candidate'])} of its retrains and "
            f"{number_text(numbers['n_diverged_baseline'])} of the other's diverged; compared by rank)"
        )
    adds = f" It adds: {numbers['adds_complexity']}." if has(numbers, "adds_complexity") else ""
    return (
        "The candidate is better than the baseline when retrained",
        f"Over {count_text(numbers['n_candidate'], 'retrain')} against {number_text(numbers['n_baseline'])} it is "
        f"better{by}; the probability that it is better is {percent(numbers['probability'])}, for someone with no "
        f"prior preference.{adds}",
        "Launch it if that outweighs what it adds. Its retrains, not the search's best, are the figure to beat from "
        "now on.",
    )


def _searched_value(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "search_best", "mean", "optimism", "n_trials"):
        return None
    expected = ""
    if has(numbers, "expected_bias"):
        expected = f" About {number_text(numbers['expected_bias'])} was to be expected, being the best of so many."
    return (
        "The winner of the search was lucky",
        f"The best of {count_text(numbers['n_trials'], 'trial')} reached {number_text(numbers['search_best'])}; its "
        f"retrains reach {number_text(numbers['mean'])} on average, {number_text(numbers['optimism'])} worse."
        f"{expected}",
        "Report the retrains. A value that was chosen for being the best is no evidence for anything.",
    )


DECISION_FLAGS: dict[str, Callable[[Finding], Words | None]] = {
    "start": _start,
    "retraining": _retraining,
    "launch": _launch,
    "searched value": _searched_value,
}

# Why a question has no answer, where it is not for want of trials.
DECISION_UNANSWERED: dict[str, Callable[[Finding], Words | None]] = {
    "start": _start_unknown,
}
