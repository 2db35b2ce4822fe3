"""Which changes of the search space does each finding ask for? The rules of `next_round`, one function each.

Playbook: "Identifying bad search space boundaries", "Identifying scientific, nuisance, and fixed hyperparameters",
"Exploration vs exploitation".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from optuna.distributions import FloatDistribution, IntDistribution

from playbook_plugins.analysis.findings import Finding, Verdict
from playbook_plugins.analysis.good_region import CUT, check_good_region
from playbook_plugins.analysis.parameters import Role
from playbook_plugins.analysis.sensitivity import check_sensitivity
from playbook_plugins.analysis.trials import Trials
from playbook_plugins.optuna.new_bounds import Numeric, Side, narrow, scaled_width, widen
from playbook_plugins.optuna.round_space import Entry

_OUTER = 0.2
_MOSTLY = 0.5
SIDES: tuple[Side, Side] = ("lower", "upper")


class Move(StrEnum):
    """What a change does."""

    WIDEN = "widen"
    KEEP = "keep"
    NARROW = "narrow"
    FIX = "fix"
    STABILIZE = "stabilize"
    MORE_TRIALS = "more trials"
    MEND = "mend"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One proposed change and its reason.

    Attributes
    ----------
    move
        WIDEN or NARROW a bound; KEEP one that is flagged but cannot move (its domain ends there) or must not (it is
        scientific, so it is part of the question); FIX a hyperparameter; STABILIZE training by warmup and gradient
        clipping instead of widening; MORE_TRIALS; MEND the training code, because no trial is feasible.
    subject
        ``"learning_rate, upper"``, ``"dropout"``, ``"n_trials"`` or ``"study"``: names as the study stores them.
    before, after
        The bound, the range (of a hyperparameter that becomes fixed) and its value, or the number of trials; equal
        where nothing moves, None where there is no number.
    finding
        What the change rests on.
    """

    move: Move
    subject: str
    before: Any
    after: Any
    finding: Finding


def by_subject(findings: Sequence[Finding]) -> dict[tuple[str, str], list[Finding]]:
    """Return the findings of each side, by the hyperparameter's name and the side."""
    sides: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        name, _, side = finding.subject.rpartition(", ")
        sides.setdefault((name, side), []).append(finding)
    return sides


def is_settled(findings: Sequence[Finding]) -> bool:
    """Return whether a side was looked at with enough data, without a flag for any scientific value."""
    return any(
        finding.verdict is Verdict.NO_EVIDENCE and "value" not in finding.numbers for finding in findings
    ) and all(finding.verdict is not Verdict.FLAG for finding in findings)


def widen_flagged(
    entries: Sequence[Entry],
    sides: Mapping[tuple[str, str], Sequence[Finding]],
    trials: Trials,
    limits: Mapping[str, tuple[float, float]],
) -> tuple[list[Change], dict[str, Numeric], float]:
    """Return the changes of flagged sides, the wider ranges, and how many times larger the search space becomes."""
    changes = []
    wider: dict[str, Numeric] = {}
    growth = 1.0
    for entry in entries:
        before = entry.distribution
        if not isinstance(before, FloatDistribution | IntDistribution):
            continue
        for side in SIDES:
            flagged = [finding for finding in sides.get((entry.stored, side), ()) if finding.verdict is Verdict.FLAG]
            if not flagged:
                continue
            edges = [finding for finding in flagged if finding.check == "stability edge"]
            reason = min(edges or flagged, key=_strength)
            now = wider.get(entry.stored, before)
            broken = _share_infeasible(trials, entry.stored, side)
            if broken > _MOSTLY:
                reason = replace(reason, numbers={**reason.numbers, "share_infeasible_outer": broken})
            if edges or broken > _MOSTLY:
                move, moved = Move.STABILIZE, now
            elif entry.role is Role.SCIENTIFIC:
                move, moved = Move.KEEP, now
            else:
                # From the range before, so that the order of the two sides does not count.
                moved = _with_side(now, widen(entry.given, before, side, limits.get(entry.stored)), side)
                move = Move.KEEP if moved == now else Move.WIDEN
            if move is Move.WIDEN:
                wider[entry.stored] = moved
            bounds = (before.low, moved.low) if side == "lower" else (before.high, moved.high)
            changes.append(
                Change(move=move, subject=f"{entry.stored}, {side}", before=bounds[0], after=bounds[1], finding=reason)
            )
        if entry.stored in wider:
            growth *= scaled_width(wider[entry.stored]) / scaled_width(before)
    return changes, wider, growth


