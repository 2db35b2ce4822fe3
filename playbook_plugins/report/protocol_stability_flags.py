"""What do the procedures that look for stable training find, and what is to be done about it? In words.

Playbook: "Identifying unstable workloads", "How to apply learning rate warmup", "Gradient clipping", "Potential fixes
for common instability patterns". As in flags.py, None stands for missing numbers.
"""

from __future__ import annotations

from collections.abc import Callable

from playbook_plugins.analysis import Finding
from playbook_plugins.report.phrases import Words, capital, count_text, has, number_text, percent

_CUT = "Cut the learning rate instead"

# What is looked for; {} is what it was asked about.
STABILITY_QUESTIONS = {
    "learning rate sweep": "a best rate at an end of the sweep of {}",
    "warmup": "instability that no warmup removes at {}",
    "warmup length": "a warmup that takes more than 5% of {}",
    "clipping": "instability that clipping does not remove by its {}",
    "instability remedy": "a remedy for instability that is left to try: {}",
}


def _learning_rate_sweep(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "n_trials", "n_feasible"):
        return None
    if numbers["n_feasible"] == 0:
        return (
            f"{finding.subject}: no rate of the sweep trains",
            f"All {count_text(numbers['n_trials'], 'trial')} are infeasible.",
            "Sweep much smaller rates; where those fail too, look for a bug first.",
        )
    if not has(numbers, "best", "at_boundary"):
        return None
    side = str(numbers["at_boundary"])
    extreme, wider = ("smallest", "smaller") if side == "lower" else ("largest", "larger")
    return (
        f"{finding.subject}: the best rate is at the {side} end of the sweep",
        f"The best trial has {finding.subject} = {number_text(numbers['best'])}, the {extreme} that was tried.",
        f"Sweep {wider} rates too before anything rests on the best one.",
    )


def _warmup(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "base_learning_rate", "longest", "n_runs"):
        return None
    n_runs = count_text(numbers["n_runs"], "run")
    sentence = f"At a base rate of {number_text(numbers['base_learning_rate'])}, "
    if numbers.get("n_stable"):
        n_stable = number_text(numbers["n_stable"])
        sentence += f"{n_stable} of {n_runs} trained stably, but one with a longer warmup did not"
    else:
        sentence += f"none of {n_runs} trained stably"
    if has(numbers, "kind"):
        sentence += (
            f"; with {number_text(numbers['longest'])} warmup steps, the most that were tried: {numbers['kind']}"
        )
        sentence += f" (step {number_text(numbers['step'])})" if has(numbers, "step") else ""
    action = "Clip gradients, or go on with a smaller base rate."
    if has(numbers, "needed_max_train_steps"):
        action += (
            f" Ten times as much warmup would need a training of {number_text(numbers['needed_max_train_steps'])} "
            "steps or more."
        )
    return f"No warmup that was tried makes training stable ({finding.subject})", f"{sentence}.", action


def _warmup_unknown(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "n_unknown", "n_unstable"):
        return None
    return (
        f"Whether warmup makes training stable cannot be said ({finding.subject})",
        f"{capital(count_text(numbers['n_unknown'], 'run'))} could not be judged, being too short or infeasible for "
        f"another reason; {number_text(numbers['n_unstable'])} were unstable. Record the training loss at every step, "
        "over 50 steps at least.",
        "",
    )


def _warmup_length(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "warmup_steps", "max_train_steps", "share", "longer_max_train_steps"):
        return None
    action = f"Train for {number_text(numbers['longer_max_train_steps'])} steps, the warmup prepended"
    if has(numbers, "needed_max_train_steps"):
        action += f", and for up to {number_text(numbers['needed_max_train_steps'])} if that does not reach as far"
    return (
        "The warmup takes much of training",
        f"{number_text(numbers['warmup_steps'])} steps are {percent(numbers['share'])} of "
        f"{number_text(numbers['max_train_steps'])}, more than 5%.",
        f"{action}.",
    )


def _no_warmup(finding: Finding) -> Words | None:
    if finding.numbers.get("warmup_steps") is not None or "max_train_steps" not in finding.numbers:
        return None
    return ("No warmup was found stable, so that its length cannot be judged", "", "")


