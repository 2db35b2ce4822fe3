"""What do the checks of curves, budget, adoption and evaluation mean, and what is to be done about them? In words.

Playbook: "Examining the training curves", "Not sampling enough points in the search space", "Determining whether to
adopt a training pipeline change or hyperparameter configuration", "Choosing a sample for periodic evaluation". As in
flags.py, None stands for missing numbers.
"""

from __future__ import annotations

from collections.abc import Callable

from playbook_plugins.analysis import Finding
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
    where_asked,
)

# What is looked for; {} is what it was asked about.
QUESTIONS = {
    "overfitting": "overfitting in {}",
    "late variance": "evaluations that vary much late in training in {}",
    "still improving": "training that ended while still improving in {}",
    "early saturation": "training that was over early in {}",
    "rising training loss": "a training objective that gets worse in {}",
    "periodic validation": "a validation metric that swings with a period in {}",
    "interaction": "hyperparameters that must be tuned together in the {}",
    "budget": "points still missing, or hyperparameters that do not matter, in the {}",
    "adoption": "an advantage of {} that holds when it is retrained",
    "selection bias": "a best result that owes much to the luck of the {}",
    "evaluation sample": "a sampled evaluation set that differs from the full one in its {}",
    "steps to target": "larger batches that need more steps",
    "critical batch size": "batch sizes beyond which hardly any steps are saved",
    "max_train_steps": "a sweep that misleads about max_train_steps by its {}",
}


