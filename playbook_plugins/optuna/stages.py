"""What do the stages of all procedures share? Training to the end, the verdict on one run, and the base configuration.

Playbook: "Identifying unstable workloads" for what an unstable run is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.storages import BaseStorage

from playbook_plugins.analysis.findings import Verdict
from playbook_plugins.analysis.records import Curve, Direction, Status, TrialRecord
from playbook_plugins.analysis.stability import check_stability
from playbook_plugins.analysis.trials import Trials
from playbook_plugins.optuna.baseline import Baseline
from playbook_plugins.optuna.plans import Plan, TrainConfig, open_plan, train_plan
from playbook_plugins.optuna.trials import kept_record
from playbook_plugins.optuna.waiting import finish_together


@dataclass(frozen=True, kw_only=True)
class Stability:
    """Whether one run was stable: True, False, or None where nobody can tell; and what made it unstable."""

    is_stable: bool | None
    kind: str | None = None
    step: int | None = None


def judge_stability(record: TrialRecord) -> Stability:
    """Return whether a run was stable, as `check_stability` judges its loss; a gradient norm alone does not count.

    It is unknown of a run with fewer than 50 evaluations, and of one that is infeasible for another reason.
    """
    losses = [finding for finding in check_stability(record) if finding.check != "gradient norm spike"]
    for finding in losses:
        if finding.verdict is Verdict.FLAG:
            step = finding.numbers["step"]
            return Stability(is_stable=False, kind=finding.check, step=None if step is None else int(step))
    is_judged = any(one.verdict is Verdict.NO_EVIDENCE for one in losses if one.check != "non-finite")
    return Stability(is_stable=True if is_judged and record.status is Status.COMPLETE else None)


def train_stage(
    plan: Plan,
    train: TrainConfig,
    *,
    study_name: str,
    storage: BaseStorage,
    direction: Direction,
    n_jobs: int,
) -> tuple[Trials, tuple[TrialRecord, ...]]:
    """Train a plan to its end, other workers' share included, and return its table and records in the plan's order.

    What comes next depends on all of a stage: a worker that went ahead of another's last run would plan other runs.
    """
    study = open_plan(plan, study_name=study_name, storage=storage, direction=direction)
    trials = finish_together(lambda: train_plan(study, plan, train, n_jobs=n_jobs), len(plan.points))
    frozen = study.get_trials(deepcopy=False)
    records = tuple(
        kept_record(frozen[number])
        or TrialRecord(
            direction=direction, status=status, reason=reason, curve=Curve.from_columns([], []), max_steps=-1
        )
        for number, status, reason in zip(trials.number.tolist(), trials.status, trials.reason, strict=True)
    )
    return trials, records


def check_config(config: Mapping[str, Any], entries: Mapping[str, str]) -> None:
    """Refuse a base configuration that holds what a procedure sets, or what a study cannot keep.

    Parameters
    ----------
    config
        The base configuration.
    entries
        The names of the entries that the procedure sets, by the argument that names them.

    Raises
    ------
    ValueError
        When there is such an entry.
    """
    # It refuses what JSON cannot hold, before anything is trained.
    Baseline(config=config)
    for argument, name in entries.items():
        if config.get(name) is not None:
            raise ValueError(
                f"`config` has {name!r} = {config[name]!r}, which this procedure sets itself. Leave the entry out, or "
                f"name the one to set by `{argument}`."
            )
