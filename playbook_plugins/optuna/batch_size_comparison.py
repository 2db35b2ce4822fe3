"""Which batch size trains fastest? Steps, and where known seconds, to one goal, each size at its own best.

Playbook: "Choosing the batch size to minimize training time", "Changing the batch size requires re-tuning most
hyperparameters". The batch size is no means to a better validation result: what is compared is how fast one and the
same goal is reached.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution

from playbook_plugins.analysis.batch_size import (
    SECTION,
    CriticalBatchSize,
    check_critical_batch_size,
    critical_batch_size,
)
from playbook_plugins.analysis.boundaries import check_boundaries
from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.records import Direction
from playbook_plugins.analysis.steps_to_target import FewestSteps, fewest_steps, steps_to_target
from playbook_plugins.analysis.trials import Trials
from playbook_plugins.optuna.plans import TrainConfig
from playbook_plugins.optuna.protocols import ProtocolResult
from playbook_plugins.optuna.rounds import Round
from playbook_plugins.optuna.trials import kept_record, trials_from_study
from playbook_plugins.optuna.waiting import finish_together


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchSizeComparison(ProtocolResult):
    """The outcome of `compare_batch_sizes`.

    Attributes
    ----------
    steps
        The fewest steps to the goal at each batch size that was watched.
    seconds
        float64 of shape (n_sizes,), the sizes of ``steps``: what these steps take, in seconds; +inf where the goal was
        missed, NaN where the throughput is not known.
    scaling
        Scaling regimes and critical batch size.
    """

    steps: FewestSteps
    seconds: NDArray[np.float64]
    scaling: CriticalBatchSize


def compare_batch_sizes(
    train: TrainConfig,
    config: Mapping[str, Any],
    *,
    batch_sizes: Sequence[int],
    nuisance: Mapping[str, BaseDistribution],
    goal: float,
    n_trials: int,
    batch_size: str = "batch_size",
    sampler_seed: int | None = None,
    study_name: str,
    storage: str | optuna.storages.BaseStorage | None = None,
    direction: Direction = "minimize",
    n_jobs: int = 1,
) -> BatchSizeComparison:
    """Search the nuisance hyperparameters anew at each batch size, and compare the fewest steps to a goal.

    One quasi-random search in which every batch size faces the same points. All sizes get the same number of trials:
    the fewest steps of many trials are fewer than those of few. Give all the same number of steps, enough for the
    smallest size to reach the goal: with the same number of epochs only perfect scaling can be seen.

    Parameters
    ----------
    train
        ``train(config) -> TrialRecord``; it may end a run at the goal. The finer the evaluations, the better.
    config
        What all runs share, without the batch size and the nuisances.
    batch_sizes
        At least two, in examples per step over all devices; four that reach the goal, each twice the one before, are
        what a critical batch size needs.
    nuisance
        The hyperparameters to tune again at each size, as Optuna distributions, in order of importance: the learning
        rate first, then the optimizer's others and regularization.
    goal
        In the objective's unit; it has to be beaten strictly.
    n_trials
        Trials of each batch size.
    batch_size
        The entry of the configuration that takes the batch size.
    sampler_seed
        The draw of the quasi-random sequence; by default it follows from the study's name.
    study_name
        The stage is ``"<study_name>/search"``.
    storage, direction, n_jobs
        As in `optuna.create_study` and `optuna.Study.optimize`.

    Returns
    -------
    BatchSizeComparison
        ``recommendation`` is the batch size with the nuisances of its fastest trial: the size with the fewest seconds
        to the goal where the records hold the throughput at every size that reached it (of equals the smallest), else
        the largest whose last doubling still saves a tenth of the steps; empty where fewer than two sizes reached the
        goal, or larger ones need more steps, which shows that they are not tuned as well. Findings:

        - those of `check_critical_batch_size`;
        - ``"batch size"`` of its entry: FLAG with a recommendation, else TOO_LITTLE_DATA. Numbers: ``goal``,
          ``n_trials`` (of each size), ``n_sizes``, ``n_reached``, ``batch_size`` (recommended), ``by``
          (``"seconds"`` or ``"steps"``), ``steps`` and ``seconds`` to the goal with it; ``runner_up`` and its
          ``runner_up_steps`` and ``runner_up_seconds`` (by seconds); ``smallest``, ``largest`` and their
          ``steps_at_smallest`` and ``steps_at_largest`` (sizes that reached the goal). It is a comparison and has no
          known rate of errors.
        - those of `check_boundaries` on steps to the goal, of the study and of each size by itself: a size whose
          fastest trials lie at a bound has not been tuned. A trial that missed the goal is slower than any that
          reached it, and they rank by their objective.

    Raises
    ------
    ValueError
        When fewer than two sizes are given, one is not positive or comes twice, no nuisance is, a name is searched
        and also an entry of ``config``, ``n_trials`` is below 1, the goal is not finite or met without training, or
        the study was begun with other arguments.
    """
    _check(config, batch_sizes, nuisance, goal, n_trials, batch_size)
    round_ = Round(
        f"After how many steps does training beat {goal:g}, at each {batch_size}?",
        scientific={batch_size: list(batch_sizes)},
        nuisance=nuisance,
        fixed=config,
        n_trials=n_trials * len(batch_sizes),
        seed=sampler_seed,
    )
    study = round_.create_study(
        study_name=f"{study_name}/search", storage=storage, direction=direction, load_if_exists=True
    )
    trials = _search(round_, study, train, n_jobs)
    steps = fewest_steps(trials, goal, batch_size)
    if np.any(steps.steps == 0):
        raise ValueError(
            f"`goal` is {goal}: the first evaluation, before any step, is better already. Choose a goal that takes "
            "training to beat."
        )
    seconds = _seconds(trials, steps, batch_size, _throughputs(study))
    scaling = critical_batch_size(steps.batch_size, steps.steps, last_steps=steps.last_step, budget=steps.budget)
    checks = check_critical_batch_size(scaling)
    is_comparable = checks[0].verdict is Verdict.NO_EVIDENCE
    chosen, numbers = _choose(steps, seconds, scaling if is_comparable else None)
    finding = Finding(
        check="batch size",
        subject=batch_size,
        verdict=Verdict.TOO_LITTLE_DATA if chosen is None else Verdict.FLAG,
        numbers={"goal": goal, "n_trials": n_trials, **numbers},
        section=SECTION,
    )
    recommendation = {} if chosen is None else trials.config(int(steps.best_row[chosen]))
    return BatchSizeComparison(
        findings=(*checks, finding, *check_boundaries(by_steps(trials, goal))),
        recommendation=recommendation,
        trials={"search": trials},
        steps=steps,
        seconds=seconds,
        scaling=scaling,
    )


def by_steps(trials: Trials, goal: float) -> Trials:
    """Return the same trials judged by their steps to a goal, fewer being better.

    Parameters
    ----------
    trials
        The study.
    goal
        In the objective's unit; it has to be beaten strictly.

    Returns
    -------
    Trials
        With the steps as objective, to be minimized. Trials that missed the goal follow those that reached it, in the
        order of their own objective, each one step more than the one before. Infeasible trials stay infeasible.
    """
    steps = np.array(
        [
            steps_to_target(curve, goal, trials.direction).steps if is_feasible and curve is not None else math.nan
            for curve, is_feasible in zip(trials.curves, trials.is_feasible, strict=True)
        ]
    )
    steps[trials.is_infeasible] = np.inf
    missed = [row for row in trials.ranking() if math.isinf(steps[row])]
    watched = [curve.step[-1] for curve in trials.curves if curve is not None and len(curve)]
    steps[missed] = max(watched, default=0) + 1.0 + np.arange(len(missed))
    return replace(trials, objective=steps, objective_name="steps to target", direction="minimize")


def _search(round_: Round, study: optuna.Study, train: TrainConfig, n_jobs: int) -> Trials:
    """Carry out the round, and wait for what other workers still run of it: the comparison is that of all trials."""

    def carry_out() -> Trials:
        round_.optimize(study, lambda config, _: train(config), n_jobs=n_jobs)
        return trials_from_study(study)

    return finish_together(carry_out, round_.n_trials)


def _throughputs(study: optuna.Study) -> dict[int, float]:
    """Return the examples per second of each trial that knows them, by its number."""
    records = {trial.number: kept_record(trial) for trial in study.get_trials(deepcopy=False)}
    known = {number: record.examples_per_second for number, record in records.items() if record is not None}
    return {number: value for number, value in known.items() if math.isfinite(value) and value > 0}


def _seconds(
    trials: Trials, steps: FewestSteps, parameter: str, throughput: Mapping[int, float]
) -> NDArray[np.float64]:
    """Return what the fewest steps of each size take, at the median throughput of its trials."""
    column = [None if value is None else int(value) for value in trials.values[parameter].tolist()]
    seconds = np.full(len(steps.batch_size), np.nan)
    for place, size in enumerate(steps.batch_size.tolist()):
        known = [
            throughput[number]
            for number, own in zip(trials.number.tolist(), column, strict=True)
            if own == size and number in throughput
        ]
        if known:
            seconds[place] = steps.steps[place] * size / float(np.median(known))
    return seconds


def _choose(
    steps: FewestSteps, seconds: NDArray[np.float64], scaling: CriticalBatchSize | None
) -> tuple[int | None, dict[str, Number]]:
    """Return the row of the recommended size, None without one, and what speaks for it."""
    reached = np.flatnonzero(np.isfinite(steps.steps))
    numbers: dict[str, Number] = {"n_sizes": len(steps.batch_size), "n_reached": len(reached)}
    if not len(reached):
        return None, numbers
    first, last = int(reached[0]), int(reached[-1])
    numbers |= {
        "smallest": int(steps.batch_size[first]),
        "largest": int(steps.batch_size[last]),
        "steps_at_smallest": float(steps.steps[first]),
        "steps_at_largest": float(steps.steps[last]),
    }
    if scaling is None or len(reached) < 2:
        return None, numbers
    if np.isfinite(seconds[reached]).all():
        chosen, other = (int(row) for row in reached[np.argsort(seconds[reached], kind="stable")][:2])
        numbers |= {
            "by": "seconds",
            "seconds": float(seconds[chosen]),
            "runner_up": int(steps.batch_size[other]),
            "runner_up_steps": float(steps.steps[other]),
            "runner_up_seconds": float(seconds[other]),
        }
    else:
        chosen = int(np.flatnonzero(steps.batch_size == scaling.largest_useful)[0])
        numbers |= {"by": "steps"}
    return chosen, numbers | {"batch_size": int(steps.batch_size[chosen]), "steps": float(steps.steps[chosen])}


def _check(
    config: Mapping[str, Any],
    batch_sizes: Sequence[int],
    nuisance: Mapping[str, BaseDistribution],
    goal: float,
    n_trials: int,
    batch_size: str,
) -> None:
    sizes = list(batch_sizes)
    is_whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
    if not is_whole or len(set(sizes)) < max(2, len(sizes)):
        raise ValueError(
            f"`batch_sizes` is {sizes}: at least two different, positive whole numbers of examples per step are "
            "compared. Pass for instance [64, 128, 256, 512]."
        )
    if not nuisance:
        raise ValueError(
            "`nuisance` is {}: most hyperparameters have to be tuned again for each batch size, or the comparison is "
            "one of luck. Pass at least the learning rate with its distribution."
        )
    if batch_size in nuisance:
        raise ValueError(
            f"`nuisance` has {batch_size!r}, which is compared: it cannot be optimized over as well. Leave it out."
        )
    both = [name for name in (batch_size, *nuisance) if name in config]
    if both:
        raise ValueError(
            f"`config` has {both}, which the comparison varies: their values would be overwritten. Leave them out of "
            "`config`, or out of the search."
        )
    if not math.isfinite(goal):
        raise ValueError(
            f"`goal` is {goal}: a goal must be finite. Pass the value of the objective that is to be beaten."
        )
    if n_trials < 1:
        raise ValueError(f"`n_trials` is {n_trials}: each batch size needs at least 1 trial. Pass a positive number.")