def _overfitting(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if has(numbers, "n_overfitting", "n_trials", "trial"):
        n_overfitting = count_text(numbers["n_overfitting"], "trial")
        return (
            f"Overfitting in {n_overfitting} of {number_text(numbers['n_trials'])}",
            f"Trial {number_text(numbers['trial'])} overfits most. Selecting the best trial favors those that do not.",
            "Add or tune regularization before the next round: configurations may have lost only because they overfit.",
        )
    if not has(numbers, "best_step", "share_of_range"):
        return None
    return (
        f"Overfitting ({finding.subject})",
        f"Having been best around step {number_text(numbers['best_step'])}, it is worse at the end by "
        f"{percent(numbers['share_of_range'])} of its range.",
        "Run it again with more regularization (dropout, weight decay, label smoothing) before comparing scientific "
        "values.",
    )


def _late_variance(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "noise", "share_of_range"):
        return None
    return (
        f"Evaluations late in training vary much ({finding.subject})",
        f"From one evaluation to the next the objective varies by {percent(numbers['share_of_range'])} of its range "
        f"(standard deviation {number_text(numbers['noise'])}): at which step training stops is luck.",
        "Use a larger batch, more validation data, a learning rate that decays, or an average of the weights.",
    )


def _still_improving(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "gain", "share_of_range"):
        return None
    return (
        f"Training ended while still improving ({finding.subject})",
        f"Over its last part the objective improved by {number_text(numbers['gain'])}, "
        f"{percent(numbers['share_of_range'])} of its range.",
        "Train longer, or change the learning rate schedule.",
    )


def _early_saturation(finding: Finding) -> Words | None:
    if not has(finding.numbers, "step"):
        return None
    return (
        f"Training was over early ({finding.subject})",
        f"From step {number_text(finding.numbers['step'])} on the objective hardly changes.",
        "Train for fewer steps and spend them on more trials.",
    )


def _rising_training_loss(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "best_step", "share_of_range"):
        return None
    return (
        f"The training objective gets worse ({finding.subject})",
        f"Having been best around step {number_text(numbers['best_step'])}, it is worse at the end by "
        f"{percent(numbers['share_of_range'])} of its range.",
        "Look for a bug in the training pipeline, or for instability, first. (A learning rate that restarts does this, "
        "too.)",
    )


def _periodic_validation(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "period", "period_steps", "share_of_variance"):
        return None
    return (
        f"The validation metric swings with a period ({finding.subject})",
        f"It comes back every {number_text(numbers['period'])} evaluations ({number_text(numbers['period_steps'])} "
        f"steps), which explains {percent(numbers['share_of_variance'])} of its variation.",
        "Check that the training data are shuffled every epoch and that every evaluation sees the same examples.",
    )


def _interaction(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "first", "second", "n_points", "share", "partial_correlation"):
        return None
    first, second = number_text(numbers["first"]), number_text(numbers["second"])
    points = count_text(numbers["n_points"], "feasible point" if numbers.get("feasible_only") else "point")
    share = f"{percent(numbers['share'])} of the variance of the ranks over {points}"
    if has(numbers, "t"):
        better = "higher" if as_float(numbers["partial_correlation"]) > 0 else "lower"
        return (
            f"{first} and {second} must be tuned together",
            f"Where {first} is high, {better} values of {second} are better; that explains {share}.",
            "Search both in one study. Where one is fixed, the best value of the other holds for that value only.",
        )
    sentence = f"The best {second} depends on {first}; that explains {share}."
    if has(numbers, "lower_value", "lower_best", "higher_value", "higher_best"):
        sentence += (
            f" It is about {number_text(numbers['lower_best'])} for {number_text(numbers['lower_value'])} and "
            f"{number_text(numbers['higher_best'])} for {number_text(numbers['higher_value'])}."
        )
    return (
        f"{second} must be tuned anew for each {first}",
        sentence,
        f"Give each {first} its own search over {second}: at one fixed value, the {first} that it suits wins.",
    )


def _budget(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "n_points", "insensitive", "best"):
        return None
    n_points = number_text(numbers["n_points"])
    if numbers["insensitive"] and numbers.get("spread") == 0:
        return (
            f"Every trial has the same objective{where_asked(numbers)}",
            f"All {n_points} points reach {number_text(numbers['best'])}.",
            "Suspect a bug first: check that the hyperparameters reach training, and that the metric can move.",
        )
    if not has(numbers, "retrain_sd"):
        return None
    retrain = number_text(numbers["retrain_sd"])
    if numbers["insensitive"]:
        return (
            f"The objective hardly depends on the hyperparameters here{where_asked(numbers)}",
            f"Over {n_points} points it varies by {number_text(numbers.get('spread'))} (standard deviation); "
            f"retraining alone varies it by {retrain}.",
            "More trials of this search space will mostly find luckier seeds: stop here, or search other "
            "hyperparameters or wider ranges.",
        )
    if not has(numbers, "gain", "n_more", "chance_of_improvement"):
        return None
    sentence = capital(
        f"{among(numbers)}the last doubling of the points (to {n_points}) improved the best objective by "
        f"{number_text(numbers['gain'])} on average, more than retraining varies it ({retrain})."
    )
    return (
        f"More points would probably find something better{where_asked(numbers)}",
        f"{sentence} Another {number_text(numbers['n_more'])} points of the same search beat "
        f"{number_text(numbers['best'])} with the chance {percent(numbers['chance_of_improvement'])}.",
        "Run more trials of the same study, or be less ambitious about what it is to show.",
    )


def _adoption(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "n_candidate", "n_baseline", "probability"):
        return None
    one, other = "The candidate", "the baseline"
    if has(numbers, "winner", "runner_up"):
        one, other = number_text(numbers["winner"]), number_text(numbers["runner_up"])
    by = ""
    if has(numbers, "improvement", "low", "high"):
        interval = f"{number_text(numbers['low'])} to {number_text(numbers['high'])}"
        by = f" by {number_text(numbers['improvement'])} (90% interval {interval})"
    elif has(numbers, "n_diverged_candidate", "n_diverged_baseline"):
        n_one, n_other = number_text(numbers["n_diverged_candidate"]), number_text(numbers["n_diverged_baseline"])
        by = f" ({n_one} of its retrains and {n_other} of the other's diverged; compared by rank)"
    subject = "" if finding.subject == "baseline" else f"{finding.subject}: "
    return (
        f"{subject}{one} is better when retrained",
        f"{capital(one)} is better than {other} over {number_text(numbers['n_candidate'])} fresh retrains against "
        f"{number_text(numbers['n_baseline'])}{by}; the probability that it is better is "
        f"{percent(numbers['probability'])}, for someone with no prior preference.",
        "Adopt it if that outweighs the complexity that it adds; take its retrains, not the search's best, as the "
        "figure to beat.",
    )


def _selection_bias(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "n_trials", "n_examples", "best", "expected_bias", "shrunken"):
        return None
    return (
        "The best result is flattered by being the best",
        f"Of {number_text(numbers['n_trials'])} trials judged on {number_text(numbers['n_examples'])} examples the "
        f"best reaches {number_text(numbers['best'])}; about {number_text(numbers['expected_bias'])} of that is "
        f"expected to be luck, so that its true value is nearer {number_text(numbers['shrunken'])}.",
        "Choose among the leading trials on more validation examples, and report the result from a test set; retrains "
        "are judged by the same examples and do not show it.",
    )


def _evaluation_sample(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if finding.subject == "classes" and has(numbers, "class", "n_sampled", "expected"):
        return (
            "The sampled evaluation set has other classes than the full one",
            f"Class {number_text(numbers['class'])} has {number_text(numbers['n_sampled'])} examples in it, where "
            f"{number_text(numbers['expected'])} were to be expected.",
            "Draw the sample again, at random or by class, or evaluate on the full set.",
        )
    if not has(numbers, "difference", "standard_error"):
        return None
    return (
        f"The sampled evaluation set differs from the full one ({finding.subject})",
        f"Its mean differs by {number_text(numbers['difference'])}, with a standard error of "
        f"{number_text(numbers['standard_error'])}.",
        "Draw the sample again, at random, or evaluate on the full set; until then compare trials by the sample only.",
    )


def _steps_to_target(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "rise"):
        return None
    return (
        "A larger batch needs more steps",
        f"One batch size took {number_text(numbers['rise'])} times the steps of a smaller one, or missed the goal in "
        "that time.",
        "A larger batch never needs more steps once it is tuned as well: tune the learning rate and the other "
        "optimizer hyperparameters again at each batch size, give each enough steps, and compare again.",
    )


def _critical_batch_size(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if not has(numbers, "largest_useful"):
        return None
    useful = number_text(numbers["largest_useful"])
    sentence = f"Beyond {useful} examples a step, twice the batch saves less than a tenth of the steps."
    if has(numbers, "critical_batch_size", "low"):
        high = number_text(numbers["high"]) if has(numbers, "high") else "no upper end"
        size = number_text(numbers["critical_batch_size"])
        sentence += f" The critical batch size is about {size} (interval {number_text(numbers['low'])} to {high})."
    elif has(numbers, "refusal"):
        sentence += f" No critical batch size is given: {numbers['refusal']}."
    return (
        "The largest batch sizes save hardly any steps",
        sentence,
        f"Do not use batches above {useful}; below it, take the largest whose throughput still grows, and tune again "
        "for it.",
    )


def fitting_steps(finding: Finding) -> str:
    """Return what one finding on max_train_steps says where nothing speaks against it; "" where its numbers lack."""
    numbers = finding.numbers
    if has(numbers, "max_train_steps", "low", "n_watched"):
        return (
            f"The fastest of {count_text(numbers['n_watched'], 'trial')} began to fit the training set after more than "
            f"{number_text(numbers['low'])} steps and at {number_text(numbers['max_train_steps'])} at the latest."
        )
    if has(numbers, "learning_rate", "n_smaller", "n_larger"):
        diverged = ", where training diverged" if numbers.get("stability_edge") else ""
        return (
            f"The fastest trial has {finding.subject} = {number_text(numbers['learning_rate'])}; "
            f"{count_text(numbers['n_smaller'], 'trial')} had a smaller one and {number_text(numbers['n_larger'])} a "
            f"larger one{diverged}."
        )
    if has(numbers, "n_watched", "n_unknown_schedule"):
        return (
            f"Of {count_text(numbers['n_watched'], 'trial')}, {number_text(numbers['n_unknown_schedule'])} did not "
            "record the learning rate and are taken to hold it constant."
        )
    return ""


def _max_train_steps(finding: Finding) -> Words | None:
    numbers = finding.numbers
    if finding.subject == "fit":
        return _fit(numbers)
    if finding.subject == "schedule" and has(numbers, "n_not_constant", "n_watched"):
        return (
            "The sweep for max_train_steps has learning rates that decay",
            f"{count_text(numbers['n_not_constant'], 'trial')} had to be left out for it; "
            f"{number_text(numbers['n_watched'])} of constant rate remain.",
            "Repeat them with a constant learning rate: a schedule that decays is made for a length of training.",
        )
    if finding.subject == "regularization" and has(numbers, "regularizers"):
        return (
            "The sweep for max_train_steps is regularized",
            f"Not off: {numbers['regularizers']}.",
            "Repeat the sweep without regularization and data augmentation, which slow fitting down; add steps when "
            "they come back.",
        )
    if not has(numbers, "learning_rate", "at_boundary"):
        return None
    side, rate = numbers["at_boundary"], number_text(numbers["learning_rate"])
    if side == "both":
        return (
            f"{finding.subject}: a single rate is no sweep for max_train_steps",
            f"All trials that tell have {finding.subject} = {rate}.",
            "Sweep smaller and larger rates: a badly chosen one makes training seem to need far more steps.",
        )
    extreme, wider = ("smallest", "smaller") if side == "lower" else ("largest", "larger")
    return (
        f"{finding.subject}: the fastest fit is at the {side} end of the sweep",
        f"The fastest trial has {finding.subject} = {rate}, the {extreme} that was tried.",
        f"Sweep {wider} rates too before believing max_train_steps: fewer steps may be enough.",
    )


def _fit(numbers: Numbers) -> Words | None:
    if numbers.get("at_first_evaluation") and has(numbers, "max_train_steps"):
        return (
            "The training set seems to be fitted at the first evaluation",
            f"The training objective reaches {number_text(numbers.get('goal'))} at step "
            f"{number_text(numbers['max_train_steps'])}, where it is known for the first time.",
            "Check the goal and the direction of the training objective; if they are right, evaluate more often.",
        )
    if not has(numbers, "n_watched", "goal", "last_step"):
        return None
    return (
        "No trial fits the training set perfectly",
        f"None of {count_text(numbers['n_watched'], 'trial')} brings the training objective to "
        f"{number_text(numbers['goal'])} within {number_text(numbers['last_step'])} steps.",
        "Train longer, widen the range of learning rates, or choose a goal that some configuration is known to reach; "
        "a model that is too small never fits.",
    )


CHECKLIST_FLAGS: dict[str, Callable[[Finding], Words | None]] = {
    "overfitting": _overfitting,
    "late variance": _late_variance,
    "still improving": _still_improving,
    "early saturation": _early_saturation,
    "rising training loss": _rising_training_loss,
    "periodic validation": _periodic_validation,
    "interaction": _interaction,
    "budget": _budget,
    "adoption": _adoption,
    "selection bias": _selection_bias,
    "evaluation sample": _evaluation_sample,
    "steps to target": _steps_to_target,
    "critical batch size": _critical_batch_size,
    "max_train_steps": _max_train_steps,
}
