"""What does each check of a single run mean, and what is to be done about it? Throughput and stability, in words.

Playbook: "Determining the feasible batch sizes and estimating training throughput", "Identifying unstable
workloads", "Potential fixes for common instability patterns". As in flags.py, None stands for missing numbers.
"""

from __future__ import annotations

from collections.abc import Callable

from playbook_plugins.analysis import Finding
from playbook_plugins.report.phrases import Words, as_float, count_text, has, number_text, percent

_WARMUP = "Prepend learning rate warmup"
_CLIPPING = "Clip gradients at the 90th percentile of their norms"

# What is looked for; {} is what it was asked about.
QUESTIONS = {
    "throughput": "a limit of the training throughput by the {}",
    "non-finite": "a loss that ceases to be finite at {}",
    "early instability": "an early blow-up of the loss at {}",
    "no progress": "training that never gets better than its start at {}",
    "loss rise": "a loss that rises after a decline at {}",
    "loss spike": "spikes of the loss at {}",
    "gradient norm spike": "outlying gradient norms at {}",
    "learning rate limit": "instability that keeps the best learning rate from being larger",
}


def _throughput(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if finding.subject == "accelerator" and has(numbers, "recommended", "gain_beyond"):
        size = number_text(numbers["recommended"])
        return (
            f"Batches larger than {size} do not pay",
            f"The next larger batch size brings {number_text(numbers['gain_beyond'])} times the examples per second of "
            f"half of it; {size} per device is the largest that brings 1.1 times or more.",
            f"Train with batches of at most {size} per device.",
        )
    if finding.subject == "input" and has(numbers, "wait_share"):
        return (
            "Training waits for data",
            f"Waiting for the loader takes {percent(numbers['wait_share'])} of a step.",
            "Load faster (more workers, cheaper transforms, faster storage), then measure again.",
        )
    if finding.subject == "memory" and has(numbers, "failed_batch_size"):
        failed = number_text(numbers["failed_batch_size"])
        if not has(numbers, "recommended"):
            return (
                "No batch size fits into memory",
                f"Even {count_text(numbers['failed_batch_size'], 'example')} per device is too much.",
                "Train a smaller model or shorter examples, or in a lower precision.",
            )
        return (
            "Memory limits the training throughput",
            f"The throughput still grows at {number_text(numbers['recommended'])} examples per device; {failed} run "
            "out of memory.",
            "Save memory (a lower precision, activation checkpointing) if more throughput is worth it. Gradient "
            "accumulation brings none: avoid it.",
        )
    return None


def _non_finite(finding: Finding) -> Words | None:
    if not has(finding.numbers, "step"):
        return None
    return (
        f"Training diverges ({finding.subject})",
        f"A loss, an objective or a gradient norm is no longer finite at step {number_text(finding.numbers['step'])}.",
        f"{_WARMUP} if that is early in training; {_CLIPPING.lower()} if it is later.",
    )


def _early_instability(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "step"):
        return None
    end = ""
    if has(numbers, "recovered"):
        end = " and comes back below it later" if numbers["recovered"] else " and does not come back below it"
    return (
        f"Training blows up early ({finding.subject})",
        f"The loss rises above its first value, up to step {number_text(numbers['step'])}{end}: usual evaluations are "
        "too rare to see it.",
        f"{_WARMUP}; if that does not suffice, clip gradients as well.",
    )


def _no_progress(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "share_not_better", "share_of_range"):
        return None
    return (
        f"Training never gets better than its start ({finding.subject})",
        f"{percent(numbers['share_not_better'])} of the evaluations are not better than the one before training, and "
        f"in the last half they are worse by {percent(numbers['share_of_range'])} of their range.",
        f"{_WARMUP} and clip gradients, or lower the learning rate.",
    )


def _loss_rise(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "step", "low_step", "share_of_range"):
        return None
    return (
        f"The loss rises again during training ({finding.subject})",
        f"Having been lowest around step {number_text(numbers['low_step'])}, it is higher by "
        f"{percent(numbers['share_of_range'])} of its range around step {number_text(numbers['step'])}.",
        f"{_CLIPPING}, or lower the learning rate. (A schedule that restarts the learning rate raises the loss, too.)",
    )


def _loss_spike(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "step", "n_spikes"):
        return None
    n_spikes = number_text(numbers["n_spikes"])
    return (
        f"The loss spikes ({finding.subject})",
        f"It leaps above the steps before it and stays there for three steps or more {n_spikes} "
        f"{'time' if n_spikes == '1' else 'times'}, first at step {number_text(numbers['step'])}.",
        f"{_CLIPPING}.",
    )


def _norm_spike(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "step", "ratio"):
        return None
    return (
        f"Some gradient norms lie far out ({finding.subject})",
        f"The largest is {number_text(numbers['ratio'])} times the median of the norms before it; the first is at step "
        f"{number_text(numbers['step'])}.",
        f"{_CLIPPING}: outlying gradients can make training unstable at any time.",
    )


def _learning_rate_limit(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "unstable_factor", "kind"):
        return None
    factor = number_text(numbers["unstable_factor"])
    where = "At the best learning rate itself" if factor == "1" else f"At {factor} times the best learning rate"
    sentence = f"{where} the run shows: {numbers['kind']}"
    if has(numbers, "step"):
        sentence += f" (step {number_text(numbers['step'])})"
    if has(numbers, "stable_factor") and as_float(numbers["stable_factor"]) > 1:
        sentence += f"; at {number_text(numbers['stable_factor'])} times there is no sign of it"
    return (
        "Instability keeps the learning rate small",
        f"{sentence}.",
        f"{_WARMUP} where the blow-up is early, clip gradients where it is not, and search for the learning rate "
        "again: a larger one may train better.",
    )


def too_little(finding: Finding) -> str:
    """Return what there is too little of to answer a check of a single run."""
    return "Too few batch sizes" if finding.check == "throughput" else "Too short a run"


RUN_FLAGS: dict[str, Callable[[Finding], Words | None]] = {
    "throughput": _throughput,
    "non-finite": _non_finite,
    "early instability": _early_instability,
    "no progress": _no_progress,
    "loss rise": _loss_rise,
    "loss spike": _loss_spike,
    "gradient norm spike": _norm_spike,
    "learning rate limit": _learning_rate_limit,
}