def _clipping(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "threshold", "n_runs"):
        return None
    threshold = number_text(numbers["threshold"])
    if numbers.get("is_aggressive") and has(numbers, "clipped_share", "max_clipped_share"):
        is_stable = numbers.get("is_stable")
        end = "training is stable" if is_stable else "training is unstable even then"
        return (
            f"{finding.subject}: clipping would have to cut most updates",
            f"At {threshold}, {percent(numbers['clipped_share'])} of the updates are clipped, more than "
            f"{percent(numbers['max_clipped_share'])}{'' if is_stable is None else f'; {end}'}.",
            f"{_CUT}: clipping that much is a roundabout way of doing so.",
        )
    sentence = f"Of {count_text(numbers['n_runs'], 'threshold')} none helped, down to {threshold}"
    if has(numbers, "clipped_share"):
        sentence += f", where {percent(numbers['clipped_share'])} of the updates are clipped"
    if has(numbers, "kind"):
        sentence += f". The run there shows: {numbers['kind']}"
        sentence += f" (step {number_text(numbers['step'])})" if has(numbers, "step") else ""
    return (
        f"{finding.subject}: training stays unstable",
        f"{sentence}.",
        f"{_CUT} of clipping still more updates; or try longer warmup, which cures some instabilities that clipping "
        "does not.",
    )


def _clipping_unknown(finding: Finding) -> Words | None:
    what = "without clipping" if finding.numbers.get("n_runs") == 0 else "with clipping"
    return (
        f"{finding.subject}: whether training {what} is stable cannot be said",
        "The run was too short, or infeasible for another reason. Record the training loss at every step, over 50 "
        "steps at least.",
        "",
    )


def _remedy(finding: Finding) -> Words | None:
    numbers = finding.numbers
    subject = finding.subject
    if subject == "optimizer" and has(numbers, "optimizer"):
        return (
            "Another optimizer may be more stable",
            f"The optimizer is {numbers['optimizer']}.",
            "Try Adam, which sometimes copes with instabilities that momentum does not.",
        )
    if subject == "normalization" and has(numbers, "n_weight_layers"):
        return (
            "The model has no normalization",
            f"It has {count_text(numbers['n_weight_layers'], 'layer')} with weights, and not one that normalizes.",
            "Add normalization layers.",
        )
    if subject == "residual connections" and has(numbers, "n_weight_layers"):
        return (
            "The model has no residual connections",
            f"{count_text(numbers['n_weight_layers'], 'layer')} with weights follow each other in one chain.",
            "Add residual connections.",
        )
    if subject == "normalization placement" and has(numbers, "n_layers", "n_after_sum", "first"):
        return (
            "The model normalizes after the residual sum",
            f"{number_text(numbers['n_after_sum'])} of {count_text(numbers['n_layers'], 'transformer layer')} do, as "
            f"Norm(x + f(x)), the first of them {numbers['first'] or 'the model itself'}.",
            "Normalize within the branch, before the sum, for instance with norm_first=True.",
        )
    if subject == "zero-initialized branches" and has(numbers, "n_branches", "n_not_zero", "first"):
        return (
            "Residual branches do not begin at zero",
            f"{number_text(numbers['n_not_zero'])} of {count_text(numbers['n_branches'], 'branch weight')} are not "
            f"zero, the first of them {numbers['first']}.",
            "Try initializing the last weights of each residual branch to zero.",
        )
    if subject == "learning rate":
        rate = f"It is {number_text(numbers['learning_rate'])}." if has(numbers, "learning_rate") else ""
        return (
            "A lower learning rate is what is left",
            rate,
            "Lower it: the last resort, the other remedies being used.",
        )
    return None


def _remedy_unseen(finding: Finding) -> Words | None:
    if finding.subject == "learning rate":
        return (
            "Whether a lower learning rate is the last resort cannot be said",
            "Some of the other remedies cannot be seen in what was passed. Look for them in the training code first.",
            "",
        )
    return f"Whether the training uses this cannot be seen: {finding.subject}", "", ""


STABILITY_FLAGS: dict[str, Callable[[Finding], Words | None]] = {
    "learning rate sweep": _learning_rate_sweep,
    "warmup": _warmup,
    "warmup length": _warmup_length,
    "clipping": _clipping,
    "instability remedy": _remedy,
}

# Why a question has no answer, where it is not for want of trials.
STABILITY_UNANSWERED: dict[str, Callable[[Finding], Words | None]] = {
    "warmup": _warmup_unknown,
    "warmup length": _no_warmup,
    "clipping": _clipping_unknown,
    "instability remedy": _remedy_unseen,
}
