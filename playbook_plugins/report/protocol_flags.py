"""What do the findings of the procedures mean, and what is to be done about them? In words.

Playbook: the sections of the procedures in playbook_plugins.optuna. As in flags.py, None stands for missing numbers.
"""

from __future__ import annotations

from collections.abc import Callable

from playbook_plugins.analysis import Finding
from playbook_plugins.report.phrases import Words, as_float, capital, count_text, has, number_text, percent

_CUT = "Cut the learning rate instead"


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
        f"another reason; {number_text(numbers['n_unstable'])} were unstable.",
        "Record the training loss at every step, over 50 steps at least.",
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
        "The run was too short, or infeasible for another reason.",
        "Record the training loss at every step, over 50 steps at least.",
    )


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
        f"There are {count_text(finding.numbers.get('n_evaluations', 0), 'evaluation')}: too few to know their noise.",
        "Evaluate at least 12 times during training.",
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
            "Some of the other remedies cannot be seen in what was passed.",
            "Look for them in the training code first.",
        )
    return f"Whether the training uses this cannot be seen: {finding.subject}", "", ""


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


def _batch_size(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "batch_size", "by", "steps", "goal"):
        return None
    sentence = f"It takes {number_text(numbers['steps'])} steps to {number_text(numbers['goal'])}"
    if numbers["by"] == "seconds" and has(numbers, "seconds", "runner_up", "runner_up_seconds"):
        sentence += (
            f" in {number_text(numbers['seconds'])} seconds; the next best, {number_text(numbers['runner_up'])}, needs "
            f"{number_text(numbers['runner_up_seconds'])}"
        )
        headline = f"Training is fastest with {finding.subject} = {number_text(numbers['batch_size'])}"
    else:
        headline = f"Beyond {finding.subject} = {number_text(numbers['batch_size'])} hardly any steps are saved"
    return (
        headline,
        f"{sentence}, each size at its own best hyperparameters.",
        "Fix it for all that follows: most other hyperparameters would have to be tuned again with another.",
    )


def _batch_size_unknown(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "n_sizes", "n_reached"):
        return None
    if as_float(numbers["n_reached"]) >= 2:
        return (
            "No batch size is recommended: larger ones need more steps than smaller ones",
            f"{number_text(numbers['n_reached'])} of {number_text(numbers['n_sizes'])} sizes reached the goal. A "
            "larger batch that is tuned as well never needs more steps: widen its search space, or give each size more "
            "trials.",
            "",
        )
    return (
        "No batch size is recommended: too few of them reached the goal",
        f"{number_text(numbers['n_reached'])} of {number_text(numbers['n_sizes'])} sizes did. Train longer, or choose "
        "a goal that is easier to reach.",
        "",
    )


def _transfer(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "kind"):
        return None
    return (
        f"What short runs say about {finding.subject} is unlikely to hold for long ones",
        f"It belongs to the {numbers['kind']}, whose best setting depends on the length of training.",
        "Tune it again at the final length, or use the extra steps at the high learning rate.",
    )


def _transfer_unknown(finding: Finding) -> Words | None:
    return (
        f"Whether what short runs say about {finding.subject} holds for long ones cannot be said",
        "Its name does not tell what it is.",
        "",
    )


def _longer_training(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if numbers.get("n_infeasible") and numbers.get("n_infeasible") == numbers.get("n_runs"):
        return (
            "All long runs are infeasible",
            f"The {count_text(numbers['n_runs'], 'run')} diverged, or broke in another way.",
            "Look at their curves: warmup, gradient clipping or a smaller learning rate may be needed at this length.",
        )
    if not has(numbers, "best_short", "best_long", "n_better", "n_runs"):
        return None
    return (
        "Training longer does not improve the best run",
        f"The best long run reaches {number_text(numbers['best_long'])}, the best short one had reached "
        f"{number_text(numbers['best_short'])}; {number_text(numbers['n_better'])} of "
        f"{count_text(numbers['n_runs'], 'configuration')} are better for being trained longer.",
        "With frequent checkpoints and the best of them kept, longer training should not harm: check these, and the "
        "schedule; else training is not limited by compute.",
    )


def _schedule_extension(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "extra_steps", "share_high"):
        return None
    return (
        "The extra steps are spent at too small a learning rate",
        f"Of {number_text(numbers['extra_steps'])} more steps, {percent(max(0.0, as_float(numbers['share_high'])))} "
        "are at half of the peak rate or more.",
        "Extend the part at the high learning rate, and keep the decay as long as it was.",
    )


# What is looked for; {} is what it was asked about.
PROTOCOL_QUESTIONS = {
    "learning rate sweep": "a best rate at an end of the sweep of {}",
    "warmup": "instability that no warmup removes at {}",
    "warmup length": "a warmup that takes more than 5% of {}",
    "clipping": "instability that clipping does not remove by its {}",
    "start": "something against tuning from the first configuration in its {}",
    "instability remedy": "a remedy for instability that is left to try: {}",
    "retraining": "divergence in retrains of the {}",
    "launch": "an advantage of the {} that holds when it is retrained",
    "searched value": "luck in what the search found of the {}",
    "batch size": "a fastest {}",
    "transfer": "what speaks against keeping for long runs what short ones say about {}",
    "longer training": "long runs that are no better than short ones",
    "schedule extension": "extra steps at too small a {}",
}

PROTOCOL_FLAGS: dict[str, Callable[[Finding], Words | None]] = {
    "learning rate sweep": _learning_rate_sweep,
    "warmup": _warmup,
    "warmup length": _warmup_length,
    "clipping": _clipping,
    "start": _start,
    "instability remedy": _remedy,
    "retraining": _retraining,
    "launch": _launch,
    "searched value": _searched_value,
    "batch size": _batch_size,
    "transfer": _transfer,
    "longer training": _longer_training,
    "schedule extension": _schedule_extension,
}

# Why a question has no answer, where it is not for want of trials.
PROTOCOL_UNANSWERED: dict[str, Callable[[Finding], Words | None]] = {
    "warmup": _warmup_unknown,
    "warmup length": _no_warmup,
    "clipping": _clipping_unknown,
    "start": _start_unknown,
    "instability remedy": _remedy_unseen,
    "batch size": _batch_size_unknown,
    "transfer": _transfer_unknown,
}
