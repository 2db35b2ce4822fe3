"""What does a study look like to the analysis? The one table that every check and every chart reads.

Playbook: "Designing the next round of experiments" for the roles of hyperparameters, "Extracting insight from
experimental results" for what is asked of the trials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from playbook_plugins.analysis.joining import join_search_spaces
from playbook_plugins.analysis.objectives import Moment, judge_by
from playbook_plugins.analysis.parameters import Parameter, Role
from playbook_plugins.analysis.points import point_codes, point_coordinates
from playbook_plugins.analysis.records import Curve, Direction, Status, TrialRecord
from playbook_plugins.analysis.trials_html import trials_html


@dataclass(frozen=True, kw_only=True, eq=False)
class Trials:
    """The columnar table of one study. Everything in analysis/ and charts/ reads this and nothing else.

    All columns have one entry a trial, in the order of the trial numbers.

    Attributes
    ----------
    name
        The study's name.
    direction
        ``"minimize"`` or ``"maximize"``.
    objective_name
        What the objective measures, for labels.
    parameters
        The search space.
    values
        One column a hyperparameter: float64 of shape (n_trials,) with NaN where a trial lacks it, or an object array
        with None for a categorical one.
    objective
        float64 of shape (n_trials,), in the objective's unit. The worst possible value (+inf when minimizing, -inf
        when maximizing) for infeasible trials; NaN where there is none (running, failed, pruned without a value).
    status
        Object array of `Status`, shape (n_trials,).
    reason
        Why a trial is infeasible, failed or pruned, in the words of whoever found it; "" where there is none.
    number
        int64 of shape (n_trials,): the trial numbers of the study.
    best_step, max_steps
        int64 of shape (n_trials,), in optimizer steps; -1 where unknown.
    curves
        One `Curve` a trial, or None where no curve was kept.
    fixed
        The fixed hyperparameters and their values.
    goal
        The question of the round; "" where the study has none.
    caveats
        What the fixed values limit, one sentence each.
    """

    name: str
    direction: Direction
    parameters: tuple[Parameter, ...]
    values: Mapping[str, NDArray[Any]]
    objective: NDArray[np.float64]
    status: NDArray[np.object_]
    reason: tuple[str, ...]
    number: NDArray[np.int64]
    best_step: NDArray[np.int64]
    max_steps: NDArray[np.int64]
    curves: tuple[Curve | None, ...]
    objective_name: str = "objective"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    goal: str = ""
    caveats: tuple[str, ...] = ()
    _units: dict[str, NDArray[np.float64]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check that the columns fit together."""
        if self.direction not in ("minimize", "maximize"):
            raise ValueError(
                f"`direction` is {self.direction!r}: it must be 'minimize' or 'maximize'. Pass the direction in which "
                "the objective gets better."
            )
        columns: dict[str, int] = {
            "objective": len(self.objective),
            "status": len(self.status),
            "reason": len(self.reason),
            "best_step": len(self.best_step),
            "max_steps": len(self.max_steps),
            "curves": len(self.curves),
            **{f"values[{name!r}]": len(column) for name, column in self.values.items()},
        }
        for column, length in columns.items():
            if length != len(self.number):
                raise ValueError(
                    f"`{column}` has {length} entries, but there are {len(self.number)} trials: every column has one "
                    "entry a trial. Fill what is unknown with NaN, None, -1 or ''."
                )
        missing = [parameter.name for parameter in self.parameters if parameter.name not in self.values]
        if missing:
            raise ValueError(
                f"`values` has no column for {missing}: every hyperparameter in `parameters` needs one. Add a column, "
                "with NaN or None where a trial lacks the hyperparameter."
            )

    @classmethod
    def from_columns(
        cls,
        name: str,
        parameters: Sequence[Parameter],
        values: Mapping[str, ArrayLike],
        objective: ArrayLike,
        *,
        direction: Direction = "minimize",
        status: Sequence[Status] | None = None,
        reason: Sequence[str] | None = None,
        best_step: ArrayLike | None = None,
        max_steps: ArrayLike | None = None,
        curves: Sequence[Curve | None] | None = None,
        **more: Any,
    ) -> Trials:
        """Build the table from plain columns; what is left out is unknown.

        Parameters
        ----------
        name, parameters, direction
            As the attributes.
        values
            One column a hyperparameter, shape (n_trials,).
        objective
            Shape (n_trials,). Without ``status``, a finite value means a complete trial and any other an infeasible
            one.
        status, reason, best_step, max_steps, curves
            As the attributes.
        **more
            Other attributes by name: objective_name, fixed, goal, caveats, number.

        Returns
        -------
        Trials
            With the objective of every infeasible trial set to the worst possible value.
        """
        outcome = np.array(objective, dtype=np.float64)
        n_trials = len(outcome)
        if status is None:
            status = [Status.COMPLETE if np.isfinite(value) else Status.INFEASIBLE for value in outcome]
        states = np.empty(n_trials, dtype=object)
        states[:] = list(status)
        outcome[states == Status.INFEASIBLE] = np.inf if direction == "minimize" else -np.inf
        columns: dict[str, NDArray[Any]] = {}
        kinds = {parameter.name: parameter.kind for parameter in parameters}
        for column, entries in values.items():
            if kinds.get(column) == "categorical":
                table = np.empty(n_trials, dtype=object)
                # A numpy string is not the str that the choices hold.
                table[:] = [entry.item() if isinstance(entry, np.generic) else entry for entry in entries]  # type: ignore[union-attr]
                columns[column] = table
            else:
                columns[column] = np.array(entries, dtype=np.float64)
        unknown = np.full(n_trials, -1, dtype=np.int64)
        return cls(
            name=name,
            direction=direction,
            parameters=tuple(parameters),
            values=columns,
            objective=outcome,
            status=states,
            reason=tuple(reason) if reason is not None else ("",) * n_trials,
            number=np.asarray(more.pop("number", np.arange(n_trials)), dtype=np.int64),
            best_step=unknown if best_step is None else np.asarray(best_step, dtype=np.int64),
            max_steps=unknown if max_steps is None else np.asarray(max_steps, dtype=np.int64),
            curves=tuple(curves) if curves is not None else (None,) * n_trials,
            **more,
        )

    @classmethod
    def concat(cls, tables: Sequence[Trials], name: str | None = None) -> Trials:
        """Join the studies of one round, for instance one study a scientific value, into one table.

        A fixed hyperparameter whose value differs between the studies becomes a scientific one. A hyperparameter that
        some study lacks, or has with another range, is a branch: ``learning_rate`` of the studies with
        ``optimizer = adam`` becomes ``adam.learning_rate``, conditional on it.

        Parameters
        ----------
        tables
            At least one table, all of one direction.
        name
            The name of the joint table; by default the names of the studies, joined.

        Returns
        -------
        Trials
            The trials in the order of the tables, numbered anew from 0.

        Raises
        ------
        ValueError
            When there is no table, the directions differ, or studies of one scientific value disagree on a range.
        """
        if not tables:
            raise ValueError("`tables` is empty: there is nothing to join. Pass the tables of at least one study.")
        directions = sorted({table.direction for table in tables})
        if len(directions) > 1:
            raise ValueError(
                f"`tables` have the directions {directions}: studies of one round measure one objective. Join only "
                "studies of one direction."
            )
        space = join_search_spaces(tables)
        goals = list(dict.fromkeys(table.goal for table in tables if table.goal))
        return cls.from_columns(
            name or ", ".join(table.name for table in tables),
            space.parameters,
            space.values,
            np.concatenate([table.objective for table in tables]),
            direction=tables[0].direction,
            status=[status for table in tables for status in table.status],
            reason=[reason for table in tables for reason in table.reason],
            best_step=np.concatenate([table.best_step for table in tables]),
            max_steps=np.concatenate([table.max_steps for table in tables]),
            curves=[curve for table in tables for curve in table.curves],
            objective_name=tables[0].objective_name,
            fixed=space.fixed,
            goal=goals[0] if len(goals) == 1 else "",
            caveats=tuple(caveat for caveat in tables[0].caveats if all(caveat in table.caveats for table in tables)),
        )

    def with_objective(
        self, objective: str, *, direction: Direction | None = None, moment: Moment | None = None
    ) -> Trials:
        """Return the same trials judged by another objective, read from their curves after the fact.

        It is fair after a search that did not look at results: an adaptive one has sought the old objective.

        Parameters
        ----------
        objective
            ``"final"``, the validation objective at the last evaluation; ``"validation"``; ``"train"``, the training
            objective; or the name of another metric of the curves.
        direction
            In which it gets better. By default that of the study for the validation objective; of any other what
            `guess_direction` of analysis/objectives.py says from its name or its course.
        moment
            Which evaluation counts: ``"best"``, the best by this objective (the default); ``"best step"``, the one at
            which the trial was best by the old objective, whose checkpoint would be kept; or ``"final"``, the last.
            Evaluations at which the objective is unknown or not finite do not count.

        Returns
        -------
        Trials
            With the objective, its name, the direction and the best steps replaced, and with it as the validation
            objective of the curves, whose old one is kept among their metrics. Infeasible trials stay infeasible;
            those whose curve does not know the objective have none (NaN) and are not judged.

        Raises
        ------
        ValueError
            When no curve knows the objective, or an argument is none of what it may be.
        """
        return replace(self, **judge_by(self, objective, direction, moment))

    def __len__(self) -> int:
        """Return the number of trials."""
        return len(self.number)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: counts and the best trials."""
        return trials_html(self)

    @property
    def cost(self) -> NDArray[np.float64]:
        """The objective turned so that lower is better, shape (n_trials,); +inf for infeasible trials."""
        return self.objective if self.direction == "minimize" else -self.objective

    @property
    def is_feasible(self) -> NDArray[np.bool_]:
        """Which trials completed with a finite objective, shape (n_trials,)."""
        return np.asarray((self.status == Status.COMPLETE) & np.isfinite(self.objective), dtype=np.bool_)

    @property
    def is_infeasible(self) -> NDArray[np.bool_]:
        """Which trials diverged, ran out of memory or broke another constraint, shape (n_trials,)."""
        return np.asarray(self.status == Status.INFEASIBLE, dtype=np.bool_)

    @property
    def is_judged(self) -> NDArray[np.bool_]:
        """Which trials say something about their point, feasible or infeasible, shape (n_trials,).

        Pruned, running and failed trials do not: they stopped for reasons that are not the point's own.
        """
        return self.is_feasible | self.is_infeasible

    def ranking(self) -> NDArray[np.intp]:
        """Return the rows of the feasible trials, the best first; ties in the order of the trial numbers."""
        rows = np.flatnonzero(self.is_feasible)
        return rows[np.argsort(self.cost[rows], kind="stable")]

    def parameter(self, name: str) -> Parameter:
        """Return one hyperparameter by name.

        Raises
        ------
        ValueError
            When the study has no such hyperparameter.
        """
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        raise ValueError(
            f"`parameter` is {name!r}: the study {self.name!r} has no such hyperparameter. "
            f"Pass one of {[parameter.name for parameter in self.parameters]}."
        )

    def has(self, parameter: str) -> NDArray[np.bool_]:
        """Return which trials have a value of a hyperparameter, shape (n_trials,)."""
        return ~np.isnan(self.unit(parameter))

    def unit(self, parameter: str) -> NDArray[np.float64]:
        """Return the places of all trials in the range of a hyperparameter, shape (n_trials,): see `Parameter.to_unit`.

        Computed once, because every check asks for them; the array cannot be written to.
        """
        if parameter not in self._units:
            self._units[parameter] = self.parameter(parameter).to_unit(self.values[parameter])
            self._units[parameter].flags.writeable = False
        return self._units[parameter]

    def ranks(self, parameter: str) -> NDArray[np.intp]:
        """Return the places of all trials among the choices of a category, shape (n_trials,): see `Parameter.ranks`."""
        unit = self.unit(parameter)
        n_choices = len(self.parameter(parameter).choices)
        return np.where(np.isnan(unit), -1, np.floor(np.nan_to_num(unit) * n_choices)).astype(np.intp)

    def distinct(self, rows: ArrayLike) -> NDArray[np.intp]:
        """Return one row a distinct point of the nuisance hyperparameters: that of its best trial.

        Paired scientific values and retrains repeat points; K trials at one point are not K witnesses of a question
        about a nuisance. Exclusive branches are compared by the places in their ranges, because paired branches get
        the same places of their own ranges.

        Parameters
        ----------
        rows
            Row indices, shape (n,).

        Returns
        -------
        ndarray
            Row indices, shape (n_points,), ascending.
        """
        chosen = np.asarray(rows, dtype=np.intp)
        varied = [parameter for parameter in self.parameters if parameter.role is not Role.SCIENTIFIC]
        if not varied:
            return chosen
        point = point_codes(point_coordinates(self, varied, chosen), len(chosen))
        best_first = np.argsort(np.nan_to_num(self.cost[chosen], nan=np.inf), kind="stable")
        _, first = np.unique(point[best_first], return_index=True)
        return np.sort(chosen[best_first[first]])

    def config(self, row: int) -> dict[str, Any]:
        """Return the searched hyperparameters of one trial (by row), without those that it lacks."""
        config: dict[str, Any] = {}
        for parameter in self.parameters:
            value = self.values[parameter.name][row]
            if parameter.kind == "categorical":
                if parameter.rank(value) is not None:
                    config[parameter.name] = value
            elif not np.isnan(value):
                is_whole = parameter.kind == "int" and np.isfinite(value)
                config[parameter.name] = int(value) if is_whole else float(value)
        return config

    def record(self, row: int) -> TrialRecord | None:
        """Return what the table knows of one trial (by row) as a record; None where there is no curve to judge."""
        curve = self.curves[row]
        if curve is None or not np.isfinite(curve.validation).any():
            return None
        return TrialRecord(
            direction=self.direction,
            curve=curve,
            objective_name=self.objective_name,
            status=self.status[row],
            reason=self.reason[row],
            max_steps=int(self.max_steps[row]),
        )

    def select(self, rows: ArrayLike) -> Trials:
        """Return the table of some trials only.

        Parameters
        ----------
        rows
            A boolean mask of shape (n_trials,), or row indices.
        """
        chosen = np.asarray(rows)
        places = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen.astype(np.intp)
        return replace(
            self,
            values={name: column[places] for name, column in self.values.items()},
            objective=self.objective[places],
            status=self.status[places],
            reason=tuple(self.reason[place] for place in places),
            number=self.number[places],
            best_step=self.best_step[places],
            max_steps=self.max_steps[places],
            curves=tuple(self.curves[place] for place in places),
        )
