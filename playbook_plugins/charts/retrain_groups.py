"""Which retrains stand side by side in the chart of retrains, and what does the analysis say of them?

Playbook: "Determining whether to adopt a training pipeline change or hyperparameter configuration".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from playbook_plugins.analysis import (
    Role,
    Trials,
    check_adoption,
    collect_retrains,
    compare_retrains,
    estimate_trial_variance,
)
from playbook_plugins.analysis.records import Direction
from playbook_plugins.charts.theme import label

MAX_CONFIGURATIONS = 12
# Of Student's t, for the two-sided 90% interval of `compare_retrains`.
_TAIL = 0.95
_HUGE = 1e100


@dataclass(frozen=True, kw_only=True, eq=False)
class RetrainGroup:
    """The retrains of one configuration: their objectives, the trial that the search made, and all trial numbers."""

    name: str
    values: NDArray[np.float64]
    search: float | None = None
    numbers: tuple[int, ...] = ()


def groups_of_study(trials: Trials) -> list[RetrainGroup]:
    """Return the retrained configurations of a study, that of the best trial of the search first."""
    points = collect_retrains(trials)
    # Where the study has no other configuration, nothing was chosen and no trial is the search's.
    is_search = len(points) > 1 or any(len(point) < trials.is_judged.sum() for point in points)
    points.sort(key=lambda point: float(trials.cost[point[0]]))
    return [
        RetrainGroup(
            name=", ".join([*_scientific(trials, int(point[0])), f"trial {trials.number[point[0]]}"]),
            values=trials.objective[point[int(is_search) :]],
            search=float(trials.objective[point[0]]) if is_search else None,
            numbers=tuple(trials.number[point].tolist()),
        )
        for point in points[:MAX_CONFIGURATIONS]
    ]


def _scientific(trials: Trials, row: int) -> list[str]:
    """Return the categorical scientific values of a trial, by which `check_adoption` names the two it compares."""
    return [
        label(trials.values[parameter.name][row], 24)
        for parameter in trials.parameters
        if parameter.role is Role.SCIENTIFIC and not parameter.is_numeric and trials.has(parameter.name)[row]
    ]


def check_groups(groups: Sequence[RetrainGroup]) -> None:
    """Raise a ValueError where there is nothing to show, or more than has room."""
    if not groups or not any(len(group.values) for group in groups):
        raise ValueError(
            "`retrains` has no retrain: there is nothing to show. Train a configuration again with other seeds, and "
            "pass the objectives by configuration, or the study."
        )
    if len(groups) > MAX_CONFIGURATIONS:
        raise ValueError(
            f"`retrains` has {len(groups)} configurations: at most {MAX_CONFIGURATIONS} have room side by side. Pass "
            "fewer."
        )


def mean_and_interval(group: RetrainGroup) -> tuple[float, float, float] | None:
    """Return the mean and its 90% interval, NaN where it has no spread, None where a retrain diverged."""
    if not len(group.values) or not np.isfinite(group.values).all():
        return None
    # As in analysis/trial_variance.py: squares of larger ones leave the floating-point numbers.
    mean = float(np.mean(np.clip(group.values, -_HUGE, _HUGE)))
    variance = estimate_trial_variance([group.values])
    if not variance.freedom:
        return mean, math.nan, math.nan
    margin = float(scipy.special.stdtrit(variance.freedom, _TAIL)) * variance.sd / math.sqrt(len(group.values))
    return mean, mean - margin, mean + margin


def comparison_of(
    retrains: Mapping[str, ArrayLike] | Trials, groups: Sequence[RetrainGroup], direction: Direction
) -> tuple[str, str, dict[str, Any]] | None:
    """Return the names of candidate and baseline and what their retrains say; None where nothing compares two."""
    if isinstance(retrains, Trials):
        for finding in check_adoption(retrains):
            numbers = finding.numbers
            if numbers.get("p") is not None:
                return str(numbers["winner"]), str(numbers["runner_up"]), dict(numbers)
        return None
    if len(groups) != 2 or min(len(group.values) for group in groups) < 2:
        return None
    baseline, candidate = groups
    return candidate.name, baseline.name, dict(vars(compare_retrains(candidate.values, baseline.values, direction)))


def headline(comparison: tuple[str, str, dict[str, Any]] | None, groups: Sequence[RetrainGroup]) -> list[str]:
    """Return the lines of the subtitle: effect and probability, or else the spread."""
    if comparison is None:
        variance = estimate_trial_variance([group.values for group in groups])
        if not variance.freedom:
            return ["Too few retrains for a spread"]
        return [f"Retrains differ by a standard deviation of {variance.sd:.3g}"]
    candidate, baseline, numbers = comparison
    effect, low, high = numbers["improvement"], numbers["low"], numbers["high"]
    name, other = label(candidate, 24), label(baseline, 24)
    chance = f"better with probability {_chance_text(float(numbers['probability']))}"
    if effect is None or not math.isfinite(effect):
        return [f"{name} is {chance} than {other}"]
    change = (
        f"{abs(effect):.3g} {'better' if effect > 0 else 'worse'} than {other}" if effect else f"as good as {other}"
    )
    if numbers["method"] == "rank":
        change += " in the median"
    elif low is not None and high is not None:
        change += f" ({numbers['confidence']:.0%} interval {low:+.3g} to {high:+.3g})"
    return [f"{name} is {change}", chance]


def _chance_text(chance: float) -> str:
    return "above 99.9%" if chance > 0.999 else "below 0.1%" if chance < 0.001 else f"{chance:.1%}"
