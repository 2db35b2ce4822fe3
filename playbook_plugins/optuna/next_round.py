"""What should the next round of experiments search, given what this one found?

Playbook: "Designing the next round of experiments", "Identifying bad search space boundaries", "Exploration vs
exploitation". The proposal is a new round beside the reasons for each change; nothing is applied by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from playbook_plugins.analysis.boundaries import check_boundaries
from playbook_plugins.analysis.feasibility import check_feasibility
from playbook_plugins.analysis.findings import Finding, Verdict
from playbook_plugins.analysis.interactions import check_interactions, interacting_names
from playbook_plugins.analysis.trials import Trials
from playbook_plugins.optuna.changes import (
    SIDES,
    Change,
    Move,
    by_subject,
    fix_insensitive,
    is_settled,
    narrow_to_good_region,
    stabilize_mostly_infeasible,
    widen_flagged,
)
from playbook_plugins.optuna.new_bounds import Numeric
from playbook_plugins.optuna.round_space import Entry, list_entries, sort_entries
from playbook_plugins.optuna.rounds import Round

_MOST_MORE = 2.0


@dataclass(frozen=True, kw_only=True)
class NextRound:
    """A proposal for the next round.

    Attributes
    ----------
    round
        The proposed round; the same object where nothing in it would change.
    changes
        Why, in the order of the search space, then the number of trials.
    n_more
        The trials still to run in it: those added to the same sequence, or all of a changed search space; 0 where the
        round stays as it is, and the Bayesian phase can follow.
    chance_of_improvement
        n_more / (n + n_more), in [0, 1), with n trials judged so far: the chance that the best of the new trials beats
        the best so far, were all drawn alike. A better search space has a better chance.
    """

    round: Round
    changes: tuple[Change, ...]
    n_more: int
    chance_of_improvement: float


def next_round(
    round: Round,
    trials: Trials,
    *,
    goal: str | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None,
) -> NextRound:
    """Propose changed bounds, roles and counts, each with its reason.

    - A bound that the boundary check flags, for the study or for one scientific value, is **widened**: on a log scale
      by a third of the range's decades and by a factor of 3 at least, on a linear scale to 3 times the width, never
      beyond the domain (`new_bounds.widen`). A branch's hyperparameter is widened in its own branch.
    - A **stability edge**, for the study or for one scientific value, is sent to warmup and clipping: that side stays.
      So does a flagged side at which most trials of the outer 20% are infeasible, whatever the trend before it says.
    - A number without a flag or edge, and with enough data on both sides, may be **fixed** to the best trial's value
      where `check_sensitivity` shows it to matter little and `check_interactions` flags no pair of it; the fixed value
      brings its caveat. At least one nuisance stays for every branch; in a branch, the fixed value is a range of one
      value. Otherwise the outer quarter of its range may be **narrowed** away where `check_good_region` finds that the
      good trials stay away from its end: neither the best trial nor the best 20%, of the study or of a scientific
      value, is ever cut.
    - **More trials**: twice as many where a bound had too little data, and in proportion to the widening, up to twice
      as many.

    The scientific hyperparameters, the goal, the baseline and the chance level stay. Where only the count changes, the
    seed stays too, so that the round's own study goes on (``create_study(..., load_if_exists=True)``). Otherwise the
    new round draws new points: a given seed is raised by 1, and a seed that follows from the study's name changes with
    the new name. Categorical nuisance hyperparameters stay as they are.

    Parameters
    ----------
    round
        The round that was run.
    trials
        Its trials, from `trials_from_study`, or joined by `Trials.concat`. While the round still runs, the proposal
        is a preview.
    goal
        The goal of the next round; by default the same.
    limits
        The smallest and largest values that hyperparameters can ever take, by their names in the study:
        ``{"batch_size": (1, 4096)}``.

    Returns
    -------
    NextRound
        The proposal. It is not applied by itself.

    Raises
    ------
    ValueError
        When the trials are not the round's, none has finished, or limits are given for an unknown hyperparameter.
    """
    _check_arguments(round, trials, limits or {})
    feasibility = check_feasibility(trials)[0]
    if feasibility.numbers.get("all_infeasible"):
        return NextRound(
            round=round,
            changes=(Change(move=Move.MEND, subject="study", before=None, after=None, finding=feasibility),),
            n_more=0,
            chance_of_improvement=0.0,
        )
    entries = list(list_entries(round.scientific, round.nuisance, round.conditional))
    sides = by_subject(check_boundaries(trials))
    changes, widened, growth = widen_flagged(entries, sides, trials, limits or {})
    changes += stabilize_mostly_infeasible(feasibility, changes, entries)
    touched = {change.subject.rpartition(",")[0] for change in changes}
    settled = {
        entry.stored
        for entry in entries
        if entry.stored not in touched and all(is_settled(sides.get((entry.stored, side), ())) for side in SIDES)
    }
    # What must be tuned together with another is not fixed, however little it explains.
    together = interacting_names(check_interactions(trials))
    fixes = fix_insensitive(entries, settled - together, trials)
    narrowings, narrowed = narrow_to_good_region(entries, settled - {change.subject for change in fixes}, trials)
    values = {change.subject: change.after for change in fixes}
    space = _apply(entries, widened | narrowed, values)
    is_changed = space != entries
    too_little = any(
        finding.verdict is Verdict.TOO_LITTLE_DATA and "value" not in finding.numbers
        for findings in sides.values()
        for finding in findings
    )
    times = max(2.0 if too_little else 1.0, min(_MOST_MORE, growth))
    # A ratio of logarithms misses a whole number by its last bits.
    n_trials = math.ceil(round.n_trials * times - 1e-9)
    n_more = n_trials if is_changed else n_trials - round.n_trials
    n_judged = int(trials.is_judged.sum())
    chance = n_more / (n_judged + n_more)
    changes = _in_order([*changes, *fixes, *narrowings], entries)
    if n_trials > round.n_trials:
        finding = Finding(
            check="budget",
            subject="study",
            verdict=Verdict.TOO_LITTLE_DATA if too_little else Verdict.NO_EVIDENCE,
            numbers={"n_judged": n_judged, "n_more": n_more, "chance_of_improvement": chance, "growth": growth},
            section="Not sampling enough points in the search space",
        )
        changes.append(
            Change(move=Move.MORE_TRIALS, subject="n_trials", before=round.n_trials, after=n_trials, finding=finding)
        )
    is_same = not is_changed and n_trials == round.n_trials and goal in (None, round.goal)
    proposed = round if is_same else _new_round(round, space, values, goal, n_trials, is_changed)
    return NextRound(round=proposed, changes=tuple(changes), n_more=n_more, chance_of_improvement=chance)


def _check_arguments(round: Round, trials: Trials, limits: Mapping[str, tuple[float, float]]) -> None:
    known = {parameter.name for parameter in trials.parameters}
    stored = [entry.stored for entry in list_entries(round.scientific, round.nuisance, round.conditional)]
    missing = [name for name in stored if name not in known]
    if missing:
        raise ValueError(
            f"`trials` is the table of {trials.name!r}, which lacks the hyperparameters {missing} of the round: the "
            "proposal rests on the round's own trials. Pass trials_from_study(study) of the round's study."
        )
    if not trials.is_judged.any():
        raise ValueError(
            f"`trials` is the table of {trials.name!r}, which has no finished trial: there is nothing to learn from "
            "yet. Run the round first."
        )
    unknown = [name for name in limits if name not in stored]
    if unknown:
        raise ValueError(
            f"`limits` names {unknown}: the round searches no such hyperparameter. Give limits for some of {stored}, "
            "by the names in the study."
        )


def _apply(entries: Sequence[Entry], ranges: Mapping[str, Numeric], values: Mapping[str, Any]) -> list[Entry]:
    """Return the new search space; a fixed value in a branch is a range of one value, as `fixed` holds for all."""
    space = []
    for entry in entries:
        if entry.stored not in values:
            space.append(replace(entry, distribution=ranges.get(entry.stored, entry.distribution)))
        elif entry.condition is not None:
            space.append(replace(entry, distribution=_single(entry.distribution, values[entry.stored])))
    return space


def _single(space: BaseDistribution, value: Any) -> BaseDistribution:
    if isinstance(space, IntDistribution):
        return IntDistribution(value, value, log=space.log)
    return FloatDistribution(value, value, log=isinstance(space, FloatDistribution) and space.log)


def _in_order(changes: Sequence[Change], entries: Sequence[Entry]) -> list[Change]:
    names = [entry.stored for entry in entries]

    def place(change: Change) -> int:
        name = change.subject.removesuffix(", lower").removesuffix(", upper")
        return names.index(name) if name in names else -1

    return sorted(changes, key=place)


def _new_round(
    round: Round, space: Sequence[Entry], values: Mapping[str, Any], goal: str | None, n_trials: int, is_changed: bool
) -> Round:
    scientific, nuisance, conditional = sort_entries(space)
    shared = {name: value for name, value in values.items() if name in round.nuisance}
    return Round(
        round.goal if goal is None else goal,
        scientific=scientific,
        nuisance=nuisance,
        fixed=round.fixed | shared,
        conditional=conditional,
        n_trials=n_trials,
        chance_level=round.chance_level,
        seed=round.seed + 1 if is_changed and round.seed is not None else round.seed,
        baseline=round.baseline,
    )
