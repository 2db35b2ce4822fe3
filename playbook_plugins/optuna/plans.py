"""How is a procedure of the playbook carried out: configurations that are known beforehand, each trained once?

Playbook: its procedures (a learning rate sweep, warmup tuning, retraining) are lists of runs. Here such a list is an
Optuna study whose i-th trial trains the i-th configuration: it resumes where it was killed, runs on any number of
workers, and shows in every tool that reads studies.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from playbook_plugins.analysis.parameters import Role
from playbook_plugins.analysis.records import Direction, TrialRecord
from playbook_plugins.analysis.trials import Trials
from playbook_plugins.optuna.indices import sequence_indices
from playbook_plugins.optuna.round_space import Entry
from playbook_plugins.optuna.running import run_round, wrap_training
from playbook_plugins.optuna.trials import PLAN_KEY, trials_from_study

TrainConfig: TypeAlias = Callable[[dict[str, Any]], TrialRecord]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The runs of a procedure, in order, for `run_plan`.

    Attributes
    ----------
    goal
        The question that they answer.
    points
        What each run varies, by hyperparameter; numbers, text, booleans or None.
    fixed
        What all runs share.
    passed
        What each run also gets without being told apart by it, such as its seed: runs that differ in nothing else are
        retrains of one configuration. Empty, or one a point.
    log
        The numbers of the points whose scale is logarithmic.

    Raises
    ------
    ValueError
        When there is no point, when a point has a value of another kind or a name that is fixed too, or when ``passed``
        has another length than ``points``.
    """

    goal: str
    points: tuple[Mapping[str, Any], ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    passed: tuple[Mapping[str, Any], ...] = ()
    log: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that each point is a configuration of its own."""
        if not self.points:
            raise ValueError("`points` is empty: a plan has at least one run. Pass the configurations to be trained.")
        if len(self.passed) not in (0, len(self.points)):
            raise ValueError(
                f"`passed` has {len(self.passed)} entries for {len(self.points)} points: it must have one a point, or "
                "none at all. Pass as many."
            )
        for point in self.points:
            for name, value in point.items():
                if name in self.fixed:
                    raise ValueError(
                        f"`points` varies {name!r}, which `fixed` holds at {self.fixed[name]!r}: a run can have one "
                        "value only. Leave it out of one of them."
                    )
                if not is_plain(value):
                    raise ValueError(
                        f"`points` has {value!r} for {name!r}: a study can hold Python's numbers, text, booleans and "
                        "None. Name the value by one of these, and let `train` look it up."
                    )

    def config(self, place: int) -> dict[str, Any]:
        """Return the whole configuration of one run."""
        passed = self.passed[place] if self.passed else {}
        return {**self.fixed, **self.points[place], **passed}

    def space(self) -> dict[str, BaseDistribution]:
        """Return the range that the points span, by hyperparameter, in order of appearance."""
        values: dict[str, list[Any]] = {}
        for point in self.points:
            for name, value in point.items():
                values.setdefault(name, []).append(value)
        return {name: _range(column, name in self.log) for name, column in values.items()}

    def to_json(self) -> str:
        """Return the plan as JSON, the form kept in its study."""
        return json.dumps(
            {
                "version": 1,
                "goal": self.goal,
                "points": [dict(point) for point in self.points],
                "fixed": dict(self.fixed),
                "passed": [dict(passed) for passed in self.passed],
                "log": list(self.log),
            }
        )


def run_plan(
    plan: Plan,
    train: TrainConfig,
    *,
    study_name: str,
    storage: str | optuna.storages.BaseStorage | None = None,
    direction: Direction = "minimize",
    n_jobs: int = 1,
) -> Trials:
    """Train each configuration of a plan that has no finished run yet, and return them all.

    Parameters
    ----------
    plan
        The runs.
    train
        ``train(config) -> TrialRecord``. Divergence, out of memory and `InfeasibleError` are results; any other
        exception is the user's to see.
    study_name, storage, direction
        As in `optuna.create_study`. A study of the same plan is gone on with; several workers may share it.
    n_jobs
        As in `optuna.Study.optimize`.

    Returns
    -------
    Trials
        One row a configuration, in the order of the plan; ``number`` is its place in the plan.

    Raises
    ------
    ValueError
        When the study holds another plan or trials of none.

    Examples
    --------
    >>> from playbook_plugins.analysis import Curve, TrialRecord
    >>> def train(config):
    ...     curve = Curve.from_columns([10], [abs(config["width"] - 50) / config["depth"]])
    ...     return TrialRecord(direction="minimize", curve=curve, max_steps=10)
    >>> points = ({"width": 32}, {"width": 64})
    >>> trials = run_plan(Plan(goal="Which width?", points=points, fixed={"depth": 2}), train, study_name="widths")
    >>> trials.objective.tolist()
    [9.0, 7.0]
    """
    study = open_plan(plan, study_name=study_name, storage=storage, direction=direction)
    return train_plan(study, plan, train, n_jobs=n_jobs)


def open_plan(
    plan: Plan, *, study_name: str, storage: str | optuna.storages.BaseStorage | None, direction: Direction
) -> optuna.Study:
    """Return the study of a plan, made where there is none; it raises what `run_plan` does."""
    study = optuna.create_study(
        study_name=study_name,
        storage=storage,
        direction=direction,
        load_if_exists=True,
        sampler=PlanSampler(plan),
    )
    _keep(plan, study)
    return study


def train_plan(study: optuna.Study, plan: Plan, train: TrainConfig, *, n_jobs: int) -> Trials:
    """Train what a plan's study of `open_plan` lacks, and return all its runs."""
    space = plan.space()

    def suggest(trial: optuna.Trial) -> dict[str, Any]:
        place = place_of(trial.study, trial.number)
        for name in plan.points[place]:
            Entry(name, name, space[name], Role.NUISANCE).suggest(trial)
        return plan.config(place)

    run_round(
        study,
        wrap_training(suggest, lambda config, _: train(config), None),
        len(plan.points),
        n_jobs=n_jobs,
        timeout=None,
        callbacks=(),
        catch=(),
        older_than=None,
    )
    return planned_trials(study)


def is_plain(value: Any) -> bool:
    """Return whether a study can hold a value as that of a hyperparameter."""
    return value is None or isinstance(value, bool | int | float | str)


def planned_trials(study: optuna.Study) -> Trials:
    """Return the runs of a plan's study, in the order of the plan; another worker's may still be running."""
    trials = trials_from_study(study)
    indices = sequence_indices(study.get_trials(deepcopy=False))
    places = [indices[number] for number in trials.number.tolist()]
    rows = sorted((place, row) for row, place in enumerate(places) if place is not None)
    return trials.select([row for _, row in rows])


class PlanSampler(BaseSampler):
    """Gives each trial the values of its place in the plan, whoever runs it.

    Parameters
    ----------
    plan
        The runs.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def infer_relative_search_space(
        self,
        study: optuna.Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
    ) -> dict[str, BaseDistribution]:
        """Return an empty space: each value is looked up when it is asked for."""
        return {}

    def sample_relative(
        self,
        study: optuna.Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,  # noqa: ARG002
    ) -> Any:
        """Return the value that the trial's place in the plan names."""
        return self.plan.points[place_of(study, trial.number)][param_name]


def place_of(study: optuna.Study, number: int) -> int:
    """Return the place in the plan of a trial, by its number.

    Raises
    ------
    ValueError
        When the user enqueued the trial: it has no place.
    """
    place = sequence_indices(study.get_trials(deepcopy=False))[number]
    if place is None:
        raise ValueError(
            f"`study` {study.study_name!r} has the enqueued trial {number}: a planned study trains the configurations "
            "of its plan and no others. Train yours in a study of its own."
        )
    return place


def _keep(plan: Plan, study: optuna.Study) -> None:
    # In this order: a worker that came first keeps its plan before its first trial.
    has_trials = bool(study.get_trials(deepcopy=False))
    kept = study.user_attrs.get(PLAN_KEY)
    if kept is None and has_trials:
        raise ValueError(
            f"`study_name` is {study.study_name!r}: this study has trials, but no plan is kept in it. Choose another "
            "name for the procedure's study."
        )
    if kept is not None and json.loads(kept) != json.loads(plan.to_json()):
        raise ValueError(
            f"`study_name` is {study.study_name!r}: this study was begun with other runs, so that it cannot go on with "
            "these. Call the procedure with the arguments it was begun with, or choose another name."
        )
    if kept is None:
        study.set_user_attr(PLAN_KEY, plan.to_json())


def _range(values: Sequence[Any], is_log: bool) -> BaseDistribution:
    if all(type(value) is int for value in values):
        return IntDistribution(min(values), max(values), log=is_log and min(values) > 0)
    if all(type(value) in (int, float) and math.isfinite(value) for value in values):
        return FloatDistribution(float(min(values)), float(max(values)), log=is_log and min(values) > 0)
    return CategoricalDistribution(list({repr(value): value for value in values}.values()))
