"""What does the page say of a procedure as a whole? What it found and recommends, and its runs in one picture.

Playbook: the sections of the procedures in playbook_plugins.optuna, which this folder does not import: any object of
the shape of their results will do.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from playbook_plugins.analysis import FewestSteps, Finding, Parameter, Role, TrialRecord, Trials
from playbook_plugins.charts import (
    Chart,
    learning_rate_sweep_chart,
    retrain_chart,
    run_comparison_chart,
    steps_to_target_chart,
    warmup_sweep_chart,
)
from playbook_plugins.charts.learning_rate_sweep import learning_rates
from playbook_plugins.charts.palette import TRIAL_COLOURS
from playbook_plugins.report.phrases import config_text
from playbook_plugins.report.study import describe_findings


@runtime_checkable
class Procedure(Protocol):
    """The outcome of a procedure, as `playbook_plugins.optuna.ProtocolResult`."""

    @property
    def findings(self) -> Sequence[Finding]:
        """What was asked and answered, in the order in which it is to be read."""

    @property
    def recommendation(self) -> Mapping[str, Any]:
        """Entries for the configuration of what follows."""

    @property
    def trials(self) -> Mapping[str, Trials]:
        """The runs, by stage."""


def stages_of(result: Procedure) -> dict[str, Trials]:
    """Return the stages that have runs."""
    return {name: trials for name, trials in result.trials.items() if len(trials)}


def name_of(result: Procedure) -> str:
    """Return the name that the procedure was given: its stages are studies named after it."""
    first = next(iter(result.trials.values())).name
    return first.rpartition("/")[0] or first


def describe_procedure(result: Procedure) -> dict[str, Any]:
    """Return what every form of the report says of a procedure above its stages."""
    return {
        "findings": describe_findings(result.findings),
        "recommendation": {name: config_text(value) for name, value in result.recommendation.items()},
    }


def draw_procedure(result: Procedure) -> list[Chart]:
    """Return the pictures that lay the runs of a procedure side by side; none where they have no such picture."""
    stages = stages_of(result)
    steps = getattr(result, "steps", None)
    if isinstance(steps, FewestSteps):
        return [steps_to_target_chart(steps)] if len(steps.batch_size) else []
    searched = {parameter.name for trials in stages.values() for parameter in _searched(trials)}
    if "warmup_steps" in searched:
        return [
            warmup_sweep_chart(trials)
            for trials in stages.values()
            if any(parameter.name == "warmup_steps" for parameter in _searched(trials))
        ]
    # Runs that broke before their first evaluation may not know what the objective is called.
    known = [trials for trials in stages.values() if trials.is_feasible.any()] or list(stages.values())
    first = known[0]
    if any((trials.direction, trials.objective_name) != (first.direction, first.objective_name) for trials in known):
        return []
    if len(searched) == 1 and all(map(learning_rates, stages.values())):
        # By a name, because the numbers of several stages are no longer those of one.
        return [learning_rate_sweep_chart({name_of(result): _one_sweep(list(stages.values()), first, *searched)})]
    retrains = _retrains(result, stages, searched)
    if retrains:
        return [retrain_chart(retrains, direction=first.direction, objective_name=first.objective_name)]
    records = _single_runs(stages)
    if 2 <= len(records) <= len(TRIAL_COLOURS):
        has_training = any(np.isfinite(record.curve.train).any() for record in records.values())
        return [run_comparison_chart(records, split="training" if has_training else "validation")]
    return []


def _searched(trials: Trials) -> list[Parameter]:
    return [parameter for parameter in trials.parameters if parameter.role is not Role.FIXED]


def _one_sweep(stages: Sequence[Trials], like: Trials, rate: str) -> Trials:
    """Return the runs of all stages as one sweep of the learning rate, with the objective of one of them.

    `Trials.concat` is for the studies of one round: it would take their different ranges for branches.
    """
    widest = functools.reduce(Parameter.widen, (trials.parameter(rate) for trials in stages))
    return Trials.from_columns(
        stages[0].name,
        [widest],
        {rate: np.concatenate([trials.values[rate] for trials in stages])},
        np.concatenate([trials.objective for trials in stages]),
        direction=like.direction,
        objective_name=like.objective_name,
        status=[status for trials in stages for status in trials.status],
        reason=[reason for trials in stages for reason in trials.reason],
        max_steps=np.concatenate([trials.max_steps for trials in stages]),
        curves=[curve for trials in stages for curve in trials.curves],
        number=np.concatenate([trials.number for trials in stages]),
    )


def _retrains(result: Procedure, stages: Mapping[str, Trials], searched: Collection[str]) -> dict[str, Sequence[float]]:
    """Return what each configuration reached with several seeds, the baseline first; nothing where they differ in more.

    The baseline's may have been known before.
    """
    if searched or all(len(trials) < 2 for trials in stages.values()):
        return {}
    known = getattr(getattr(result, "incumbent", None), "objectives", ())
    groups = {"baseline": known} if len(known) and "baseline" not in stages else {}
    return groups | {name: trials.objective.tolist() for name, trials in sorted(stages.items())}


def _single_runs(stages: Mapping[str, Trials]) -> dict[str, TrialRecord]:
    """Return the record of each stage that is one run, by the name of the stage."""
    if any(len(trials) != 1 for trials in stages.values()):
        return {}
    records = ((name, trials.record(0)) for name, trials in stages.items())
    return {name: record for name, record in records if record is not None}
