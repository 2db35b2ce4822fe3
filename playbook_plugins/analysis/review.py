"""What should be done first? Every check that the data allow, ordered as the playbook would go through them.

Playbook: "Extracting insight from experimental results": before a result is believed, the checklist: is the search
space right, were enough points sampled, did the trials train well and long enough, and only then the scientific
question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from playbook_plugins.analysis.adoption import check_adoption, collect_retrains
from playbook_plugins.analysis.batch_size import check_critical_batch_size, critical_batch_size
from playbook_plugins.analysis.boundaries import check_boundaries
from playbook_plugins.analysis.budget import check_budget
from playbook_plugins.analysis.curves import check_curves
from playbook_plugins.analysis.feasibility import check_feasibility
from playbook_plugins.analysis.findings import Finding, Verdict
from playbook_plugins.analysis.good_region import check_good_region
from playbook_plugins.analysis.interactions import check_interactions, interacting_names
from playbook_plugins.analysis.isolation import check_isolation
from playbook_plugins.analysis.selection_bias import check_selection_bias
from playbook_plugins.analysis.sensitivity import check_sensitivity
from playbook_plugins.analysis.steps import check_best_steps
from playbook_plugins.analysis.steps_to_target import fewest_steps
from playbook_plugins.analysis.trial_stability import check_trial_stability
from playbook_plugins.analysis.trial_variance import estimate_trial_variance
from playbook_plugins.analysis.trials import Trials

# What makes later questions moot comes first.
_BUG = ("feasibility", "rising training loss", "periodic validation")
_INSTABILITY = (
    "non-finite",
    "early instability",
    "no progress",
    "loss rise",
    "loss spike",
    "gradient norm spike",
    "learning rate limit",
    "stability edge",
)
_SPACE = ("boundary",)
_TRAINING = ("overfitting", "late variance", "best step", "still improving", "early saturation", "budget")
_SCIENCE = ("isolation", "interaction", "adoption", "selection bias", "steps to target", "critical batch size")
_NEXT_ROUND = ("sensitivity", "good region")
_ORDER = (*_BUG, *_INSTABILITY, *_SPACE, *_TRAINING, *_SCIENCE, *_NEXT_ROUND)
_VERDICTS = (Verdict.FLAG, Verdict.TOO_LITTLE_DATA, Verdict.NO_EVIDENCE)
# A spread over retrains that is known from fewer says little.
_MIN_FREEDOM = 4


def review(
    trials: Trials | Sequence[Trials],
    *,
    retrain_sd: float | None = None,
    n_validation_examples: int | None = None,
    goal: float | None = None,
) -> list[Finding]:
    """Run every check that the data allow and order the findings by what to do first.

    Parameters
    ----------
    trials
        The study, finished or still running; or the studies of one round, which are joined by `Trials.concat`.
    retrain_sd
        The standard deviation of the objective over retrains of one configuration, in the objective's unit. By
        default that of the retrains among the trials, where they leave at least 4 degrees of freedom. Without it,
        nobody can say whether the last doubling of the budget gained anything.
    n_validation_examples
        The number of validation examples that an error rate or accuracy in [0, 1] was measured on: says how much the
        best of so many trials owes to them.
    goal
        In the objective's unit: compare the steps that each ``batch_size`` needs to beat it.

    Returns
    -------
    list of Finding
        Flags first, in the order a bug, instability, the search space, training and the budget, the scientific
        question, what to leave out of the next round; then what had too little data, then what showed no evidence, in
        the same order. A hyperparameter that hardly matters is not flagged where the best trials crowd against one of
        its bounds (number ``is_at_bound``) or where it must be tuned together with another (``interacts``): it is to
        be searched further, not to be fixed.

    Raises
    ------
    ValueError
        When the studies cannot be joined, or as `check_budget`, `check_selection_bias` and `fewest_steps` say.
    """
    table = trials if isinstance(trials, Trials) else Trials.concat(list(trials))
    known_sd = _retrain_sd(table) if retrain_sd is None else retrain_sd
    findings = [
        *check_feasibility(table),
        *check_trial_stability(table),
        *check_boundaries(table),
        *check_curves(table),
        *check_best_steps(table),
        *check_budget(table, known_sd),
        *check_isolation(table),
        *check_interactions(table),
        *check_adoption(table, known_sd=retrain_sd),
        *check_sensitivity(table),
        *check_good_region(table),
    ]
    if n_validation_examples is not None:
        findings += check_selection_bias(table, n_validation_examples, trial_sd=known_sd or 0.0)
    if goal is not None:
        findings += _batch_sizes(table, goal)
    return sorted(_agreeing(findings), key=_urgency)


def _agreeing(findings: list[Finding]) -> list[Finding]:
    """Return the findings without the advice to fix a hyperparameter that is to be searched further.

    It may explain little of the whole study, and yet the best trials crowd against its bound, or its best value
    depends on that of another.
    """
    crowded = {
        finding.subject.rpartition(", ")[0]
        for finding in findings
        if finding.check == "boundary" and finding.verdict is Verdict.FLAG
    }
    interacting = interacting_names(findings)
    agreeing = []
    for finding in findings:
        if finding.check == "sensitivity" and finding.verdict is Verdict.FLAG:
            reasons = {"is_at_bound": finding.subject in crowded, "interacts": finding.subject in interacting}
            told = {name: 1 for name, holds in reasons.items() if holds}
            if told:
                finding = replace(finding, verdict=Verdict.NO_EVIDENCE, numbers={**finding.numbers, **told})
        agreeing.append(finding)
    return agreeing


def _urgency(finding: Finding) -> tuple[int, int, str]:
    place = _ORDER.index(finding.check)
    # Hyperparameters that change nothing at all never reached training.
    if finding.check == "budget" and finding.verdict is Verdict.FLAG and finding.numbers.get("spread") == 0:
        place = 0
    return _VERDICTS.index(finding.verdict), place, finding.subject


def _retrain_sd(trials: Trials) -> float | None:
    variance = estimate_trial_variance([trials.objective[rows] for rows in collect_retrains(trials)])
    return variance.sd if variance.freedom >= _MIN_FREEDOM and variance.sd > 0 else None


def _batch_sizes(trials: Trials, goal: float) -> list[Finding]:
    fewest = fewest_steps(trials, goal)
    fit = critical_batch_size(fewest.batch_size, fewest.steps, last_steps=fewest.last_step, budget=fewest.budget)
    return check_critical_batch_size(fit)
