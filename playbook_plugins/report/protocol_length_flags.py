"""How large a batch, and how long a training? The words for what comparing batch sizes and training longer find.

Playbook: "Choosing the batch size to minimize training time", "Deciding how long to train when training is
compute-bound". As in flags.py, None stands for missing numbers.
"""

from __future__ import annotations

from collections.abc import Callable

from playbook_plugins.analysis import Finding
from playbook_plugins.analysis.findings import Number
from playbook_plugins.report.phrases import Words, as_float, count_text, has, number_text, percent

# What is looked for; {} is what it was asked about.
LENGTH_QUESTIONS = {
    "batch size": "the {} that trains fastest",
    "transfer": "what speaks against keeping for long runs what short ones say about {}",
    "longer training": "long runs that are no better than short ones",
    "schedule extension": "extra steps at too small a {}",
}


def _batch_size(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "batch_size", "by", "steps", "goal"):
        return None
    subject, size = finding.subject, number_text(numbers["batch_size"])
    sentence = (
        f"With {subject} = {size} training beats the goal of {number_text(numbers['goal'])} after "
        f"{_whole(numbers['steps'])} steps"
    )
    action = (
        f"from now on. Another {subject} would mean tuning most other hyperparameters again, the learning rate first."
    )
    if numbers["by"] == "seconds":
        headline = f"Training is fastest with {subject} = {size}"
        if has(numbers, "seconds", "runner_up", "runner_up_seconds"):
            sentence += (
                f", in {number_text(numbers['seconds'])} seconds; with {number_text(numbers['runner_up'])}, the next "
                f"fastest, in {number_text(numbers['runner_up_seconds'])} seconds"
            )
        action = f"Keep {subject} = {size} {action}"
    else:
        if not has(numbers, "smallest", "largest", "steps_at_smallest", "steps_at_largest"):
            return None
        # Nothing is known of batches beyond the largest that reached the goal.
        is_largest = numbers["batch_size"] == numbers["largest"]
        end = "smallest" if is_largest else "largest"
        headline = f"{subject}: batches larger than {size} save hardly any training steps"
        if is_largest:
            headline = f"{subject}: up to {size}, the largest that reached the goal, larger batches save steps"
        sentence += (
            f"; with {number_text(numbers[end])}, the {end} that reached it, after {_whole(numbers[f'steps_at_{end}'])}"
        )
        action = (
            "Measure the examples per second too: where a larger batch makes steps slower, a smaller one may need "
            f"less time. Then keep one {subject} {action}"
        )
    trials = count_text(numbers["n_trials"], "trial") if has(numbers, "n_trials") else "trials"
    return headline, f"{sentence}. Each size is judged by the fastest of its {trials}.", action


def _whole(steps: Number) -> str:
    """Return a number of steps without the fraction that it has, read off between two evaluations."""
    return f"{as_float(steps):,.0f}"


def _batch_size_unknown(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "n_sizes", "n_reached"):
        return None
    goal = f"the goal of {number_text(numbers['goal'])}" if has(numbers, "goal") else "the goal"
    reached = f"{number_text(numbers['n_reached'])} of {count_text(numbers['n_sizes'], 'batch size')} reached {goal}"
    if as_float(numbers["n_reached"]) >= 2:
        return (
            "No batch size is recommended: a larger one did worse than a smaller one",
            f"{reached}, but a larger batch took clearly more steps to it than a smaller one, or missed it. Tuned "
            "equally well, a larger batch never needs more steps. So the sizes cannot be compared yet: give each more "
            "trials, or its other hyperparameters wider ranges.",
            "",
        )
    return (
        "No batch size is recommended: fewer than two reached the goal",
        f"{reached}, so that there is nothing to compare. Train for more steps, or choose a goal that is easier to "
        "reach.",
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


LENGTH_FLAGS: dict[str, Callable[[Finding], Words | None]] = {
    "batch size": _batch_size,
    "transfer": _transfer,
    "longer training": _longer_training,
    "schedule extension": _schedule_extension,
}

# Why a question has no answer, where it is not for want of trials.
LENGTH_UNANSWERED: dict[str, Callable[[Finding], Words | None]] = {
    "batch size": _batch_size_unknown,
    "transfer": _transfer_unknown,
}