def _share_infeasible(trials: Trials, name: str, side: Side) -> float:
    """Return the infeasible share, in [0, 1], of the trials in the outer 20% of a scaled range; 0 without any."""
    parameter = trials.parameter(name)
    rows = np.flatnonzero(trials.is_judged & trials.has(name))
    unit = parameter.to_unit(trials.values[name][rows])
    there = trials.is_infeasible[rows][unit <= _OUTER if side == "lower" else unit >= 1 - _OUTER]
    return float(there.mean()) if len(there) else 0.0


def _with_side(space: Numeric, other: Numeric, side: Side) -> Numeric:
    """Return a range with one bound of another range of its kind."""
    if isinstance(space, IntDistribution):
        low, high = (other.low, space.high) if side == "lower" else (space.low, other.high)
        return IntDistribution(int(low), int(high), log=space.log, step=space.step)
    low, high = (other.low, space.high) if side == "lower" else (space.low, other.high)
    return FloatDistribution(low, high, log=space.log, step=space.step)


def _strength(finding: Finding) -> float:
    """Return the smallest p-value that a finding rests on."""
    chances = [finding.numbers.get("p"), finding.numbers.get("slope_p")]
    return min((float(chance) for chance in chances if isinstance(chance, int | float)), default=1.0)


def stabilize_mostly_infeasible(
    feasibility: Finding, changes: Sequence[Change], entries: Sequence[Entry]
) -> list[Change]:
    """Return the change for a mostly infeasible study, unless a stability edge has said it already."""
    if feasibility.verdict is not Verdict.FLAG or any(change.move is Move.STABILIZE for change in changes):
        return []
    name, side = feasibility.numbers.get("explained_by"), feasibility.numbers.get("explained_side")
    bound = None
    for entry in entries:
        if entry.stored == name and isinstance(entry.distribution, FloatDistribution | IntDistribution):
            bound = entry.distribution.low if side == "lower" else entry.distribution.high
    subject = "study" if name is None else f"{name}, {side}"
    return [Change(move=Move.STABILIZE, subject=subject, before=bound, after=bound, finding=feasibility)]


def fix_insensitive(entries: Sequence[Entry], settled: set[str], trials: Trials) -> list[Change]:
    """Return the changes that fix insensitive nuisances, the least important first, while each branch keeps one."""
    findings = {finding.subject: finding for finding in check_sensitivity(trials)}
    # What an earlier round fixed in a branch is a range of one value, and no longer searched.
    searched = [entry for entry in entries if entry.role is Role.NUISANCE and not entry.distribution.single()]
    shared = {entry.stored for entry in searched if entry.condition is None}
    conditions = {entry.condition for entry in entries if entry.condition is not None}
    left = [shared | {entry.stored for entry in searched if entry.condition == condition} for condition in conditions]
    left = left or [shared]
    changes = []
    for entry in reversed(entries):
        finding = findings.get(entry.stored)
        if entry.stored not in settled or finding is None or finding.verdict is not Verdict.FLAG:
            continue
        if any(names == {entry.stored} for names in left):
            continue
        for names in left:
            names.discard(entry.stored)
        row = next(row for row in trials.ranking() if trials.has(entry.stored)[row])
        value = trials.config(int(row))[entry.stored]
        changes.append(
            Change(move=Move.FIX, subject=entry.stored, before=entry.distribution, after=value, finding=finding)
        )
    return changes


def narrow_to_good_region(
    entries: Sequence[Entry], settled: set[str], trials: Trials
) -> tuple[list[Change], dict[str, Numeric]]:
    """Return the changes of ranges whose ends the good trials stay away from, and the narrower ranges."""
    findings = {finding.subject: finding for finding in check_good_region(trials)}
    changes = []
    narrower: dict[str, Numeric] = {}
    for entry in entries:
        before = entry.distribution
        if entry.stored not in settled or not isinstance(before, FloatDistribution | IntDistribution):
            continue
        for side in SIDES:
            subject = f"{entry.stored}, {side}"
            finding = findings.get(subject)
            if finding is None or finding.verdict is not Verdict.FLAG:
                continue
            now = narrower.get(entry.stored, before)
            moved = _with_side(now, narrow(before, side, CUT), side)
            if moved != now:
                narrower[entry.stored] = moved
                bounds = (before.low, moved.low) if side == "lower" else (before.high, moved.high)
                changes.append(
                    Change(move=Move.NARROW, subject=subject, before=bounds[0], after=bounds[1], finding=finding)
                )
    return changes, narrower
